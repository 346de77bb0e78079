"""Root: its closed form, its limits, and that it evens out what it says it evens out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepchest_utils import make_method
from deepchest_utils.losses import masked_bce
from deepchest_utils.weighting.root import LEAST, Root

PREVALENCE = torch.tensor([0.02, 0.3, 0.1], dtype=torch.float64)


def entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def step(method: Root, losses) -> list[float]:
    """The gradient by each loss: the weights of the step."""
    losses = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    method.backward(losses)
    return losses.grad.tolist()


def by_hand(start, batches, power, window):
    """The paper-and-pencil version: a list of weights a step."""
    running, out = [float(h) for h in start], []
    for batch in batches:
        raw = [max(m, LEAST * h) ** -power for m, h in zip(running, start, strict=True)]
        out.append([w * len(raw) / sum(raw) for w in raw])
        running = [
            m if loss == 0 else m + (loss - m) / window for m, loss in zip(running, batch, strict=True)
        ]
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.0, 3.0), min_size=3, max_size=3), min_size=1, max_size=30),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([1, 5, 100]),
)
def test_weights_are_those_of_the_formula(batches, power, window):
    method = make_method("root", 3, power=power, window=window)
    method.begin(PREVALENCE)
    expected = by_hand(entropy(PREVALENCE.numpy()), batches, power, window)
    for batch, weights in zip(batches, expected, strict=True):
        assert step(method, batch) == pytest.approx(weights, rel=1e-9)
        assert sum(weights) == pytest.approx(3)
    assert method.weights.tolist() == pytest.approx(np.mean(expected, axis=0), rel=1e-9)  # what the log gets


def test_starts_as_one_over_the_root_of_the_entropy_and_power_zero_is_equal():
    root, static = make_method("root", 3), make_method("inverse_sqrt_entropy", 3)
    for method in (root, static):
        method.begin(PREVALENCE)
    torch.testing.assert_close(root.current(), static.weights)
    equal = make_method("root", 3, power=0.0)
    equal.begin(PREVALENCE)
    assert [step(equal, [0.1, 2.0, 0.5]) for _ in range(3)] == [[1, 1, 1]] * 3


def test_its_step_is_that_of_the_sum_of_roots():
    """With the running means at the losses, the gradient is that of sum_k 2 sqrt(L_k), but for the scale."""
    losses = torch.tensor([0.05, 0.6, 0.2], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad((2 * losses.sqrt()).sum(), losses)
    method = Root(3, window=1)
    step(method, losses.tolist())
    torch.testing.assert_close(
        torch.tensor(step(method, losses.tolist())), (expected / expected.mean()), check_dtype=False
    )


def test_relative_counts_what_was_learned_alone():
    method = make_method("root", 3, window=1, relative=True)
    method.begin(PREVALENCE)
    assert step(method, (entropy(PREVALENCE.numpy()) * [1, 0.25, 1]).tolist()) == pytest.approx([1, 1, 1])
    assert step(method, [1.0, 1.0, 1.0]) == pytest.approx([0.75, 1.5, 0.75])


def test_a_task_of_which_nothing_is_known_weighs_one():
    method = Root(3, window=1)
    assert step(method, [0.1, 0.0, 0.4]) == [1, 1, 1]
    first, unknown, third = step(method, [0.1, 0.0, 0.4])
    assert unknown == 1
    assert first / third == pytest.approx(2)
    assert first + third == pytest.approx(2)


def test_a_task_without_a_loss_keeps_its_running_mean_and_a_learned_one_stays_bounded():
    method = make_method("root", 3, window=1)
    method.begin(PREVALENCE)
    start = method.running.clone()
    step(method, [0.0, 1e-12, 0.3])
    assert method.running[0] == start[0]
    weights = method.current()
    assert weights.isfinite().all()
    assert weights[1] / weights[2] == pytest.approx(math.sqrt(0.3 / (LEAST * start[1].item())))


def test_it_evens_out_the_noise_of_logits():
    """Tasks that differ in prevalence alone, at a network that knows the prevalence: the variance of sigma - y is p (1 - p), and
    w^2 times it differs far less between tasks than with equal weights."""
    p = torch.tensor([0.3, 0.1, 0.03, 0.01, 0.003], dtype=torch.float64)
    method = make_method("root", 5)
    method.begin(p)
    noise = p * (1 - p)
    spread = (method.current() ** 2 * noise).log()
    assert spread.max() - spread.min() < 0.3 * (noise.log().max() - noise.log().min())


def test_window_follows_a_falling_loss():
    """A task that is learned gains weight, at the pace of the window."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(64, 2, generator=generator) < 0.2).float()
    method = make_method("root", 2, window=20)
    method.begin(torch.tensor([0.2, 0.2]))
    before = method.current()
    for confidence in torch.linspace(0, 3, 60):
        logits = torch.stack(
            [(2 * labels[:, 0] - 1) * confidence, torch.full((64,), -1.386)], 1
        ).requires_grad_()
        method.backward(masked_bce(logits, labels))
    after = method.current()
    assert before.tolist() == [1, 1]
    assert after[0] > 1.25 > 0.8 > after[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"power": 1.5}, "power.*between 0 and 1.*1.5"),
        ({"power": float("nan")}, "power.*nan"),
        ({"window": 0}, "window.*at least 1.*0"),
        ({"window": float("inf")}, "window.*inf"),
    ],
)
def test_bad_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        make_method("root", 3, **options)
