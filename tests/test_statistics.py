"""The bootstrap: whole patients, paired networks, seeds that matter, and intervals that cover; intervals over seeds
and patients together; many methods at once."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from deepchest_utils.results.statistics import (
    adjust_p,
    bootstrap_metric,
    compare_runs,
    format_interval,
    holm,
    interval,
    judge_differences,
    mean_interval,
    paired_differences,
    patient_weights,
    smallest_difference,
)
from deepchest_utils.studies.comparison import friedman

NAN = np.nan
NONE = np.empty(0)  # no replicates


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
    low, high = interval(replicates)
    assert low == pytest.approx([2.5, NAN, np.percentile(np.arange(100), 2.5)], nan_ok=True)
    assert high == pytest.approx([97.5, NAN, np.percentile(np.arange(100), 97.5)], nan_ok=True)
    assert [float(v) for v in interval(np.arange(101.0))] == pytest.approx([2.5, 97.5])
    for nothing in (np.full((5, 2), NAN), np.full(5, NAN)):
        assert np.isnan(interval(nothing)).all()


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
    table = compare_runs(labels, scores, scores.copy(), patients, "abc", np.random.default_rng(0), replicates=50)
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
    assert (table.difference_high - table.difference_low < 0.6 * (table.baseline_high - table.baseline_low)).all()
    assert (table.difference_low > 0).all()


def test_undefined_finding_is_left_out_of_the_macro_mean():
    labels, scores, patients = simulate(np.random.default_rng(0), patients=30)
    labels[:, 2] = 0
    table = compare_runs(labels, scores, scores + 1, patients, "abc", np.random.default_rng(0), replicates=50)
    assert table.loc["c"].drop("positives").isna().all()
    assert table.loc["macro", "baseline"] == pytest.approx(table.baseline[["a", "b"]].mean())
    assert table.loc["macro"].notna().all()


# seeds and patients


def coverages(seed_sd: float, patient_sd: float, both_sd: float) -> dict[str, float]:
    """How often the 95% interval holds the true difference of two methods, over 1000 experiments of 5 seeds and 100
    patients: with seeds and patients, with seeds alone, with patients alone.

    A patient's difference is the truth, plus what seed, patient and the two together make of it, normal with the given
    standard deviations.
    """
    rng = np.random.default_rng(0)
    truth, seeds, patients, trials = 0.3, 5, 100, 1000
    covers = dict.fromkeys(("together", "seeds", "patients"), 0)
    for _ in range(trials):
        of_seed, of_patient = seed_sd * rng.normal(size=(seeds, 1)), patient_sd * rng.normal(size=patients)
        difference = truth + of_seed + of_patient + both_sd * rng.normal(size=(seeds, patients))
        values = difference.mean(1)
        weights = patient_weights(np.arange(patients), 100, rng)
        replicates = weights @ difference.mean(0) / patients
        made = {"together": (values, replicates), "seeds": (values, NONE)}
        made["patients"] = (values.mean(keepdims=True), replicates)
        for name, given_to in made.items():
            found = mean_interval(*given_to)
            covers[name] += found["low"] <= truth <= found["high"]
    return {name: count / trials for name, count in covers.items()}


# the mean over 5 seeds and 100 patients has the variance seed^2 / 5 + patient^2 / 100 + both^2 / 500. A share of 0.95
# of 1000 is known to 0.007: 0.93 is three standard errors away
@pytest.mark.parametrize(
    ("sds", "seeds_alone", "patients_alone"),
    [
        pytest.param((1.0, 0.5, 0.5), (0.93, 0.98), (0.0, 0.4), id="seeds dominate"),
        pytest.param((0.1, 3.0, 1.0), (0.0, 0.6), (0.9, 0.97), id="patients dominate"),
        pytest.param((0.45, 2.0, 1.0), (0.7, 0.92), (0.7, 0.92), id="mixed"),
    ],
)
def test_interval_covers_where_seeds_or_patients_alone_do_not(sds, seeds_alone, patients_alone):
    found = coverages(*sds)
    assert 0.93 <= found["together"] <= 0.99
    assert seeds_alone[0] <= found["seeds"] <= seeds_alone[1]
    assert patients_alone[0] <= found["patients"] <= patients_alone[1]


def test_what_seeds_make_of_single_patients_errs_on_the_wide_side():
    assert coverages(0.0, 0.0, 1.0)["together"] >= 0.97  # counted with the seeds and with the patients


SEEDS = np.array([0.012, 0.031, -0.004, 0.022, 0.018])


def test_without_replicates_it_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.8, 0.02, 6), rng.normal(0.79, 0.02, 6)
    reference = stats.ttest_rel(one, other)
    low, high = reference.confidence_interval(0.95)
    found = mean_interval(one - other, NONE)
    assert [found["low"], found["high"], found["p"]] == pytest.approx([low, high, reference.pvalue])
    assert found["seed_sd"] == pytest.approx((one - other).std(ddof=1))
    assert math.isnan(found["patient_sd"])


@pytest.mark.parametrize("count", [2, 5])
def test_two_variances_add_and_the_degrees_of_freedom_are_satterthwaites(count):
    values, replicates = SEEDS[:count], np.random.default_rng(0).normal(0.01, 0.006, 400)
    seeds, patients = np.var(values, ddof=1) / count, np.var(replicates, ddof=1)
    t = stats.t((seeds + patients) ** 2 / (seeds**2 / (count - 1)))  # the patients' share has no limit of its own
    error = math.sqrt(seeds + patients)
    found = mean_interval(values, replicates)
    mean = values.mean()
    assert found["mean"] == pytest.approx(mean)
    assert found["low"] == pytest.approx(mean - t.ppf(0.975) * error)
    assert found["high"] == pytest.approx(mean + t.ppf(0.975) * error)
    assert found["p"] == pytest.approx(2 * (1 - t.cdf(abs(mean) / error)))
    assert found["patient_sd"] == pytest.approx(math.sqrt(patients))


def test_one_seed_has_the_patients_interval_and_none_without_replicates():
    replicates = np.random.default_rng(0).normal(0.5, 0.1, 300)
    found = mean_interval(SEEDS[:1], replicates)
    reach = stats.norm.ppf(0.975) * replicates.std(ddof=1)
    assert [found["low"], found["high"]] == pytest.approx([SEEDS[0] - reach, SEEDS[0] + reach])
    assert math.isnan(found["seed_sd"])
    for too_few in (NONE, replicates[:1]):
        alone = mean_interval(SEEDS[:1], too_few)
        assert alone.pop("mean") == SEEDS[0]
        assert all(math.isnan(value) for value in alone.values())


@pytest.mark.parametrize(("seeds", "replicates"), [(5, 0), (5, 100), (1, 100)])
def test_method_against_itself_differs_by_exactly_nothing_for_certain(seeds, replicates):
    found = mean_interval(np.zeros(seeds), np.zeros(replicates))
    assert [found[name] for name in ("mean", "low", "high", "p")] == [0, 0, 0, 1]
    always = mean_interval(np.full(seeds, 0.5), np.full(replicates, 0.5))
    assert [always[name] for name in ("mean", "low", "high", "p")] == [0.5, 0.5, 0.5, 0]


def test_nothing_is_certain_of_what_is_not_known():
    replicates = np.random.default_rng(0).normal(size=50)
    for unknown in ((np.r_[SEEDS, NAN], replicates), (SEEDS, np.r_[replicates, NAN])):
        assert all(math.isnan(mean_interval(*unknown)[name]) for name in ("low", "high", "p"))


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e3, 1e15, -1.0])
def test_units_do_not_matter(scale):
    replicates = np.random.default_rng(0).normal(0, 0.01, 100)
    one, other = mean_interval(SEEDS, replicates), mean_interval(scale * SEEDS, scale * replicates)
    ends = sorted([scale * one["low"], scale * one["high"]])
    assert [other["low"], other["high"]] == pytest.approx(ends, rel=1e-9, abs=0)
    assert other["p"] == pytest.approx(one["p"])


@given(st.floats(-0.1, 0.1))
def test_p_and_the_interval_say_the_same(shift):
    found = mean_interval(SEEDS + shift, np.random.default_rng(0).normal(0, 0.01, 100))
    assert (found["p"] < 0.05) == (not found["low"] <= 0 <= found["high"])


def test_mean_interval_wants_a_seed():
    with pytest.raises(ValueError, match=r"values.*none"):
        mean_interval(NONE, SEEDS)


# many methods at once


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.01, NAN, 0.3])) == pytest.approx([0.02, NAN, 0.3], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]
    assert holm(NONE).tolist() == []


@given(st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.02, 0.05, 1.0, NAN]) | st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """A hypothesis falls if Bonferroni rejects every set of hypotheses that it is in: what Holm's steps shorten."""
    p = np.array(p, dtype=float)
    found, tested = holm(p), np.flatnonzero(~np.isnan(p))
    expected = np.full(len(p), NAN)
    for i in tested:
        sets = [s for n in range(1, len(tested) + 1) for s in combinations(tested, n) if i in s]
        expected[i] = max(min(1.0, len(s) * p[list(s)].min()) for s in sets)
    assert found == pytest.approx(expected, nan_ok=True)
    assert (found[tested] >= p[tested]).all()
    order = np.random.default_rng(0).permutation(len(p))
    assert np.array_equal(holm(p[order]), found[order], equal_nan=True)


# every difference of the project


def long_table(methods=("equal", "famo", "gls"), tasks=("macro", "Mass"), seeds=5, data=("a",)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(m, "auroc", t, d, s) for s in range(seeds) for m in methods for t in tasks for d in data]
    table = pd.DataFrame(rows, columns=["method", "metric", "task", "data", "seed"])
    return table.assign(value=rng.normal(0.7, 0.05, len(rows)))


def by_hand(table, method, baseline="equal", **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value]
    wide = table.pivot(index=["seed", "data"], columns="method", values="value")
    return mean_interval((wide[method] - wide[baseline]).groupby("seed").mean().to_numpy(), NONE)


def test_differences_are_paired_and_corrected_over_the_methods():
    table = long_table()
    found = paired_differences(table.sample(frac=1, random_state=0))
    assert list(found.columns) == [
        "method", "metric", "task", "pairs", "mean", "low", "high", "p", "seed_sd", "patient_sd", "p_holm"
    ]  # fmt: skip
    assert set(zip(found.method, found.task, strict=True)) == {
        (m, t) for m in ("famo", "gls") for t in ("macro", "Mass")
    }
    for row in found.itertuples():
        numbers = by_hand(table, row.method, task=row.task)
        assert [getattr(row, name) for name in ("mean", "low", "high", "p")] == pytest.approx(
            [numbers[name] for name in ("mean", "low", "high", "p")]
        )
    for _, family in found.groupby("task"):
        np.testing.assert_array_equal(family.p_holm, holm(family.p.to_numpy()))


@pytest.mark.parametrize(
    ("family", "sizes"), [(None, [2, 2]), ((), [4]), (["method"], [2, 2]), (["method", "task"], [1] * 4)]
)
def test_families_are_those_asked_for(family, sizes):
    found = paired_differences(long_table(), family=family)
    groups = [found] if family == () else [g for _, g in found.groupby(["task"] if family is None else family)]
    assert [len(group) for group in groups] == sizes
    for group in groups:
        np.testing.assert_array_equal(group.p_holm, holm(group.p.to_numpy()))
    part = found[found.method == "gls"].set_index("task")  # whatever the index
    np.testing.assert_array_equal(adjust_p(part).p_holm, holm(part.p.to_numpy()))


def test_several_data_sets_are_a_mean_within_a_seed_that_has_all_of_them():
    table = long_table(data=("a", "b"))
    (row,) = paired_differences(table.query("task == 'macro' and method != 'gls'"), average=["data"]).itertuples()
    numbers = by_hand(table, "famo", task="macro")
    assert (row.pairs, row.mean, row.p) == (5, pytest.approx(numbers["mean"]), pytest.approx(numbers["p"]))
    for lost in ({"method": "famo"}, {"method": "equal"}):
        partial = table[(table.data != "b") | (table.seed != 3) | (table.method != lost["method"])]
        row = paired_differences(partial, average=["data"]).query("method == 'famo' and task == 'macro'").iloc[0]
        numbers = by_hand(table[table.seed != 3], "famo", task="macro")
        assert (row.pairs, row["mean"], row.p) == (4, pytest.approx(numbers["mean"]), pytest.approx(numbers["p"]))
    # a finding that is defined nowhere is in no mean
    undefined = table.assign(value=table.value.mask(table.data == "b"))
    row = paired_differences(undefined, average=["data"]).query("method == 'famo' and task == 'macro'").iloc[0]
    assert row["mean"] == pytest.approx(by_hand(table, "famo", task="macro", data="a")["mean"])


def test_without_a_baseline_there_are_means_and_no_question():
    found = paired_differences(long_table(), None)
    assert set(found.method) == {"equal", "famo", "gls"}
    assert found[["p", "p_holm"]].isna().all(axis=None)
    table = long_table().query("method == 'gls' and task == 'Mass'")
    row = found.query("method == 'gls' and task == 'Mass'").iloc[0]
    assert row["mean"] == pytest.approx(table.value.mean())
    assert row.high - row.low == pytest.approx(2 * stats.t.ppf(0.975, 4) * table.value.std() / math.sqrt(5))


def test_replicates_belong_to_their_rows():
    table = long_table()
    samples = table.value.to_numpy()[:, None] + np.random.default_rng(1).normal(0, 0.02, (len(table), 30))
    order = np.random.default_rng(2).permutation(len(table))
    found = paired_differences(table.iloc[order], replicates=samples[order])
    for row in found.itertuples():
        one, other = (np.flatnonzero((table.method == m) & (table.task == row.task)) for m in (row.method, "equal"))
        numbers = mean_interval(
            (table.value.to_numpy()[one] - table.value.to_numpy()[other]), (samples[one] - samples[other]).mean(0)
        )
        assert (row.low, row.patient_sd) == (pytest.approx(numbers["low"]), pytest.approx(numbers["patient_sd"]))
    samples[table.index[(table.method == "gls") & (table.seed == 0)]] = np.nan  # patients are left out, of gls alone
    found = paired_differences(table, replicates=samples)
    assert found.patient_sd.isna().tolist() == (found.method == "gls").tolist()


def test_values_that_are_no_pairs_are_refused():
    table = long_table()
    with pytest.raises(ValueError, match=r"baseline should be one of equal, famo, gls. Found 'magic'"):
        paired_differences(table, "magic")
    with pytest.raises(ValueError, match=r"one row a pair. Found two of equal: {'metric': 'auroc', 'task': 'macro'"):
        paired_differences(pd.concat([table, table[:1]]))
    assert paired_differences(table[table.method == "equal"]).empty  # nothing beside the baseline


def test_an_interval_in_words():
    row = {"mean": 0.00412, "low": -0.00678, "high": 0.01512, "p_holm": 0.01, "pairs": 5}
    assert format_interval(row) == "+0.0041 [-0.0068, +0.0151]"
    assert format_interval(row, digits=3, sign="") == "0.004 [-0.007, 0.015]"
    assert format_interval(row | {"low": NAN, "high": NAN}) == "+0.0041"
    assert format_interval(dict.fromkeys(row, NAN)) == "-"


# four methods on fourteen data sets (Demsar 2006, table 6): ranks
DEMSAR = "4 3 2 1   1 2 3 4   4 1 2 3   4 1 3 2   4 2 3 1   1 2.5 4 2.5   3 2 4 1   2.5 2.5 4 1   4 3 2 1"
DEMSAR += "   2.5 2.5 2.5 2.5   4 2.5 1 2.5   3 2 4 1   4 1 2 3   3 1 4 2"


def test_friedman_on_the_example_of_demsar():
    scores = -np.array(DEMSAR.split(), dtype=float).reshape(14, 4)
    ranks, p, critical = friedman(scores)
    assert ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert critical == pytest.approx(1.25, abs=5e-3)
    assert friedman(scores, alpha=0.1)[2] == pytest.approx(1.12, abs=5e-3)
    assert p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)


def test_friedman_by_hand():
    ranks, p, _ = friedman(np.array([[0.9, 0.8, 0.7], [0.6, 0.7, 0.5], [0.9, 0.3, 0.2], [0.3, 0.2, 0.1]]))
    assert ranks.tolist() == [1.25, 1.75, 3]
    statistic = 12 * 4 / (3 * 4) * (1.25**2 + 1.75**2 + 3**2 - 3 * 4**2 / 4)
    assert p == pytest.approx(math.exp(-statistic / 2))  # the tail of chi-squared with 2 degrees of freedom


def test_friedman_sees_ranks_alone():
    scores = np.random.default_rng(0).random((6, 5))
    ranks, p, critical = friedman(scores)
    order = [3, 0, 4, 1, 2]
    other = friedman(np.exp(5 * scores[::-1, order]))
    assert other[0].tolist() == ranks[order].tolist()
    assert other[1:] == (pytest.approx(p), critical)


@pytest.mark.parametrize("methods", range(3, 11))
def test_critical_difference_has_the_quantiles_of_demsars_table(methods):
    q = [2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164][methods - 3]  # cut or rounded to 3 digits there
    critical = friedman(np.random.default_rng(0).random((14, methods)))[2]
    assert critical / math.sqrt(methods * (methods + 1) / (6 * 14)) == pytest.approx(q, abs=1e-3)


def test_methods_that_tie_everywhere_are_alike():
    ranks, p, _ = friedman(np.full((4, 3), 0.5))
    assert ranks.tolist() == [2, 2, 2]
    assert p == 1


@pytest.mark.parametrize("scores", [np.ones((5, 2)), np.ones((1, 4)), np.array([[1, 2, 3], [1, NAN, 2]])])
def test_friedman_wants_a_full_table(scores):
    with pytest.raises(ValueError, match="scores should be at least 2 tasks by 3 methods without NaN"):
        friedman(scores)


# what differences say


def differences(mean, sd, pairs=20, patients=NAN) -> pd.DataFrame:
    """Rows as `paired_differences` makes them."""
    columns = np.broadcast_arrays(*map(np.atleast_1d, (mean, sd, pairs, patients)))
    names = ["mean", "seed_sd", "pairs", "patient_sd"]
    return pd.DataFrame({name: column.astype(float) for name, column in zip(names, columns, strict=True)})


def judged(table: pd.DataFrame, **options) -> pd.DataFrame:
    return judge_differences(table.assign(task="macro"), ["task"], **options)


@pytest.mark.parametrize("count", [5, 8, 20])
def test_a_judged_difference_is_the_paired_t_test_and_two_one_sided_ones(count):
    rng = np.random.default_rng(count)
    one, other = rng.normal(0.802, 0.01, count), rng.normal(0.8, 0.01, count)
    rows = [(m, s, v) for m, values in (("equal", other), ("famo", one)) for s, v in enumerate(values)]
    long = pd.DataFrame(rows, columns=["method", "seed", "value"]).assign(task="macro")
    (row,) = judge_differences(paired_differences(long, by=["task"]), ["task"]).itertuples()
    reference = stats.ttest_rel(one, other)
    assert [row.low, row.high] == pytest.approx(list(reference.confidence_interval()))
    assert [row.p, row.p_holm, row.df] == pytest.approx([reference.pvalue, reference.pvalue, count - 1])
    above = stats.ttest_1samp(one - other, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(one - other, 0.01, alternative="less").pvalue
    assert row.p_equivalent == pytest.approx(max(above, below))
    # in one more pair: the mean's error and the pair's own spread
    sd = (one - other).std(ddof=1)
    assert row.chance == pytest.approx(stats.t.cdf(row.mean / (sd * math.sqrt(1 + 1 / count)), count - 1))


def test_folds_share_images_and_the_correction_allows_for_it():
    """By hand, and on 10 x 5 folds of 200 images whose scores hold chance of training and of test images, true difference 0."""
    (row,) = judged(differences(0.01, 0.02, 50), overlap=1 / 3).itertuples()
    assert (row.high - row.low) / 2 == pytest.approx(stats.t.ppf(0.975, 49) * 0.02 * math.sqrt(1 / 50 + 1 / 3))
    rng, studies, found = np.random.default_rng(3), 150, {0.0: 0, 1 / 3: 0}
    for _ in range(studies):
        test, train, values = rng.normal(size=200), rng.normal(size=200), []
        for _ in range(10):
            parts = np.array_split(rng.permutation(200), 5)
            for k in range(5):
                trained = np.concatenate([parts[(k + j) % 5] for j in (2, 3, 4)])
                values.append(test[parts[k]].mean() + train[trained].mean())
        for overlap in found:
            table = judged(differences(np.mean(values), np.std(values, ddof=1), 50), overlap=overlap)
            found[overlap] += bool(table.p.item() < 0.05)
    assert found[0.0] > 0.2 * studies  # without it, four times too often and more
    assert found[1 / 3] < 0.08 * studies


def test_words_for_what_was_found():
    rows = {  # mean, sd, pairs
        "higher": (0.02, 0.01, 20), "lower": (-0.02, 0.01, 20), "equivalent": (0.001, 0.01, 20),
        "higher, equivalent": (0.005, 0.002, 20), "lower, equivalent": (-0.005, 0.002, 20), "open": (0.006, 0.02, 20),
    }  # fmt: skip
    for word, (mean, sd, pairs) in rows.items():
        assert judged(differences(mean, sd, pairs)).verdict.item() == word
    for pairs, word in ((4, "open"), (5, "higher")):  # four that agree say nothing, however close
        assert judged(differences(0.02, 0.0001, pairs)).verdict.item() == word
    assert judged(differences(0.0, 0.0001, 4)).verdict.item() == "open"
    one = judged(differences([0.005, 0.0], 0.01, 1))
    assert one[["low", "high", "p", "p_equivalent", "chance"]].isna().all(axis=None)
    same = judged(differences(0.0, 0.0, 20))  # the same network, pair by pair
    assert (same.p.item(), same.p_equivalent.item(), same.verdict.item()) == (1, 0, "equivalent")


def test_holm_corrects_within_the_family():
    table = differences([0.006, 0.001, 0.001], 0.01).assign(task=["a", "a", "b"])
    found = judge_differences(table, ["task"])
    assert found.p_holm.tolist() == pytest.approx([2 * found.p[0], found.p[1], found.p[2]])
    # 0.016 in itself: not after the correction
    assert (found.p[0] < 0.05, found.p_holm[0] < 0.05) == (True, True)
    assert judge_differences(table.assign(task="a"), ["task"]).p_holm[0] == pytest.approx(3 * found.p[0])


METHODS_OF_THE_TABLE = 26
# spread over seeds of the 26 differences to Equal in macro AUROC in phantom_summary.csv, ascending
SPREADS = np.array([
    .0038, .0060, .0075, .0078, .0081, .0082, .0090, .0097, .0115, .0124, .0129, .0136, .0143,
    .0148, .0161, .0174, .0190, .0200, .0220, .0236, .0247, .0248, .0323, .0325, .0414, .0481,
])  # fmt: skip


def simulated(count: int, patients: bool, shift: float = 0.0, experiments: int = 8000) -> pd.DataFrame:
    """Differences of 26 methods to one baseline, whose own spread of 0.003 they share, and with `patients` the same test
    patients in each pair, with a fifth of the spread, as in the tables."""
    rng = np.random.default_rng(count)
    baseline = rng.normal(0, 0.003, (experiments, count, 1))
    own = rng.normal(size=(experiments, count, METHODS_OF_THE_TABLE)) * np.sqrt(SPREADS**2 - 0.003**2)
    values = own + baseline
    patient_sd = SPREADS / 5 if patients else np.zeros(METHODS_OF_THE_TABLE)
    mean = values.mean(1) + rng.normal(size=values.shape[::2]) * patient_sd + shift * SPREADS
    spread = np.broadcast_to(patient_sd, mean.shape).ravel()
    return differences(mean.ravel(), values.std(1, ddof=1).ravel(), count, np.where(spread > 0, spread, NAN))


@pytest.mark.parametrize("patients", [False, True], ids=["own patients", "shared patients"])
@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_few_pairs_are_not_called_different_by_luck(count, patients):
    """At the first threshold of Holm, 0.05 / 26, of 208,000 tests of nothing: 400 are expected, and known to 20."""
    table, threshold = simulated(count, patients), 0.05 / METHODS_OF_THE_TABLE
    rate = (judged(table).p < threshold).mean() / threshold
    assert rate < 1.2
    if not patients:
        assert rate > 0.8  # no worse than a t-test can be
        by_method = (judged(table).p.to_numpy().reshape(-1, METHODS_OF_THE_TABLE) < 0.05).mean(0) / 0.05
        assert by_method.max() < 1.2  # nor for the one with the widest spread
    elif count < 10:  # what Satterthwaite's degrees of freedom make of the same numbers
        of_pairs = table.seed_sd**2 / count
        error = of_pairs + table.patient_sd**2
        before = 2 * stats.t.sf(table["mean"].abs() / np.sqrt(error), error**2 / (of_pairs**2 / (count - 1)))
        assert (before < threshold).mean() / threshold > {2: 20, 3: 8, 5: 2.5}[count]


@pytest.mark.parametrize(
    ("count", "single", "first"), [(5, 1.682, 4.039), (8, 1.156, 2.121), (10, 0.996, 1.705), (20, 0.660, 1.011)]
)
def test_power(count, single, first):
    """What 80% find: in spreads of a difference, of one test and of the first of 26. The simulation finds as many."""
    unit = np.array([1 / math.sqrt(count)]), np.array([count - 1.0])
    found = smallest_difference(*unit), smallest_difference(*unit, 0.05 / 26)
    assert [value.item() for value in found] == pytest.approx([single, first], abs=0.001)
    for shift, level in ((single, 0.05), (first, 0.05 / 26)):
        power = (judged(simulated(count, False, shift)).p < level).mean()
        assert power == pytest.approx(0.8, abs=0.01)
    assert judged(differences(0.0, 0.01, count)).smallest.item() == pytest.approx(0.01 * single, rel=0.01)


def test_equivalence_is_seldom_said_of_what_is_just_not_equivalent():
    rng = np.random.default_rng(0)
    values = rng.normal(0.01, 0.012, (20_000, 20))
    table = judged(differences(values.mean(1), values.std(1, ddof=1)))
    assert (table.p_equivalent < 0.05).mean() == pytest.approx(0.05, abs=0.006)


@pytest.mark.parametrize(("undefined", "known"), [(0, True), (5, True), (6, False), (10, True)])
def test_replicates_of_which_fewer_than_half_are_defined_give_no_interval(undefined, known):
    """If none is, patients are left out."""
    rng = np.random.default_rng(0)
    pairs = [(method, seed) for method in ("equal", "famo") for seed in range(3)]
    rows = pd.DataFrame(pairs, columns=["method", "seed"]).assign(value=rng.random(6), metric="auroc", task="macro")
    replicates = rng.random((6, 10))
    replicates[:, :undefined] = np.nan
    (row,) = paired_differences(rows, replicates=replicates).itertuples()
    assert np.isfinite(row.low) == np.isfinite(row.p) == known
    assert np.isnan(row.patient_sd) == (undefined > 5)
