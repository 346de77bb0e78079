"""Every metric against something independent: pair counting, brute force and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from deepchest_utils.results.metrics import (
    METRICS,
    Ranking,
    adjusted_average_precision,
    calibration_error,
    choose_thresholds,
    macro,
    score_tasks,
)

NAN = np.nan
LAWS = settings(max_examples=100)

tied = st.integers(-3, 3).map(float)  # few values, many ties
spread = st.floats(-15, 15, width=32)


@st.composite
def one_task(draw, scores=tied | spread):
    """Labels (N,) of 1, 0 and NaN, and scores (N,)."""
    n = draw(st.integers(1, 20))
    labels = draw(hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0, NAN])))
    return labels, draw(hnp.arrays(np.float64, n, elements=scores))


def has_both(labels) -> bool:
    return {0.0, 1.0} <= set(labels[~np.isnan(labels)])


def known(labels, *arrays):
    keep = ~np.isnan(labels)
    return labels[keep], *(a[keep] for a in arrays)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def single(labels, logits, **thresholds) -> dict[str, float]:
    """The metrics of one task."""
    given_thresholds = {name: np.array([value]) for name, value in thresholds.items()}
    found = score_tasks(labels[:, None], logits[:, None], given_thresholds)
    return {name: values[0] for name, values in found.items()}


# ranking metrics


@LAWS
@given(one_task())
def test_auroc_is_the_share_of_pairs_in_the_right_order(task):
    labels, scores = task
    positive, negative = scores[labels == 1], scores[labels == 0]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    expected = sum(pairs) / len(pairs) if pairs else NAN
    assert Ranking(labels, scores).auroc()[0] == pytest.approx(expected, nan_ok=True)
    assert single(labels, scores)["auroc"] == pytest.approx(expected, nan_ok=True)


@LAWS
@given(one_task())
def test_metrics_equal_scikit_learn(task):
    labels, logits = task
    assume(has_both(labels))
    found = single(labels, logits, f1=0.4, balanced_accuracy=0.6)
    y, x = known(labels, logits)
    p = sigmoid(x)
    expected = {
        "auroc": sk.roc_auc_score(y, x),
        "average_precision": sk.average_precision_score(y, x),
        "brier": sk.brier_score_loss(y, p),
        "loss": sk.log_loss(y, p),
        "accuracy": sk.accuracy_score(y, p >= 0.5),
        "f1": sk.f1_score(y, p >= 0.4, zero_division=0.0),
        "balanced_accuracy": sk.balanced_accuracy_score(y, p >= 0.6),
        "calibration_error": calibration_error(labels, sigmoid(logits)),
    }
    assert found == pytest.approx(expected, rel=1e-9)


@LAWS
@given(one_task(), st.data())
def test_weighted_ranking_equals_scikit_learn(task, data):
    labels, scores = task
    whole_numbers = st.integers(0, 3).map(float)  # 0: an image that a bootstrap replicate did not draw
    weights = data.draw(hnp.arrays(np.float64, (2, len(labels)), elements=whole_numbers | st.floats(0.125, 4)))
    ranking = Ranking(labels, scores)
    aurocs, precisions = ranking.auroc(weights), ranking.average_precision(weights)
    for w, auroc, precision in zip(weights, aurocs, precisions, strict=True):
        y, s, v = known(labels, scores, w)
        if (v[y == 1].sum() > 0) and (v[y == 0].sum() > 0):
            assert auroc == pytest.approx(sk.roc_auc_score(y, s, sample_weight=v))
            assert precision == pytest.approx(sk.average_precision_score(y, s, sample_weight=v))
        else:
            assert np.isnan(auroc)
            assert np.isnan(precision)


@LAWS
@given(one_task())
def test_weight_of_two_is_an_image_twice(task):
    labels, scores = task
    times = 1 + np.arange(len(labels)) % 3
    weighted, repeated = Ranking(labels, scores), Ranking(labels.repeat(times), scores.repeat(times))
    for name in ("auroc", "average_precision"):
        found = getattr(weighted, name)(times[None].astype(float))[0]
        assert found == pytest.approx(getattr(repeated, name)()[0], nan_ok=True)


# unknown and undefined


@LAWS
@given(one_task())
def test_unknown_labels_are_left_out(task):
    labels, logits = task
    y, x = known(labels, logits)
    assume(len(y) > 0)
    thresholds = {"f1": 0.3, "balanced_accuracy": 0.3}
    assert single(labels, logits, **thresholds) == pytest.approx(single(y, x, **thresholds), nan_ok=True)


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_one_class_leaves_ranking_and_threshold_metrics_undefined(only):
    found = single(np.array([only, NAN, only]), np.array([0.5, -3.0, 0.5]), f1=0.5, balanced_accuracy=0.5)
    for name in ("auroc", "average_precision", "f1", "balanced_accuracy"):
        assert np.isnan(found[name]), name
    p = sigmoid(0.5)
    truth = p if only else 1 - p
    assert found["loss"] == pytest.approx(-math.log(truth))
    assert found["brier"] == pytest.approx((1 - truth) ** 2)
    assert found["accuracy"] == only


def test_no_known_label_leaves_everything_undefined():
    labels, logits = np.full((3, 1), NAN), np.array([[0.1], [0.2], [0.3]])
    found = score_tasks(labels, logits, {"f1": np.array([0.5]), "balanced_accuracy": np.array([0.5])})
    assert set(found) == set(METRICS)
    for name, values in found.items():
        assert np.isnan(values).all(), name


def test_undefined_threshold_leaves_its_metric_undefined():
    found = single(np.array([0.0, 1.0]), np.array([-1.0, 1.0]), f1=NAN, balanced_accuracy=0.5)
    assert np.isnan(found["f1"])
    assert found["balanced_accuracy"] == 1


def test_tasks_do_not_see_each_other():
    rng = np.random.default_rng(0)
    labels = rng.choice([0.0, 1.0, NAN], (40, 3))
    logits = rng.normal(size=(40, 3))
    thresholds = {"f1": np.array([0.3, 0.4, 0.5]), "balanced_accuracy": np.array([0.6, 0.5, 0.4])}
    together = score_tasks(labels, logits, thresholds)
    for k in range(3):
        alone = single(labels[:, k], logits[:, k], **{n: t[k] for n, t in thresholds.items()})
        assert {n: v[k] for n, v in together.items()} == pytest.approx(alone)


def test_extreme_logits_give_finite_losses():
    found = single(np.array([1.0, 0.0]), np.array([-1e5, 1e5], dtype=np.float32))
    assert found["loss"] == 1e5
    assert found["brier"] == 1


# calibration


@LAWS
@given(one_task())
def test_calibration_error_by_a_loop_over_the_bins(task):
    labels, logits = task
    p = sigmoid(logits)
    y, q = known(labels, p)
    total = 0.0
    for b in range(15):
        low, high = b / 15, (b + 1) / 15
        # at an inner edge rounding may put a number on either side: there is nothing to decide
        assume(not np.any(np.abs(q - low) < 1e-12))
        inside = (q >= low) & (q < high)
        if inside.any():
            total += inside.sum() / len(y) * abs(y[inside].mean() - q[inside].mean())
    expected = total if len(y) else NAN
    assert calibration_error(labels, p) == pytest.approx(expected, nan_ok=True)


def test_calibration_error_of_known_cases():
    half = np.full(10, 0.5)
    assert calibration_error(np.array([0.0, 1.0] * 5), half) == 0
    assert calibration_error(np.zeros(10), half) == pytest.approx(0.5)
    assert calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0  # the last bin holds its right edge


# thresholds


@LAWS
@given(one_task(scores=st.sampled_from([0.1, 0.2, 0.5, 0.9]) | st.floats(0, 1)))
def test_chosen_thresholds_are_the_best_there_are(task):
    labels, p = task
    chosen = {name: t[0] for name, t in choose_thresholds(labels[:, None], p[:, None]).items()}
    y, q = known(labels, p)
    if not has_both(labels):
        assert all(np.isnan(t) for t in chosen.values())
        return

    def f1(t):
        called = q >= t
        return 2 * (called & (y == 1)).sum() / (called.sum() + (y == 1).sum())

    def balanced(t):
        called = q >= t
        return (called[y == 1].mean() + (~called[y == 0]).mean()) / 2

    every = [*np.unique(q), 2.0]  # calling everything down to each score positive, or nothing at all
    assert f1(chosen["f1"]) == pytest.approx(max(map(f1, every)))
    assert balanced(chosen["balanced_accuracy"]) == pytest.approx(max(map(balanced, every)))


@pytest.mark.parametrize("steps", range(8))
def test_threshold_between_neighbouring_numbers_still_parts_them(steps):
    # half way between neighbouring floats rounds to one of them, to the lower one every other time
    low = 0.5
    for _ in range(steps):
        low = np.nextafter(low, 1)
    p = np.array([low, np.nextafter(low, 1)])
    chosen = choose_thresholds(np.array([[0.0], [1.0]]), p[:, None])
    for name, t in chosen.items():
        assert (p >= t[0]).tolist() == [False, True], name


def test_threshold_lies_between_the_scores_it_parts():
    chosen = choose_thresholds(np.array([[0.0], [0.0], [1.0]]), np.array([[0.1], [0.2], [0.8]]))
    assert chosen["f1"][0] == pytest.approx(0.5)
    assert chosen["balanced_accuracy"][0] == pytest.approx(0.5)


# macro


def test_macro_leaves_undefined_tasks_out_and_counts_the_rest():
    assert macro(np.array([0.5, NAN, 0.9])) == (pytest.approx(0.7), 2)
    assert macro(np.array([0.25])) == (0.25, 1)
    mean, count = macro(np.array([NAN, NAN]))
    assert math.isnan(mean)
    assert count == 0


# prevalence


def test_adjusted_average_precision_does_not_depend_on_the_prevalence():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1.5, 1, 4000), rng.normal(0, 1, 36_000)
    found, plain = [], []
    for count in (36_000, 4000):
        scores = np.concatenate([positive, negative[:count]])[:, None]
        labels = np.repeat([1.0, 0.0], [4000, count])[:, None]
        found.append(adjusted_average_precision(labels, scores).item())
        plain.append(sk.average_precision_score(labels[:, 0], scores[:, 0]))
    assert found == pytest.approx([plain[0]] * 2, abs=0.01)  # one in ten of the first set is positive
    assert found[0] == pytest.approx(plain[0])
    assert plain[1] - plain[0] > 0.2
    # by hand: scikit-learn with the same weights
    weights = np.repeat([0.3 / 4000, 0.7 / 4000], 4000)
    expected = sk.average_precision_score(labels[:, 0], scores[:, 0], sample_weight=weights)
    assert adjusted_average_precision(labels, scores, 0.3).item() == pytest.approx(expected)


def test_adjusted_average_precision_leaves_the_unknown_out_and_wants_both_classes():
    labels = np.array([[1, 0, 1], [0, 0, 1], [np.nan, 0, 1], [0, 0, 1]], dtype=float)
    scores = np.arange(12.0).reshape(4, 3)
    found = adjusted_average_precision(labels, scores)
    assert found[0] == pytest.approx(adjusted_average_precision(labels[[0, 1, 3], :1], scores[[0, 1, 3], :1])[0])
    assert np.isnan(found[1:]).all()
