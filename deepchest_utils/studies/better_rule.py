"""The study's further analyses: value of tuning, single findings on both halves, regimes, and the better rule's bar."""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.results.labels import method_family
from deepchest_utils.results.statistics import (
    ALPHA,
    MARGIN,
    adjust_p,
    format_interval,
    is_significant,
    judge_differences,
    paired_differences,
)
from deepchest_utils.studies.replication import (
    BASE,
    ENDPOINT,
    FEW,
    FIRST,
    FULL,
    IN_QUESTION,
    LONGER,
    MAIN,
    SHORT,
    TRIALS,
    compare,
    study_rows,
)

MAX_STEP = 1.02  # of Equal's step on the same machine: what the better rule may cost
SEES_SCORES = ("deepchest", "loss", "candidate")  # families that see losses and scores alone
COUNTS = (1, 2, 4, 8, 16)
REGIME_TITLES = {  # table -> title
    "b64_e12": "batch 64, 12 epochs", "b64_e48": "batch 64, 48 epochs",
    "b256_e12": "batch 256, 12 epochs", "b256_e48": "batch 256, 48 epochs",
    "stratified": "batch 64, stratified", "common": "half at 2%, others at 10%",
}  # fmt: skip


def expected_best(values: Float[np.ndarray, " n"], count: int, scores: Float[np.ndarray, " n"] | None = None) -> float:
    """The mean, over all choices of `count` of the N values, of the one with the largest score (default: the value itself)."""
    n = len(values)
    if not 1 <= count <= n:
        raise ValueError(f"count should be between 1 and the {n} values. Found {count}.")
    # the i-th best is the best of those choices that take it and the rest from the worse ones
    ways = [comb(n - 1 - i, count - 1) / comb(n, count) for i in range(n)]
    order = np.argsort(values if scores is None else scores)[::-1]
    return float(values[order] @ np.array(ways))


def tuning_curves(table: Path) -> pd.DataFrame:
    """What tuning is worth: the expected best endpoint on validation of some of a method's first settings, after the short
    runs. A row a method whose short runs are through, a column a count; a setting that failed counts as the lowest."""
    rows = study_rows(table)
    rows = rows[(rows.split == "val") & (rows.epochs == SHORT) & (rows.phantom == "nih") & (rows.task == ENDPOINT)]
    best = rows.groupby(["method", "lr", "weight_decay"], sort=False).value.max()
    curves = {}
    for method, values in best.groupby("method", sort=False):
        if len(values) > TRIALS / 2:
            padded = np.full(TRIALS, values.min())
            padded[: len(values)] = values.to_numpy()
            curves[method] = {count: expected_best(padded, count) for count in COUNTS}
    return pd.DataFrame(curves).T


def split_halves(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each method minus Equal in the AUROC of the endpoint's findings, on the odd and on the even replicates of
    `study_rows`; judged, Holm over a method's findings."""
    tasks = [finding for finding in FINDINGS if finding != "Hernia"]
    chosen = rows[(rows.split == "test") & (rows.metric == "auroc") & rows.task.isin(tasks)]
    parts = [paired_differences(chosen[chosen.seed % 2 == rest], "equal", ["phantom", "task"]) for rest in (1, 0)]
    odd, even = (judge_differences(part, ["phantom", "method"]) for part in parts)
    return odd, even


def longer_training(main: Path, curves: Path) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Training for once, twice and four times the epochs, in the replicates that have all lengths.

    Returns:
        The endpoint on validation (columns method, epochs, epoch, value: means over replicates); each method minus Equal on
        test by length, judged; and what twice the epochs gain Equal on test (trained to the end: below 0.005).
    """
    rows = pd.concat([study_rows(main), study_rows(curves)], ignore_index=True)
    rows = rows[(rows.phantom == "default") & (rows.task == ENDPOINT) & (rows.metric == "auroc")]
    rows = rows[rows.seed.isin(list(MAIN[:FEW])) & rows.method.isin(LONGER)]
    keys = ["method", "epochs", "epoch"]
    on_val = rows[rows.split == "val"].groupby(keys, sort=False)
    by_epoch = on_val.value.mean()[on_val.size() == FEW].reset_index()  # epochs that all replicates have kept
    test = rows[rows.split == "test"]
    differences = judge_differences(paired_differences(test, "equal", ["epochs"]), ["epochs"])
    equal = test[test.method == "equal"].groupby("epochs").value.mean()
    return by_epoch, differences, float(equal[2 * BASE["epochs"]] - equal[BASE["epochs"]])


def _with_settings(main: Path, settings: Path, replicates: int, metric: str = "auroc") -> pd.DataFrame:
    """A metric in the endpoint, in the first replicates; `chosen` tells the tuned settings from the others."""
    parts = [study_rows(main).assign(chosen=True), study_rows(settings).assign(chosen=False)]
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[(rows.task == ENDPOINT) & (rows.metric == metric) & (rows.split == "test")]
    return rows[rows.seed.isin(list(MAIN[:replicates])) & (rows.epochs == BASE["epochs"])]


def luck_in_tuning(main: Path, settings: Path) -> pd.DataFrame:
    """Equal with all of its last settings, its chosen one among them: a row a phantom with the lowest and the highest mean
    of the endpoint, and their distance. A difference within it is not called a gain of weighting."""
    rows = _with_settings(main, settings, FIRST).query("method == 'equal'")
    means = rows.groupby(["phantom", "lr", "weight_decay"]).value.mean().groupby("phantom")
    low, high = means.min(), means.max()
    return pd.DataFrame({"settings": means.size(), "lowest": low, "highest": high, "range": high - low})


def at_one_setting(main: Path, settings: Path, metric: str = "auroc") -> dict[str, pd.DataFrame]:
    """Each method that has one of Equal's last settings, judged twice on the same replicates, as many as Equal has with that
    setting: minus Equal with the setting that Equal chose ("own"), and minus Equal with the method's setting ("same")."""
    rows, pair = _with_settings(main, settings, FULL, metric), ["seed", "lr", "weight_decay"]
    equal = rows.method == "equal"
    beside = rows[rows.chosen & ~equal].merge(rows.loc[equal, ["phantom", *pair]])
    same = paired_differences(pd.concat([rows[equal], beside]), "equal", ["phantom"], pair)
    own = paired_differences(pd.concat([rows[equal & rows.chosen], beside]), "equal", ["phantom"])
    return {name: judge_differences(table, ["phantom"]) for name, table in {"own": own, "same": same}.items()}


def over_findings(rows: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The test rows of `study_rows`, with the mean over these findings as the endpoint."""
    rows = rows[(rows.split == "test") & rows.task.isin(list(findings))]
    keys = [column for column in rows.columns if column not in ("task", "value")]
    return rows.groupby(keys, dropna=False, sort=False, as_index=False).value.mean().assign(task=ENDPOINT)


def regime_table(regimes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """`compare` of several regimes (title -> rows of `study_rows`) in AUROC and F1 at 0.5, one below the other, by a column
    `regime`; `level` has Equal's own mean there."""
    parts = []
    for title, rows in regimes.items():
        test = rows.query(f"split == 'test' and task == '{ENDPOINT}' and method == 'equal'")
        level = test.groupby("metric").value.mean()
        found = compare(rows)
        parts.append(found.assign(regime=title, level=found.metric.map(level)))
    table = pd.concat(parts, ignore_index=True)
    return table[table.metric.isin(["auroc", "f1_at_half"])].reset_index(drop=True)


def read_regimes(folder: Path) -> pd.DataFrame:
    """`regime_table` of the methods in question in each regime of the default phantom, the main table's first. Where half of
    the findings are rare, the endpoint holds the others alone; so the rare half has a row of its own, in AUROC."""
    main, rare = study_rows(folder / "study_main.csv"), study_rows(folder / "study_rare.csv")
    regimes = {"batch 64, 24 epochs": main[(main.phantom == "default") & main.method.isin(IN_QUESTION)]}
    regimes |= {title: study_rows(folder / f"study_{name}.csv") for name, title in REGIME_TITLES.items()}
    regimes |= {"half at 0.3%, this half": over_findings(rare, FINDINGS[::2]), "half at 0.3%, the others": rare}
    return regime_table(regimes)


def rule_candidates(rows: pd.DataFrame, steps: pd.Series) -> pd.DataFrame:
    """The methods that see losses and scores alone, best first: each minus Equal in the endpoint, in the replicates that both
    have, a column a phantom and one for their mean; and the column step, over Equal's.

    Args:
        rows: Of `study_rows`, of the main table.
        steps: Method -> time of a step, with that of equal; a method that it lacks has no step.
    """
    judged = compare(rows, ["phantom", "metric"]).query("metric == 'auroc'")
    found = judged.pivot(index="method", columns="phantom", values="mean")
    found = found[found.index.map(method_family).isin(SEES_SCORES)]
    found = found.assign(mean=found.mean(axis=1), step=steps / steps["equal"])
    return found.sort_values("mean", ascending=False).rename_axis(columns=None)


def nominate(rows: pd.DataFrame, steps: pd.Series) -> str:
    """The one rule to be judged: the first of `rule_candidates` (which has the arguments) that costs at most MAX_STEP."""
    eligible = rule_candidates(rows, steps).query(f"step <= {MAX_STEP}")
    if eligible.empty:
        raise ValueError(f"steps should have a method that sees losses alone, at {MAX_STEP} times equal's at most.")
    return str(eligible.index[0])


def saturated_halves(table: Path) -> pd.DataFrame:
    """Where every second finding is easy (AUROC near 1): each method minus Equal in the mean AUROC of these findings, of the
    others (`half`: saturated, others) and of all, judged; `level` has Equal's own mean there."""
    rows = study_rows(table)
    halves = {"saturated": FINDINGS[::2], "others": FINDINGS[1::2], "all": FINDINGS}
    found = regime_table({half: over_findings(rows, findings) for half, findings in halves.items()})
    return found[found.metric == "auroc"].rename(columns={"regime": "half"}).reset_index(drop=True)


def better_rule_bar(rows: pd.DataFrame, rule: str, steps: pd.Series, endpoint: str = ENDPOINT) -> pd.DataFrame:
    """The bar of PROTOCOL.md, in order: what comes after the first item that fails is not asked.

    Args:
        rows: Long table of test scores with phantom and num_train, of `rule` and equal; of `study_rows`, or tables of
            several sizes put together. The unit is the seed: a mean over sizes and phantoms.
        steps: Method -> time of a step, with that of equal.
        endpoint: Task of the mean over findings.

    Returns:
        A row an item that was asked: columns measured (in words), mean, low, high (of the first two) and met.
    """
    test = rows[(rows.split == "test") & rows.method.isin(["equal", rule])]
    sets = ["phantom", "num_train"]

    def difference(metric: str, by: Sequence[str], tasks: Sequence[str], average: Sequence[str]) -> pd.DataFrame:
        chosen = test[(test.metric == metric) & test.task.isin(tasks)]
        return judge_differences(paired_differences(chosen, "equal", by, average=average), ["metric"])

    gain = difference("auroc", ["metric"], [endpoint], sets).iloc[0]
    precision = difference("average_precision", ["metric"], [endpoint], sets).iloc[0]
    sizes = difference("auroc", ["metric", "num_train"], [endpoint], ["phantom"]).set_index("num_train")["mean"]
    single = difference("auroc", ["metric", "task"], [f for f in FINDINGS if f != "Hernia"], sets)
    harmed = single[(single["mean"] < -MARGIN) & is_significant(adjust_p(single).p_holm, single.pairs)]
    ratio = steps[rule] / steps["equal"]
    interval = ["mean", "low", "high"]
    items = {
        "1. macro AUROC above Equal": (format_interval(gain), gain[interval], gain["mean"] > 0 and gain.p < ALPHA),
        f"2. AP not lower by {MARGIN:g}": (format_interval(precision), precision[interval], precision.low > -MARGIN),
        "3. each size of the same sign": (
            ", ".join(f"{size:,}: {mean:+.4f}" for size, mean in sizes.items()),
            {},
            bool((sizes > 0).all()),
        ),
        f"4. no finding lower by more than {MARGIN:g}": (", ".join(harmed.task) or "none", {}, harmed.empty),
        f"5. at most {MAX_STEP:g} times Equal's step": (f"{ratio:.3f}", {}, ratio <= MAX_STEP),
    }
    asked = []
    for item, (measured, numbers, met) in items.items():
        asked.append({"item": item, "measured": measured, **dict(numbers), "met": bool(met)})
        if not met:
            break
    return pd.DataFrame(asked).set_index("item")
