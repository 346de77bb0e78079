"""The bootstrap: whole patients, paired networks, seeds that matter, and intervals that cover."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from deepchest_utils.statistics import bootstrap_metric, compare_runs, interval, patient_weights

NAN = np.nan


def simulate(rng, patients=60, images=3, tasks=3, shift=1.0, shared=0.8):
    """Binormal scores, N(0, 1) for negatives and N(shift, 1) for positives: AUROC = Phi(shift / sqrt 2),
    whatever the clustering.

    A patient's images carry the same labels and share the part `shared` of the variance of their scores.
    """
    owner = np.repeat(np.arange(patients), images)
    labels = (rng.random((patients, tasks)) < 0.4).astype(float)[owner]
    common = rng.normal(size=(patients, tasks))[owner] * math.sqrt(shared)
    own = rng.normal(size=labels.shape) * math.sqrt(1 - shared)
    return labels, shift * labels + common + own, owner


# patients


def test_patient_keeps_all_images_together():
    patients = np.array([7, 7, 3, 9, 3, 7])
    weights = patient_weights(patients, 50, np.random.default_rng(0))
    assert weights.shape == (50, 6)
    for name in (7, 3):
        same = weights[:, patients == name]
        assert (same == same[:, :1]).all()
    one_each = weights[:, [0, 2, 3]]
    assert (one_each.sum(1) == 3).all()  # as many patients are drawn as there are
    assert (one_each != 1).any()


def test_patients_are_drawn_with_equal_chances():
    patients = np.array([0] * 5 + [1] + [2] * 2)
    weights = patient_weights(patients, 20_000, np.random.default_rng(0))
    # a patient's count has mean 1 and variance 2/3: the mean of 20,000 is known to 0.006
    assert weights[:, [0, 5, 6]].mean(0) == pytest.approx([1, 1, 1], abs=0.03)


# seeds


def test_same_seed_same_interval_other_seed_another():
    labels, scores, patients = simulate(np.random.default_rng(0))
    one, again, other = (
        interval(bootstrap_metric(labels, [scores], patients, np.random.default_rng(s), replicates=150)[0])
        for s in (5, 5, 6)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_more_replicates_than_a_block_continue_the_same_stream():
    labels, scores, patients = simulate(np.random.default_rng(0), patients=20)
    found = bootstrap_metric(labels, [scores], patients, np.random.default_rng(0), replicates=250)[0]
    assert found.shape == (250, 3)
    assert len(np.unique(found[:, 0])) > 200  # no block repeats another


# values


@pytest.mark.parametrize(
    ("metric", "reference"), [("auroc", roc_auc_score), ("average_precision", average_precision_score)]
)
def test_replicates_equal_scikit_learn_on_the_images_drawn(metric, reference):
    labels, scores, patients = simulate(np.random.default_rng(1), patients=15)
    labels[np.random.default_rng(2).random(labels.shape) < 0.2] = NAN
    found = bootstrap_metric(labels, [scores], patients, np.random.default_rng(3), metric, replicates=20)[0]
    weights = patient_weights(patients, 20, np.random.default_rng(3))
    for r in range(20):
        drawn = np.repeat(np.arange(len(labels)), weights[r].astype(int))
        for k in range(labels.shape[1]):
            rows = drawn[~np.isnan(labels[drawn, k])]
            if len(set(labels[rows, k])) == 2:
                assert found[r, k] == pytest.approx(reference(labels[rows, k], scores[rows, k]))
            else:
                assert np.isnan(found[r, k])


def test_interval_is_a_pair_of_percentiles_without_the_undefined():
    replicates = np.column_stack([np.arange(101.0), np.full(101, NAN), np.r_[np.arange(100.0), NAN]])
    low, high = interval(replicates, level=0.9)
    assert low == pytest.approx([5, NAN, np.percentile(np.arange(100), 5)], nan_ok=True)
    assert high == pytest.approx([95, NAN, np.percentile(np.arange(100), 95)], nan_ok=True)
    assert [float(v) for v in interval(np.arange(101.0), level=0.9)] == pytest.approx([5, 95])


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, -0.5])
def test_level_must_be_a_share(level):
    with pytest.raises(ValueError, match=f"level.*{level}"):
        interval(np.zeros((3, 1)), level=level)


def test_metric_must_be_known():
    labels, scores, patients = simulate(np.random.default_rng(0), patients=5)
    with pytest.raises(ValueError, match=r"metric.*auroc, average_precision.*'accuracy'"):
        bootstrap_metric(labels, [scores], patients, np.random.default_rng(0), metric="accuracy")


# coverage


def test_interval_over_patients_covers_the_truth_and_one_over_images_does_not():
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(1 / 2))  # Phi(1 / sqrt 2)
    trials, by_patient, by_image, wider = 200, 0, 0, 0
    for _ in range(trials):
        labels, scores, patients = simulate(rng)
        bounds = []
        for groups in (patients, np.arange(len(patients))):
            replicates = bootstrap_metric(labels, [scores], groups, rng, replicates=100)[0]
            bounds.append([float(v) for v in interval(replicates.mean(1))])
        (low, high), (image_low, image_high) = bounds
        by_patient += low <= truth <= high
        by_image += image_low <= truth <= image_high
        wider += high - low > image_high - image_low
    # a percentile interval of 100 replicates of 60 patients covers a little less than it says; 200 trials
    # know a share of 0.93 to 0.018, so that 0.87 is more than three standard errors away, while images taken
    # as independent cover about 0.75
    assert by_patient / trials > 0.87
    assert by_image / trials < 0.85
    assert by_image < by_patient
    assert wider / trials > 0.9


# two networks


def test_network_against_itself_differs_by_exactly_nothing():
    labels, scores, patients = simulate(np.random.default_rng(0), patients=30)
    table = compare_runs(
        labels, scores, scores.copy(), patients, "abc", np.random.default_rng(0), replicates=50
    )
    assert (table[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)


def test_comparison_table():
    rng = np.random.default_rng(0)
    labels, scores, patients = simulate(rng, patients=80)
    better = scores + 0.5 * np.nan_to_num(labels)
    labels[::7, 1] = NAN
    names = ["Mass", "Nodule", "Edema"]
    table = compare_runs(labels, scores, better, patients, names, rng, replicates=200)
    assert list(table.index) == [*names, "macro"]
    parts = ("baseline", "other", "difference")
    assert list(table.columns) == ["positives", *(f"{p}{e}" for p in parts for e in ("", "_low", "_high"))]
    assert table.positives.tolist() == [*np.nansum(labels, 0), np.nansum(labels)]
    for k, name in enumerate(names):
        keep = ~np.isnan(labels[:, k])
        for column, s in (("baseline", scores), ("other", better)):
            assert table.loc[name, column] == pytest.approx(roc_auc_score(labels[keep, k], s[keep, k]))
    assert table.loc["macro", "other"] == pytest.approx(table.other[names].mean())
    assert table.difference.tolist() == pytest.approx((table.other - table.baseline).tolist())
    for p in parts:
        assert (table[f"{p}_low"] < table[p]).all()
        assert (table[p] < table[f"{p}_high"]).all()
    # paired: what both networks share cancels, so the difference is known better than either of them
    assert (
        table.difference_high - table.difference_low < 0.6 * (table.baseline_high - table.baseline_low)
    ).all()
    assert (table.difference_low > 0).all()


def test_undefined_finding_is_left_out_of_the_macro_mean():
    labels, scores, patients = simulate(np.random.default_rng(0), patients=30)
    labels[:, 2] = 0
    table = compare_runs(labels, scores, scores + 1, patients, "abc", np.random.default_rng(0), replicates=50)
    assert table.loc["c"].drop("positives").isna().all()
    assert table.loc["macro", "baseline"] == pytest.approx(table.baseline[["a", "b"]].mean())
    assert table.loc["macro"].notna().all()
