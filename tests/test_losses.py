"""The masked loss against plain arithmetic, and what must not reach the gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss

from deepchest_utils.models.losses import masked_bce, prevalence_entropy

NAN = math.nan
LAWS = settings(max_examples=80)


@st.composite
def batches(draw, limit: float = 30.0):
    """Logits (B, K) and labels of 1, 0 and NaN."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 4)))
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(-limit, limit)))
    labels = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, NAN])))
    return logits, labels


def plain_bce(logit: float, label: float) -> float:
    """-log of the probability of the label, without the subtraction from one that loses digits."""
    return math.log1p(math.exp(-logit if label == 1 else logit))


@LAWS
@given(batches())
def test_loss_is_the_mean_over_the_known_labels(batch):
    logits, labels = batch
    found = masked_bce(torch.from_numpy(logits), torch.from_numpy(labels))
    for k in range(logits.shape[1]):
        known = [plain_bce(x, y) for x, y in zip(logits[:, k], labels[:, k], strict=True) if not math.isnan(y)]
        # float32 works with numbers of the logits' size: 30 of them are known to 4e-6
        assert found[k].item() == pytest.approx(sum(known) / max(len(known), 1), rel=1e-5, abs=4e-6)


def test_loss_equals_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), (rng.random((50, 3)) < 0.3).astype(float)
    labels[rng.random((50, 3)) < 0.2] = NAN
    found = masked_bce(torch.from_numpy(logits), torch.from_numpy(labels))
    for k in range(3):
        known = ~np.isnan(labels[:, k])
        p = 1 / (1 + np.exp(-logits[known, k]))
        assert found[k].item() == pytest.approx(log_loss(labels[known, k], p), rel=1e-6)


@LAWS
@given(batches(limit=1e4))
def test_gradient_is_finite_and_zero_wherever_the_label_is_unknown(batch):
    logits, labels = (torch.from_numpy(a) for a in batch)
    logits.requires_grad_()
    losses = masked_bce(logits, labels)
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    losses.sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[labels.isnan()] == 0).all()
    known = ~labels.isnan()
    expected = (logits.detach().sigmoid() - labels) / known.sum(0).clamp(min=1)
    torch.testing.assert_close(logits.grad[known], expected[known], rtol=1e-4, atol=1e-7)


def test_task_without_a_known_label_has_loss_zero():
    logits = torch.randn(6, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0.0, NAN], [1.0, NAN]] * 3)
    losses = masked_bce(logits, labels)
    assert losses[1].item() == 0
    losses[1].backward()
    assert (logits.grad == 0).all()  # not -0 or NaN: exactly nothing reaches the trunk


def test_bf16_logits_are_scored_in_float32():
    logits = torch.tensor([[3.0], [-1.5], [0.25]], dtype=torch.bfloat16, requires_grad=True)
    labels = torch.tensor([[1.0], [0.0], [NAN]])
    loss = masked_bce(logits, labels)
    assert loss.dtype == torch.float32
    expected = (plain_bce(3.0, 1) + plain_bce(-1.5, 0)) / 2  # the three logits are exact in bfloat16
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad[2].item() == 0


def test_labels_and_logits_are_not_changed():
    logits, labels = torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, NAN]])
    masked_bce(logits, labels)
    assert logits.tolist() == [[0.5, 1.0]]
    assert labels[0, 1].isnan()


def test_entropy_is_the_loss_of_the_best_constant_predictor():
    constants = np.linspace(-12, 12, 240_001)  # logits, 1e-4 apart
    for positives, n in ((1, 1000), (3, 100), (1, 4), (1, 2), (9, 10)):
        p = positives / n
        best = (p * np.logaddexp(0, -constants) + (1 - p) * np.logaddexp(0, constants)).min()
        found = prevalence_entropy(torch.tensor([p], dtype=torch.float64)).item()
        assert found <= best
        assert found == pytest.approx(best, rel=1e-6)


def test_entropy_at_the_ends():
    found = prevalence_entropy(torch.tensor([0.0, 1.0, 0.5, NAN], dtype=torch.float64))
    assert found.tolist() == pytest.approx([0, 0, math.log(2), NAN], nan_ok=True)
