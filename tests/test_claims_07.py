"""What notebook 07 and its appendix say in numbers: recomputed from the committed tables, and found in their texts."""

import re

import pandas as pd
import pytest
from claims import Committed

from deepchest_utils.notebook.runner import FOLDER, results
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import judgement
from deepchest_utils.studies.better_rule import better_rule_bar
from deepchest_utils.studies.controlled import controlled_runs, weight_ratios
from deepchest_utils.studies.replication import compare, study_rows

RESULTS = PROJECT / "data" / "results"
SETS = ("1000", "4000", "16000", "noise")
NOTEBOOK, APPENDIX = Committed("07_a_better_rule"), Committed("appendix/A2_rule_in_detail")


@pytest.fixture(scope="module")
def judged() -> dict[str, pd.DataFrame]:
    """As in the notebook: without the oracle at half the rate."""
    summaries = {name: pd.read_csv(RESULTS / f"judge_{name}_summary.csv") for name in SETS}
    return {n: judgement.macro_differences(s[s.method != "prevalence_oracle"]) for n, s in summaries.items()}


def of(table: pd.DataFrame, metric: str, start: str) -> set[str]:
    return set(table[(table.metric == metric) & table.verdict.str.startswith(start)].method)


def test_hedge_where_everything_is_drawn_anew_is_as_written():
    hedge = compare(study_rows(RESULTS / "study_main.csv")).query("method == 'hedge'").set_index(["phantom", "metric"])
    assert hedge.verdict["default", "auroc"] == hedge.verdict["nih", "auroc"] == "equivalent"
    assert hedge.verdict["default", "average_precision"] == "lower"
    assert f"significantly lower in AP, by {-hedge['mean']['default', 'average_precision']:.3f}" in NOTEBOOK.text


def test_nothing_is_higher_and_what_is_lower_is_as_written(judged):
    assert not any(table.verdict.str.startswith("higher").any() for table in judged.values())
    lower = {name: of(table, "auroc", "lower") for name, table in judged.items()}
    fixed = {"inverse_entropy"}
    assert lower == {"1000": set(), "4000": fixed, "16000": fixed, "noise": fixed}
    in_ap = {name: of(table, "average_precision", "lower") - fixed for name, table in judged.items()}
    step = {"inverse_sqrt_entropy"}
    assert in_ap == {"1000": set(), "4000": step | {"deepchest"}, "16000": step, "noise": set()}
    row = judged["4000"].query("method == 'deepchest' and metric == 'average_precision'").iloc[0]
    assert f"({judgement.in_words(row).removesuffix(', lower')})" in NOTEBOOK.text


def test_hedge_is_equivalent_in_auroc_and_open_in_ap_where_images_are_few(judged):
    for name, table in judged.items():
        row = table[table.method == "hedge"].set_index("metric")
        assert row.verdict["auroc"] == "equivalent"
        assert (row.verdict["average_precision"] == "open") == (name in ("1000", "4000"))
        assert (row.smallest["auroc"] < 0.01) == (name != "1000")  # found in all but the smallest
    text = NOTEBOOK.text
    assert "at -0.011 and -0.009" in text
    means = [judged[n].query("method == 'hedge' and metric == 'average_precision'")["mean"].iloc[0] for n in SETS[:2]]
    assert [round(mean, 3) for mean in means] == [-0.011, -0.009]


def test_the_larger_rate_does_more_than_twice_any_weighting_with_1000_images(judged):
    faster = RunTable(RESULTS / "rate_1000.csv").rows.assign(method="faster")
    both = pd.concat([RunTable(RESULTS / "common_1000.csv").rows.query("method == 'equal'"), faster])
    change = judgement.seed_differences(both, [*judgement.HEADLINE]).set_index("metric")
    assert change.verdict.tolist() == ["higher", "higher"]
    for metric, shown in (("auroc", 0.015), ("average_precision", 0.022)):
        table = judged["1000"]
        assert change["mean"][metric] > 2 * table[table.metric == metric]["mean"].max()
        assert round(change["mean"][metric], 3) == shown


def test_hedge_fails_the_bar_at_the_first_question():
    parts = [
        RunTable(RESULTS / f"judge_{size}.csv").rows.assign(num_train=int(size), phantom="default") for size in SETS[:3]
    ]
    steps = pd.read_csv(RESULTS / "bench_candidates.csv").set_index("method").seconds
    bar = better_rule_bar(pd.concat(parts, ignore_index=True), "hedge", steps, endpoint="macro")
    assert bar.met.tolist() == [False]
    assert bar.measured.iloc[0] in results(FOLDER / "07_a_better_rule.ipynb")


def test_weights_trade_hernia_for_effusion_as_written():
    summary = pd.read_csv(RESULTS / "judge_4000_summary.csv")
    rows = summary.query("baseline == 'equal' and metric == 'auroc' and method == 'inverse_entropy'").set_index("task")
    assert rows["mean"][["Hernia", "Effusion", "Infiltration"]].round(2).tolist() == [0.25, -0.22, -0.10]


def test_gradients_are_as_the_run_printed_them():
    lines, text = NOTEBOOK.printed, NOTEBOOK.text
    (share,) = re.findall(r"at the start (\d+)% of the pairs", lines)
    assert f"({share}%, printed above)" in text
    shares = re.findall(r"signal is (\d+\.\d)%", lines)
    assert len(shares) == 2
    assert max(map(float, shares)) < 1  # less than one per cent


def test_memory_turns_round_with_the_yardstick_of_the_same_split():
    lines = APPENDIX.printed
    gaps = {half: float(gap) for half, gap in re.findall(r"(common|rare) .* (-?\d\.\d+)\n", lines)}
    assert gaps["common"] > gaps["rare"]
    above = re.findall(r"above the constant on validation: (.*)", lines)[0]
    assert all(float(x) < 1.15 for x in re.findall(r"\d\.\d+", above))


def test_the_appendix_is_right_about_factors_machines_and_the_sample():
    ratios = weight_ratios(controlled_runs(RunTable(RESULTS / "controlled.csv")))
    assert ratios.loc["deepchest", "prevalence"] < 0.6
    assert ratios.loc["hedge", ["prevalence", "visibility", "label_noise"]].min() > 1.3
    assert ratios.loc["imtl_l"].between(0.9, 1.1).all()
    pooled = pd.concat([RunTable(RESULTS / f"judge_{name}.csv").rows.assign(data=name) for name in SETS])
    pooled = pooled.query("split == 'test' and task == 'macro' and metric == 'auroc' and method != 'prevalence_oracle'")
    nearest = judge_differences(paired_differences(pooled, "equal", ["metric"], average=["data"]), ["metric"])
    best = nearest.loc[nearest["mean"].idxmax()]
    assert (best.method, best.verdict, round(best["mean"], 3)) == ("imtl_l", "equivalent", 0.004)
    assert len(nearest) == 7
    rows = RunTable(RESULTS / "judge_nih.csv").rows
    epochs = rows[rows.split == "test"].groupby(["method", "seed"]).epoch.first().unstack()
    assert (epochs.loc[["equal", "deepchest", "hedge"], 2] == 1).all()
    nih = judgement.macro_differences(pd.read_csv(RESULTS / "judge_nih_summary.csv"))
    assert (nih.verdict == "open").all()
