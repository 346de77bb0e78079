"""What notebook 04 and its appendix say in numbers: recomputed from the committed tables, and found in their texts."""

import re

import numpy as np
import pandas as pd
import pytest
from claims import Committed, finding_statements
from scipy import stats

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import method_label, pretty
from deepchest_utils.results.statistics import format_interval, judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import better_rule, comparison, judgement
from deepchest_utils.studies.replication import BASE, ENDPOINT, FIRST, MAIN, SHORT, ranked_settings, study_rows

RESULTS = PROJECT / "data" / "results"
SAID = Committed("04_baseline_comparison").text
APPENDIX = Committed("appendix/A1_comparison_in_detail").text
PCGRAD = 'pcgrad(level="features")'


@pytest.fixture(scope="module")
def tables() -> RunTable:
    return RunTable(RESULTS / "phantom.csv")


@pytest.fixture(scope="module")
def summary(tables) -> pd.DataFrame:
    return pd.read_csv(tables.summary_path)


@pytest.fixture(scope="module")
def macro(summary) -> dict[str, pd.DataFrame]:
    """Each method minus Equal in the earlier sweep, by metric."""
    judged = judgement.macro_differences(summary)
    return {metric: judged[judged.metric == metric].set_index("method") for metric in judgement.HEADLINE}


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    return study_rows(RESULTS / "study_main.csv")


@pytest.fixture(scope="module")
def study() -> dict[str, pd.DataFrame]:
    """The summary of each phantom: default, NIH."""
    return judgement.study_summaries(RESULTS / "study_main.csv", ["equal", "prevalence_oracle"])


@pytest.fixture(scope="module")
def anew(study) -> dict[tuple[str, str], pd.DataFrame]:
    """Each method minus Equal where everything is drawn anew, by phantom and metric."""
    judged = {name.split()[0]: judgement.macro_differences(summary) for name, summary in study.items()}
    return {(p, m): t[t.metric == m].set_index("method") for p, t in judged.items() for m in judgement.HEADLINE}


def test_deepchest_is_lower_where_everything_is_drawn_anew(anew, drawn):
    for table in anew.values():
        row = table.loc["deepchest"]
        assert len(table) == 34
        assert (row.verdict, row.seeds >= 20) == ("lower", True)
        assert format_interval(row) in SAID
    higher = {key: set(table.index[table.verdict.str.startswith("higher")]) for key, table in anew.items()}
    leaders = {"deepchest_loss_trend", PCGRAD, "ldc_mtl"}
    wanted = {
        ("NIH", "auroc"): leaders,
        ("default", "average_precision"): {PCGRAD},
        ("NIH", "average_precision"): {"ldc_mtl"},
    }
    assert {key: methods for key, methods in higher.items() if methods} == wanted
    assert all(format_interval(anew["NIH", "auroc"].loc[method]) in SAID for method in leaders)
    default, nih = (anew[phantom, "auroc"].loc["deepchest"] for phantom in ("default", "NIH"))
    assert f"find true AUROC differences of {default.smallest:.3f} and {nih.smallest:.3f}" in SAID
    title = SAID[: SAID.index("You will be able")]
    assert all(f"{-row['mean']:.3f}" in title for row in (default, nih))
    equal = drawn[(drawn.method == "equal") & (drawn.split == "test") & (drawn.task == ENDPOINT)]
    level = equal[equal.metric == "auroc"].groupby("phantom").value.mean()
    assert f"*default* phantom Equal's AUROC is {level['default']:.2f}" in SAID
    assert f"*NIH* phantom it is {level['nih']:.2f}" in SAID


def test_the_other_methods_are_as_written(anew):
    default, nih = anew["default", "auroc"], anew["NIH", "auroc"]
    both = [m for m in default.index if all("equivalent" in t.verdict[m] for t in (default, nih))]
    listed = re.search(r"equivalent to Equal in AUROC on both: (.*?)\. ", SAID).group(1)
    assert set(re.split(", | and ", listed)) == set(map(method_label, both))
    precise = anew["default", "average_precision"].verdict[["imtl_l", "hedge", "gradnorm"]]
    assert [*precise.str.startswith("lower")] == [False, True, True]
    far = (default.high < -0.02) & (nih.high.reindex(default.index) < -0.02)
    assert f"**{far.sum()} of 34 methods are far behind**" in SAID


def test_the_settings_are_as_written(study, drawn):
    settings = drawn.groupby("method")[["lr", "weight_decay"]].first()
    assert settings.loc["deepchest"].equals(settings.loc["equal"])
    means = list[float]()
    for summary in study.values():
        oracle = judgement.macro_differences(summary, "prevalence_oracle")
        means.append(oracle[(oracle.method == "deepchest") & (oracle.metric == "auroc")]["mean"].iloc[0])
    assert f"on the default phantom, by {means[0]:.3f}. On the NIH phantom {means[1]:+.3f} is open" in SAID
    curves = better_rule.tuning_curves(RESULTS / "study_tuning.csv").loc["equal"]
    assert f"one at random are worth {curves[16] - curves[1]:.3f} AUROC to Equal" in SAID
    tables = RESULTS / "study_main.csv", RESULTS / "study_settings.csv"
    luck = better_rule.luck_in_tuning(*tables)["range"]
    assert f"spread over {luck['default']:.3f} AUROC on the default phantom and {luck['nih']:.3f} on the NIH" in SAID
    rows = pd.concat([study_rows(table) for table in tables], ignore_index=True)
    rows = rows[(rows.task == ENDPOINT) & (rows.metric == "auroc") & (rows.split == "test")]
    rows = rows[rows.method.isin(["equal", "deepchest"]) & rows.seed.isin(list(MAIN[:FIRST]))]
    ours = paired_differences(rows[rows.epochs == BASE["epochs"]], "equal", ["phantom", "lr", "weight_decay"])
    ours = ours.groupby("phantom")["mean"].agg(["max", "min", "size"])
    said = [f"by {-row['max']:.3f} to {-row['min']:.3f} on the" for _, row in ours.iterrows()]
    assert f"each of the four settings: {said[0]} default phantom, {said[1]} NIH phantom" in SAID
    assert (ours["size"] == 4).all()
    every = judge_differences(
        paired_differences(rows[rows.epochs == BASE["epochs"]], "equal", ["phantom", "lr", "weight_decay"]), ["phantom"]
    )
    assert ((every.high < 0).sum(), len(every)) == (6, 8)  # "six of the eight intervals lie below zero"
    levels = rows[(rows.method == "equal") & (rows.epochs == BASE["epochs"])].groupby(["phantom", "lr"]).value.mean()
    ranked = ranked_settings(RESULTS / "study_tuning.csv", SHORT, ["nih"])
    worst = levels.groupby("phantom").idxmin().map(lambda place: place[1])
    assert (worst == ranked["equal"][0]["lr"]).all()  # "the worst of the four"
    keys = ["phantom", "seed", "lr", "weight_decay"]
    pair = better_rule._with_settings(*tables, FIRST).query("method in ['deepchest', 'prevalence_oracle']")
    both = pair.merge(pair.loc[pair.method == "prevalence_oracle", keys].drop_duplicates())
    lead = judge_differences(paired_differences(both, "prevalence_oracle", keys[:1], keys[1:]), ["phantom"])
    said = [f"{row['mean']:.4f} [{row.low:+.4f}, {row.high:+.4f}]" for _, row in lead.iterrows()]
    assert f"above the oracle by {said[0]} on the default phantom and by {said[1]} on the NIH phantom" in SAID
    best_of_four = rows[rows.epochs == BASE["epochs"]].groupby(["method", "phantom", "lr"]).value.mean()
    fourth = ranked["equal"][3]
    assert fourth == ranked["deepchest"][3]  # "which neither took to the final"
    assert {lr for *_, lr in best_of_four.groupby(["method", "phantom"]).idxmax()} == {fourth["lr"]}
    assert set(settings.lr[["deepchest_loss_trend", PCGRAD, "ldc_mtl"]]) == {fourth["lr"]}
    own, same = (t.set_index(["phantom", "method"]) for t in better_rule.at_one_setting(*tables).values())
    assert not same.verdict.str.startswith("higher").any()  # "no method is significantly higher"
    for phantom in ("default", "nih"):
        rows = same.loc[[(phantom, PCGRAD), (phantom, "ldc_mtl")]]
        assert rows.verdict.str.contains("equivalent").all()
        assert (rows.pairs == 20).all()
    precise = better_rule.at_one_setting(*tables, "average_precision")["same"].set_index(["phantom", "method"])
    row = precise.loc["nih", "ldc_mtl"]
    assert f"In AP LDC-MTL keeps {format_interval(row)} there" in SAID
    assert not precise.verdict.str.startswith("higher").any()  # "not significant either"
    assert (own.verdict["default", "dwa"], same.verdict["default", "dwa"]) == ("lower", "equivalent")
    assert own.pairs["default", "dwa"] == 8
    for method, words in {"imtl_l": "IMTL-L", "uncertainty": "Uncertainty"}.items():
        assert same.verdict["nih", method] == "lower"
        assert f"{words} ({same['mean']['nih', method]:.3f})" in SAID
    leaders = [("nih", "deepchest_loss_trend"), ("nih", PCGRAD), ("nih", "ldc_mtl")]
    for place in [*leaders, ("default", "dwa")]:
        text = APPENDIX if "dwa" in place else SAID
        assert f"from {own['mean'][place]:+.4f} to {same['mean'][place]:+.4f}" in text
        assert abs(same["mean"][place]) < abs(own["mean"][place])


def test_longer_training_is_as_written():
    _, differences, gain = better_rule.longer_training(RESULTS / "study_main.csv", RESULTS / "study_curves.csv")
    ours = differences[differences.method == "deepchest"].set_index("epochs")
    low = [f"{-value:.3f}" for value in ours["mean"]]
    assert f"below Equal by {low[0]}, {low[1]} (significant) and {low[2]} after 24, 48 and 96 epochs" in SAID
    assert ours.verdict.tolist() == ["open", "lower", "open"]
    assert f"Equal gains {gain:.3f} from twice the epochs" in SAID
    assert gain > 0.005  # "not yet the end of training"
    again = better_rule.read_regimes(RESULTS).query("regime == 'batch 64, 48 epochs' and metric == 'auroc'")
    again = again.set_index("method")["mean"]["deepchest"]
    assert f"On another processor 48 epochs give {-again:.3f}" in SAID


def test_claims_of_one_half_hold_on_the_other(drawn, summary):
    chosen = summary[summary.task.isin(FINDINGS) & (summary.method == "deepchest") & (summary.metric == "auroc")]
    first = judge_differences(chosen.query("baseline == 'equal'"), ["metric"]).set_index("task")  # one training set
    assert set(first.index[~first.verdict.str.match("open|equiv")]) == {"Nodule", "Pneumothorax"}
    assert f"Nodule ({first['mean']['Nodule']:+.3f}, five seeds)" in SAID
    assert f"Pneumothorax ({first['mean']['Pneumothorax']:+.3f})" in SAID
    statements = finding_statements(drawn[drawn.method.isin(["equal", "deepchest"])])
    claimed = statements[statements.claimed]
    held = claimed[claimed.holds]
    assert f"Of {len(claimed)} claims on the odd replicates {len(held)} hold on the even ones" in SAID
    said = re.search(r"On the default phantom they are (.*?); on the NIH phantom (.*?)\. ", SAID).groups()
    for words, phantom in zip(said, ("default", "nih"), strict=True):
        assert set(re.split(", | and ", words)) == {pretty(t) for t in held.task[held.phantom == phantom]}
    assert (claimed[["odd", "even"]] < 0).all(axis=None)  # "All are losses"
    assert not claimed.task.eq("Nodule").any()


def test_weights_follow_what_the_text_says(tables):
    rows = tables.rows
    prevalence = rows[rows.metric == "prevalence"].groupby("task").value.first()
    last = comparison.rank_correlations(rows, prevalence).groupby("method").last()
    assert f"({last.prevalence['deepchest']:.2f})" in SAID
    assert f"their rank correlation ends at {last.difficulty['deepchest']:.2f}" in SAID
    others = ["deepchest_loss_trend", "deepchest_relative_loss", "deepchest_auroc"]
    assert last.difficulty[others].between(0.75, 0.85).all()
    same = comparison.decisions(rows, "deepchest") == comparison.decisions(rows, "prevalence_oracle")
    assert f"in {same.to_numpy().mean():.1%} of {same.size} cases" in SAID


def test_wide_weights_go_with_low_scores_as_written(anew, drawn):
    spread = comparison.weight_range(drawn[drawn.phantom == "default"])
    pairs = pd.DataFrame({"spread": spread, "auroc": anew["default", "auroc"]["mean"]}).dropna()
    assert f"The rank correlation is {stats.spearmanr(pairs.spread, pairs.auroc).statistic:.2f}" in APPENDIX
    narrow, wide = (pairs[pairs.spread < 10], pairs[pairs.spread >= 10])
    ends = f"The {len(narrow)} methods whose weights span less than a factor of ten lie within"
    assert f"{ends} {np.ceil(1000 * narrow.auroc.abs().max()) / 1000:.3f} of Equal" in APPENDIX
    assert f"RLW ({narrow.auroc['rlw']:.3f}) and DeepChest ({narrow.auroc['deepchest']:.3f}), both" in APPENDIX
    assert f"Of the {len(wide)} with wider ones, all but Hedge, PCGrad and SLAW" in APPENDIX
    assert set(wide.index[wide.auroc > -0.03]) == {"hedge", PCGRAD, "slaw"}


def test_deepchest_s_own_findings_in_the_earlier_sweep(summary):
    rows = summary.query("method == 'deepchest' and baseline == 'equal' and metric == 'auroc'")
    judged = judge_differences(rows[rows.task.isin(FINDINGS)], ["metric"]).set_index("task")
    two = judged.loc[["Nodule", "Pneumothorax"]]
    assert [*two.verdict] == ["higher", "lower"]
    assert "Nodule ({:+.3f}) and Pneumothorax ({:+.3f}) are significant, too".format(*two["mean"]) in APPENDIX
    oracle = summary.query("method == 'prevalence_oracle' and baseline == 'equal' and metric == 'auroc'")
    apart = (oracle.set_index("task")["mean"] - rows.set_index("task")["mean"])[list(FINDINGS)].abs().max()
    assert f"The rows of DeepChest and its oracle agree within {np.ceil(100 * apart) / 100:.2f}." in APPENDIX


def test_the_regimes_are_as_written():
    regimes = better_rule.read_regimes(RESULTS)
    assert regimes.regime.nunique() == 9  # eight; where half is rare, each half has its own
    assert (regimes.pairs >= 5).all()
    assert not regimes.verdict.str.startswith("higher").any()
    lost = -regimes[regimes.metric == "auroc"].set_index(["regime", "method"])["mean"]
    main, large, short = lost["batch 64, 24 epochs"], lost["batch 256, 48 epochs"], lost["batch 64, 12 epochs"]
    long = lost["batch 64, 48 epochs"]
    level = regimes[regimes.metric == "auroc"].groupby("regime")["level"].first()
    fall = level["batch 64, 48 epochs"] - level["batch 256, 48 epochs"]
    assert f"But Equal itself is {fall:.3f} lower there" in SAID
    for method, before in (("imtl_g", "batches of 64: "), ("fairgrad", ""), ("famo", ""), ("gls", "")):
        key = method if method in main else f'{method}(level="features")'
        assert f"{large[key]:.3f} " in SAID
        assert f"({before}{long[key]:.3f})" in SAID
    six = main.index.drop("deepchest")
    common = lost["half at 2%, others at 10%"][six]
    assert (
        f"leave the six of the figure, all but DeepChest, at {-short[six].min():.2f} to {-short[six].max():.2f}" in SAID
    )
    assert f"they lose {common.min():.2f} to {common.max():.2f}" in SAID
    assert f"yet GLS loses {lost['batch 64, stratified']['gls']:.3f}" in SAID
    assert (large[six] < short[six]).all()  # "all six come nearer to Equal"
    imtl_g, fairgrad = (f'{m}(level="features")' for m in ("imtl_g", "fairgrad"))
    assert f"FAMO is at {-long['famo']:.3f} with batches of 64 and at {-large['famo']:.3f} with 256" in APPENDIX
    assert f"IMTL-G at {-long[imtl_g]:.3f} and {-large[imtl_g]:.3f}. " in APPENDIX
    lengths = [f"{-t[imtl_g]:.3f} and {-t[fairgrad]:.3f} after {n}" for t, n in ((short, 12), (long, 48))]
    assert f"({lengths[0]} epochs, {lengths[1]})" in APPENDIX
    assert long[six.drop([imtl_g, fairgrad])].min() > 0.15
    ours = regimes[(regimes.method == "deepchest") & (regimes.metric == "auroc")].set_index("regime")
    for regime, words in {
        "batch 256, 12 epochs": "after 12 epochs, equivalent",
        "batch 256, 48 epochs": "after 48, open",
    }.items():
        assert f"{format_interval(ours.loc[regime])} {words}" in SAID
        assert ours.verdict[regime] == words.split(", ")[1]
    near = ["batch 256, 12 epochs", "half at 0.3%, the others"]
    assert ours.verdict[near].eq("equivalent").all()
    rare = ours.loc["half at 0.3%, this half"]
    assert rare.verdict == "lower"
    assert f"the half loses {-rare['mean']:.3f} AUROC" in APPENDIX


def test_claims_have_the_verdicts_of_the_text(drawn, summary):
    steps = pd.Series({"deepchest": 1.0, PCGRAD: 1.1, "pcgrad": 9.4})
    tables = dict(list(drawn.groupby("phantom")))
    claims = judgement.six_claims(tables, steps, judgement.over_another(summary), ENDPOINT)
    verdicts = {name[:2]: verdict for name, verdict in claims.verdict.items()}
    measured = {name[:2]: words for name, words in claims["measured here"].items()}
    assert verdicts["C1"] == "not testable in accuracy"
    left = re.findall(r"at most (\+0\.\d+) accuracy", measured["C1"])
    assert f"at most {left[0]} and {left[1]} are left" in SAID
    assert verdicts["C2"] == verdicts["C3"]
    assert "not against others" in verdicts["C2"]
    for phantom, words in zip(("default", "NIH"), measured["C4"].split("; nih, "), strict=True):
        lower, higher = re.search(r"lower (.*?); higher (.*)", words).groups()
        counts = [0 if names == "none" else len(names.split(", ")) for names in (lower, higher)]
        assert f"On the {phantom} phantom {counts[0]} of 14 test losses are lower and {counts[1]} higher" in SAID
    assert verdicts["C6"] == "open over Uncertainty, open over DWA, lower over PCGrad (features)"


def test_the_appendix_has_the_verdicts_of_the_earlier_sweep(macro):
    auroc, precision = macro["auroc"], macro["average_precision"]
    assert len(auroc) == len(precision) == 23
    assert not any(table.verdict.str.startswith("higher").any() for table in macro.values())
    lower = auroc[auroc.verdict == "lower"]["mean"]
    assert (len(lower), (precision.verdict == "lower").sum()) == (7, 8)
    assert "Seven of 23 are significantly lower in AUROC, by 0.07 to 0.22, and eight in AP" in APPENDIX
    assert (lower.min() > -0.225, lower.max() < -0.07) == (True, True)
    assert set(auroc.index[auroc.verdict == "equivalent"]) == {"deepchest_relative_loss", "dwa"}


def test_the_appendix_has_its_intervals(macro):
    for metric in judgement.HEADLINE:
        row = macro[metric].loc["deepchest"]
        assert judgement.in_words(row).removesuffix(", open") in APPENDIX
        assert row.verdict == "open"
    assert macro["average_precision"].p["deepchest"] == pytest.approx(0.045, abs=5e-4)
    assert (round(macro["auroc"].smallest["deepchest"], 3), round(macro["auroc"].smallest[PCGRAD], 3)) == (0.016, 0.022)


def test_an_interval_is_the_paired_t_test_with_the_patients_added(macro, tables):
    scores = tables.rows.query("split == 'test' and metric == 'auroc' and task == 'macro'")
    scores = scores.pivot(index="seed", columns="method", values="value")
    paired = (scores["deepchest"] - scores["equal"]).dropna()
    row = macro["auroc"].loc["deepchest"]
    assert row["mean"] == pytest.approx(paired.mean(), abs=1e-6)
    error = np.hypot(paired.std() / np.sqrt(len(paired)), row.patient_sd)
    assert row.high - row["mean"] == pytest.approx(stats.t.ppf(0.975, len(paired) - 1) * error, rel=1e-6)


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
