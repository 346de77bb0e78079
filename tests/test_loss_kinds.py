"""Each loss against its paper's formula written out with plain numbers, its best constant, and what it may not touch."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from deepchest_utils import EpochReport, TrainConfig, make_loss
from deepchest_utils.__main__ import parse
from deepchest_utils.config import LOSSES, split_spec
from deepchest_utils.models.losses import count_known, masked_bce, prevalence_entropy
from deepchest_utils.models.network import prevalence_logit
from deepchest_utils.results.labels import method_label
from deepchest_utils.sweep import make_trials

NAN = math.nan
# of 4 findings in training: 30, 5 and 100 of 200 positive, and one with unknown labels, 8 of 80
TRAIN = np.zeros((200, 4))
for k, (positive, known) in enumerate([(30, 200), (5, 200), (100, 200), (8, 80)]):
    TRAIN[:positive, k], TRAIN[known:, k] = 1, NAN
POSITIVES, NEGATIVES = np.array([30, 5, 100, 8.0]), np.array([170, 195, 100, 72.0])
KINDS = [
    "bce", "balanced", 'balanced(over="finding")', "focal", "focal(gamma=0.5, alpha=None)", "asymmetric",
    "asymmetric(gamma_neg=0.5, gamma_pos=1, margin=0)", "logit_adjusted", "logit_adjusted(tau=0.5)", "ldam", "ldam(defer=0)",
]  # fmt: skip


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def batch(seed: int = 0, size: int = 40, scale: float = 3.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((size, 4)) < POSITIVES / (POSITIVES + NEGATIVES) + 0.1).astype(float)
    labels[rng.random((size, 4)) < 0.2] = NAN
    return rng.normal(size=(size, 4)) * scale, labels


def plain(name: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(K,) by loops over single numbers, each formula as its paper has it."""
    ones, zeros = (labels == 1).sum(), (labels == 0).sum()
    out = []
    for k in range(labels.shape[1]):
        costs = []
        for z, y in zip(logits[:, k], labels[:, k], strict=True):
            if math.isnan(y):
                continue
            p, n1, n0 = sigmoid(z), POSITIVES[k], NEGATIVES[k]
            pi = n1 / (n1 + n0)
            if name == "balanced":
                cost = -(ones + zeros) / ones * math.log(p) if y else -(ones + zeros) / zeros * math.log(1 - p)
            elif name == 'balanced(over="finding")':
                cost = -math.log(p) / pi if y else -math.log(1 - p) / (1 - pi)
            elif name == "focal(gamma=0.5, alpha=None)":
                p_t = p if y else 1 - p
                cost = -((1 - p_t) ** 0.5) * math.log(p_t)
            elif name == "asymmetric":
                p_m = max(p - 0.05, 0)
                cost = -math.log(p) if y else -(p_m**4) * math.log(1 - p_m)
            elif name == "asymmetric(gamma_neg=0.5, gamma_pos=1, margin=0)":
                cost = -(1 - p) * math.log(p) if y else -(p**0.5) * math.log(1 - p)
            elif name.startswith("logit_adjusted"):  # as softmax over two classes with priors pi and 1 - pi
                tau = 0.5 if "tau" in name else 1.0
                present, absent = math.exp(z) * pi**tau, (1 - pi) ** tau
                cost = -math.log((present if y else absent) / (present + absent))
            else:
                counts = [n for pair in zip(POSITIVES, NEGATIVES, strict=True) for n in pair]
                c = 0.5 / max(n**-0.25 for n in counts)
                delta = c / (n1 if y else n0) ** 0.25
                f = z / 30  # the paper's output, in [-1, 1]
                cost = -math.log(sigmoid(30 * (f - delta) if y else 30 * (-f - delta)))
                if name == "ldam(defer=0)":
                    w1, w0 = ((1 - 0.9999) / (1 - 0.9999**n) for n in (n1, n0))
                    cost *= (w1 if y else w0) / (pi * w1 + (1 - pi) * w0)
            costs.append(cost)
        out.append(sum(costs) / len(costs))
    return np.array(out)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("bce", "focal")])
def test_loss_is_its_papers_formula(name):
    logits, labels = batch()
    loss = make_loss(name, TRAIN)
    loss.begin_epoch(10, 10)
    if name == "ldam":
        loss.begin_epoch(8, 10)  # the last that is not weighed
    found = loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, plain(name, logits, labels), rtol=2e-5)


def test_bce_is_masked_bce_and_focal_is_torchvisions():
    logits, labels = map(torch.from_numpy, batch())
    assert torch.equal(make_loss("bce", TRAIN)(logits, labels), masked_bce(logits, labels))
    for options in ({}, {"gamma": 3.5, "alpha": 0.6}):
        given = {"alpha": 0.25, "gamma": 2.0, **options}
        cost = sigmoid_focal_loss(logits, labels.nan_to_num(0.0), **given)
        expected = cost.where(~labels.isnan(), 0).sum(0) / (~labels.isnan()).sum(0)
        torch.testing.assert_close(make_loss("focal", TRAIN, **options)(logits, labels).double(), expected)


def test_some_are_bce_at_the_end_of_an_option():
    logits, labels = map(torch.from_numpy, batch())
    expected = masked_bce(logits, labels).float()
    for name in (
        "focal(gamma=0, alpha=None)", "asymmetric(gamma_neg=0, margin=0)", "logit_adjusted(tau=0)", "ldam(max_margin=1e-12)",
    ):  # fmt: skip
        torch.testing.assert_close(make_loss(name, TRAIN)(logits, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_unknown_labels_and_huge_logits(name):
    loss = make_loss(name, TRAIN)
    loss.begin_epoch(1, 1)
    labels = torch.tensor([[1.0, 0.0, NAN, NAN], [0.0, 1.0, NAN, 1.0], [NAN, 0.0, NAN, 0.0]])
    for size in (0.0, 5.0, 40.0, 1e4):
        for sign in (-1, 1):
            logits = torch.full((3, 4), sign * size, requires_grad=True)
            losses = loss(logits, labels)
            assert losses.isfinite().all()
            assert (losses >= 0).all()
            assert losses[2] == 0
            losses.sum().backward()
            assert logits.grad.isfinite().all()
            assert (logits.grad[labels.isnan()] == 0).all()
    half = loss(torch.full((3, 4), 1.5, dtype=torch.bfloat16), labels)
    assert torch.equal(half, loss(torch.full((3, 4), 1.5), labels))


def test_best_constant_of_a_far_shift_is_exact():
    """A rare finding at tau = 4: its logit is 25.6, beyond any grid that serves the other losses."""
    labels = torch.zeros(5000, 1)
    labels[0] = 1
    start, least = make_loss("logit_adjusted(tau=4.0)", labels).best_constant(torch.tensor([2e-4]))
    p = torch.tensor([2e-4]).double()
    torch.testing.assert_close(least, -(p * p.log() + (1 - p) * (1 - p).log()))
    assert start.logit().item() == pytest.approx(-3 * p.logit().item(), rel=1e-3)


@pytest.mark.parametrize("name", KINDS[1:])
def test_best_constant_is_that_of_a_fine_grid(name):
    loss = make_loss(name, TRAIN)
    loss.begin_epoch(1, 1)
    prevalence = torch.tensor([*(POSITIVES / (POSITIVES + NEGATIVES)), NAN], dtype=torch.float64)
    labels = np.c_[TRAIN, np.full(200, NAN)]
    loss = make_loss(name, labels)
    start, least = loss.best_constant(prevalence)
    assert least[4].isnan()
    for k, p in enumerate(prevalence[:4].tolist()):
        grid = torch.linspace(-15, 15, 60_001, dtype=torch.float64)[:, None]
        present, absent = (term[:, k] for term in loss.terms(grid.expand(-1, 5)))
        expected = p * present + (1 - p) * absent
        assert least[k].item() == pytest.approx(expected.min().item(), rel=1e-6, abs=1e-9)
        assert start[k].logit().item() == pytest.approx(grid[expected.argmin()].item(), abs=2e-3)


def test_best_constants_in_closed_form():
    prevalence = torch.from_numpy(POSITIVES / (POSITIVES + NEGATIVES))
    start, least = make_loss("bce", TRAIN).best_constant(prevalence)
    assert torch.equal(start, prevalence)
    assert torch.equal(least, prevalence_entropy(prevalence))
    half = torch.full((4,), 0.5, dtype=torch.float64)
    for name in ("logit_adjusted", 'balanced(over="finding")'):  # neither class is preferred
        torch.testing.assert_close(make_loss(name, TRAIN).best_constant(prevalence)[0], half, rtol=0, atol=1e-6)
    # W-CEL shifts all findings by the same logit, that of the prevalence of all labels together
    shift = prevalence.logit() - make_loss("balanced", TRAIN).best_constant(prevalence)[0].logit()
    pooled = torch.tensor(POSITIVES.sum() / (POSITIVES.sum() + NEGATIVES.sum())).logit()
    torch.testing.assert_close(shift, pooled.expand(4), rtol=0, atol=1e-5)


def test_a_finding_with_one_class_or_none_has_a_finite_loss():
    labels = torch.tensor([[1.0, 0.0, NAN], [1.0, 0.0, NAN], [1.0, 0.0, NAN], [1.0, 0.0, NAN]])
    for name in KINDS:
        loss = make_loss(name, labels)
        loss.begin_epoch(2, 2)
        start, _ = loss.best_constant(torch.tensor([1.0, 0.0, NAN]))
        assert prevalence_logit(start, 3).isfinite().all()
        assert loss(torch.zeros(4, 3), labels).isfinite().all(), name


def test_relative_loss_is_over_the_losss_own_constant():
    loss = torch.tensor([0.2, 0.3])
    report = EpochReport(1, torch.tensor([0.1, 0.2]), {"loss": loss}, constant_loss=torch.tensor([0.4, 0.0]))
    assert report.relative_loss().tolist() == pytest.approx([0.5, NAN], nan_ok=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fokal", r"loss should be one of bce, .*Found 'fokal'. Did you mean 'focal'\?"),
        ("focal(gama=2)", r"loss 'focal' has no option 'gama'. It has gamma, alpha. Did you mean 'gamma'\?"),
        ("focal(gamma=-1)", "gamma should be at least 0. Found -1"),
        ("focal(alpha=1.0)", "alpha should lie between 0 and 1, or be None. Found 1.0"),
        ("focal(gamma='2')", "gamma should be of type float. Found '2'"),
        ("asymmetric(margin=1)", r"margin should lie in \[0, 1\). Found 1"),
        ("ldam(defer=2)", r"defer should lie in \[0, 1\]. Found 2"),
        ("balanced(over='all')", "over should be one of batch, finding. Found 'all'"),
        ("bce(gamma=2)", "loss 'bce' has no option 'gamma'. It has none."),
    ],
)
def test_wrong_requests_are_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name, TRAIN)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_minus_one_are_refused(name):
    """CheXpert's "uncertain" would be trained as absent, or with a loss below zero."""
    with pytest.raises(
        ValueError, match=r"labels should be 1, 0 or NaN for unknown, .*Found shape \(1, 2\), values \[-1"
    ):
        make_loss(name, np.array([[1.0, -1.0]]))


def test_configuration_takes_a_loss_with_options():
    config = TrainConfig(loss="focal(gamma=3)")
    assert (config.loss, config.loss_options) == ("focal", {"gamma": 3})
    with pytest.raises(ValueError, match="loss should be one of bce"):
        TrainConfig(loss="focal+ldam")
    with pytest.raises(ValueError, match="loss_options should not have labels"):
        TrainConfig(loss="focal", loss_options={"labels": 1})
    options = parse(["train", "--loss", "ldam", "--loss-options", "scale", "10"]).config
    assert TrainConfig(**vars(options)).loss_options == {"scale": 10}


def test_a_sweep_names_the_loss_beside_the_method():
    lists = {"method": ["equal", "deepchest(floor=0.25)@mtan"], "loss": ["bce", "focal(gamma=3)"]}
    trials = make_trials(
        TrainConfig(), lists, lr={"equal": 1e-3, "deepchest(floor=0.25)": 2e-3, "equal@focal(gamma=3)": 0.1}
    )
    assert {t.method: (t.config.loss, t.config.lr) for t in trials} == {
        "equal": ("bce", 1e-3), "equal@focal(gamma=3)": ("focal", 0.1),
        "deepchest(floor=0.25)@mtan": ("bce", 2e-3), "deepchest(floor=0.25)@mtan@focal(gamma=3)": ("focal", 2e-3),
    }  # fmt: skip
    (trial,) = make_trials(TrainConfig(), {"method": ["equal@ldam(scale=5)"]})
    assert (trial.config.loss, trial.config.loss_options) == ("ldam", {"scale": 5})
    assert make_trials(TrainConfig(), {"method": ["equal"], "loss": ["ldam(scale=5)"]})[0].id == trial.id
    with pytest.raises(ValueError, match="write them into the loss's text, as in focal"):
        make_trials(TrainConfig(loss="focal", loss_options={"gamma": 1}), {"loss": ["focal"]})
    label = method_label("deepchest(floor=0.25)@mtan@focal(gamma=3)")
    assert label == "DeepChest (floor 0.25), mtan, focal (gamma 3)"
    assert split_spec("my@focal(") == ("my@focal(", "", "")
    assert [split_spec(f"equal@{loss}")[2] for loss in LOSSES] == list(LOSSES)


@pytest.mark.parametrize("name", KINDS)
def test_counts_may_be_given_by_name(name):
    logits, labels = (torch.tensor(values) for values in batch())
    loss = make_loss(name, TRAIN)
    assert torch.equal(loss(logits, labels, counts=count_known(labels)), loss(logits, labels))
