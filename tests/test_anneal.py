"""Anneal: its closed form, its limits, and what it does to a task that is learned."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepchest_utils import make_method
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.weighting.candidates import MIN_RELATIVE_LOSS, Anneal

PREVALENCE = torch.tensor([0.02, 0.3, 0.1], dtype=torch.float64)


def entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


H = entropy(PREVALENCE.numpy())


def step(method: Anneal, losses) -> list[float]:
    """The gradient by each loss: the weights of the step."""
    losses = torch.tensor(losses, dtype=torch.float64, requires_grad=True)  # NaN for a task without a label
    method.backward(losses, mask=~losses.isnan())
    return losses.grad.tolist()


def told(**options) -> Anneal:
    method = make_method("anneal", 3, **options)
    method.begin(PREVALENCE)
    return method


def by_hand(batches, power, window, relative):
    """With pencil and paper: a list of weights a step."""
    running, out = list(H), []
    for batch in batches:
        left = [min(max(m / h, MIN_RELATIVE_LOSS), 1) for m, h in zip(running, H, strict=True)]
        now = 1 - sum(left) / len(left) if power is None else power
        raw = [(r if relative else r * h) ** -now for r, h in zip(left, H, strict=True)]
        out.append([w * len(raw) / sum(raw) for w in raw])
        running = [m if math.isnan(loss) else m + (loss - m) / window for m, loss in zip(running, batch, strict=True)]
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.0, 1.0) | st.just(math.nan), min_size=3, max_size=3), min_size=1, max_size=30),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.sampled_from([1, 5, 100]),
    st.booleans(),
)
def test_weights_are_those_of_the_formula(batches, power, window, relative):
    method = told(power=power, window=window, relative=relative)
    expected = by_hand(batches, power, window, relative)
    for batch, weights in zip(batches, expected, strict=True):
        present = [not math.isnan(loss) for loss in batch]
        found = [w * here for w, here in zip(weights, present, strict=True)]
        assert step(method, batch) == pytest.approx(found, rel=1e-9)
        assert sum(weights) == pytest.approx(3)
    assert method.weights.tolist() == pytest.approx(np.mean(expected, axis=0), rel=1e-9)  # what the log gets


def test_starts_as_equal_and_ends_where_every_loss_falls_at_one_rate():
    method = told(window=1)
    assert step(method, (MIN_RELATIVE_LOSS * H).tolist()) == pytest.approx([1, 1, 1])
    last = torch.tensor(step(method, (MIN_RELATIVE_LOSS * H).tolist()))
    pull = last * torch.from_numpy(MIN_RELATIVE_LOSS * H).float()  # of w_k L_k, what the sum of logarithms makes alike
    assert pull.max() / pull.min() == pytest.approx(1, rel=0.05)  # the power is 0.99


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_fixed_powers_step_down_the_sum_of_roots_and_of_logarithms(power):
    losses = torch.tensor([0.05, 0.6, 0.2], dtype=torch.float64, requires_grad=True)
    total = (2 * losses.sqrt()).sum() if power == 0.5 else losses.log().sum()
    (expected,) = torch.autograd.grad(total, losses)
    method = told(power=power, window=1)
    step(method, losses.tolist())
    assert step(method, losses.tolist()) == pytest.approx((expected / expected.mean()).tolist())


def test_power_half_starts_as_one_over_the_root_of_the_entropy():
    static = make_method("inverse_sqrt_entropy", 3)
    static.begin(PREVALENCE)
    torch.testing.assert_close(told(power=0.5).current(), static.weights)


def test_nothing_learned_is_equal_weighting_whatever_the_losses_do_above_the_entropy():
    method = told(window=1)
    for factor in (1.0, 1.7, 3.0):
        assert step(method, (factor * H).tolist()) == pytest.approx([1, 1, 1])


def test_relative_counts_what_was_learned_alone():
    method = told(window=1, relative=True, power=0.5)
    assert step(method, (H * [1, 0.25, 1]).tolist()) == pytest.approx([1, 1, 1])
    assert step(method, [1.0, 1.0, 1.0]) == pytest.approx([0.75, 1.5, 0.75])


def test_a_task_of_which_nothing_is_known_weighs_one():
    method = Anneal(3, power=0.5, window=1)
    assert step(method, [0.1, 0.0, 0.4]) == [1, 1, 1]
    first, unknown, third = step(method, [0.1, 0.0, 0.4])
    assert unknown == 1
    assert first / third == pytest.approx(2)
    assert first + third == pytest.approx(2)


def test_a_task_without_a_loss_keeps_its_running_mean_and_a_learned_one_stays_bounded():
    method = told(window=1, power=1.0)
    start = method.running.clone()
    step(method, [math.nan, 0.0, 0.3])
    assert method.running[0] == start[0]
    weights = method.current()
    assert weights.isfinite().all()
    assert weights[1] / weights[2] == pytest.approx(0.3 / (MIN_RELATIVE_LOSS * start[1].item()))


def test_follows_a_falling_loss_at_the_pace_of_the_window():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(64, 2, generator=generator) < 0.2).float()
    method = make_method("anneal", 2, window=20)
    method.begin(torch.tensor([0.2, 0.2]))
    before, gains = method.current(), []
    for confidence in torch.linspace(0, 3, 60):
        still = torch.full((64,), math.log(0.25))
        logits = torch.stack([(2 * labels[:, 0] - 1) * confidence, still], 1).requires_grad_()
        method.backward(masked_bce(logits, labels))
        gains.append(method.current()[0].item())
    assert before.tolist() == [1, 1]
    assert (np.diff(gains[20:]) > 0).all()
    assert gains[20] < 1.02 < 1.15 < gains[-1]


def test_a_loss_of_zero_is_no_start():
    method = make_method("anneal", 2)  # without `begin`: the first loss is the start
    for losses in ([0.0, 1.0], [1.0, 0.5], [1.0, 0.5]):
        method.backward(torch.tensor(losses).requires_grad_())
    assert method.start.tolist() == [1, 1]
    assert method.current().min() > 0.5


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
        make_method("anneal", 3, **options)
