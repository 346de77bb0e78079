"""What notebook 04 and its appendix say in numbers: recomputed from the committed tables, and found in their texts."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from claims import Committed
from scipy import stats

from deepchest_utils.datasets.findings import NIH_PREVALENCE
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import judge_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import better_rule, comparison, judgement
from deepchest_utils.studies.figures.results import NEAR
from deepchest_utils.studies.replication import ENDPOINT, compare, study_rows

RESULTS = PROJECT / "data" / "results"
SAID = Committed("04_baseline_comparison").text
PCGRAD = 'pcgrad(level="features")'


@pytest.fixture(scope="module")
def tables() -> RunTable:
    return RunTable(RESULTS / "phantom.csv")


@pytest.fixture(scope="module")
def summary(tables) -> pd.DataFrame:
    return pd.read_csv(tables.summary_path)


@pytest.fixture(scope="module")
def macro(summary) -> dict[str, pd.DataFrame]:
    judged = judgement.macro_differences(summary)
    return {metric: judged[judged.metric == metric].set_index("method") for metric in judgement.HEADLINE}


def test_verdicts_are_as_written(macro):
    auroc, precision = macro["auroc"], macro["average_precision"]
    assert len(auroc) == len(precision) == 23
    assert not any(table.verdict.str.startswith("higher").any() for table in macro.values())
    lower = auroc[auroc.verdict == "lower"]["mean"]
    assert (len(lower), (precision.verdict == "lower").sum()) == (7, 8)
    assert "Seven of 23 are significantly lower in AUROC, by 0.07 to 0.22, and eight in AP" in SAID
    assert (lower.min() > -0.225, lower.max() < -0.07) == (True, True)
    assert set(auroc.index[auroc.verdict == "equivalent"]) == {"deepchest_relative_loss", "dwa"}
    assert (auroc["mean"] <= -0.04).sum() == 12
    assert not auroc["mean"].between(-0.04, -NEAR).any()  # the two blocks of the figure are those of the text


def test_intervals_are_as_written(macro, summary):
    for metric in judgement.HEADLINE:
        row = macro[metric].loc["deepchest"]
        assert judgement.in_words(row).removesuffix(", open") in SAID
        assert row.verdict == "open"
    assert macro["average_precision"].p["deepchest"] == pytest.approx(0.045, abs=5e-4)
    assert (round(macro["auroc"].smallest["deepchest"], 3), round(macro["auroc"].smallest[PCGRAD], 3)) == (0.016, 0.022)
    oracle = judgement.macro_differences(summary, "prevalence_oracle").query("method == 'deepchest'")
    assert (oracle.verdict == "equivalent").all()
    assert judgement.in_words(oracle.iloc[0]).removesuffix(", equivalent") in SAID


def test_an_interval_is_the_paired_t_test_with_the_patients_added(macro, tables):
    scores = tables.rows.query("split == 'test' and metric == 'auroc' and task == 'macro'")
    scores = scores.pivot(index="seed", columns="method", values="value")
    paired = (scores["deepchest"] - scores["equal"]).dropna()
    row = macro["auroc"].loc["deepchest"]
    assert row["mean"] == pytest.approx(paired.mean(), abs=1e-6)
    error = np.hypot(paired.std() / np.sqrt(len(paired)), row.patient_sd)
    assert row.high - row["mean"] == pytest.approx(stats.t.ppf(0.975, len(paired) - 1) * error, rel=1e-6)


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    return study_rows(RESULTS / "study_main.csv")


@pytest.fixture(scope="module")
def anew() -> pd.DataFrame:
    """Each method minus Equal where everything is drawn anew, by phantom, metric and method."""
    judged = compare(RESULTS / "study_main.csv")
    return judged[judged.metric.isin(judgement.HEADLINE)].set_index(["phantom", "metric", "method"]).sort_index()


def test_deepchest_is_lower_where_everything_is_drawn_anew(anew, drawn):
    ours = anew.xs("deepchest", level="method")
    assert len(ours) == 4
    assert (ours.pairs == 20).all()
    assert (ours.verdict == "lower").all()
    assert (ours.p * 34 < 0.001).all()  # "would survive a correction over all methods"
    for _, row in ours.iterrows():
        assert judgement.in_words(row).removesuffix(", lower") in SAID
    for p in ours.xs("auroc", level="metric").p:
        assert f"{p:.0e}" in SAID
    found = ours.xs("auroc", level="metric").smallest
    assert f"find true differences of {found['default']:.3f} and {found['nih']:.3f}" in SAID
    title = SAID[: SAID.index("You will be able")]
    assert all(f"{-mean:.3f}" in title for mean in ours.xs("auroc", level="metric")["mean"])
    assert not anew.verdict.str.startswith("higher").any()
    for phantom, rows in drawn.groupby("phantom"):
        level = rows[
            (rows.method == "equal") & (rows.split == "test") & (rows.task == ENDPOINT) & (rows.metric == "auroc")
        ]
        assert f"*{'NIH' if phantom == 'nih' else phantom}* phantom" in SAID
        assert f"{level.value.mean():.2f}" in SAID


def test_the_other_four_are_as_written(anew, drawn):
    auroc = anew.xs("auroc", level="metric").verdict
    assert (auroc[:, "hedge"] == "equivalent").all()
    assert sorted(auroc[:, "uncertainty"]) == ["equivalent", "lower"]
    oracle = compare(RESULTS / "study_main.csv", baseline="prevalence_oracle").query("method == 'deepchest'")
    row = oracle[(oracle.phantom == "default") & (oracle.metric == "auroc")].iloc[0]
    assert judgement.in_words(row).removesuffix(", higher") in SAID
    spread = comparison.weight_range(drawn[drawn.phantom == "default"])["deepchest"]
    assert f"after 24 epochs {spread:.1f} times" in SAID
    rates = (
        RunTable(RESULTS / "study_main.csv")
        .cells.drop_duplicates("method")
        .set_index("method")
        .settings.map(json.loads)
    )
    settings = {method: (s["lr"], s["weight_decay"]) for method, s in rates.items()}
    assert settings["deepchest"] == settings["equal"]
    assert (settings["prevalence_oracle"][0], settings["equal"][0]) == (0.0061, 0.0049)


def test_claims_of_one_half_hold_on_the_other(drawn, summary):
    chosen = "baseline == 'equal' and metric == 'auroc' and method == 'deepchest' and task not in ['macro', 'common', 'rare']"
    first = judge_differences(summary.query(chosen), ["metric"]).set_index("task")  # one training set
    assert set(first.index[~first.verdict.str.match("open|equiv")]) == {"Nodule", "Pneumothorax"}
    assert f"{first['mean']['Nodule']:.3f} on Nodule and loses {-first['mean']['Pneumothorax']:.3f}" in SAID
    statements = better_rule.finding_statements(drawn[drawn.method.isin(["equal", "deepchest"])])
    claimed = statements[statements.claimed]
    assert (len(claimed), claimed.holds.sum()) == (6, 5)
    held = claimed[claimed.holds].groupby("phantom").task.agg(set).to_dict()
    assert held == {"default": {"Edema", "Emphysema", "Fibrosis"}, "nih": {"Fibrosis", "Pleural_Thickening"}}
    assert (claimed[["odd", "even"]] < 0).all(axis=None)
    assert max(NIH_PREVALENCE[task] for task in claimed.task) < 0.035
    for row in claimed[claimed.holds & (claimed.phantom == "nih")].itertuples():
        assert f"{row.odd:+.3f} and {row.even:+.3f}" in SAID
    assert not statements[statements.task.isin(["Nodule", "Pneumothorax"])].claimed.any()


def test_weights_follow_what_the_text_says(tables):
    rows = tables.rows
    prevalence = rows[rows.metric == "prevalence"].groupby("task").value.first()
    last = comparison.rank_correlations(rows, prevalence).groupby("method").last()
    assert f"({last.prevalence['deepchest']:.2f})" in SAID
    assert f"({last.difficulty['deepchest']:.2f})" in SAID
    others = ["deepchest_loss_trend", "deepchest_relative_loss", "deepchest_auroc"]
    assert last.difficulty[others].between(0.75, 0.85).all()
    same = comparison.decisions(rows, "deepchest") == comparison.decisions(rows, "prevalence_oracle")
    assert f"in {same.to_numpy().mean():.1%} of the cells" in SAID


def test_ranges_of_weights_part_the_methods_as_written(macro, tables):
    spread = comparison.weight_range(tables.rows)
    one_net = [m for m in spread.index if judgement.is_one_net(m)]
    far = [m for m in one_net if macro["auroc"]["mean"][m] < -NEAR]
    near = set(one_net) - set(far)
    assert {m for m in near if spread[m] > 4} == {'cagrad(level="features")'}
    assert {m for m in far if spread[m] < 8} == {"rlw"}


def test_claims_have_the_verdicts_of_the_text(tables, summary):
    steps = pd.Series({"deepchest": 1.0, PCGRAD: 1.1, "pcgrad": 9.4})
    claims = judgement.six_claims(tables, summary, steps)
    verdicts = {name[:2]: verdict for name, verdict in claims.verdict.items()}
    assert verdicts["C1"] == "not testable in accuracy"
    assert "+0.039 is possible" in claims["measured here"].iloc[0]
    assert "+0.039" in SAID
    assert verdicts["C2"] == verdicts["C3"]
    assert "not against others" in verdicts["C2"]
    assert verdicts["C4"] == "mixed"
    assert re.search(r"lower Nodule; higher Edema", claims["measured here"].iloc[3])
    assert verdicts["C6"] == "open over Uncertainty, open over DWA, lower over PCGrad (features)"


def test_a_rate_changes_findings_and_not_the_mean(tables):
    slow = RunTable(RESULTS / "phantom_rate.csv").rows.assign(method="slow")
    both = pd.concat([tables.rows[tables.rows.method == "equal"], slow])
    change = judgement.seed_differences(both, ["auroc"], tasks=["Infiltration", "macro"]).set_index("task")
    assert round(change["mean"]["Infiltration"], 3) == -0.052
    assert abs(change["mean"]["macro"]) < 0.002
    assert change.verdict["Infiltration"] == "lower"


def test_the_appendix_has_the_parts_of_the_rule_and_the_sample_as_written(tables, summary):
    parts = pd.read_csv(RESULTS / "phantom_ablations_summary.csv").query("baseline == 'deepchest' and task == 'macro'")
    parts = judge_differences(parts, ["metric"])
    assert (parts.verdict == "open").all()  # three seeds
    step = parts.query("method == 'deepchest(step_up=1.3, step_down=1.15)' and metric == 'average_precision'")
    assert step["mean"].iloc[0] == pytest.approx(-0.05, abs=0.005)
    real = judgement.macro_differences(pd.read_csv(RESULTS / "nih_sample_summary.csv"))
    assert (real.verdict == "open").all()
    assert real[real.metric == "auroc"].smallest.between(0.025, 0.055).all()
