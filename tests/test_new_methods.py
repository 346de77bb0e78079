"""DTP, AMTL, UW-SO, LDC-MTL, SLAW, LBTW, IGB and ExcessMTL against their papers' formulas, written once more in NumPy."""

import math

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd

from deepchest_utils import EpochReport, make_method
from deepchest_utils.weighting.ldc_mtl import LDCMTL

NAN = math.nan
PREVALENCE = torch.tensor([0.003, 0.02, 0.1, 0.4], dtype=torch.float64)
ALL_STEPWISE = ("amtl", "uw_so", "ldc_mtl", "slaw", "lbtw", "igb")


def report(epoch: int = 1, **train) -> EpochReport:
    scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in train.items()}
    return EpochReport(epoch, torch.full_like(next(iter(scores.values())), 0.1), scores)


def losses_of(steps: int, k: int = 4, seed: int = 0) -> np.ndarray:
    """(steps, K) losses between about 0.01 and 3."""
    return np.exp(np.random.default_rng(seed).normal(-1, 1, (steps, k)))


def pull(method, losses, mask=None) -> tuple[float, np.ndarray]:
    """The scalar of a step, and its derivative by each loss."""
    leaf = torch.tensor(np.asarray(losses), dtype=torch.float64, requires_grad=True)
    value = method(leaf, None if mask is None else torch.tensor(mask))
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient.numpy()


def softmax(x) -> np.ndarray:
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


# rules on scores


def test_dtp_by_hand():
    method = make_method("dtp", 2, gamma=1.0, alpha=0.5)
    assert method.weights.tolist() == [1, 1]
    method.end_epoch(report(accuracy=[0.9, 0.5]))
    method.end_epoch(report(accuracy=[0.7, NAN]))  # kappa = 0.8 and 0.5
    raw = np.array([0.2 * math.log(1 / 0.8), 0.5 * math.log(2)])
    np.testing.assert_allclose(method.raw_weights, raw, rtol=1e-12)
    np.testing.assert_allclose(method.weights, raw / raw.mean(), rtol=1e-12)
    assert method(torch.tensor([1.0, 0.0])).item() == pytest.approx(0.2281, abs=1e-4)  # 2 * .04463 / (.04463 + .34657)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_dtp_follows_prevalence(gamma):
    """A constant answer's accuracy is 1 - p: the commoner, the more weight, by the power gamma + 1."""
    method, p = make_method("dtp", 4, gamma=gamma), PREVALENCE.numpy()
    method.end_epoch(report(accuracy=(1 - p).tolist()))
    raw = -(p**gamma) * np.log(1 - p)
    np.testing.assert_allclose(method.weights, raw / raw.mean(), rtol=1e-12)
    ratio = (method.weights[1] / method.weights[0]).item()
    assert ratio == pytest.approx((0.02 / 0.003) ** (gamma + 1), rel=0.02)


def test_dtp_is_bounded_and_takes_another_score():
    method = make_method("dtp", 3, signal="auroc", scores_from="val", alpha=1.0)
    val = {"auroc": torch.tensor([1.0, 0.0, NAN]).double(), "accuracy": torch.rand(3).double()}
    method.end_epoch(EpochReport(1, torch.rand(3), val=val))
    least, most = -1e-4 * math.log(1 - 1e-4), -(1 - 1e-4) * math.log(1e-4)
    np.testing.assert_allclose(method.raw_weights, [least, most, (least + most) / 2], rtol=1e-9)


def test_amtl_by_hand():
    options = {"potential": [1.0, 0.9], "margin": 0.0, "gamma": 2.0, "alpha": 1.0}
    losses, accuracy = [0.5, 2.0], [0.9, 0.45]  # achievements 0.9 and 0.5: 0.01 and 0.25 are left
    share = np.exp([0.01, 0.25]) / np.exp([0.01, 0.25]).sum()
    geometric = 0.5 ** share[0] * 2.0 ** share[1]
    for given, value, gradient in (
        ({}, geometric, geometric * share / losses),
        ({"mean": "arithmetic"}, 2 * share @ losses, 2 * share),
        ({"mean": "arithmetic", "normalize": "sum"}, 2 * (0.5 + 25 * 2) / 26, [2 / 26, 50 / 26]),
    ):
        method = make_method("amtl", 2, **options, **given)
        equal = pull(method, losses)[0]
        assert equal == pytest.approx(2.5 if given else 1.0, rel=1e-6)  # before the first score
        method.end_epoch(report(accuracy=accuracy))
        found = pull(method, losses)
        assert found[0] == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(found[1], gradient, rtol=1e-6)


def test_amtl_cancels_prevalence():
    """Of a constant answer every task has achieved the same, whatever its prevalence; DTP tells them apart."""
    accuracy = torch.maximum(PREVALENCE, 1 - PREVALENCE).tolist()
    for normalize in ("softmax", "sum"):
        method = make_method("amtl", 4, normalize=normalize, mean="arithmetic")
        method.begin(PREVALENCE)
        method.end_epoch(report(accuracy=accuracy))
        np.testing.assert_allclose(pull(method, np.ones(4))[1], np.ones(4), rtol=1e-9)
    dtp = make_method("dtp", 4)
    dtp.end_epoch(report(accuracy=accuracy))
    assert dtp.weights.max() / dtp.weights.min() > 1000


def test_amtl_beyond_its_potential_is_at_it_and_a_task_without_a_score_is_in_the_middle():
    method = make_method("amtl", 3, potential=[0.5, 0.8, 0.7], margin=0.0, alpha=1.0, mean="arithmetic")
    method.end_epoch(report(accuracy=[0.9, 0.4, NAN]))
    np.testing.assert_allclose(pull(method, np.ones(3))[1], 3 * softmax([0.0, 0.25, 0.125]), rtol=1e-9)
    two = pull(method, [1.0, 1.0, 0.0], [True, True, False])[1]
    np.testing.assert_allclose(two, [*(2 * softmax([0.0, 0.25])), 0], rtol=1e-9)


def test_amtl_s_running_mean_is_that_of_the_authors():
    method, kappa = make_method("amtl", 2, potential=[0.9, 0.8]), np.full(2, NAN)
    for epoch, score in enumerate(np.random.default_rng(0).uniform(0.3, 0.9, (6, 2)), 1):
        method.end_epoch(report(epoch, accuracy=score.tolist()))
        kappa = score if epoch == 1 else 0.1 * score + 0.9 * kappa
        np.testing.assert_allclose(method.score.kappa, kappa, rtol=1e-12)


# rules on losses


@pytest.mark.parametrize("temperature", [0.5, 20.0])
def test_uw_so_is_the_softmax_of_inverse_losses(temperature):
    method = make_method("uw_so", 4, temperature=temperature)
    for losses in losses_of(5):
        w = 4 * softmax(1 / losses / temperature)
        value, gradient = pull(method, losses)  # the weight itself has no gradient
        assert value == pytest.approx(w @ losses, rel=1e-6)
        np.testing.assert_allclose(gradient, w, rtol=1e-5, atol=1e-12)
    e = math.e
    by_hand = pull(make_method("uw_so", 2, temperature=1.0), [1.0, 0.5])[1]
    np.testing.assert_allclose(by_hand, [2 / (1 + e), 2 * e / (1 + e)], rtol=1e-6)
    tiny = make_method("uw_so", 2)(torch.tensor([1e-44, 0.5]))  # 1 / L would be infinite
    assert tiny.isfinite()


@pytest.mark.parametrize("penalty", [0.0, 0.01, 0.5])
def test_ldc_mtl_is_the_authors_loss_and_so_are_both_gradients(penalty):
    method = LDCMTL(4, penalty)
    for losses, v in zip(losses_of(5), np.random.default_rng(1).normal(size=(5, 4)), strict=True):
        with torch.no_grad():
            method.v.copy_(torch.tensor(v))
        v = method.v.detach().double().numpy()  # as float32 has it
        w = 1 / (1 + np.exp(-v))
        x, total = w * losses, w.sum()
        sign = np.sign(np.diff(x))  # of x[k + 1] - x[k]
        slope = np.r_[0, sign] - np.r_[sign, 0]
        value, gradient = pull(method, losses)
        assert value == pytest.approx(4 * (x.sum() / total + penalty * np.abs(np.diff(x)).sum()), rel=1e-6)
        np.testing.assert_allclose(gradient, 4 * w * (1 / total + penalty * slope), rtol=1e-5)
        (own,) = torch.autograd.grad(method(torch.tensor(losses)), method.v)  # sum_k w_k has no gradient
        np.testing.assert_allclose(own, 4 * w * (1 - w) * losses * (1 / total + penalty * slope), rtol=1e-4)


def test_ldc_mtl_s_neighbours_are_the_tasks_in_the_batch():
    losses = losses_of(1)[0]
    whole, less = LDCMTL(4, 0.3), LDCMTL(2, 0.3)
    with torch.no_grad():
        whole.v.copy_(torch.tensor([0.3, 5.0, -1.0, 5.0]))
        less.v.copy_(whole.v[[0, 2]])
    value, gradient = pull(whole, losses * [1, 0, 1, 0], [True, False, True, False])
    expected = pull(less, losses[[0, 2]])
    assert value == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(gradient[[0, 2]], expected[1], rtol=1e-6)


def test_slaw_weighs_by_the_inverse_of_the_standard_deviation():
    """The means of the squares and of the losses kept apart, as the paper writes them."""
    method, squares, means = make_method("slaw", 4), np.zeros(4), np.zeros(4)
    for step, losses in enumerate(losses_of(160), 1):
        share = max(1 / step, 0.01)  # a plain mean for a hundred steps
        squares, means = (1 - share) * squares + share * losses**2, (1 - share) * means + share * losses
        value, gradient = pull(method, losses)
        inverse = 1 / np.sqrt(squares - means**2) if step > 1 else np.ones(4)
        np.testing.assert_allclose(gradient, 4 * inverse / inverse.sum(), rtol=1e-6)
        assert value == pytest.approx(gradient @ losses)
    by_hand = make_method("slaw", 2)
    for losses in ([1.0, 2.0], [2.0, 6.0]):  # standard deviations 1/2 and 2
        gradient = pull(by_hand, losses)[1]
    np.testing.assert_allclose(gradient, [1.6, 0.4], rtol=1e-12)


def test_slaw_bounds_a_loss_that_stands_still_and_waits_for_one_that_is_not_there():
    method = make_method("slaw", 3)
    for _ in range(3):
        pull(method, [0.5, 0.0, 0.5], [True, False, True])
    assert method.count.tolist() == [3, 0, 3]
    assert method.variance.tolist() == [0, 0, 0]
    gradient = pull(method, [0.5, 0.7, 1.5], [True, True, True])[1]
    s = np.array([1e-5, np.std([0.5, 0.5, 0.5, 1.5])])
    expected = np.array([1 / s[0], (1 / s).mean(), 1 / s[1]])
    np.testing.assert_allclose(gradient, expected / expected.mean(), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_lbtw_starts_anew_in_every_epoch(alpha):
    method = make_method("lbtw", 4, alpha=alpha)
    method.begin(PREVALENCE)
    for epoch in (1, 2):
        steps = losses_of(4, seed=epoch)
        for losses in steps:
            raw = (losses / steps[0]) ** alpha
            np.testing.assert_allclose(pull(method, losses)[1], 4 * raw / raw.sum(), rtol=1e-6)
        method.end_epoch(report(epoch, loss=[1.0] * 4))


def test_lbtw_s_first_loss_is_that_of_the_first_batch_with_the_task_or_its_entropy():
    method = make_method("lbtw", 3, alpha=1.0)
    pull(method, [1.0, 0.0, 2.0], [True, False, True])
    assert pull(method, [0.5, 3.0, 2.0])[1].tolist() == pytest.approx([0.6, 1.2, 1.2], rel=1e-6)  # 1/2, 1 and 1
    assert pull(method, [0.5, 0.0, 2.0], [True, False, True])[1].tolist() == pytest.approx([2 / 3, 0, 4 / 3], rel=1e-6)
    method, p = make_method("lbtw", 4, alpha=1.0, initial_loss="entropy"), PREVALENCE.numpy()
    method.begin(PREVALENCE)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    for epoch in (1, 2):
        for losses in losses_of(2, seed=epoch):
            raw = losses / entropy
            np.testing.assert_allclose(pull(method, losses)[1], 4 * raw / raw.sum(), rtol=1e-5)
        method.end_epoch(report(epoch, loss=[1.0] * 4))


@pytest.mark.parametrize("base_epoch", [1, 2])
def test_igb_is_the_logarithm_until_its_base_is_known(base_epoch):
    method, bases = make_method("igb", 4, base_epoch=base_epoch), losses_of(4, seed=9)
    base = bases[base_epoch - 1]
    for epoch in range(1, 5):
        for losses in losses_of(2, seed=epoch):
            w = 4 * softmax(losses / base) if epoch > base_epoch else np.ones(4)
            value, gradient = pull(method, losses)
            assert value == pytest.approx(w @ np.log(losses), rel=1e-5)
            np.testing.assert_allclose(gradient, w / losses, rtol=1e-5)
        method.end_epoch(report(epoch, loss=bases[epoch - 1].tolist()))
    two = pull(method, [*losses[:2], 0, 0], [True, True, False, False])[1]
    np.testing.assert_allclose(two[:2], 2 * softmax(losses[:2] / base[:2]) / losses[:2], rtol=1e-5)
    assert two[2:].tolist() == [0, 0]


# ExcessMTL


@pytest.mark.parametrize(("eta", "warmup", "steps"), [(0.01, 0, 1), (0.5, 0, 1), (0.5, 2, 8)])
def test_excess_mtl_is_torchjds_with_its_warm_up_in_epochs(eta, warmup, steps):
    ours = make_method("excess_mtl", 3, eta=eta, warmup=warmup)
    theirs = jd.ExcessMTL(robust_step_size=eta, n_warmup_steps=steps)
    everywhere = torch.ones(3, dtype=torch.bool)
    lengths = torch.tensor([[0.3], [1.0], [3.0]])
    for step in range(16):
        if step in (4, 8, 12):
            ours.end_epoch(report(step // 4, loss=[1.0] * 3))
        jacobian = lengths * torch.randn(3, 7, generator=torch.Generator().manual_seed(step))
        torch.testing.assert_close(ours.aggregate(jacobian, everywhere), theirs(jacobian), rtol=1e-4, atol=1e-5)
    used = torch.softmax(ours.logits, dim=0)
    assert (used - 1 / 3).abs().max() > 0.001
    torch.testing.assert_close(theirs.weighting(jacobian).sum(), torch.tensor(1.0))


def test_excess_mtl_by_hand():
    """One coordinate: with g the first and then g / 2, E = g and then g / (4 sqrt(5/4))."""
    method = make_method("excess_mtl", 2, eta=1.0, warmup=0)
    for rows in ([[4.0], [1.0]], [[2.0], [1.0]]):
        method.aggregate(torch.tensor(rows), torch.ones(2, dtype=torch.bool))
    growth = np.array([(1 / 4) / math.sqrt(5 / 4), 1 / math.sqrt(2)])
    np.testing.assert_allclose(torch.softmax(method.logits, 0), softmax(growth), rtol=1e-5)


def test_excess_mtl_lets_a_task_that_is_not_there_wait():
    method, everywhere = make_method("excess_mtl", 3, eta=0.3, warmup=0), torch.ones(3, dtype=torch.bool)
    jacobians = torch.randn(9, 3, 7, generator=torch.Generator().manual_seed(0))
    for jacobian in jacobians[:4]:
        method.aggregate(jacobian, everywhere)
    before, squares = torch.softmax(method.logits, 0), method._squares.clone()
    for jacobian in jacobians[4:]:
        method.aggregate(jacobian, torch.tensor([True, False, True]))
    after = torch.softmax(method.logits, 0)
    assert after[1].item() == pytest.approx(before[1].item(), rel=1e-9)
    assert not torch.allclose(after[[0, 2]], before[[0, 2]], rtol=1e-2)
    assert torch.equal(method._squares[1], squares[1])
    late = make_method("excess_mtl", 3, eta=0.3, warmup=0)  # first seen late: no jump
    for jacobian in jacobians[:4]:
        late.aggregate(jacobian, torch.tensor([True, False, True]))
    share = torch.softmax(late.logits, 0)
    late.aggregate(jacobians[4], everywhere)
    assert torch.softmax(late.logits, 0)[1].item() == pytest.approx(share[1].item(), rel=0.05)


# all of them


@pytest.mark.parametrize("name", ["dtp", *ALL_STEPWISE])
def test_autocast_changes_nothing(name):
    """float32 losses stay float32, in the weights and in the sum: no rounding to bfloat16."""
    found = []
    for enabled in (False, True):
        method = make_method(name, 4)
        method.begin(PREVALENCE)
        method.end_epoch(report(2, accuracy=[0.9, 0.8, 0.6, 0.7], loss=[0.3, 0.1, 0.5, 0.6]))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = [method(torch.tensor(losses, dtype=torch.float32)) for losses in losses_of(3)]
        assert all(value.dtype == torch.float32 for value in values)
        found.append(torch.stack(values))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["dtp", *ALL_STEPWISE])
def test_loss_of_zero_is_a_loss_and_one_below_zero_only_where_the_formula_has_a_place_for_it(name):
    for losses in ([0.0, 0.5, 0.2, 0.1], [0.0] * 4):  # without a mask every task is there
        value, gradient = pull(make_method(name, 4), losses)
        assert math.isfinite(value)
        assert np.isfinite(gradient).all()
    method, losses = make_method(name, 4), [-0.3, 0.5, 0.2, 0.1]
    if name in ("amtl", "uw_so", "lbtw", "igb"):
        with pytest.raises(ValueError, match=r"needs losses that are not negative.*-0\.3"):
            pull(method, losses)
    else:
        assert np.isfinite(pull(method, losses)[1]).all()
    hidden = pull(make_method(name, 4), [-0.3, 0.5, 0.2, NAN], [False, True, True, False])  # what is masked is not read
    assert np.isfinite(hidden[1]).all()
    assert hidden[1][[0, 3]].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("dtp", {"gamma": -1.0}, "gamma.*negative.*-1"),
        ("dtp", {"alpha": 0.0}, r"alpha should be in \(0, 1\].*0.0"),
        ("dtp", {"signal": "loss_trend"}, "signal.*accuracy, auroc, balanced_accuracy.*'loss_trend'"),
        ("dtp", {"scores_from": "test"}, "scores_from.*'test'"),
        ("amtl", {"potential": [0.5, 0.5]}, r"potential.*\(4,\).*\(2,\)"),
        ("amtl", {"potential": [0.5, 0.5, 0.0, 1.0]}, "potential should be greater than 0 and at most 1.*0.0"),
        ("amtl", {"potential": [0.5, 0.5, 1.5, 1.0]}, "potential should be greater than 0 and at most 1.*1.5"),
        ("amtl", {"potential": "prevalance"}, r"Found 'prevalance'\. Did you mean 'prevalence'\?"),
        ("amtl", {"signal": "auroc"}, "potential should be 4 numbers for signal 'auroc'"),
        ("amtl", {"margin": -0.1}, "margin.*negative"),
        ("amtl", {"normalize": "mean"}, "normalize.*softmax, sum.*'mean'"),
        ("amtl", {"mean": "harmonic"}, "mean.*geometric, arithmetic.*'harmonic'"),
        ("uw_so", {"temperature": 0.0}, "temperature.*greater than 0"),
        ("ldc_mtl", {"penalty": -1.0}, "penalty.*negative"),
        ("slaw", {"beta": 1.0}, r"beta should be in \[0, 1\).*1.0"),
        ("lbtw", {"alpha": -0.5}, "alpha.*negative"),
        ("lbtw", {"initial_loss": "first"}, "initial_loss.*batch, entropy.*'first'"),
        ("igb", {"base_epoch": 0}, "base_epoch.*at least 1.*0"),
        ("excess_mtl", {"eta": 0.0}, "eta.*greater than 0"),
        ("excess_mtl", {"warmup": -1}, "warmup.*negative"),
    ],
)
def test_bad_options_are_named(name, options, named):
    with pytest.raises(ValueError, match=named):
        make_method(name, 4, **options)
