"""DeepChest: the published rule bit for bit, its laws for all inputs, and every signal against a formula
written out by hand."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from deepchest_utils import FINDINGS, DeepChest, EpochReport
from deepchest_utils.datasets.findings import NIH_PREVALENCE
from deepchest_utils.weighting import PUBLISHED_INITIAL_WEIGHTS, SIGNALS, initial_weights

NAN = math.nan
LAWS = settings(max_examples=80)

finite = st.floats(allow_nan=False, allow_infinity=False)
score_or_nan = finite | st.just(NAN)


@st.composite
def options(draw):
    """Any valid step sizes and bounds."""
    floor = draw(st.floats(0, 2))
    return {
        "step_up": draw(st.floats(1, 3)),
        "step_down": draw(st.floats(1, 3)),
        "floor": floor,
        "cap": draw(st.floats(max(floor, 1e-3), 4)),
    }


def published_rule(weights: list[float], accuracies: list[float]) -> list[float]:
    tau = sum(accuracies) / len(accuracies)
    new = []
    for w, a in zip(weights, accuracies, strict=True):
        new.append(min(1.1 * w, 1.5) if a < tau else w / 1.05)
    return new


def report(train=None, val=None, prevalence=(0.5, 0.5, 0.5), epoch=1) -> EpochReport:
    def table(d):
        return {name: torch.tensor(v, dtype=torch.float64) for name, v in (d or {}).items()}

    return EpochReport(epoch, torch.tensor(prevalence, dtype=torch.float64), table(train), table(val))


def random_report(rng: np.random.Generator, epoch: int, k: int) -> EpochReport:
    def table():
        scores = {name: torch.from_numpy(rng.random(k)) for name in ("accuracy", "auroc", "balanced_accuracy")}
        loss = torch.from_numpy(rng.uniform(0.05, 0.7, k))
        loss[rng.random(k) < 0.2] = NAN
        return {**scores, "loss": loss}

    return EpochReport(epoch, torch.from_numpy(rng.uniform(0.01, 0.5, k)), table(), table())


# the published rule


def test_default_options_are_the_published_rule_to_the_last_bit():
    rng = np.random.default_rng(0)
    up = down = capped = 0
    for _ in range(1000):
        k = int(rng.integers(2, 15))
        expected = rng.uniform(0.5, 1.5, k).tolist()
        w = DeepChest(k, initial=expected)
        for accuracies in rng.random((12, k)).tolist():
            before, expected = expected, published_rule(expected, accuracies)
            w.update(accuracies)
            assert w.weights.tolist() == expected
            up += sum(b < e for b, e in zip(before, expected, strict=True))
            down += sum(b > e for b, e in zip(before, expected, strict=True))
            capped += expected.count(1.5)
    assert min(up, down, capped) > 1000  # the sequences went through every branch


def test_starts_with_ones_and_no_floor():
    w = DeepChest(2)
    assert w.weights.tolist() == [1, 1]
    for _ in range(100):
        w.update([1.0, 0.0])
    assert w.weights.tolist() == pytest.approx([1.05**-100, 1.5], rel=1e-12)


@pytest.mark.parametrize("score", [0.1, 0.7, 1 / 3, -0.05])
@pytest.mark.parametrize("k", [1, 3, 7, 14])
def test_equal_scores_leave_nobody_behind(score, k):
    # 0.1 + 0.1 + 0.1 is more than 0.3 in binary: a plain mean would put all of them behind it
    w = DeepChest(k)
    w.update([score] * k)
    assert w.weights.tolist() == [1 / 1.05] * k


def test_published_initial_weights_follow_prevalence():
    published = np.array(PUBLISHED_INITIAL_WEIGHTS["cnnmodel1"])
    prevalence = np.array([NIH_PREVALENCE[name] for name in FINDINGS])
    assert np.corrcoef(2 * (published - 1), prevalence)[0, 1] == pytest.approx(0.9991, abs=5e-5)


def test_initial_weights_from_single_task_accuracies():
    assert initial_weights([1.0, 0.9, 0.0]).tolist() == pytest.approx([1.0, 1.05, 1.5], rel=1e-15)
    for bad in ([1.1], [-0.1], [NAN]):
        with pytest.raises(ValueError, match="accuracies"):
            initial_weights(bad)


# NaN and inputs


def test_task_without_a_score_keeps_its_weight_and_does_not_move_the_mean():
    w = DeepChest(4, initial=[0.7, 0.8, 0.9, 1.0])
    w.update([0.2, NAN, 0.3, 0.6])  # the mean of the scored ones is 0.3667
    assert w.weights.tolist() == [1.1 * 0.7, 0.8, 1.1 * 0.9, 1.0 / 1.05]


def test_no_score_at_all_changes_nothing():
    w = DeepChest(3, initial=[0.7, 0.8, 0.9], floor=0.1, normalize=True)
    before = w.weights.clone()
    w.update([NAN] * 3)
    assert torch.equal(w.weights, before)


def test_inputs_are_never_changed():
    initial = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    scores = torch.tensor([0.1, NAN, 0.9], dtype=torch.float64)
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    reported = report({"loss": [0.5, NAN, 0.3]})
    copies = [t.clone() for t in (initial, scores, losses, reported.train["loss"])]
    w, plain = DeepChest(3, signal="loss_trend", initial=initial), DeepChest(3, initial=initial)
    for _ in range(3):
        w(losses)
        plain.update(scores)
        w.end_epoch(reported)
    for now, before in zip((initial, scores, losses, reported.train["loss"]), copies, strict=True):
        torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True)


def test_remembered_loss_is_no_view_of_the_report():
    w = DeepChest(2, signal="loss_trend")
    first = report({"loss": [0.5, 0.4]}, prevalence=(0.5, 0.5))
    w.end_epoch(first)
    first.train["loss"].fill_(99)
    assert w.previous_loss.tolist() == [0.5, 0.4]


def test_weights_read_before_an_update_stay_what_they_were():
    w = DeepChest(2)
    history = [w.weights]
    w.update([0.0, 1.0])
    history.append(w.weights)
    assert [h.tolist() for h in history] == [[1, 1], [1.1, 1 / 1.05]]


def test_update_between_forward_and_backward_does_not_break_the_gradient():
    w = DeepChest(2)
    losses = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = w(losses)
    w.update([0.0, 1.0])
    loss.backward()
    assert losses.grad.tolist() == [1, 1]


# laws


@LAWS
@given(options(), st.booleans(), st.lists(st.tuples(*[score_or_nan] * 4), max_size=12))
def test_bounds_and_normalisation_hold_for_all_inputs(given_options, normalize, epochs):
    w = DeepChest(4, **given_options, normalize=normalize)
    plain = DeepChest(4, **given_options)
    for scores in epochs:
        w.update(scores)
        plain.update(scores)
        raw = w.raw_weights
        assert torch.equal(raw, plain.weights)  # the raw weights know nothing of the normalisation
        assert (raw >= given_options["floor"]).all()
        assert (raw <= given_options["cap"]).all()
        if normalize:
            assert w.weights.mean().item() == pytest.approx(1, rel=1e-12)
            assert w.weights.tolist() == pytest.approx((raw * 4 / raw.sum()).tolist(), rel=1e-12)
        else:
            assert torch.equal(w.weights, raw)


@LAWS
@given(st.lists(st.tuples(*[st.booleans()] * 5), max_size=40))
def test_closed_form_without_bounds(epochs):
    w = DeepChest(5, cap=1e300)
    up, down = [0] * 5, [0] * 5
    for behind in epochs:
        w.update([0.0 if b else 1.0 for b in behind])
        for k, b in enumerate(behind):
            gains = b and not all(behind)  # if all score 0, the mean is 0 and nobody is below it
            up[k] += gains
            down[k] += not gains
    expected = [1.1**u * 1.05**-d for u, d in zip(up, down, strict=True)]
    assert w.weights.tolist() == pytest.approx(expected, rel=1e-12)


@LAWS
@given(st.data(), options(), st.booleans())
def test_rule_knows_no_order_of_tasks(data, given_options, normalize):
    k = data.draw(st.integers(1, 6))
    order = data.draw(st.permutations(range(k)))
    floor, cap = given_options["floor"], given_options["cap"]
    initial = data.draw(st.lists(st.floats(max(floor, 1e-3), cap), min_size=k, max_size=k))
    one = DeepChest(k, **given_options, normalize=normalize, initial=initial)
    other = DeepChest(k, **given_options, normalize=normalize, initial=[initial[i] for i in order])
    tenths = st.integers(-20, 20).map(lambda i: i / 10)  # many ties with the mean, and sums that round
    for _ in range(data.draw(st.integers(1, 4))):
        scores = data.draw(st.lists(tenths | score_or_nan, min_size=k, max_size=k))
        one.update(scores)
        other.update([scores[i] for i in order])
    assert torch.equal(other.raw_weights, one.raw_weights[list(order)])
    torch.testing.assert_close(other.weights, one.weights[list(order)], rtol=1e-14, atol=0)


@LAWS
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_positive_affine_maps_of_the_scores_change_nothing(scores, a, b):
    # a score that ties with the mean may fall on either side of it after rounding
    assume(min(abs(s - np.mean(scores)) for s in scores) > 1e-6)
    one, other = DeepChest(len(scores)), DeepChest(len(scores))
    one.update([float(s) for s in scores])
    other.update([a * s + b for s in scores])
    assert torch.equal(one.weights, other.weights)
    assert len(set(one.weights.tolist())) == 2  # a mean has numbers on both sides


# signals


@pytest.mark.parametrize("signal", ["accuracy", "auroc", "balanced_accuracy"])
@pytest.mark.parametrize("source", ["train", "val"])
def test_measured_signals_are_taken_as_they_are(signal, source):
    every = {"accuracy": [0.1, 0.2, 0.3], "auroc": [0.4, NAN, 0.6], "balanced_accuracy": [0.7, 0.8, 0.9]}
    shifted = {name: [v / 2 for v in values] for name, values in every.items()}
    w = DeepChest(3, signal=signal, scores_from=source)
    found = w.scores(report(every, shifted))
    expected = (every if source == "train" else shifted)[signal]
    assert found.tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("source", ["train", "val"])
def test_loss_trend_is_the_negative_ratio_to_the_last_loss(source):
    w = DeepChest(3, signal="loss_trend", scores_from=source)
    losses = [[0.8, 0.5, 0.2], [0.4, NAN, 0.3], [0.3, 0.4, 0.3], [0.3, 0.1, NAN]]
    other = [0.123, 0.456, 0.789]
    reports = [
        report({"loss": row}, {"loss": other}) if source == "train" else report({"loss": other}, {"loss": row})
        for row in losses
    ]
    expected = [
        [NAN, NAN, NAN],  # nothing to compare the first epoch with
        [-0.4 / 0.8, NAN, -0.3 / 0.2],
        [-0.3 / 0.4, -0.4 / 0.5, -0.3 / 0.3],  # without a loss in epoch 2, the second task compares with epoch 1
        [-0.3 / 0.3, -0.1 / 0.4, NAN],
    ]
    for given_report, row in zip(reports, expected, strict=True):
        assert w.scores(given_report).tolist() == pytest.approx(row, nan_ok=True)
    assert w.previous_loss.tolist() == [0.3, 0.1, 0.3]


def test_loss_trend_moves_no_weight_in_the_first_epoch_and_lifts_the_slowest_in_the_second():
    w = DeepChest(3, signal="loss_trend")
    w.end_epoch(report({"loss": [0.8, 0.5, 0.2]}))
    assert w.weights.tolist() == [1, 1, 1]
    w.end_epoch(report({"loss": [0.4, 0.25, 0.19]}))  # halved, halved, hardly moved
    assert w.weights.tolist() == [1 / 1.05, 1 / 1.05, 1.1]


def test_loss_of_zero_gives_no_trend():
    w = DeepChest(2, signal="loss_trend")
    w.end_epoch(report({"loss": [0.0, 0.5]}, prevalence=(0.5, 0.5)))
    found = w.scores(report({"loss": [0.1, 0.4]}, prevalence=(0.5, 0.5)))
    assert found.tolist() == pytest.approx([NAN, -0.8], nan_ok=True)


@pytest.mark.parametrize("source", ["train", "val"])
def test_relative_loss_is_the_loss_over_the_entropy_of_the_training_prevalence(source):
    prevalence, loss = (0.1, 0.5, 0.01, 0.0, NAN), [0.2, 0.7, 0.05, 0.1, 0.1]
    w = DeepChest(5, signal="relative_loss", scores_from=source)
    other = {"loss": [0.3] * 5}
    sources = ({"loss": loss}, other) if source == "train" else (other, {"loss": loss})
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in prevalence[:3]]
    # with one class only, or no known label, there is no constant predictor to compare with
    expected = [-x / h for x, h in zip(loss, entropy, strict=False)] + [NAN, NAN]
    assert w.scores(report(*sources, prevalence=prevalence)).tolist() == pytest.approx(expected, nan_ok=True)


def test_accuracy_follows_prevalence_where_relative_loss_follows_what_was_learned():
    """Of a rare finding nothing was learned, of a common one something: the two signals disagree on which is
    behind."""
    given_report = report(
        {"accuracy": [0.99, 0.70], "loss": [0.056, 0.55]},  # entropies 0.056 and 0.611
        prevalence=(0.01, 0.30),
    )
    by_accuracy, by_loss = DeepChest(2), DeepChest(2, signal="relative_loss")
    by_accuracy.end_epoch(given_report)
    by_loss.end_epoch(given_report)
    assert by_accuracy.weights.tolist() == [1 / 1.05, 1.1]
    assert by_loss.weights.tolist() == [1.1, 1 / 1.05]


# the loss of a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_the_weighted_sum_and_its_gradient_the_weights(dtype, normalize):
    w = DeepChest(3, initial=[0.5, 1.0, 1.25], normalize=normalize)
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=dtype, requires_grad=True)
    loss = w(losses)
    loss.backward()
    full = torch.float32 if dtype == torch.bfloat16 else dtype
    expected = w.weights.to(full)
    assert loss.dtype == full
    torch.testing.assert_close(loss.detach(), (expected * losses.detach().to(full)).sum())
    assert torch.equal(losses.grad, expected.to(dtype))
    if not normalize:
        assert loss.item() == 0.5 + 2 + 5  # each term is exact in bfloat16


def test_no_gradient_reaches_the_weights():
    w = DeepChest(2)
    assert not w.weights.requires_grad
    assert list(w.parameters()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_bits():
    rng = np.random.default_rng(0)
    here, there = DeepChest(14), DeepChest(14).cuda()
    for scores in rng.random((50, 14)).tolist():
        here.update(scores)
        there.update(torch.tensor(scores))
    assert torch.equal(here.weights, there.weights.cpu())
    assert there(torch.ones(14, device="cuda")).device.type == "cuda"


# state


@pytest.mark.parametrize("signal", SIGNALS)
def test_state_dict_continues_as_if_never_stopped(signal):
    rng = np.random.default_rng(0)
    reports = [random_report(rng, epoch, 6) for epoch in range(1, 9)]
    whole, first, second = (DeepChest(6, signal=signal, floor=0.2, normalize=True, scores_from="val") for _ in range(3))
    for r in reports:
        whole.end_epoch(r)
    for r in reports[:4]:
        first.end_epoch(r)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for r in reports[4:]:
        second.end_epoch(r)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(whole.raw_weights, first.raw_weights)


@pytest.mark.parametrize("value", [NAN, math.inf, -1.0])
def test_state_of_weights_that_are_none_is_refused_alone_and_within_a_model(value):
    w = DeepChest(3)
    model = nn.ModuleDict({"net": nn.Linear(2, 3), "weighting": w})
    for module in (w, model):
        state = module.state_dict()
        state[next(name for name in state if name.endswith("_raw_weights"))] = torch.tensor([1.0, value, 1.2])
        said = rf"raw_weights of DeepChest should be finite and not negative in a state to load\. Found \[{value}\]\."
        with pytest.raises(ValueError, match=said):
            module.load_state_dict(state)
    assert w.weights.tolist() == [1, 1, 1]


# errors


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"num_tasks": 0}, "num_tasks"),
        ({"signal": "gradient"}, "signal.*loss_trend.*'gradient'"),
        ({"signal": "acuracy"}, r"signal.*Found 'acuracy'\. Did you mean 'accuracy'\?$"),
        ({"scores_from": "test"}, "scores_from.*train, val.*'test'"),
        ({"step_up": 0.9}, "step_up.*0.9"),
        ({"step_down": 0.5}, "step_down.*0.5"),
        ({"step_up": NAN}, "step_up.*nan"),
        ({"step_down": math.inf}, "step_down.*inf"),
        ({"floor": -0.1}, "floor.*-0.1"),
        ({"floor": 2.0}, "floor and cap.*2.0 and 1.5"),
        ({"floor": NAN}, "floor"),
        ({"cap": 0.0}, "cap"),
        ({"cap": math.inf}, "cap.*inf"),
        ({"initial": [1.0, 1.0]}, r"initial.*\(3,\).*\(2,\)"),
        ({"initial": [1.0, 1.0, NAN]}, "initial.*finite"),
        ({"initial": [1.0, 1.0, -1.0]}, "initial"),
        ({"initial": [1.0, 1.0, 1.6]}, r"initial.*\[0.0, 1.5\]"),
        ({"initial": [0.4, 1.0, 1.0], "floor": 0.5}, r"initial.*\[0.5, 1.5\]"),
        ({"initial": [0.0, 0.0, 0.0], "normalize": True}, "initial.*zero"),
    ],
)
def test_errors_name_the_argument_and_what_was_found(bad, named):
    with pytest.raises(ValueError, match=named):
        DeepChest(**{"num_tasks": 3, **bad})


def test_what_has_names_or_no_order_is_refused():
    """A dictionary would give its keys, a set its numbers in any order."""
    w = DeepChest(3)
    for scores in ({0: 0.9, 1: 0.2, 2: 0.3}, {0.9, 0.2, 0.3}):
        with pytest.raises(ValueError, match="scores should be 3 numbers, one a task in order"):
            w.update(scores)
    assert w.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize("scores", [[0.1, 0.2], [[0.1, 0.2, 0.3]], []])
def test_scores_of_another_shape_are_refused_and_change_nothing(scores):
    w = DeepChest(3)
    with pytest.raises(ValueError, match=r"scores.*\(3,\)"):
        w.update(torch.tensor(scores))
    assert w.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("bounds", "expected"), [({"cap": 0.5}, 0.5), ({"floor": 1.2}, 1.2)])
def test_default_start_is_cut_to_the_bounds(bounds, expected):
    assert DeepChest(2, **bounds).weights.tolist() == [expected] * 2
