"""A sweep's summary on tables that are made up: means, paired differences, intervals and families of tests."""

import numpy as np
import pandas as pd
import pytest

from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, compare_methods, holm, mean_interval
from deepchest_utils.results.store import RunTable, task_rows, to_table

FINDINGS = ("Hernia", "Effusion", "Mass", "Edema", "Nodule")
PREVALENCE = np.array([0.01, 0.30, 0.10, 0.20, 0.10])  # in a tie the table's order decides
COMMON, RARE = ["Effusion", "Edema", "Mass"], ["Nodule", "Hernia"]
NUMBERS = ["mean", "low", "high", "p", "seed_sd", "patient_sd"]
R = 40  # replicates


def made_up(seed: int, methods=("equal", "deepchest", "famo"), seeds=3, undefined=()) -> dict:
    """(method, seed) -> values (M, K) and replicates (M, R, K), near to each other and to nothing else."""
    rng, out = np.random.default_rng(seed), {}
    for number, method in enumerate(methods):
        for s in range(seeds):
            value = 0.7 + 0.02 * number + 0.03 * rng.standard_normal((2, len(FINDINGS)))
            replicates = value[:, None] + 0.02 * rng.standard_normal((2, R, len(FINDINGS)))
            for finding in undefined:
                value[:, FINDINGS.index(finding)] = replicates[:, :, FINDINGS.index(finding)] = np.nan
            out[method, s] = value, replicates.astype(np.float32)
    return out


def write(folder, made: dict, without=()) -> RunTable:
    """The tables of a sweep whose cells have these values. without: cells whose replicates are not there."""
    rows, cells, replicates = [], [], {}
    for number, ((method, seed), (value, sample)) in enumerate(made.items()):
        cell = f"{number:010d}"
        base = {"method": method, "seed": seed, "epoch": 2, "split": "test"}
        metrics = {**dict(zip(BOOTSTRAP_METRICS, value, strict=True)), "loss": value[0]}
        found = task_rows(base, metrics, FINDINGS)
        found += task_rows({**base, "split": "val"}, {"auroc": value[0] / 2}, FINDINGS)
        found += task_rows({**base, "split": "train"}, {"prevalence": PREVALENCE}, FINDINGS, summarise=False)
        rows.append(to_table(found).assign(cell=cell))
        cells.append({"cell": cell, "method": method, "seed": seed, "status": "done", "error": ""})
        if (method, seed) not in without:
            replicates[cell] = sample
    cells.append({"cell": "f" * 10, "method": "broken", "seed": 0, "status": "failed", "error": "no memory"})
    tables = RunTable(folder / "out.csv")
    pd.concat(rows).to_csv(tables.out, index=False)
    pd.DataFrame(cells).to_csv(tables.cells_path, index=False)
    if replicates:
        np.savez(tables.replicates_path, **replicates)
    return RunTable(folder / "out.csv")


def expected(made: dict, method: str, baseline: str | None, m: int, tasks, seeds=range(3)) -> dict:
    """`mean_interval` of the mean over `tasks`, by hand."""
    k = [FINDINGS.index(task) for task in tasks]
    value = np.array([made[method, s][0][m, k].mean() for s in seeds])
    sample = np.mean([made[method, s][1].astype(float)[m][:, k].mean(1) for s in seeds], axis=0)
    if baseline:
        value -= np.array([made[baseline, s][0][m, k].mean() for s in seeds])
        sample -= np.mean([made[baseline, s][1].astype(float)[m][:, k].mean(1) for s in seeds], axis=0)
    return mean_interval(value, sample[~np.isnan(sample)])


def one(table: pd.DataFrame, method, baseline, metric, task) -> pd.Series:
    rows = (table.method == method) & (table.baseline == baseline)
    (row,) = table[rows & (table.metric == metric) & (table.task == task)].itertuples(index=False)
    return pd.Series(row._asdict())


def same(row: pd.Series, numbers: dict, p: bool = True):
    for name in NUMBERS:
        assert row[name] == pytest.approx(numbers[name] if p or name != "p" else np.nan, nan_ok=True), name


def test_a_row_a_method_baseline_metric_and_task(tmp_path):
    table = compare_methods(write(tmp_path, made_up(0)), ["equal", "famo"])
    assert list(table.columns) == ["method", "baseline", "metric", "seeds", "task", *NUMBERS, "p_holm"]
    assert not table.duplicated(["method", "baseline", "metric", "task"]).any()
    pairs = {("equal", "itself"), ("deepchest", "itself"), ("famo", "itself"), ("deepchest", "equal")}
    pairs |= {("famo", "equal"), ("equal", "famo"), ("deepchest", "famo")}
    assert set(zip(table.method, table.baseline, strict=True)) == pairs
    for _, group in table.groupby(["method", "baseline", "metric"]):
        assert list(group.task) == [*FINDINGS, "macro", "common", "rare"]  # "worst" has no interval
    assert (table.seeds == 3).all()


def test_means_differences_and_intervals_are_those_by_hand(tmp_path):
    made = made_up(1)
    table = compare_methods(write(tmp_path, made))
    groups = {**{f: [f] for f in FINDINGS}, "macro": FINDINGS, "common": COMMON, "rare": RARE}
    for m, metric in enumerate(BOOTSTRAP_METRICS):
        for task, members in groups.items():
            for method in ("equal", "deepchest", "famo"):
                row = one(table, method, "itself", metric, task)
                same(row, expected(made, method, None, m, members), p=False)
                assert np.isnan(row.p_holm)
            for method in ("deepchest", "famo"):
                row = one(table, method, "equal", metric, task)
                same(row, expected(made, method, "equal", m, members))


def test_interval_of_two_seeds_without_patients_is_that_of_the_book(tmp_path):
    """Differences of 0.1 and 0.3: mean 0.2, standard error 0.1, and Student's t of one degree of freedom."""
    made = {}
    for s, difference in enumerate((0.1, 0.3)):
        for method, value in (("equal", 0.5), ("famo", 0.5 + difference)):
            made[method, s] = np.full((2, 5), value), np.empty((2, 0, 5), dtype=np.float32)
    row = one(compare_methods(write(tmp_path, made)), "famo", "equal", "auroc", "macro")
    assert (row["mean"], row.low, row.high) == pytest.approx((0.2, 0.2 - 1.27062, 0.2 + 1.27062), abs=1e-5)
    assert row.p == pytest.approx(1 - 2 / np.pi * np.arctan(2), abs=1e-9)  # Cauchy's tails beyond 2
    assert row.seed_sd == pytest.approx(np.sqrt(0.02))
    assert np.isnan(row.patient_sd)


def test_holm_over_the_methods_for_a_group_over_methods_and_findings_for_these(tmp_path):
    table = compare_methods(write(tmp_path, made_up(2)), ["equal", "famo"])
    for baseline in ("equal", "famo"):
        for metric in BOOTSTRAP_METRICS:
            mine = table[(table.baseline == baseline) & (table.metric == metric)]
            families = [mine.task.isin(FINDINGS), *(mine.task == task for task in ("macro", "common", "rare"))]
            assert [family.sum() for family in families] == [10, 2, 2, 2]
            for family in families:
                p = mine[family].p.to_numpy()
                np.testing.assert_allclose(mine[family].p_holm, holm(p))
                assert mine[family].p_holm.min() == pytest.approx(min(len(p) * p.min(), 1))


def test_undefined_finding_is_nan_and_macro_is_over_the_others(tmp_path):
    made = made_up(3, undefined=["Effusion"])
    table = compare_methods(write(tmp_path, made))
    # of the four left, the two more common ones and the two less common ones
    groups = {"macro": ["Hernia", "Mass", "Edema", "Nodule"], "common": ["Edema", "Mass"], "rare": RARE}
    for m, metric in enumerate(BOOTSTRAP_METRICS):
        for baseline in ("itself", "equal"):
            assert one(table, "famo", baseline, metric, "Effusion")[[*NUMBERS, "p_holm"]].isna().all()
        for task, members in groups.items():
            same(one(table, "famo", "equal", metric, task), expected(made, "famo", "equal", m, members))
    tested = table[(table.baseline == "equal") & table.task.isin(FINDINGS) & (table.metric == "auroc")]
    p = tested.p.dropna()
    assert len(p) == 2 * 4  # an undefined finding is no test
    assert tested.p_holm.min() == pytest.approx(min(8 * p.min(), 1))


def test_replicate_without_a_positive_is_left_out_of_what_needs_it(tmp_path):
    made = made_up(4)
    for value, sample in made.values():
        assert np.isfinite(value).all()
        sample[:, :7, 0] = np.nan  # Hernia, in 7 of the resamplings
    table = compare_methods(write(tmp_path, made))
    for task, members in {"Hernia": ["Hernia"], "macro": FINDINGS, "rare": RARE, "common": COMMON}.items():
        same(one(table, "famo", "equal", "auroc", task), expected(made, "famo", "equal", 0, members))
    whole = expected(made_up(4), "famo", "equal", 0, COMMON)
    same(one(table, "famo", "equal", "auroc", "common"), whole)


def test_without_replicates_patients_are_left_out(tmp_path):
    made = made_up(5)
    table = compare_methods(write(tmp_path, made, without=made))
    assert table.patient_sd.isna().all()
    difference = [made["famo", s][0][0].mean() - made["equal", s][0][0].mean() for s in range(3)]
    same(one(table, "famo", "equal", "auroc", "macro"), mean_interval(np.array(difference), np.empty(0)))


@pytest.mark.parametrize("missing", [("equal", 1), ("famo", 0), ("famo", 2)])
def test_one_cell_without_replicates_touches_only_its_own_comparisons(tmp_path, missing):
    made = made_up(6)
    table = compare_methods(write(tmp_path, made, without=[missing]))
    touched = (table.method == missing[0]) | (table.baseline == missing[0])
    assert table.patient_sd[touched].isna().all()
    assert table.patient_sd[~touched].notna().all()
    difference = [made["famo", s][0][0].mean() - made["equal", s][0][0].mean() for s in range(3)]
    same(one(table, "famo", "equal", "auroc", "macro"), mean_interval(np.array(difference), np.empty(0)))


def test_seeds_are_paired_and_those_without_a_partner_left_out(tmp_path):
    made = made_up(7)
    del made["equal", 1], made["famo", 0], made["famo", 2]
    made = dict(reversed(made.items()))  # the order in which cells finish is nobody's
    table = compare_methods(write(tmp_path, made))
    assert set(table.method[table.baseline == "equal"]) == {"deepchest"}  # famo has no seed of equal's
    row = one(table, "deepchest", "equal", "auroc", "macro")
    assert row.seeds == 2
    same(row, expected(made, "deepchest", "equal", 0, FINDINGS, seeds=(0, 2)))
    assert one(table, "deepchest", "itself", "auroc", "macro").seeds == 3
    row = one(table, "famo", "itself", "auroc", "macro")
    assert row.seeds == 1
    same(row, expected(made, "famo", None, 0, FINDINGS, seeds=(1,)), p=False)


def test_a_baseline_against_a_copy_of_itself_differs_by_nothing(tmp_path):
    made = made_up(8, methods=["equal"])
    made |= {("copy", s): made["equal", s] for s in range(3)}
    table = compare_methods(write(tmp_path, made))
    against = table[table.baseline == "equal"]
    assert (against[["mean", "low", "high"]] == 0).all(axis=None)
    assert (against.p_holm == 1).all()


def test_without_a_baseline_there_are_the_scores(tmp_path):
    table = compare_methods(write(tmp_path, made_up(9)), [])
    assert set(table.baseline) == {"itself"}
    assert table.p_holm.isna().all()


def test_what_cannot_be_compared_is_refused(tmp_path):
    tables = write(tmp_path, made_up(10))
    with pytest.raises(ValueError, match=r"out\.csv: no finished run of baseline 'magic'\.$"):
        compare_methods(tables, ["equal", "magic"])
    with pytest.raises(ValueError, match=r"no finished run of baseline 'broken'\. It failed: no memory"):
        compare_methods(tables, ["broken"])
    whole, last = tables.rows, tables.cells.cell.iloc[-2]
    for lost in (whole[whole.cell != last], whole[(whole.cell != last) | (whole.metric != "prevalence")]):
        tables.rows = lost
        with pytest.raises(
            ValueError, match=r"out\.csv lacks test rows of .* seed 2: they were lost, or it ran with --tune\."
        ):
            compare_methods(tables)
    tables.rows = whole
    twice = tables.cells.iloc[[4]].assign(cell="another")  # deepchest, seed 1, with another learning rate
    tables.cells = pd.concat([tables.cells, twice])
    with pytest.raises(ValueError, match=r"deepchest ran more than once with seed 1"):
        compare_methods(tables)
    tables.cells = tables.cells.iloc[:-1].assign(data=["a"] * 4 + ["b"] + ["a"] * (len(tables.cells) - 6))
    with pytest.raises(ValueError, match=r"out\.csv: runs with seed 1 are on different data: .*deepchest"):
        compare_methods(tables)
