"""What notebook 09 and its solutions say in numbers: recomputed from the committed tables, and found in their texts."""

import re

import numpy as np
import pandas as pd
import pytest
from claims import Committed
from scipy import stats

from deepchest_utils.config import LOSSES
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import MARGIN, format_interval
from deepchest_utils.studies import levers
from deepchest_utils.studies.levers import KINDS, WORDS
from deepchest_utils.training.setup import epoch_shape

RESULTS = PROJECT / "data" / "results"
SAID = Committed("09_what_moves_the_needle").text
SOLVED = Committed("solutions/09_what_moves_the_needle").text
TITLE = SAID[: SAID.index("You will be able")]
ADVICE = SAID[SAID.index("A recommendation in three sentences") : SAID.index(". Limits")]
PLACES = {"embeddings": "on real radiographs", "phantom": "on the NIH phantom"}
STUDIES = {name: place for name, place in PLACES.items() if (RESULTS / f"levers_{name}.csv").exists()}
LESS = ["data_quarter", "data_half", "no_prior_bias"]  # levers that take something away
WEIGHTS, OPTIONS = KINDS["Task weights"], (*KINDS["Task weights"], *KINDS["Loss"])
only_with_the_phantom = pytest.mark.skipif("phantom" not in STUDIES, reason="its part of the study has not run")


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return levers.lever_table(RESULTS)


@pytest.fixture(scope="module")
def auroc(found) -> dict[str, pd.DataFrame]:
    """Study -> a row a lever, in AUROC."""
    part = found[found.metric == "auroc"]
    return {study: rows.set_index("lever") for study, rows in part.groupby("study")}


def up(rows: pd.DataFrame) -> pd.Series:
    """Means of the levers that are significantly higher, the largest first."""
    return rows["mean"][(rows.p_holm < 0.05) & (rows["mean"] > 0)].sort_values(ascending=False)


def number(words: str) -> int:
    """ "none" -> 0, "twelve" -> 12, "17" -> 17."""
    names = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    return names.index(words.lower()) if words.lower() in names else int(words)


def test_the_study_is_as_planned(found, auroc):
    assert set(STUDIES) <= set(found.study)
    assert auroc["embeddings"].pairs.eq(10).all()
    assert found.lever.nunique() >= 14
    assert f"The best of {found.lever.nunique()} levers" in SAID
    tuned = auroc["embeddings"].against == "default"
    assert set(auroc["embeddings"].index[tuned]) == set(levers.TUNED)
    if "phantom" in STUDIES:
        count = auroc["phantom"].pairs.iloc[0]
        assert auroc["phantom"].pairs.eq(count).all()
        assert count == levers.REPLICATES or "of the eight that were planned" in SAID
        assert f"{['five', 'six', 'seven', 'eight'][count - 5]} replicates" in SAID


def test_the_answer_names_the_largest_gains_and_the_best_weighting(auroc):
    for study, place in STUDIES.items():
        rows = auroc[study]
        if len(up(rows)):
            first = up(rows).index[0]
            assert f"*{WORDS[first]}* ({format_interval(rows.loc[first])})" in TITLE
        else:
            meant = rows.drop(index=LESS, errors="ignore")
            assert (
                f"{place} none of {len(meant)} changes that are meant to help raises macro AUROC significantly" in TITLE
            )
        best = rows["mean"][list(WEIGHTS)].idxmax()
        assert f"{format_interval(rows.loc[best])} ({WORDS[best]}, {rows.verdict[best]})" in TITLE
    kinds = {
        kind.split()[0].lower()
        for s in STUDIES
        for kind, names in KINDS.items()
        if set(up(auroc[s]).index[:1]) & {*names}
    }
    words = {"tuning": "tuning", "data": "data", "training": "how the network is trained", "loss": "the loss"}
    words |= {"several": "several networks", "task": "task weights"}
    assert TITLE.split("**")[1].startswith("Into" if kinds else "Not into the recipe")
    row = auroc["embeddings"].loc["data_quarter"]
    if not kinds and row.verdict.startswith("lower") and row["mean"] < -MARGIN:
        assert f"training on a quarter of the images changes it by {format_interval(row)}" in TITLE
    head = TITLE.split("**")[1].split(":")[0]
    assert {kind for kind, said in words.items() if said in head} == kinds


def test_gains_and_losses_are_counted(auroc, found):
    for study, place in STUDIES.items():
        rows = auroc[study]
        paragraph = SAID[SAID.index(f"{place.capitalize()[:2]}{place[2:]} ") :].split("within 0.01.")[0]
        higher, lower = re.search(
            r"(\w+) of \d+ levers (?:is|are) sig.*?\. (\w+) (?:is|are) significantly lower", paragraph
        ).groups()
        assert number(higher) == len(up(rows))
        assert number(lower) == ((rows.p_holm < 0.05) & (rows["mean"] < 0)).sum()
        assert f"{len(rows)} levers" in paragraph
        for name in rows.index[(rows.p_holm < 0.05) & (rows["mean"] < 0)][:2]:
            assert f"*{WORDS[name]}* {format_interval(rows.loc[name])}" in paragraph
        precise = found[(found.study == study) & (found.metric == "average_precision")].set_index("lever")
        for name in rows.index[rows.p_holm.between(0.04, 0.05)]:
            near = f"p is {rows.p_holm[name]:.4f} after Holm, and {precise.p_holm[name]:.3f} in AP"
            assert f"For *{WORDS[name]}* that is a near thing: {near}" in paragraph
        same = re.search(r"(\w+) (?:is|are) equivalent, $", paragraph).group(1)
        assert number(same) == (rows.p_equivalent < 0.05).sum()
        for name in up(rows).index[:2]:
            assert f"*{WORDS[name]}* {format_interval(rows.loc[name])}" in paragraph
        assert f"{rows.smallest.median():.4f} {place}" in SAID
    rows = auroc["embeddings"]
    for name in ("ensemble_5", "epochs_4"):
        assert f"{rows.cost[name]:.1f} times" in SAID
        assert format_interval(rows.loc[name]) in SAID


def test_the_steps_of_fewer_images():
    own, usual = levers.STUDIES["embeddings"]["own"], levers.STUDIES["embeddings"]["usual"]
    steps = {"all": epoch_shape(1324, usual["batch_size"])[0] * usual["epochs"]}
    for name, (changes,) in own.items():
        count = changes["data_options"]["max_train"]
        steps[name] = epoch_shape(count, usual["batch_size"])[0] * changes["epochs"]
    assert steps == {"all": 400, "data_quarter": 320, "data_half": 400}
    assert "Half of the images have as many steps as all, 400. A quarter has 320" in SAID


def test_the_encoder(auroc):
    if "finetuned" not in auroc:
        assert "**The encoder.**" not in SAID
        return
    sentence = SAID[SAID.index("**The encoder.**") :]
    for name in ("scratch", "frozen"):
        row = auroc["finetuned"].loc[name]
        said = re.search(rf"{re.escape(format_interval(row))}[,:] (significantly )?(\w+)", sentence)
        assert said.group(2) == row.verdict.split(",")[0]


def test_data_and_rate_against_weighting(auroc):
    section = SAID[SAID.index("Data and rate against weighting") : SAID.index("Loss and task weight")]
    for study, place in STUDIES.items():
        rows = auroc[study]
        for name in ("data_quarter", "tuning", "deepchest"):
            assert f"{format_interval(rows.loc[name])} {place}" in section
    if "phantom" in STUDIES:
        assert format_interval(auroc["phantom"].loc["data_4"]) in section
    for name, words in (("data_quarter", "three quarters of the images moves AUROC"), ("tuning", "Tuning moves it")):
        sentence = section[section.index(words) :].split(".")[0]
        further = [
            study
            for study in STUDIES
            if abs(auroc[study]["mean"][name])
            > np.abs(auroc[study].loc[list(WEIGHTS), ["low", "high"]].to_numpy()).max()
        ]
        assert (" no further" in sentence) == (not further)
        assert ("alone" in sentence) == (0 < len(further) < len(STUDIES))
    high = auroc["embeddings"].high
    if "its own interval ends at" in section:
        assert f"ends at {high['tuning']:+.4f}, above theirs" in section
        assert high["tuning"] > high[list(WEIGHTS)].max()


@pytest.mark.parametrize("study", STUDIES)
def test_loss_and_task_weight(study, auroc):
    section = SAID[SAID.index("Loss and task weight") :]
    rows = levers.loss_weight_table(RESULTS, study).query("metric == 'auroc'")
    assert len(rows) == len(LOSSES) * len(levers.WEIGHTS) - 1 == 17
    best = rows.loc[rows["mean"].idxmax()]
    sentence = section[section.index("best of 17 combinations is") :] if study == "embeddings" else section
    assert f": {format_interval(best)}, {best.verdict}. " in sentence
    place = STUDIES[study]
    text = section[section.index(f"O{place[1:]} the best of 17") :]
    higher, lower = re.search(
        r"(\w+) (?:is|are) significantly higher than cross-entropy with Equal, (\w+) lower", text
    ).groups()
    significant = rows.p_holm < 0.05
    assert (number(higher), number(lower)) == (
        (significant & (rows["mean"] > 0)).sum(),
        (significant & (rows["mean"] < 0)).sum(),
    )
    means = rows.set_index(["loss", "weight"])["mean"]
    steps = [means[loss, "deepchest"] - means.get((loss, "equal"), 0.0) for loss in LOSSES]
    assert f"between {min(steps):+.4f} and {max(steps):+.4f} {place}" in section
    row = auroc["embeddings"].loc["logit_adjusted"]
    assert format_interval(row) in section
    assert f"It is {format_interval(row)} on real radiographs" in SOLVED
    assert abs(row["mean"]) < MARGIN  # "should be near zero"


@only_with_the_phantom
def test_what_the_two_studies_agree_on(auroc):
    real, drawn = auroc["embeddings"], auroc["phantom"]
    shared = real.index.intersection(drawn.index)
    words = [rows.verdict[shared].str.split(",").str[0] for rows in (real, drawn)]
    assert f"Of {len(shared)} levers {(words[0] == words[1]).sum()} have the same verdict" in SAID
    rank = stats.spearmanr(real["mean"][shared], drawn["mean"][shared]).statistic
    assert f"rank correlation of the changes is {rank:.2f}" in SAID
    section = SAID[SAID.index("rank correlation of the changes") : SAID.index("A recommendation")]
    for word in ("higher", "lower"):
        both = [WORDS[name] for name in shared if words[0][name] == word == words[1][name]]
        if both:
            sentence = next(s for s in section.split("Both find")[1:] if f"significantly {word}." in s).split(
                " significantly "
            )[0]
            assert re.findall(r"\*(.*?)\*", sentence) == both
        else:
            assert f"No lever is significantly {word} in both." in section
    against = [name for name in shared if {words[0][name], words[1][name]} == {"higher", "lower"}]
    assert ("contradict" in section) == bool(against)


def test_the_recommendation_rests_on_verdicts(auroc):
    first, second, third = re.findall(r"\d\. (.*?\.)(?= \d\. |\s*## |$)", ADVICE)
    real = auroc["embeddings"]
    ours = {
        *KINDS["Tuning (against the default)"],
        *KINDS["Training"],
        *KINDS["Several networks"],
        "augmentation",
        "size_64",
    }
    gains = up(real)[up(real).index.isin(ours)]
    if len(gains):
        assert format_interval(real.loc[gains.index[0]]) in first
        assert f"{real.cost[gains.index[0]]:.1f} times the training time" in first
        assert ("yet by less than 0.01" in first) == (gains.iloc[0] <= MARGIN)
    else:
        assert "on real radiographs" not in first
    row = real.loc["data_quarter"]
    assert format_interval(row) in second
    assert second.startswith("Then") == (row.p_holm < 0.05 and row["mean"] < -MARGIN)
    higher = [name for name in OPTIONS if any(name in up(auroc[study]) for study in STUDIES)]
    steady = [name for name in OPTIONS if all(up(auroc[study]).get(name, 0.0) > MARGIN for study in STUDIES)]
    assert third.startswith("Of eight other losses and weightings use") == bool(steady)
    assert ("none is significantly higher" in third) == (not higher)
    for name in steady:
        assert f"*{WORDS[name]}* ({format_interval(real.loc[name])})" in third


def test_the_solutions_name_what_is_significant_and_what_only_excludes_zero(found):
    called = found[(found.p_holm < 0.05) & (found.pairs >= 5)]
    alone = found[((found.low > 0) | (found.high < 0)) & ~found.index.isin(called.index)]
    parts = re.search(r"Significant are(.*?)An interval without 0(.*?)A 95% interval is for one", SOLVED).groups()
    measures = {"auroc": "in AUROC", "average_precision": "in AP"}
    for rows, said in zip((called, alone), parts, strict=True):
        assert said.count("*") == 2 * len(rows) > 0
        real, drawn = said.split("On the phantom") if "On the phantom" in said else (said, "")
        for row in rows.itertuples():
            place = drawn if row.study == "phantom" else real
            assert f"*{row.words}* {measures[row.metric]}" in place
            assert (
                rows is called
                or f"*{row.words}* {measures[row.metric]} ({row.p:.2g}, after Holm {row.p_holm:.2g})" in place
            )


def test_after_holm_the_findable_difference_is_larger(auroc):
    """Power 0.8 at level 0.05 / 21 against 0.05, for ten folds."""
    rows = auroc["embeddings"]
    wider = (stats.t.ppf(1 - 0.025 / len(rows), 9) + stats.t.ppf(0.8, 9)) / (
        stats.t.ppf(0.975, 9) + stats.t.ppf(0.8, 9)
    )
    assert f"over {len(rows)} levers, it is about {wider:.1f} times as large" in SAID
    assert f"{rows.smallest['tuning']:.4f} for tuning" in SAID


def test_the_films_of_an_afternoon():
    rows = levers.lever_rows(RESULTS, "embeddings").query("metric == 'auroc'")
    level = rows.groupby("method").value.mean()
    error = 1 - level["equal"]
    alpha = np.log((1 - level["data_quarter"]) / error) / np.log(4)
    assert f"The curve has the exponent {alpha:.3f}" in SOLVED
    gain = error * (1 - ((1324 + 160) / 1324) ** -alpha)
    assert f"160 films bring {gain:+.4f}" in SOLVED
    miss = abs(level["data_half"] - (1 - error * 2**alpha))
    assert f"misses the measured half by {miss:.4f}, more than these films bring" in SOLVED
    if "phantom" not in STUDIES:
        assert f"an afternoon's 160 may bring {gain:+.3f} (exercise 4)." in ADVICE
    assert miss > gain > 0


def test_poly_1_is_as_printed():
    shown = Committed("solutions/09_what_moves_the_needle").shown("c16")
    (change,) = re.findall(r"minus cross-entropy is (\S+ \[.*?\])", SOLVED)
    assert f"Poly-1 minus cross-entropy: {change}" in shown
