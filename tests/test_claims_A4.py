"""What the appendix on sharing says in numbers: recomputed from the committed tables, and found in its text."""

import re

import numpy as np
import pandas as pd
import pytest
from claims import Committed
from scipy import stats

from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import pretty
from deepchest_utils.results.statistics import MARGIN, format_interval
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import sharing
from deepchest_utils.studies.replication import study_rows

RESULTS = PROJECT / "data" / "results"
BOOK = Committed("appendix/A4_does_sharing_help")
SAID = BOOK.text
ANSWER = SAID.split("**")[1]
NUMBERS = {250: "250", 1000: "1,000", 4000: "4,000", 16000: "16,000"}
COUNTS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def section(number: int) -> str:
    return SAID.split(f"## {number}. ")[1].split(" ## ")[0]


@pytest.fixture(scope="module")
def judged() -> pd.DataFrame:
    """A row a kind, size and metric; significance and equivalence as the protocol has them, from the p-values."""
    table = sharing.compare_sharing(sharing.sharing_rows(RESULTS))
    sure = (table.p_holm < 0.05) & (table.pairs >= 5)
    same = (table.p_equivalent < 0.05) & (table.pairs >= 5)
    sign = np.sign(table["mean"]).where(sure, 0)
    return table.assign(sign=sign, same=same).set_index(["kind", "metric", "num_train"]).sort_index()


@pytest.fixture(scope="module")
def sizes(judged) -> pd.DataFrame:
    return judged.loc[sharing.EQUAL_SIZE, "auroc"]


@pytest.fixture(scope="module")
def transfers() -> np.ndarray:
    return sharing.transfers(RESULTS)


@pytest.fixture(scope="module")
def predictors(transfers) -> pd.DataFrame:
    return sharing.judge_predictors(transfers, sharing.predictors(RESULTS)).set_index("predictor")


def images(at) -> str:
    names = [NUMBERS[n] for n in at]
    return (f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]) + " images"


def test_the_study_is_as_planned(judged, sizes, transfers):
    assert list(sizes.index) == list(sharing.LENGTHS)
    assert set(judged.pairs) == {len(transfers)}
    assert f"{COUNTS[len(transfers)].capitalize()} replicates draw" in SAID
    assert transfers.shape[1:] == (13, 13)


def test_each_size_has_its_difference(sizes):
    text = section(2)
    for n, row in sizes.iterrows():
        assert f"{format_interval(row)} with {NUMBERS[n]} images ({row.verdict})" in text
        assert row.verdict.startswith(("higher", "lower")) == bool(row.sign)
    low, high = (f"{value:.3f}" for value in (sizes.smallest.min(), sizes.smallest.max()))
    assert f"true difference of {low if low == high else f'{low} to {high}'} in AUROC" in text


def test_sharing_helps_as_the_protocol_has_it(sizes):
    up, down, same = (list(sizes.index[of]) for of in (sizes.sign > 0, sizes.sign < 0, sizes.same & (sizes.sign == 0)))
    text = section(2)
    assert ("**Sharing helps**" in text) == ANSWER.startswith("At equal size, yes") == (len(up) >= 2 and not down)
    assert ("**It depends**" in text) == ANSWER.startswith("It depends") == bool(up and down)
    assert ("**Sharing costs**" in text) == ANSWER.startswith("No: at no size") == bool(down and not up)
    costless = len(same) == len(sizes)
    assert ("**Sharing costs nothing**" in text) == ANSWER.startswith("No, and it costs nothing") == costless
    if not up and not down:
        assert ANSWER.startswith("This study cannot tell") == (not costless)
    for word, at in (("significantly better", up), ("significantly worse", down)):
        if at:
            assert f"with {images(at)}" in ANSWER.replace("With", "with")
            assert word in ANSWER
            best = sizes["mean"][at].abs().idxmax()
            assert f"({format_interval(sizes.loc[best])} macro AUROC" in ANSWER
    ends = sizes.sign.loc[[250, 16000]]
    assert ("No trend over sizes is claimed" in text) == (ends.prod() != -1)


def test_average_precision(judged):
    rows = judged.loc[sharing.EQUAL_SIZE, "average_precision"]
    sentence = section(2).split("In average precision shared is")[1].split("Four of five")[0]
    for sign, word in ((1, "higher"), (-1, "lower")):
        at = list(rows.index[rows.sign == sign])
        assert (f"significantly {word} with" in sentence) == bool(at)
        if at:
            assert f"significantly {word} with {images(at)}" in sentence


def test_capacity(judged, sizes):
    full, text = judged.loc[(sharing.FULL_SIZE, "auroc", sharing.SIZE)], section(3)
    narrow = sizes.loc[sharing.SIZE]
    assert f"Against narrow networks it is {format_interval(narrow)}, " in text
    assert f"Against networks of full width it is {format_interval(full)}, " in text
    above = narrow.sign > 0, full.sign > 0
    assert ("**So sharing teaches**" in text) == all(above)
    assert ("findings teach each other" in ANSWER) == all(above)
    assert ("**So sharing saves parameters.**" in text) == (above[0] and full.sign == 0)
    assert ("**sharing does not teach after ten epochs**" in text) == (full.sign < 0)
    assert ("is equivalent to sharing" in ANSWER) == (full.verdict == "equivalent")
    if full.sign:
        assert f"({format_interval(full)})" in ANSWER


def test_after_24_epochs_sharing_is_above_full_width_after_ten():
    rows = sharing.sharing_rows(RESULTS).query("num_train == @sharing.SIZE")
    longer = rows[(rows.kind == sharing.EQUAL_SIZE) & (rows.method == "shared")].assign(kind=sharing.FULL_SIZE)
    alone = rows[(rows.kind == sharing.FULL_SIZE) & (rows.method == "single")]
    auroc, precision = (
        sharing.compare_sharing(pd.concat([longer, alone])).set_index("metric").loc[["auroc", "average_precision"]].iloc
    )
    assert f"above them in AUROC, by {format_interval(auroc)}; AP is open, {format_interval(precision)}" in section(3)
    assert (auroc.verdict, precision.verdict) == ("higher", "open")
    assert "24 epochs: its AUROC is then above theirs, its AP open" in ANSWER


def test_time_and_choices():
    table = RESULTS / "sharing_sizes.csv"
    cells = study_rows(table).drop_duplicates("cell").set_index("cell")
    seconds = RunTable(table).cells.set_index("cell").training_seconds.astype(float)
    means = cells.assign(seconds=seconds).pivot_table("seconds", "num_train", "method")
    ratio = means.single / means.shared
    assert f"took {ratio.min():.0f} to {ratio.max():.0f} times as long" in section(1)
    pairs = cells.groupby(["num_train", "method"])[["lr", "weight_decay"]].agg(["nunique", "first"])
    assert (pairs.xs("nunique", axis=1, level=1) == 1).all(axis=None)
    tried, edges = pd.DataFrame(sharing.SETTINGS), 0
    for _, pair in pairs.xs("first", axis=1, level=1).iterrows():
        edges += any(pair[name] in (tried[name].min(), tried[name].max()) for name in tried)
    rates = pairs.xs("first", axis=1, level=1).lr.unstack()
    highest = (rates.single == tried.lr.max()).all()
    assert ("The narrow networks had their highest rate at every size" in section(6)) == highest
    if edges:
        assert f"Of eight chosen pairs, {COUNTS[edges]} {'is' if edges == 1 else 'are'} outermost" in section(1)
    else:
        assert "No chosen pair" in section(1)


def test_the_matrix(judged, transfers):
    text, row = section(4), judged.loc[(sharing.PAIRS, "auroc", sharing.SIZE)]
    mean = transfers.mean(0)
    assert f"mean of all {(~np.isnan(mean)).sum()} entries is {format_interval(row)}" in text
    assert row["mean"] == pytest.approx(np.nanmean(mean), abs=1e-9)
    assert ("So pairs help on the whole" in text) == (row.sign > 0)
    assert ("So pairs hurt on the whole" in text) == (row.sign < 0)
    names = [pretty(finding) for finding in sharing.counted()]
    for i, j in (np.unravel_index(of(mean), mean.shape) for of in (np.nanargmax, np.nanargmin)):
        assert f"{mean[i, j]:+.4f} ({names[i]} with {names[j]})" in text
    repeats = sharing.repeatability(transfers)
    assert f"its agreement (section 5) is {repeats:.2f}" in text
    assert ("it is mostly luck" in text) == (repeats < 0.2)
    error = transfers.std(0, ddof=1) / np.sqrt(len(transfers))
    assert f"standard error of {np.nanmedian(error):.4f}" in text


def test_the_predictors(predictors, transfers):
    text, named = section(5), sharing.predictors(RESULTS)
    enough = len(transfers) >= 5
    good = [name for name, row in predictors.iterrows() if enough and row.p_holm < 0.05 and row.agreement > 0]
    for name, row in predictors.iterrows():
        (numbers, verdict) = re.search(
            rf"\*{name.capitalize()}\* has an agreement of (.*?): (.*?)\.(?: |$)", text
        ).groups()
        assert numbers == f"{row.agreement:+.2f} [{row.low:+.2f}, {row.high:+.2f}], p {row.p_holm:.2g}"
        assert (verdict == "it predicts transfer") == (name in good)
        known = ~np.isnan(named[name]).all(1)  # agreement is Spearman's within a row
        mean, values = transfers.mean(0)[np.ix_(known, known)], named[name][np.ix_(known, known)]
        rows = [stats.spearmanr(np.delete(mean[i], i), np.delete(values[i], i))[0] for i in range(len(mean))]
        assert row.agreement == pytest.approx(np.mean(rows))
    best = predictors.iloc[0]
    beaten = predictors.iloc[1:].query("behind_low > 0")
    assert ("predicts better than" in text) == bool(best.name in good and len(beaten))
    for row in beaten.itertuples() if best.name in good else ():
        assert f"the {row.Index} by {row.behind:.2f} [{row.behind_low:.2f}, {row.behind_high:.2f}]" in text
    assert [name for name in predictors.index if f"the {name}" in ANSWER] == good
    twins = pd.DataFrame({name: matrix.ravel() for name, matrix in named.items()}).corr("spearman")
    assert f"rank correlation is {twins.loc['label lift', 'drawn correlation']:.2f}" in text
    late = sharing.agreement(transfers.mean(0), sharing.predictors(RESULTS, sharing.EPOCHS)["gradient cosine"])
    assert f"an agreement of {late:+.2f}; it decides nothing" in text
    blind = np.isnan(named["gradient cosine"]).all(1).sum()
    assert ("without signal" in text) == bool(blind)


def test_advice_follows_the_verdicts(sizes):
    text = section(6)
    up, down = (sizes.sign > 0).any(), (sizes.sign < 0).any()
    assert ("share one network" in text) == bool(up and not down)
    assert ("try a network for each finding" in text) == bool(down)
    assert MARGIN == 0.01  # "within 0.01"
