"""What notebook 08 and its solutions say in numbers: recomputed from the committed tables, and found in their texts."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from claims import Committed

from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import method_label
from deepchest_utils.results.statistics import (
    format_interval,
    holm,
    is_significant,
    judge_differences,
    paired_differences,
    smallest_difference,
)
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import levers, real

RESULTS = PROJECT / "data" / "results"
NOTEBOOK = Committed("08_real_radiographs")
SAID = NOTEBOOK.text
SOLVED = Committed("solutions/08_real_radiographs").text
TITLE = SAID[: SAID.index("You will be able")]
RAN = {name: (RESULTS / f"real_{name}.csv").exists() for name in ("finetune", "ladder")}
FEW_METHODS = RunTable(RESULTS / "real_main.csv").cells.method.nunique() <= len(real.ASKED)
others = pytest.mark.skipif(FEW_METHODS, reason="the other methods have not run")
VERDICTS = {  # of judge_differences -> how the text begins to say it
    "higher": "significantly higher",
    "lower": "significantly lower",
    "equivalent": "equivalent to",
    "open": "open",
}
LEADERS = ["deepchest_loss_trend", 'pcgrad(level="features")', "ldc_mtl"]


def said_after(words: str) -> str:
    """The sentence that follows these words."""
    return SAID[SAID.index(words) + len(words) :].split(". ")[0]


def by_method(table: pd.DataFrame, metric: str = "auroc") -> pd.DataFrame:
    return table[table.metric == metric].set_index("method")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return real.fold_rows(RESULTS / "real_main.csv")


@pytest.fixture(scope="module")
def chosen(rows) -> pd.DataFrame:
    return real.choose(rows)


@pytest.fixture(scope="module")
def judged(chosen) -> pd.DataFrame:
    return real.compare_folds(chosen)


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return real.ladder_table(RESULTS / "real_ladder.csv")


def test_the_study_is_as_planned(rows, chosen):
    folds = chosen[chosen.metric == "auroc"].groupby("method").size()
    assert folds["equal"] == folds["deepchest"] == 50
    rest = folds.drop(list(real.ASKED))
    assert rest.nunique() <= 1  # all of them in the same folds
    assert rest.between(5, 10).all()
    assert len(folds) == (3 if FEW_METHODS else 35)
    assert rows.groupby(["lr", "weight_decay"]).ngroups == 8
    assert (real.SETTINGS[0]["lr"] >= 1e-4, len(real.COUNTED)) == (True, 9)


def test_deepchest_on_the_frozen_encoder(judged, chosen):
    row, precision = (by_method(judged, metric).loc["deepchest"] for metric in ("auroc", "average_precision"))
    assert format_interval(row) in TITLE
    assert said_after(f"{format_interval(row)} macro AUROC and {format_interval(precision)} AP: ").startswith(
        VERDICTS[row.verdict.split(",")[0]]
    )
    assert (row.high - row.low) / 2 <= 0.004
    assert f"find a true difference of {row.smallest:.4f}" in SAID
    pair = chosen[chosen.method.isin(["deepchest", "prevalence_oracle"])]
    oracle = by_method(real.compare_folds(pair, "prevalence_oracle")).loc["deepchest"]
    assert said_after(f"is {format_interval(oracle)}: ").startswith(VERDICTS[oracle.verdict.split(",")[0]])


@others
def test_the_other_methods_on_the_frozen_encoder(judged):
    auroc = by_method(judged)
    higher = auroc.index[auroc.verdict.str.startswith("higher")]
    paragraph = SAID[SAID.index("**The other methods.**") : SAID.index("## 4.")]
    words = ["five", "six", "seven", "eight", "nine", "ten"][auroc.pairs.drop(list(real.ASKED[1:])).max() - 5]
    assert f"its oracle have 50 folds, the other methods {words} of them: ten were planned" in SAID
    sentence = paragraph.split("significantly higher")[0]
    assert all(method_label(method) in sentence for method in higher)
    assert len(higher) > 0 or "No method is" in sentence
    assert f"{auroc.verdict.str.contains('equivalent').sum()} of {len(auroc)} are equivalent" in paragraph
    rest = auroc.drop(list(real.ASKED[1:]))
    assert f"would find a true difference of {rest.smallest.median():.3f}, in the median" in paragraph
    df, one = rest.pairs.to_numpy() - 1.0, np.ones(len(rest))
    wider = smallest_difference(one, df, 0.05 / len(auroc)) / smallest_difference(one, df)
    assert f"after Holm it is about {np.median(rest.smallest * wider):.2f}" in paragraph
    assert f"and {(auroc.verdict == 'open').sum()} stay open" in TITLE
    far = [method_label(method) for method in auroc.index[auroc.high < -0.02]]
    assert all(label in paragraph for label in far)
    assert all(f"{method_label(m)} {format_interval(auroc.loc[m])}" in paragraph for m in LEADERS)


def test_what_an_auroc_is_worth():
    rows = real.network_rows(RESULTS)
    levels = by_method(real.compare_folds(rows, None))
    ran = [name for name in real.NETWORKS if RAN["finetune"] or name not in ("finetuned", "scratch")]
    assert set(levels.index) == set(ran)
    assert levels.pairs.drop(["finetuned", "scratch"], errors="ignore").eq(10).all()
    frozen, border, grey = (levels["mean"][name] for name in ("frozen", "border", "statistics"))
    assert f"The encoder has {frozen:.3f}, the border alone {border:.3f}" in SAID
    assert f"how bright an image is {grey:.3f}" in SAID
    assert all(f"{value:.3f}" in TITLE for value in (frozen, border))
    assert f"the border reaches {border - 0.5:.3f} above chance, and the encoder {frozen - 0.5:.3f}" in SAID
    if "Train the same head on the border" in SAID:
        assert f"the border alone reaches {(border - 0.5) / (frozen - 0.5):.0%} of what the encoder reaches" in SAID
    gap = by_method(real.compare_folds(rows[rows.method.isin(["frozen", "border"])], "border")).iloc[0]
    assert format_interval(gap, 3) in SAID
    assert gap.low > 0


def test_tuning_and_chosen_epochs(rows, chosen):
    curves = real.budget_curves(rows[rows.method.isin(real.ASKED)])
    gain = curves[8] - curves[1]
    assert f"worth {gain['equal']:+.4f} AUROC to Equal and {gain['deepchest']:+.4f} to DeepChest" in SAID
    epoch = chosen[chosen.metric == "auroc"].groupby("method").epoch.median()
    assert f"a weight that always fell is at {1.05 ** -round(epoch['deepchest'] - 1):.2f}, and one" in SAID
    assert f"is {epoch['equal']:g} for Equal and {epoch['deepchest']:g} for DeepChest" in SAID
    assert epoch[["equal", "deepchest"]].min() > 10  # "was anything tested": the rule has moved its weights
    both = real.budget_curves(rows)
    near = both[both[8] > both.loc["equal", 8] - 0.02].drop("equal")
    more = (near[8] - near[1] > both.loc["equal", 8] - both.loc["equal", 1] + 0.005).sum()
    words = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    assert f"{words[more]} of the others in the figure gain at least 0.005 more" in SAID
    assert f"had moved about {epoch['deepchest'] - 1:.0f} times" in SAID


@pytest.mark.skipif(not RAN["finetune"], reason="it has not run")
def test_the_encoder_fine_tuned():
    rows = real.finetune_rows(RESULTS / "real_finetune.csv")
    shared = by_method(real.compare_folds(rows[rows.method != real.SCRATCH]))
    named = "Validation scores on the frozen encoder named two further methods" in SAID
    assert set(shared.index) == {*real.ASKED[1:], *(real.best_two(RESULTS / "real_main.csv") if named else ())}
    row = shared.loc["deepchest"]
    folds = {5: "five", 10: "ten"}[row.pairs]
    assert f"at 128 px for 10 epochs, in {folds} folds" in SAID
    assert said_after(f"DeepChest minus Equal is {format_interval(row)}: ").startswith(
        VERDICTS[row.verdict.split(",")[0]]
    )
    assert f"find a true difference of {row.smallest:.3f}" in SAID
    if named:
        first, second = (shared.loc[method] for method in real.best_two(RESULTS / "real_main.csv"))
        assert (first.verdict, second.verdict) == ("open", "open")
        said = (
            f"RLW minus Equal is {format_interval(first)} and Nash-MTL minus Equal {format_interval(second)}, both open"
        )
        assert f"{said}; five folds would find {first.smallest:.3f} and {second.smallest:.3f}" in SAID
    start = by_method(real.compare_folds(rows[rows.method.isin(["equal", real.SCRATCH])])).iloc[0]
    assert start.pairs == 5
    assert f"Equal changes by {format_interval(start)}, in five folds" in SAID
    assert ("Start from pretrained weights" in SAID) == (start.high < 0)
    scratch = rows[(rows.method == real.SCRATCH) & (rows.metric == "auroc")]
    assert scratch.epoch.min() >= 9  # of ten: "still rising"
    assert real.tuned_rate(RESULTS / "real_finetune_tuning.csv", [real.SCRATCH]) == max(real.RATES)
    judged = levers.lever_table(RESULTS).query("study == 'finetuned' and metric == 'auroc'").set_index("lever")
    assert ("over the two encoder rows of 09 it is open" in re.sub(r"\[(\d+)\]\(.*?\)", r"\1", SAID)) == (
        judged.verdict["scratch"] == "open"
    )


@pytest.mark.skipif(not RAN["ladder"], reason="it has not run")
def test_the_ladder(steps):
    accuracy, auroc = (steps[steps.metric == metric].set_index("rung") for metric in ("accuracy", "auroc"))
    wide = "published" in auroc.index  # their 128 px
    assert list(auroc.index) == list(real.RUNGS)[not wide :]
    section = SAID[SAID.index("From the published recipe") : SAID.index("So, does the answer hold?")]
    first, *others = auroc.pairs
    assert 5 <= first <= min(others) == max(others)
    splits = ["five", "six", "seven", "eight"][others[0] - 5]
    assert f"{'All rungs' if first == others[0] else 'The rungs at 64 px'} share {splits} splits" in section
    assert ("Their 128 px cost five times as much and have not run" in section) != wide
    first, last = auroc.iloc[0], auroc.iloc[-1]
    assert f"is {format_interval(accuracy.iloc[0])} in accuracy and {format_interval(first)} in AUROC" in section
    assert f"it is {format_interval(last)}, {last.verdict} in AUROC" in section
    found = {
        name: [row.words for row in table.itertuples() if is_significant(row.p_holm, row.pairs)]
        for name, table in {"accuracy": accuracy, "AUROC": auroc}.items()
    }
    nowhere = "On no rung does DeepChest differ from Equal significantly, in accuracy or in AUROC."
    assert (nowhere in section) != any(found.values())
    for name, words in found.items() if any(found.values()) else ():
        sentence = re.search(rf"In {name} DeepChest differs from Equal significantly on (.*?)\.", section).group(1)
        assert re.findall(r"\*(.*?)\*", sentence) == words
    reach = float(re.search(r"no interval of DeepChest minus Equal reaches beyond ([\d.]+)\.", section).group(1))
    assert 0 <= reach - accuracy[["low", "high"]].abs().to_numpy().max() < 0.001
    precise = steps[steps.metric == "average_precision"].set_index("rung")
    assert ("In AP DeepChest minus Equal is open on every rung." in section) == precise.verdict.eq("open").all()
    clear = (auroc.step_low > 0) | (auroc.step_high < 0)
    assert ("No interval of a step excludes zero in AUROC" in section) != clear.any()
    assert all(f"*{words}*" in section for words in auroc.words[clear])
    rungs, taken = real.ladder_rows(RESULTS / "real_ladder.csv"), list(auroc.index[:-1])  # Equal has no last step
    pairs = [real.ladder_step(rungs, *pair).loc["average_precision"] for pair in pairwise(taken)]
    for rung, step, p in zip(taken[1:], pairs, holm(np.array([step.p for step in pairs])), strict=True):
        said = f"*{auroc.words[rung]}* ({format_interval(step, 3)}, p {p:.2f} after Holm over the steps)" in section
        assert said == (step.low > 0 or step.high < 0)
    whole = real.ladder_step(rungs, auroc.index[0], auroc.index[-1]).loc["auroc"]
    assert f"a change of {format_interval(whole, 3)}" in section
    assert ("our recipe is not shown to be better than theirs" in section) == (whole.low < 0)
    assert f"AUROC goes from {first.equal:.3f} to {last.equal:.3f}" in section
    big = auroc.step.abs().idxmax()
    for rung in (big, "patients", "size")[: 2 + wide]:
        step = auroc.loc[rung, ["step", "step_low", "step_high"]].set_axis(["mean", "low", "high"])
        assert format_interval(step, 3) in section
    assert f"largest step is *{auroc.words[big]}*" in section
    levels = accuracy[["equal", "deepchest"]].to_numpy()
    assert f"between {levels.min():.3f} and {levels.max():.3f}" in section
    absent = float(
        re.search(r"\"absent\" has an accuracy of ([\d.]+)", section).group(1)
    )  # held against labels elsewhere
    assert levels.max() < absent + 0.003  # "none is clearly above it"


def test_the_miniature_is_as_printed():
    """Of the phantom, as the notebook was run."""
    shown = NOTEBOOK.shown("c09")
    here = SAID[SAID.index("## 2.") : SAID.index("## 3.")]
    for interval in re.findall(r"[-+]0\.\d{4} \[.*?\]", here):
        assert interval in shown
    assert "DeepChest minus Equal, macro AUROC" in shown
    low, high = re.search(r"epochs lie later, and the weights between ([\d.]+) and ([\d.]+\d)", SAID).groups()
    assert f"at the chosen epochs: {low} to {high}" in shown
    assert float(low) < 0.8 < 1.2 < float(high)  # it did move them


def test_the_solutions_count_what_is_significant(chosen, judged):
    naive = judge_differences(paired_differences(chosen, "equal", ["metric"], ["seed", "fold"]), ["metric"])
    ours, theirs = ((by_method(table).p_holm < 0.05).sum() for table in (judged, naive))
    assert f"With the correction {ours} of {len(by_method(judged))} methods" in SOLVED
    assert f"and {theirs} if folds are taken for replicates" in SOLVED
    same, alone = ((by_method(table).verdict == "equivalent").sum() for table in (judged, naive))
    assert f"with the correction {same} are equivalent, as replicates {alone}" in SOLVED
    for table in (naive, judged):
        row = by_method(table).loc["deepchest"]
        assert f"beyond {row.high - row['mean']:.4f}" in SOLVED
