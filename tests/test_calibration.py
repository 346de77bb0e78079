"""Platt's scaling: finds the slope and offset that were there, leaves the ranking, never breaks on one class."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from deepchest_utils.results.metrics import calibrate, calibration_error, fit_calibration


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(rng, count, slope, offset):
    """Logits and labels whose probability is sigmoid(slope * logit + offset)."""
    logits = rng.normal(0, 2, (count, 1))
    labels = rng.random((count, 1)) < 1 / (1 + np.exp(-(slope * logits + offset)))
    return labels.astype(np.float32), logits


def test_finds_what_was_there_and_agrees_with_scikit_learn(rng):
    labels, logits = drawn(rng, 20_000, 0.5, -1.5)
    found = fit_calibration(labels, logits)[0]
    np.testing.assert_allclose(found, [0.5, -1.5], atol=0.06)
    other = LogisticRegression(C=1e9).fit(logits, labels[:, 0])
    np.testing.assert_allclose(found, [other.coef_[0, 0], other.intercept_[0]], atol=5e-3)  # Platt's targets


def test_calibrated_probabilities_are_closer_to_the_truth(rng):
    labels, logits = drawn(rng, 4000, 0.4, -1.0)
    calibration = fit_calibration(labels, logits)
    labels, logits = drawn(rng, 4000, 0.4, -1.0)
    raw = calibration_error(labels[:, 0], calibrate(logits, np.array([[1.0, 0.0]]))[:, 0])
    fitted = calibrate(logits, calibration)[:, 0]
    assert calibration_error(labels[:, 0], fitted) < raw / 3
    np.testing.assert_array_equal(np.argsort(fitted), np.argsort(logits[:, 0]))


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_one_class_is_left_as_it_is(rng, value):
    labels = np.full((50, 1), value, np.float32)
    np.testing.assert_array_equal(fit_calibration(labels, rng.normal(size=(50, 1))), [[1, 0]])


def test_separated_classes_have_a_finite_slope_and_unknown_labels_do_not_count(rng):
    logits = np.concatenate([np.linspace(-3, -1, 20), np.linspace(1, 3, 20), [50.0]])[:, None]
    labels = np.repeat([0.0, 1.0, np.nan], [20, 20, 1]).astype(np.float32)[:, None]
    found = fit_calibration(labels, logits)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, fit_calibration(labels[:40], logits[:40])[0])
    p = calibrate(logits[:40], found[None])
    assert 0.9 < p[-1, 0] < 0.999


def test_ranking_is_never_turned_round(rng):
    labels, logits = drawn(rng, 500, -1.0, 0.0)
    slope, offset = fit_calibration(labels, logits)[0]
    assert slope == 0
    assert 1 / (1 + np.exp(-offset)) == pytest.approx(labels.mean(), abs=0.01)
