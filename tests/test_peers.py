"""Peers against something independent: TorchJD's own, the papers' formulas, autograd."""

import copy
import inspect
import math
import pickle
import re

import numpy as np
import pytest
import torch
import torchjd.aggregation as jd
import torchjd.scalarization as jds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize
from torchjd.autojac import jac_to_grad, mtl_backward

from deepchest_utils import METHODS, DeepChest, EpochReport, make_method
from deepchest_utils.config import parse_method
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.weighting import PUBLISHED_INITIAL_WEIGHTS, Static
from deepchest_utils.weighting.autograd_graph import last_shared_layer, trainable_leaves
from deepchest_utils.weighting.scalarization import GradNorm
from deepchest_utils.weighting.torchjd_adapter import ADAPTERS

K = 3
PREVALENCE = torch.tensor([0.02, 0.3, 0.1], dtype=torch.float64)
SCALARS = ("uncertainty", "rlw", "gls", "imtl_l", "stch", "famo", "dbmtl_l")


def sequence(steps: int, seed: int = 0) -> torch.Tensor:
    """(steps, K) losses, from tiny to large."""
    z = torch.randn(steps, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.5 * z).exp()


def pull(scalar, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scalar's value, and what of it comes back to each loss."""
    losses = losses.clone().requires_grad_()
    value = scalar(losses)
    return value.detach(), torch.autograd.grad(value, losses)[0]


def same(ours, theirs, losses, factor: float = 1.0, **close) -> None:
    for a, b in zip(pull(ours, losses), pull(theirs, losses), strict=True):
        torch.testing.assert_close(a, b * factor, **close)


def report(epoch: int, loss: torch.Tensor) -> EpochReport:
    return EpochReport(epoch, PREVALENCE, {"loss": loss})


# loss weighting


@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("equal", {}, jds.Sum()),
        ("static", {"values": [0.2, 0.0, 3.0]}, jds.Constant(torch.tensor([0.2, 0.0, 3.0]).double())),
        ("gls", {}, jds.GeometricMean()),
        ("dbmtl_l", {}, lambda losses: (losses + 1e-8).log().sum()),
    ],
)
def test_scalars_without_state(name, options, other):
    for losses in sequence(5):
        same(make_method(name, K, **options), other, losses)


def test_rlw_draws_as_torchjd_does_with_mean_one():
    losses, ours, drawn = sequence(1)[0].float(), make_method("rlw", K), []
    for seed in range(5):
        for scalar in (ours, jds.Random()):
            torch.manual_seed(seed)
            drawn.append(pull(scalar, losses)[1])
        torch.testing.assert_close(drawn[-2], K * drawn[-1])
        torch.testing.assert_close(drawn[-2].mean(), torch.tensor(1.0))
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("name", "other", "factor"),
    [
        ("imtl_l", jds.IMTLL, 1),
        ("uncertainty", jds.UW, 2),  # TorchJD halves the loss too: its form of regression on half the loss is ours
    ],
)
def test_learned_scales_follow_torchjd_through_training(name, other, factor):
    ours, theirs = make_method(name, K).double(), other(K).double()
    optimizer = torch.optim.Adam([*ours.parameters(), *theirs.parameters()], lr=0.1)
    for losses in sequence(20):
        same(ours, lambda x: theirs(factor * x), losses)
        optimizer.zero_grad()
        (ours(losses) + theirs(factor * losses)).backward()
        optimizer.step()
    assert all((p.detach().abs() > 0.1).any() for p in ours.parameters())


def test_learned_scales_are_the_papers_and_come_to_rest_where_they_say():
    losses, s = sequence(1)[0], torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    forms = {
        "uncertainty": (lambda x: (torch.exp(-s) * x + s / 2).sum(), 1 / (2 * losses)),
        "imtl_l": (lambda x: (torch.exp(s) * x - s).sum(), 1 / losses),
    }
    for name, (form, rest) in forms.items():
        method = make_method(name, K).double()
        (own,) = method.parameters()
        with torch.no_grad():
            own.copy_(s)
        same(method, form, losses)
        optimizer = torch.optim.Adam([own], lr=0.05)
        for _ in range(1500):
            optimizer.zero_grad()
            method(losses).backward()
            optimizer.step()
        torch.testing.assert_close(pull(method, losses)[1], rest, rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_dwa_follows_torchjd(temperature):
    ours, theirs = make_method("dwa", K, temperature=temperature), jds.DWA(temperature)
    for epoch in range(1, 7):
        losses = sequence(3, seed=epoch)
        for batch in losses:
            same(ours, theirs, batch)
        assert epoch > 2 or torch.equal(ours.weights, torch.ones(K).double())
        theirs.step()
        ours.end_epoch(report(epoch, losses.mean(0)))


def test_dwa_keeps_the_last_losses_of_a_task_without_one():
    method, nan = make_method("dwa", K), torch.nan
    for epoch, loss in enumerate([[4.0, 4.0, nan], [2.0, nan, nan], [nan, 3.0, 7.0]], 1):
        method.end_epoch(report(epoch, torch.tensor(loss).double()))
    ratio = torch.tensor([2 / 4, 3 / 4, 1.0]).double()
    torch.testing.assert_close(method.weights, K * torch.softmax(ratio / 2, dim=0))


@pytest.mark.parametrize("mu", [1.0, 0.1])
def test_stch_is_the_logarithm_until_its_nadir_is_known_and_then_torchjds_of_it(mu):
    ours, warm = make_method("stch", K, mu=mu, warmup=2), sequence(5, seed=1)
    theirs = jds.STCH(mu, weights=torch.ones(K).double())
    for epoch, loss in enumerate(warm, 1):
        for losses in sequence(3, seed=epoch):
            if epoch <= 2:
                same(ours, lambda x: x.log().sum(), losses)
            else:  # the nadir is the loss of the warm-up's last epoch, and stays
                same(ours, lambda x: theirs((x / warm[1]).log()), losses, factor=K)
        ours.end_epoch(report(epoch, loss))


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "gamma": 0.05}])
def test_famo_follows_torchjd_step_by_step(options):
    ours = make_method("famo", K, **options)
    named = {{"gamma": "weight_decay"}.get(name, name): value for name, value in options.items()}
    theirs = jds.FAMO(K, **named).double()
    for before, after in zip(sequence(30), sequence(30, seed=1), strict=True):
        same(ours, theirs, before, rtol=1e-6, atol=1e-8)
        ours.after_step(after)
        theirs.update(after)
        torch.testing.assert_close(ours.xi, theirs._w.detach(), rtol=1e-6, atol=1e-8)
    assert ours.xi.std() > 0.05
    with pytest.raises(ValueError, match="after_step should come after backward"):
        ours.after_step(after)


@pytest.mark.parametrize("name", ["uncertainty", "gls", "imtl_l", "famo", "dbmtl_l"])
def test_task_without_a_label_is_as_if_there_were_one_task_less(name):
    """In every step: what its neighbours get, and learn, is what a method without it gives them."""
    whole, less = make_method(name, K).double(), make_method(name, K - 1).double()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *whole.parameters(), *less.parameters()], lr=0.1)
    for losses, after in zip(sequence(5), sequence(5, seed=1), strict=True):
        losses[1], after[1] = 5, torch.nan  # whatever it is
        optimizer.zero_grad()
        gradients = []
        for method, here in ((whole, [0, 1, 2]), (less, [0, 2])):
            leaf, mask = losses[here].requires_grad_(), torch.tensor([True, False, True])
            method.backward(leaf, mask=mask[here])
            if method.needs_losses_after_step:
                method.after_step(after[here])
            gradients.append(leaf.grad)
        optimizer.step()
        torch.testing.assert_close(gradients[0][[0, 2]], gradients[1])
        assert 0 <= gradients[0][1] <= 1  # what the log is told: nothing, or the factor of a scale that stays
    own = [*whole.parameters(), *(b for name, b in whole.named_buffers() if b.ndim and name != "_used")]
    assert all(p[1] == 0 for p in own)


def test_a_task_that_a_batch_lacks_keeps_its_logit_and_its_share():
    """Adam remembers earlier steps, and would go on without a gradient."""
    famo, gradnorm, some = make_method("famo", K), GradNorm(K), torch.tensor([True, False, True])
    for losses, after in zip(sequence(30), sequence(30, seed=1), strict=True):
        famo.backward(losses.requires_grad_())
        famo.after_step(after)
        gradnorm.learn(losses.detach(), after, torch.ones(K, dtype=torch.bool))
    xi, weights = famo.xi.clone(), gradnorm.weights
    for losses, after in zip(sequence(10), sequence(10, seed=1), strict=True):
        famo.backward(losses.requires_grad_(), mask=some)
        famo.after_step(after)
        gradnorm.learn(losses.detach(), after, some)
    assert famo.xi[1] == xi[1] != 0
    assert (famo.xi != xi).tolist() == some.tolist()
    assert gradnorm.weights[1] / weights[1] == pytest.approx(1, abs=0.1)  # the scaling to sum K


@pytest.mark.parametrize("name", SCALARS)
def test_weights_of_a_stepwise_method_are_the_mean_of_what_its_steps_gave(name):
    method, given = make_method(name, K), []
    assert torch.equal(method.weights, torch.ones(K).double())
    for epoch in (1, 2):
        for losses in sequence(4, seed=epoch):
            leaf = losses.requires_grad_()
            if epoch == 1:
                method.backward(leaf)
            else:  # in one's own loop: divided for accumulation, scaled for fp16
                (method(leaf) * 64.0).backward()
                leaf.grad /= 64.0
            given.append(leaf.grad)
            if method.needs_losses_after_step:
                method.after_step(losses.detach())
        torch.testing.assert_close(method.weights, torch.stack(given[-4:]).mean(0))
        assert torch.equal(method.raw_weights, method.weights)
        assert method.state_dict().keys() == make_method(name, K).state_dict().keys()
        method.end_epoch(report(epoch, losses.detach()))
        assert torch.equal(method.weights, torch.ones(K).double())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_bad_batch_is_not_learned_from(bad):
    slaw, gradnorm, all_of = make_method("slaw", K), GradNorm(K), torch.ones(K, dtype=torch.bool)
    for losses in sequence(5):
        slaw.backward(losses.requires_grad_())
        gradnorm.learn(losses.detach(), losses.detach(), all_of)
    before = slaw.variance.clone(), gradnorm.weights
    losses = torch.tensor([bad, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    slaw.backward(losses)
    gradnorm.learn(losses.detach(), torch.ones(K).double(), all_of)
    gradnorm.learn(torch.ones(K).double(), losses.detach(), all_of)
    assert slaw.variance[0] == before[0][0] > 0
    torch.testing.assert_close(gradnorm.weights, before[1])


def test_famo_says_that_it_was_never_told_what_a_step_did():
    famo = make_method("famo", K)
    famo(sequence(1)[0].requires_grad_()).backward()
    with pytest.raises(ValueError, match=r"FAMO learns in after_step\(losses\).*Found no call"):
        famo.end_epoch(report(1, torch.ones(K)))


def test_inverse_prevalence_counts_a_finding_without_a_positive_as_half_in_a_thousand():
    method = make_method("inverse_prevalence", 4)
    assert torch.equal(method.weights, torch.ones(4).double())
    method.begin(torch.tensor([0.5, 0.1, 0.0, torch.nan], dtype=torch.float64))
    inverse = torch.tensor([2.0, 10.0, 2000.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(method.weights, inverse / inverse.mean())
    plain = Static(K, [1.0, 2.0, 3.0])
    plain.begin(PREVALENCE)
    assert plain.weights.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("name", "power"), [("inverse_entropy", 1.0), ("inverse_sqrt_entropy", 0.5)])
def test_static_weights_by_entropy(name, power):
    p = [0.5, 0.1, 0.001, 0.0]
    method = make_method(name, 4)
    method.begin(torch.tensor(p, dtype=torch.float64))
    p[-1] = 0.0005  # half of one in a thousand
    raw = np.array([-(q * math.log(q) + (1 - q) * math.log(1 - q)) for q in p]) ** -power
    np.testing.assert_allclose(method.weights, raw / raw.mean(), rtol=1e-12)


def relative(r, prevalence=0.1) -> EpochReport:
    """An epoch in which each task's loss is r times its entropy."""
    p = torch.full((len(r),), prevalence, dtype=torch.float64)
    h = -(p * p.log() + (1 - p) * (1 - p).log())
    return EpochReport(1, p, {"loss": torch.tensor(r, dtype=torch.float64) * h})


def test_hedge_is_the_softmax_of_what_was_left_to_learn():
    method = make_method("hedge", 3, eta=0.7, floor=0.1)
    assert method.weights.tolist() == pytest.approx([1, 1, 1])
    for r in ([0.2, 0.9, 1.6], [0.1, float("nan"), 0.3]):  # above 1 counts as 1, an unknown one as the others' mean
        method.end_epoch(relative(r))
    gains = np.array([0.2 + 0.1, 0.9 + 0.2, 1.0 + 0.3])
    share = np.exp(0.7 * gains) / np.exp(0.7 * gains).sum()
    np.testing.assert_allclose(method.weights, 0.9 * 3 * share + 0.1, rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 14), st.integers(1, 60), st.sampled_from([0.05, 0.5, 3.0]))
@settings(max_examples=40, deadline=None)
def test_hedges_regret_is_within_its_bound(seed, k, epochs, eta):
    rng, method = np.random.default_rng(seed), make_method("hedge", k, eta=eta, floor=0.0)
    theirs, own = np.zeros(k), 0.0
    for _ in range(epochs):
        weights = method.weights.numpy()
        r = np.where(weights > np.median(weights), rng.random(k) * 0.2, rng.random(k))  # to spite it
        theirs, own = theirs + r, own + weights @ r / k
        method.end_epoch(relative(r.tolist()))
    assert theirs.max() - own <= math.log(k) / eta + eta * epochs / 8 + 1e-9


def test_validation_discount_is_of_tasks_whose_loss_has_risen():
    method, p = make_method("val_discount", 3, power=2.0), torch.full((3,), 0.1)
    for epoch, loss in enumerate(([0.4, 0.3, 0.2], [0.2, 0.3, float("nan")], [0.4, 0.3, 0.1]), start=1):
        method.end_epoch(EpochReport(epoch, p, val={"loss": torch.tensor(loss)}))
    raw = torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(method.weights, raw / raw.mean())


def test_published_initial_weights_by_name():
    for name, values in PUBLISHED_INITIAL_WEIGHTS.items():
        assert DeepChest(14, initial=name).raw_weights.tolist() == list(values)


def test_oracle_is_deepchests_rule_on_prevalence_alone():
    options = {"step_up": 1.2, "normalize": True, "initial": [0.5, 1.0, 1.4]}
    oracle, rule = make_method("prevalence_oracle", K, **options), DeepChest(K, **options)
    for epoch in range(1, 6):
        oracle.end_epoch(EpochReport(epoch, PREVALENCE, {"accuracy": torch.rand(K).double()}))
        rule.update(1 - PREVALENCE)
        assert torch.equal(oracle.weights, rule.weights)


# GradNorm


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
    return nn.ModuleDict({"trunk": trunk, "head": nn.Linear(4, K)})


def forward(net: nn.ModuleDict, seed: int, missing=()) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and features of a batch on which the tasks conflict."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 6, generator=generator)
    labels = (torch.rand(10, K, generator=generator) < torch.tensor([0.2, 0.5, 0.8])).float()
    labels[:, list(missing)] = torch.nan
    features = net["trunk"](x)
    return masked_bce(net["head"](features), labels), features


@pytest.mark.parametrize("alpha", [1.5, 0.12])
def test_gradnorm_goes_down_the_gradient_of_its_textbook_loss(alpha):
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 3).double(), torch.randn(2, 3).double()
    method = GradNorm(2, alpha=alpha, lr=0.05)
    weights = nn.Parameter(torch.ones(2, dtype=torch.float64))
    adam, sgd, first = torch.optim.Adam([weights], lr=0.05), torch.optim.SGD(trunk.parameters(), lr=0.1), None
    for _ in range(15):
        features = trunk(torch.randn(8, 4).double())
        losses = ((features @ heads.T - torch.tensor([5.0, 0.5])) ** 2).mean(0)
        first = losses.detach() if first is None else first
        pulls = torch.stack(
            [
                torch.autograd.grad(w * x, trunk.weight, create_graph=True)[0].norm()
                for w, x in zip(weights, losses, strict=True)
            ]
        )
        share = (losses / first).detach()
        target = pulls.mean().detach() * (share / share.mean()) ** alpha
        (weights.grad,) = torch.autograd.grad((pulls - target).abs().sum(), weights, retain_graph=True)
        expected = torch.autograd.grad(weights.detach() @ losses, trunk.weight, retain_graph=True)[0]
        trunk.zero_grad()
        method.backward(losses, features)
        torch.testing.assert_close(trunk.weight.grad, expected)
        adam.step()
        weights.data *= 2 / weights.data.sum()
        sgd.step()
        torch.testing.assert_close(method.weights, weights.detach())
    assert (method.weights - 1).abs().min() > 0.1
    assert method.weights.sum().item() == pytest.approx(2)


def test_gradnorm_evens_out_the_pulls_and_rests_where_they_are_even():
    losses, norms = torch.ones(K).double(), torch.tensor([0.5, 1.0, 4.0]).double()
    method = GradNorm(K, alpha=0.0)
    for _ in range(2000):
        method.learn(losses, norms, torch.ones(K, dtype=torch.bool))
        assert method.weights.sum().item() == pytest.approx(K)
        assert (method.weights > 0).all()
    torch.testing.assert_close(method.weights, normalize(1 / norms, p=1, dim=0) * K, rtol=0.1, atol=0)
    rest = GradNorm(2)
    for _ in range(10):
        rest.learn(torch.tensor([0.3, 0.3]).double(), torch.tensor([2.0, 2.0]).double(), BOTH)
    assert rest.weights.tolist() == [1, 1]


def test_gradnorm_gives_a_task_that_lags_behind_more():
    method = GradNorm(2, alpha=1.0)
    for loss in ([1.0, 1.0], [0.2, 0.9], [0.1, 0.8]):
        method.learn(torch.tensor(loss).double(), torch.ones(2).double(), BOTH)
    assert method.weights[1] > 1.02


def test_gradnorm_s_first_loss_is_the_entropy_or_without_a_prevalence_that_of_the_first_batch():
    """H/L(0) of a finding that the first batch lacks is 6.7 at one in 300: the weight that this is worth is gone."""
    p = torch.tensor([1 / 300, 0.1], dtype=torch.float64)
    entropy, absent = -(p * p.log() + (1 - p) * (1 - p).log()), -(1 - p).log()
    final = {}
    for initial_loss in ("entropy", "batch"):
        method = GradNorm(2, initial_loss=initial_loss)
        method.begin(p)
        for loss in [absent, *[entropy] * 200]:  # a network that says the prevalence, all along
            method.learn(loss, torch.ones(2).double(), BOTH)
        torch.testing.assert_close(method.first_loss, entropy if initial_loss == "entropy" else absent)
        final[initial_loss] = method.weights
    assert (final["entropy"] - 1).abs().max() < 0.1
    assert final["batch"][0] > 1.3
    plain = GradNorm(2)
    plain.learn(absent, torch.ones(2).double(), BOTH)
    assert torch.equal(plain.first_loss, absent)


def test_gradnorm_waits_for_a_first_loss_and_passes_over_a_step_that_overflowed():
    method = GradNorm(2)
    for _ in range(50):  # under some losses a finding without positives costs nothing
        method.learn(torch.tensor([0.0, 1.0]).double(), torch.ones(2).double(), BOTH)
    assert method.weights.tolist() == [1, 1]
    assert method.first_loss.isnan().tolist() == [True, False]
    method.learn(torch.tensor([0.5, 0.8]).double(), torch.tensor([1.0, torch.inf]).double(), BOTH)
    assert method.weights.tolist() == [1, 1]
    method.learn(torch.tensor([0.5, 0.8]).double(), torch.ones(2).double(), BOTH)
    assert method.first_loss.tolist() == [0.5, 1]
    assert method.weights[0] > 1 > method.weights[1]


def test_gradnorm_steps_as_if_a_task_without_a_label_were_not_there():
    losses, norms = torch.tensor([1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 0.0, 1.3]).double()
    mask = torch.tensor([True, False, True])
    whole, less = GradNorm(K), GradNorm(K - 1)
    for method, here in ((whole, [0, 1, 2]), (less, [0, 2])):
        method.learn(losses[here], norms[here], mask[here])
    assert whole.adam.mean[1] == 0
    assert torch.equal(whole.adam.mean[[0, 2]], less.adam.mean)
    assert less.adam.mean[0] < 0 < less.adam.mean[1]
    assert whole.first_loss.isnan().tolist() == [False, True, False]


# gradient balancing

AGGREGATORS = [
    ("mgda", {}, lambda: jd.MGDA(epsilon=1e-5, max_iters=250)),
    ("mgda", {"tolerance": 1e-3, "iterations": 100}, jd.MGDA),
    ("pcgrad", {}, jd.PCGrad),
    ("graddrop", {}, jd.GradDrop),
    ("gradvac", {}, jd.GradVac),
    ("gradvac", {"beta": 0.1}, lambda: jd.GradVac(beta=0.1)),
    ("cagrad", {}, lambda: jd.CAGrad(c=0.4)),
    ("cagrad", {"c": 0.9}, lambda: jd.CAGrad(c=0.9)),
    ("imtl_g", {}, jd.IMTLG),
    ("nash_mtl", {}, lambda: jd.NashMTL(K)),
    (
        "nash_mtl",
        {"update_every": 2, "iterations": 3, "max_norm": 0.2},
        lambda: jd.NashMTL(K, update_weights_every=2, optim_niter=3, max_norm=0.2),
    ),
    ("aligned_mtl", {}, jd.AlignedMTL),
    ("fairgrad", {}, lambda: jd.FairGrad(alpha=2.0)),
    ("fairgrad", {"alpha": 0.5}, lambda: jd.FairGrad(alpha=0.5)),
    ("config", {}, jd.ConFIG),
    ("dualproj", {}, jd.DualProj),
    ("upgrad", {}, jd.UPGrad),
    ("rgw", {}, jd.Random),
    ("excess_mtl", {"eta": 0.5, "warmup": 0}, lambda: jd.ExcessMTL(robust_step_size=0.5, n_warmup_steps=1)),
]
cvxpy_warns = pytest.mark.filterwarnings("ignore")  # of inexact solutions, and of how TorchJD calls it

BOTH = torch.ones(2, dtype=torch.bool)


def jacobian_of(losses, tensors) -> torch.Tensor:
    rows = [torch.autograd.grad(x, tensors, retain_graph=True) for x in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@cvxpy_warns
@pytest.mark.parametrize("level", ["parameters", "features"])
@pytest.mark.parametrize(("name", "options", "make"), AGGREGATORS)
def test_gradients_are_torchjds_at_both_levels(name, options, make, level):
    """Three steps, for those with a memory. Every `.grad` starts at 1 and is added to."""
    ours, method, aggregator = network(), make_method(name, K, level=level, **options), make()
    theirs = copy.deepcopy(ours)
    for step in range(3):
        for net in (ours, theirs):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
        torch.manual_seed(step)
        method.backward(*forward(ours, step))
        losses, features = forward(theirs, step)
        torch.manual_seed(step)
        if level == "parameters":
            mtl_backward(list(losses), features=features, retain_graph=True)
            jac_to_grad(trainable_leaves(features), aggregator)  # in our order: GradDrop draws for each number
        else:
            combined = aggregator(jacobian_of(losses, [features]))
            losses.sum().backward(inputs=list(theirs["head"].parameters()), retain_graph=True)
            features.backward(combined.view_as(features))
        plain = jacobian_of(*[forward(ours, step)[0].sum()[None], list(ours["head"].parameters())])[0]
        own = torch.cat([p.grad.flatten() for p in ours["head"].parameters()]) - 1
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-6)
        for (path, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=lambda m, path=path: f"{path}: {m}")
        with torch.no_grad():
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                a -= a.grad - 1
                b.copy_(a)


@pytest.mark.parametrize("level", ["parameters", "features"])
@pytest.mark.parametrize("name", ["mgda", "gradvac", "upgrad", "rgw", "nash_mtl"])
def test_logged_weights_are_the_factors_of_the_tasks_gradients(name, level):
    net, method, used = network(), make_method(name, K, level=level), []
    for step in range(2):
        losses, features = forward(net, step, missing=[step])
        mask = torch.arange(K) != step
        jacobian = jacobian_of(losses, list(net["trunk"].parameters()))
        net.zero_grad()
        method.backward(losses, features, mask)
        used.append(method.weights * (step + 1) - sum(used))
        combined = torch.cat([p.grad.flatten() for p in net["trunk"].parameters()])
        torch.testing.assert_close(used[-1].float() @ jacobian, combined, rtol=1e-4, atol=1e-6)
        assert used[-1][step] == 0
    method.end_epoch(report(1, torch.ones(K).double()))
    assert torch.equal(method.weights, torch.ones(K).double())


@cvxpy_warns
@pytest.mark.parametrize(("name", "options", "make"), [a for a in AGGREGATORS if a[0] != "nash_mtl"])
def test_task_without_a_label_is_left_out_of_the_combination(name, options, make):
    method, aggregator = make_method(name, K, **options), make()
    for step in range(3):
        jacobian = torch.randn(K, 7, generator=torch.Generator().manual_seed(step))
        jacobian[1] = 0
        torch.manual_seed(step)
        expected = aggregator(jacobian[[0, 2]])
        torch.manual_seed(step)
        found = method.aggregate(jacobian, torch.tensor([True, False, True]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert name in ("graddrop", "config") or method.weights[1] == 0


def test_nash_mtl_and_gradvac_leave_a_missing_task_out_and_remember_it():
    nash, vac, alone = make_method("nash_mtl", K, max_norm=0.0), make_method("gradvac", K), jd.GradVac()
    some, rows = torch.tensor([True, False, True]), [0, 2]
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(7, generator=generator)  # tasks that agree: the running means of the cosines rise
    for _ in range(4):
        vac.aggregate(common + torch.randn(K, 7, generator=generator) / 2, torch.ones(K, dtype=torch.bool))
    means = vac.get_extra_state()["_phi_t"].clone()
    assert means[0, 1] > 0.5
    jacobian = common + 2 * torch.randn(K, 7, generator=generator)
    jacobian[1] = 0
    # TorchJD's own with the means of the two that are left
    alone.gramian_weighting._phi_t = means[rows][:, rows]
    alone.gramian_weighting._state_key = (2, torch.float32)
    torch.testing.assert_close(vac.aggregate(jacobian, some), alone(jacobian[rows]))
    after = vac.get_extra_state()["_phi_t"]
    assert torch.equal(after[1], means[1])
    assert torch.equal(after[:, 1], means[:, 1])
    assert (after[0, 2] != means[0, 2]).all()
    nash.aggregate(jacobian, some)
    share, gramian = nash.weights[rows], (jacobian[rows] @ jacobian[rows].T).double()
    torch.testing.assert_close(share * (gramian @ share), torch.ones(2).double(), rtol=1e-3, atol=0)
    assert nash.weights[1] == 0


@pytest.mark.parametrize(("num_tasks", "present"), [(3, 2), (14, 1)])
def test_nash_mtls_limit_is_of_the_tasks_that_are_there(num_tasks, present):
    some = torch.arange(num_tasks) < present
    for max_norm in (1.0, 0.3):
        method = make_method("nash_mtl", num_tasks, max_norm=max_norm)
        found = method.aggregate(torch.eye(num_tasks) * some[:, None], some)
        assert found.norm().item() == pytest.approx(max_norm, rel=1e-3)
        assert found[some].std(correction=0) < 1e-3


def test_mgda_comes_nearer_to_the_shortest_vector_than_torchjds_defaults_do():
    jacobian = torch.randn(14, 60, generator=torch.Generator().manual_seed(0)) + 0.5
    everywhere = torch.ones(14, dtype=torch.bool)
    lengths = []
    for options in ({}, {"tolerance": 1e-3, "iterations": 100}, {"tolerance": 1e-9, "iterations": 20000}):
        method = make_method("mgda", 14, **options)
        lengths.append(method.aggregate(jacobian, everywhere).norm().item())
    ours, theirs, exact = lengths
    assert exact <= ours < theirs
    assert ours - exact < 0.6 * (theirs - exact)


def test_stch_warms_up_for_the_authors_five_epochs():
    method, losses, means = make_method("stch", K), sequence(1)[0], sequence(6, seed=1)
    for epoch, loss in enumerate(means, 1):
        same(method, (lambda x: x.log().sum()) if epoch < 6 else (lambda x: K * (x / means[4]).sum().log()), losses)
        method.end_epoch(report(epoch, loss))


def test_stch_takes_a_nadir_of_zero_for_none():
    """Under the asymmetric loss a finding without positives costs nothing."""
    method = make_method("stch", K, warmup=1)
    method.end_epoch(report(1, torch.tensor([0.0, 1.0, 2.0])))
    leaf = torch.tensor([0.0, 0.5, 1.0]).requires_grad_()
    method.backward(leaf)
    assert leaf.grad.isfinite().all()
    torch.testing.assert_close(leaf.grad[1:], torch.tensor([3.0, 1.5]))  # K over twice the loss: both are at half


def test_combinations_keep_what_their_papers_promise():
    jacobian = torch.randn(K, 7, generator=torch.Generator().manual_seed(5)) * torch.tensor([[0.5], [1.0], [3.0]])
    jacobian[2] -= 2 * jacobian[1]  # a conflict
    gramian, mean = (jacobian @ jacobian.T).double(), jacobian.mean(0)
    assert (gramian < 0).any()

    def combine(name, **options):
        method = make_method(name, K, **options)
        return method.aggregate(jacobian, torch.ones(K, dtype=torch.bool)), method.weights

    shortest, weights = combine("mgda")
    assert (jacobian @ shortest).min() >= shortest.norm() ** 2 * 0.95
    assert weights.sum().item() == pytest.approx(1)
    for name in ("imtl_g", "config"):
        along = normalize(jacobian, dim=1) @ combine(name)[0]
        torch.testing.assert_close(along, along.mean().expand(K), rtol=1e-3, atol=0)
    for name in ("dualproj", "upgrad"):
        assert (jacobian @ combine(name)[0]).min() > -1e-3
    away = combine("cagrad", c=0.7)[0] - mean
    assert away.norm().item() == pytest.approx(0.7 * mean.norm().item(), rel=1e-2)
    share = combine("nash_mtl", max_norm=0.0)[1]
    torch.testing.assert_close(share * (gramian @ share), torch.ones(K).double(), rtol=1e-3, atol=0)
    fair = combine("fairgrad", alpha=2.0)[1]
    torch.testing.assert_close(gramian @ fair, fair**-0.5, rtol=1e-3, atol=0)


def test_nash_mtl_of_one_task_has_the_length_of_its_own_bargain():
    for max_norm, length in ((1.0, 1.0), (0.1, 0.1), (5.0, 1.0), (0.0, 1.0)):  # 0 is no limit
        method = make_method("nash_mtl", 1, max_norm=max_norm)
        found = method.aggregate(torch.tensor([[3.0, 4.0]]), torch.tensor([True]))
        torch.testing.assert_close(found, length * torch.tensor([0.6, 0.8]))
        assert method.weights.item() == pytest.approx(length / 5)


@pytest.mark.parametrize("name", ["gradvac", "nash_mtl"])
def test_torchjd_without_its_private_state_is_refused_by_version(name, monkeypatch):
    monkeypatch.setattr(METHODS[name], "private", (*METHODS[name].private, "_gone"))
    with pytest.raises(ValueError, match=r"torchjd should be of version 0\.18.*'_gone'\. Found version \d"):
        make_method(name, K)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_has_its_paper_its_options_and_a_place_for_pickle(name):
    assert re.search(r"\(.* (20\d\d, arXiv \d{4}\.\d{5}|ICLR 2021)\)", ADAPTERS[name].__doc__.replace("\n", " "))
    assert [*inspect.signature(METHODS[name]).parameters][-1] == "level"  # TorchJD's own options have no way in
    assert type(pickle.loads(pickle.dumps(make_method(name, K)))) is ADAPTERS[name]


@pytest.mark.parametrize("level", ["parameters", "features"])
def test_frozen_heads_are_left_alone(level):
    net = network()
    net["head"].requires_grad_(False)
    make_method("mgda", K, level=level).backward(*forward(net, 0))
    assert net["head"].weight.grad is None
    assert net["trunk"][0].weight.grad.abs().sum() > 0


# what the tasks share


class Residual(nn.Module):
    """A block whose skip goes back to the first layer; `scaled` puts a scale of each channel last."""

    def __init__(self, scaled: bool = False):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(n, 3, 3, padding=1) for n in (1, 3, 3))
        self.norm, self.scale = nn.BatchNorm2d(3), nn.Parameter(torch.ones(3, 1, 1)) if scaled else 1

    def forward(self, x):
        x = self.stem(x)
        return (x + self.scale * self.norm(self.two(self.one(x).relu()))).mean((2, 3))


@pytest.mark.parametrize("scaled", [False, True])
def test_shared_is_what_lies_below_the_features(scaled):
    trunk, head = Residual(scaled), nn.Linear(3, K)
    features = trunk(torch.randn(2, 1, 5, 5))
    below = trainable_leaves(features)
    assert {id(p) for p in below} == {id(p) for p in trunk.parameters()}
    assert len(below) == len(list(trunk.parameters()))
    assert last_shared_layer(features) is trunk.two.weight  # used last, though the stem is the nearest
    assert {id(p) for p in trainable_leaves(head(features))} - {id(p) for p in below} == {
        id(head.weight),
        id(head.bias),
    }
    trunk.two.requires_grad_(False)
    assert last_shared_layer(trunk(torch.randn(2, 1, 5, 5))) is trunk.one.weight


def test_last_of_several_layers_that_reach_the_features_is_the_last():
    layers = [nn.Linear(4, 2) for _ in range(3)]
    x = torch.randn(5, 4)
    assert last_shared_layer(torch.cat([layer(x) for layer in layers], dim=1)) is layers[2].weight


@pytest.mark.parametrize("name", ["gradnorm", "mgda", "mgda(level='features')"])
def test_trunk_that_is_frozen_or_missing_is_named(name):
    name, options = parse_method(name)
    net = network()
    net["trunk"].requires_grad_(False)
    losses, features = forward(net, 0)
    assert trainable_leaves(features) == []
    for output, named in ((features, "features should come from a trunk"), (None, "features should be the trunk's")):
        with pytest.raises(ValueError, match=named):
            make_method(name, K, **options).backward(losses, output)


# names and options


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("static", {"values": "inverse"}, "values.*3 numbers or 'inverse_prevalence'.*'inverse'"),
        ("deepchest", {"initial": "vgg"}, "initial.*cnnmodel1, resnet.*'vgg'"),
        ("deepchest", {"initial": "resnet"}, r"initial.*\(3,\).*\(14,\)"),
        ("prevalence_oracle", {"signal": "auroc"}, "signal"),
        ("prevalence_oracle", {"scores_from": "val"}, "scores_from"),
        ("dwa", {"temperature": 0.0}, "temperature.*greater than 0.*0.0"),
        ("hedge", {"eta": 0.0}, "eta.*greater than 0.*0.0"),
        ("hedge", {"floor": 1.5}, "floor.*between 0 and 1.*1.5"),
        ("val_discount", {"power": 0.0}, "power.*greater than 0.*0.0"),
        ("stch", {"mu": 0.0}, "mu.*greater than 0.*0.0"),
        ("stch", {"warmup": 0}, "warmup.*at least 1.*0"),
        ("famo", {"lr": -1.0}, "lr.*negative.*-1"),
        ("famo", {"gamma": float("nan")}, "gamma.*nan"),
        ("gradnorm", {"alpha": -0.5}, "alpha.*negative.*-0.5"),
        ("gradnorm", {"lr": float("inf")}, "lr.*inf"),
        ("gradnorm", {"initial_loss": "batches"}, r"initial_loss.*entropy, batch.*Did you mean 'batch'\?$"),
        ("mgda", {"tolerance": 0.0}, "tolerance.*greater than 0.*0.0"),
        ("mgda", {"iterations": 0}, "iterations.*at least 1.*0"),
        ("mgda", {"level": "trunk"}, "level.*parameters, features.*'trunk'"),
        ("mgda", {"level": "feature"}, r"level.*Found 'feature'\. Did you mean 'features'\?$"),
        ("nash_mtl", {"iteration": 5}, r"It has update_every, .*level\. Did you mean 'iterations'\?$"),
        ("deepchest", {"initial": "resne"}, r"Found 'resne'\. Did you mean 'resnet'\?$"),
        ("static", {"values": "inverse_entropi"}, r"Did you mean 'inverse_entropy'\?$"),
        ("gradvac", {"beta": 2.0}, "beta.*2.0"),
        ("cagrad", {"c": 1.0}, r"c should lie in \[0, 1\).*1.0"),
        ("fairgrad", {"alpha": 0.0}, "alpha.*greater than 0.*0.0"),
        ("nash_mtl", {"update_every": 0}, "update_every.*at least 1.*0"),
        ("nash_mtl", {"iterations": 0}, "iterations.*at least 1.*0"),
        ("nash_mtl", {"max_norm": -1.0}, "max_norm.*-1"),
        ("pcgrad", {"beta": 0.5}, "'pcgrad'.*'beta'.*It has level"),
        ("gls", {"level": "features"}, "'gls'.*'level'.*It has none"),
    ],
)
def test_bad_options_are_named(name, options, named):
    with pytest.raises(ValueError, match=named):
        make_method(name, K, **options)


@pytest.mark.parametrize(
    ("name", "package"), [("cagrad", "cvxpy"), ("nash_mtl", "ecos"), ("dualproj", "quadprog"), ("upgrad", "quadprog")]
)
def test_missing_solver_is_named_with_what_to_install(name, package, monkeypatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None if name == package else object())
    with pytest.raises(ValueError, match=rf"{METHODS[name].__name__} needs a solver.*{package}.*\[solvers\]"):
        make_method(name, K)
    make_method("mgda", K)  # the others do without


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
words = st.from_regex(r"[a-z][a-z_]{0,9}_", fullmatch=True)  # the last _ keeps Python's own words away


@given(st.lists(st.tuples(words, st.dictionaries(words, literals, max_size=3)), min_size=1, max_size=3))
def test_spec_comes_back_as_the_names_and_options_it_was_made_of(terms):
    spec = "+".join(
        name + (f"({', '.join(f'{key}={value!r}' for key, value in own.items())})" if own else "")
        for name, own in terms
    )
    names, options = parse_method(spec)
    assert names.split("+") == [name for name, _ in terms]
    for _, own in terms:
        inner = options.pop("inner_options", {})
        assert options == own
        options = inner
    assert options == {}


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "a b",
        "a-b",
        "a+",
        "a(1)",
        "a(*b)",
        "a(**b)",
        "a(b=c)",
        "a(b=f())",
        "a(b=1, b=2)",
        "a(b={[]: 1})",
        "a.b",
        "'a'",
        "1",
        "a@b",
    ],
)
def test_other_spec_is_refused(spec):
    with pytest.raises(ValueError, match=r"a method or loss should read NAME.*Found"):
        parse_method(spec)


def test_spec_makes_its_method():
    name, options = parse_method("deepchest(floor=0.25, normalize=True)+nash_mtl(update_every=5, level='features')")
    method = make_method(name, K, **options)
    assert (method.outer.floor, method.outer.normalize, method.inner.level) == (0.25, True, "features")


def test_gradnorm_refuses_features_with_a_row_a_task():
    features = torch.randn(4, 3, 5, requires_grad=True)
    with pytest.raises(ValueError, match=r"features should be shared by all tasks.*\(4, 3, 5\)"):
        make_method("gradnorm", 3).backward(features.abs().sum((0, 2)), features * 1)
