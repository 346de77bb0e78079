"""What notebook 07 and its appendix say in numbers: recomputed from the committed tables, and found in their texts."""

import re

import pandas as pd
import pytest
from claims import Committed, finding_statements, row

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import format_interval, holm, judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import judgement
from deepchest_utils.studies.better_rule import better_rule_bar, nominate, rule_candidates, saturated_halves
from deepchest_utils.studies.controlled import controlled_runs, weight_ratios
from deepchest_utils.studies.replication import BASE, RULE, compare, study_rows

RESULTS = PROJECT / "data" / "results"
SETS = ("1000", "4000", "16000", "noise")
NOTEBOOK, APPENDIX = Committed("07_a_better_rule"), Committed("appendix/A2_rule_in_detail")
SOLUTION = Committed("solutions/07_a_better_rule")


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
    assert (
        f"significantly lower in AP on the default one, by {-hedge['mean']['default', 'average_precision']:.3f}"
        in NOTEBOOK.text
    )


def test_nothing_is_higher_and_what_is_lower_is_as_written(judged):
    assert not any(table.verdict.str.startswith("higher").any() for table in judged.values())
    lower = {name: of(table, "auroc", "lower") for name, table in judged.items()}
    fixed = {"inverse_entropy"}
    assert lower == {"1000": set(), "4000": fixed, "16000": fixed, "noise": fixed}
    in_ap = {name: of(table, "average_precision", "lower") - fixed for name, table in judged.items()}
    step = {"inverse_sqrt_entropy"}
    assert in_ap == {"1000": set(), "4000": step | {"deepchest"}, "16000": step, "noise": set()}
    row = judged["4000"].query("method == 'deepchest' and metric == 'average_precision'").iloc[0]
    assert f"({judgement.in_words(row).removesuffix(', lower')})" in APPENDIX.text


def test_hedge_is_equivalent_in_auroc_and_open_in_ap_where_images_are_few(judged):
    for name, table in judged.items():
        row = table[table.method == "hedge"].set_index("metric")
        assert row.verdict["auroc"] == "equivalent"
        assert (row.verdict["average_precision"] == "open") == (name in ("1000", "4000"))
        assert (row.smallest["auroc"] < 0.01) == (name != "1000")  # found in all but the smallest
    assert "at -0.011 and -0.009" in APPENDIX.text
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
        assert f"{shown:.3f}" in APPENDIX.text


def test_hedge_fails_the_bar_at_the_first_question():
    parts = [
        RunTable(RESULTS / f"judge_{size}.csv").rows.assign(num_train=int(size), phantom="default") for size in SETS[:3]
    ]
    steps = pd.read_csv(RESULTS / "bench_candidates.csv").set_index("method").seconds
    bar = better_rule_bar(pd.concat(parts, ignore_index=True), "hedge", steps, endpoint="macro")
    assert bar.met.tolist() == [False]
    assert bar.measured.iloc[0] in APPENDIX.shown("better_rule_bar")
    assert "Hedge fails at the first question" in APPENDIX.text


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    return study_rows(RESULTS / "study_main.csv")


def test_weights_trade_hernia_for_infiltration_as_written():
    cells = judgement.study_summaries(RESULTS / "study_main.csv")["default phantom"]
    cells = cells[(cells.baseline == "equal") & (cells.metric == "auroc") & cells.task.isin(FINDINGS)]
    of = {method: part.set_index("task")["mean"].round(3) for method, part in cells.groupby("method")}
    root, full = of["inverse_sqrt_entropy"], of["inverse_entropy"]
    gains, text = root[["Hernia", "Pneumothorax", "Fibrosis"]], NOTEBOOK.text
    assert (gains > 0).all()
    assert "0.140 AUROC, and Pneumothorax and Fibrosis 0.049 and 0.033" in text
    assert gains.tolist() == [0.14, 0.049, 0.033]
    assert f"the commonest, pays {-root['Infiltration']:.3f}" in text
    assert f"Infiltration loses {-full['Infiltration']:.3f} and Atelectasis {-full['Atelectasis']:.3f}" in text
    assert (
        not judge_differences(cells[cells.method == "inverse_entropy"], ["metric"]).verdict.str.contains("higher").any()
    )


def test_weights_trade_at_one_setting_as_written(study):
    of_all = pd.concat([study.assign(chosen=True), study_rows(RESULTS / "study_settings.csv").assign(chosen=False)])
    rows = of_all.query("phantom == 'default' and split == 'test' and metric == 'auroc'")
    rows = rows[rows.epochs == BASE["epochs"]]
    rule = rows[(rows.method == "inverse_sqrt_entropy") & rows.chosen & rows.task.isin(FINDINGS)]
    beside = rows[rows.method == "equal"].merge(rule[["lr", "weight_decay"]].drop_duplicates())
    pairs = paired_differences(pd.concat([rule, beside]), "equal", ["task"])
    found = judge_differences(pairs.assign(metric="auroc", method=pairs.task), ["metric"]).set_index("task")
    assert found.pairs.eq(20).all()
    gains, losses = (found[found.verdict.str.startswith(word)]["mean"].round(3) for word in ("higher", "lower"))
    three = ["Hernia", "Pneumothorax", "Fibrosis"]
    assert "the three gain {:.3f}, {:.3f} and {:.3f}".format(*gains[three]) in NOTEBOOK.text
    assert set(losses.index) == {"Infiltration", "Nodule", "Atelectasis", "Mass", "Effusion"}
    paid = (-losses).sort_values(ascending=False)
    assert (
        f"Infiltration pays {paid.iloc[0]:.3f}, and Nodule, Atelectasis, Mass and Effusion pay "
        f"{paid.iloc[-1]:.3f} to {paid.iloc[1]:.3f}" in NOTEBOOK.text
    )
    full = compare(study).set_index(["phantom", "method", "metric"]).loc[("default", "inverse_entropy", "auroc")]
    assert f"the mean falls by {-full['mean']:.3f}" in NOTEBOOK.text
    statements = finding_statements(study)
    held = statements[
        statements.holds & (statements.phantom == "default") & (statements["method"] == rule.method.iloc[0])
    ]
    assert list(held.task) == ["Pneumothorax"]


def test_at_one_setting_the_rule_has_the_higher_ap_with_16000_images():
    rule = study_rows(RESULTS / "study_rule.csv").query("method != 'equal'")
    beside = pd.concat([rule, study_rows(RESULTS / "study_rule_setting.csv")])
    at = compare(beside).set_index(["phantom", "num_train", "metric"]).loc[("default", 16000, "average_precision")]
    assert at.verdict.startswith("higher")
    assert f"Equal at the same setting, {format_interval(at)}." in NOTEBOOK.text


def test_the_rule_is_the_one_that_the_protocol_nominates(study):
    steps = pd.read_csv(RESULTS / "bench_candidates.csv").set_index("method").seconds
    candidates = rule_candidates(study, steps)
    assert len(candidates) == 20
    assert [*candidates.index[:2]] == [nominate(study, steps), "ldc_mtl"]
    assert f"its step takes {candidates.step['ldc_mtl']:.3f} times Equal's" in NOTEBOOK.text
    rows = study_rows(RESULTS / "study_rule.csv")
    assert set(rows.method) == {"equal", nominate(study, steps)}
    assert set(rows.seed) == set(RULE)  # replicates that nothing was chosen on
    assert not set(RULE) & set(study.seed)


def test_the_bar_ends_at_its_third_question_as_written():
    steps = pd.read_csv(RESULTS / "bench_candidates.csv").set_index("method").seconds
    rows, rule = study_rows(RESULTS / "study_rule.csv"), "deepchest_loss_trend"
    bar = better_rule_bar(rows, rule, steps)
    assert bar.met.tolist() == [True, True, False]
    text = NOTEBOOK.text
    assert bar.measured.iloc[0] in text
    assert all(line in NOTEBOOK.printed for line in bar.measured)
    small = compare(rows).query("num_train == 1000").set_index(["phantom", "metric"])
    both = compare(rows[rows.num_train == 1000], ["metric"], average=["phantom"]).set_index("metric").loc["auroc"]
    assert f"below Equal's, {format_interval(both)}, so the third question ends it" in text
    assert both.high > 0 > both["mean"]
    assert both.verdict == "equivalent"
    assert small.verdict["default", "average_precision"] == "lower"
    assert f"by {-small['mean']['default', 'average_precision']:.3f}" in text


def test_the_setting_explains_most_of_the_gain_as_written():
    judged, setting = (study_rows(RESULTS / f"study_rule{name}.csv") for name in ("", "_setting"))
    rule, equal = judged[judged.method != "equal"], judged[judged.method == "equal"]
    (own,) = {*zip(rule.lr, rule.weight_decay, strict=True)}
    assert (
        {*zip(setting.lr, setting.weight_decay, strict=True)}
        == {own}
        != {*zip(equal.lr, equal.weight_decay, strict=True)}
    )
    text, shown = NOTEBOOK.text, NOTEBOOK.printed
    rows = [judged, pd.concat([rule, setting]), pd.concat([equal, setting.assign(method="moved")])]
    gain, same, moved = (
        compare(part, ["metric"], average=["phantom", "num_train"]).set_index("metric").loc["auroc"] for part in rows
    )
    assert gain.verdict == "higher"
    assert same.verdict == "equivalent"
    assert moved["mean"] > 0.75 * gain["mean"]
    for difference in (same, moved):
        assert format_interval(difference) in text
        assert judgement.in_words(difference) in shown
    assert f"{moved['mean']:.4f} of the {gain['mean']:.4f}" in text
    left = compare(rows[1]).query("metric == 'auroc' and p < 0.05").sort_values("mean")
    assert set(left.num_train) == {16000}
    assert "a lead of {:.3f} (default) and {:.3f} (NIH) is left".format(*left["mean"]) in text
    six = compare(rows[1]).query("metric == 'auroc'")
    corrected = pd.Series(holm(six.p.to_numpy()), zip(six.phantom, six.num_train, strict=True))
    assert corrected.index[corrected < 0.05].tolist() == [("default", 16000)]
    assert f"the first is significant (p {corrected.min():.3f})" in text
    assert left.verdict.str.endswith("equivalent").all()


def test_saturated_findings_give_no_weight_away_for_free_as_written():
    free = saturated_halves(RESULTS / "study_saturated.csv").set_index(["method", "half"])
    text, verdict, mean = NOTEBOOK.text, free.verdict, free["mean"]
    assert verdict["hedge", "saturated"] == "lower"
    assert verdict["hedge", "others"] == "open"
    assert verdict["hedge", "all"].startswith("lower")
    assert f"loses {-mean['hedge', 'saturated']:.3f} AUROC" in text
    assert f"gain {mean['hedge', 'others']:.3f}, which is open: {free.smallest['hedge', 'others']:.3f} could" in text
    assert f"significantly lower, by {-mean['hedge', 'all']:.3f}" in text
    assert all(verdict[method, half] == "lower" for method in ("uw_so", "amtl") for half in ("saturated", "others"))
    assert all("equivalent" in verdict["deepchest", half] for half in ("saturated", "others"))
    rows = RunTable(RESULTS / "study_saturated.csv").rows.query("metric == 'weight'")
    easy = rows.task.isin(FINDINGS[::2])
    weights = rows[~easy].groupby("method").value.mean() / rows[easy].groupby("method").value.mean()
    assert f"with {weights['deepchest']:.1f} times the weight" in text
    assert f"with Hedge {weights['hedge']:.1f} times" in text
    assert (
        f"The saturated half loses {-mean['deepchest', 'saturated']:.3f}, significantly and within the margin" in text
    )
    assert verdict["deepchest", "saturated"] == "lower, equivalent"


def test_the_exercise_counts_replicates_as_its_solution_says():
    text, table = SOLUTION.text, SOLUTION.shown("gains.mean(axis=1)")
    assert row(table, "default, 1,000 images")[0] == 3
    counts = [row(table, f"{p}, {n:,} images")[0] for p in ("default", "nih") for n in (1000, 4000, 16000)][1:]
    assert f"{min(counts):.0f}, {max(counts):.0f}" == "5, 8"
    assert "three, elsewhere in five to eight" in text
    assert row(table, "mean of the six")[0] == 8


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
