"""The study of data/results/PROTOCOL.md, stage by stage: replicates that draw everything anew, tuned settings, one thread.

data/results/study.sh calls `main`. A stage may be stopped and called again: a finished cell is not run twice, and what
follows from results (the settings that go on, the methods that are far behind) follows from the tables alone.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepchest_utils.config import TrainConfig, parse_method
from deepchest_utils.datasets import Splits
from deepchest_utils.datasets.findings import FINDINGS, NIH_PREVALENCE
from deepchest_utils.results import store
from deepchest_utils.results.metrics import adjusted_average_precision, score_tasks
from deepchest_utils.results.statistics import judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.sweep import Setting, Trial, draw_settings, run_sweep
from deepchest_utils.training import Run

ENDPOINT, VAL_POSITIVES, TEST_POSITIVES = "endpoint", 10, 20  # task: mean over findings with so many positives
IMAGES = {"num_train": 4000, "num_val": 2000, "num_test": 8000}
BASE: dict[str, Any] = {
    "image_size": 32,
    "augment": False,
    "epochs": 24,
    "min_positives": VAL_POSITIVES,
    "device": "cpu",
}
PHANTOMS: dict[str, dict[str, Any]] = {"default": {}, "nih": {"difficulty": "nih"}}
# fmt: off
MGDA, IMTL_G, FAIRGRAD, PCGRAD, *OTHERS = (name + '(level="features")' for name in (
    "mgda", "imtl_g", "fairgrad", "pcgrad", "excess_mtl", "cagrad", "aligned_mtl", "upgrad"))
METHODS = (
    "equal", "inverse_prevalence", "inverse_entropy", "inverse_sqrt_entropy", "prevalence_oracle", "deepchest",
    "deepchest_relative_loss", "deepchest_loss_trend", "deepchest_auroc", "hedge", "uncertainty", "dwa", "rlw", "gls",
    "imtl_l", "stch", "famo", "dbmtl_l", "dtp", "amtl", "uw_so", "ldc_mtl", "slaw", "lbtw", "igb", "gradnorm",
    'nash_mtl(update_every=10, level="features")', MGDA, IMTL_G, FAIRGRAD, PCGRAD, *OTHERS,
)
IN_QUESTION = ("equal", "deepchest", "gls", "dbmtl_l", "famo", MGDA, IMTL_G, FAIRGRAD)
LONGER = ("equal", "deepchest", "hedge", "uncertainty", PCGRAD)
CONTROLLED = {  # value that every second finding has of a factor, where all are else alike
    "saturated": ("visibility", 3.0), "rare": ("prevalence", 0.003), "common": ("prevalence", 0.02),
}
REGIMES: dict[str, dict[str, Any]] = {  # beside the main one, batches of 64 and 24 epochs
    **{name: {"data_options": {"controlled": {factor: dict.fromkeys(FINDINGS[::2], value)}}}
       for name, (factor, value) in CONTROLLED.items()},
    "stratified": {"stratified": True},
    "b256_e12": {"batch_size": 256, "epochs": 12}, "b256_e48": {"batch_size": 256, "epochs": 48},
    "b64_e12": {"epochs": 12}, "b64_e48": {"epochs": 48},
}
SIZES = {1000: 96, 4000: 24, 16000: 6}  # training images -> epochs: as many steps
# replicates: seeds of data, network and order; what was chosen on some is not tested on them
TUNING, MAIN, RULE = (2001, 2002), range(1001, 1031), range(3001, 3011)
FIRST, FULL, FEW = 8, 20, 5  # replicates of every method, of those not far behind, of regimes and curves
FAR, WIDE = -0.02, 0.005  # upper bound of a method far behind; half-width of an interval that wants more than FULL
TRIALS, SURVIVORS, SHORT = 16, 2, 12  # settings a method, those of them that are trained to the end, epochs before
CLOSE = 4  # settings of Equal, the best after SHORT epochs, that are all tested
RATES, DECAYS = (1e-3, 3e-2), (0.01, 3.0)  # range of learning rate and weight decay
FACTORS = (0.5, 1.0, 2.0)  # of the tuned rate, tried in batches of 256
# processor time of a step over that of Equal's, where it is more than a tenth more
DEARER = {"gradnorm": 1.5, "nash_mtl": 1.5, "fairgrad": 1.4, "cagrad": 1.35, "famo": 1.3}
# fmt: on
Rounds = Iterator[tuple[str, list["Replicate"]]]  # table and cells; a round may depend on the results of those before


def endpoint_findings(config: TrainConfig) -> list[str]:
    """The findings of the endpoint: those that are to be expected often enough in validation and test."""
    options = config.data_options
    needed = max(VAL_POSITIVES / options["num_val"], TEST_POSITIVES / options["num_test"])
    controlled = dict.fromkeys(FINDINGS, 0.1) | options.get("controlled", {}).get("prevalence", {})
    prevalence = controlled if "controlled" in options else NIH_PREVALENCE
    return [finding for finding in FINDINGS if prevalence[finding] >= needed]


class Replicate(Trial):
    """A trial whose table has the endpoint, a dozen points of it on validation, and no more than the study reads."""

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        """Add F1 at 0.5 and adjusted average precision to the test scores."""
        if not self.tune:
            labels, logits = data.test.labels, run.logits["test"]
            half = {"f1": np.full(len(data.findings), 0.5)}
            extra = {"f1_at_half": score_tasks(labels, logits, half)["f1"]}
            extra["adjusted_average_precision"] = adjusted_average_precision(labels, logits)
            base = {"method": self.config.method, "seed": self.config.seed, "epoch": run.best_epoch, "split": "test"}
            rows = store.to_table(store.task_rows(base, extra, data.findings, summarise=False))
            store.write_table(folder / store.TEST, pd.concat([run.test, rows], ignore_index=True))

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """Scores of each finding, the endpoint of each metric, the last weights, the endpoint on validation."""
        table = run.rows[~run.rows.metric.str.endswith("_threshold")]
        counted = table[table.task.isin(endpoint_findings(self.config))].dropna(subset="value")
        means = counted.groupby(["seed", "epoch", "split", "metric"], sort=False).value.mean().reset_index()
        means = means.assign(task=ENDPOINT, method=self.method)
        curve = means[(means.split == "val") & (means.metric == "auroc")]
        curve = curve[(curve.epoch % max(1, self.config.epochs // 12) == 0) | (curve.index == curve.value.idxmax())]
        of_findings = (table.split == "test") & table.task.isin(FINDINGS)
        of_findings &= table.metric.isin(["auroc", "average_precision", "loss"])
        last = (table.metric == "weight") & (table.epoch == table.epoch.max())
        parts = [curve] if self.tune else [table[of_findings], means[means.split == "test"], table[last], curve]
        return pd.concat(parts, ignore_index=True).reindex(columns=store.COLUMNS)

    def seconds(self) -> float:
        """On one idle thread of the machine that the study was planned on."""
        config = self.config
        step = (0.9 if config.batch_size < 128 else 0.55) * DEARER.get(config.method, 1.0)
        return float(config.epochs * (step * config.data_options["num_train"] / 4000 + 0.1) + 1.5)


def replicate(method: str, number: int, setting: Setting, tune: bool = False, **changes: Any) -> Replicate:
    """The cell of a method in one replicate. changes: fields of TrainConfig; data_options are added to the usual ones."""
    name, options = parse_method(method)
    fields = {**BASE, **setting, **changes, "data_options": {**IMAGES, **changes.get("data_options", {})}}
    config = TrainConfig(method=name, method_options=options, seed=number, data_seed=number, **fields)
    return Replicate(method, config, tune=tune, resamplings=0)


def with_settings(table: Path, **columns: Callable[[TrainConfig], Any]) -> pd.DataFrame:
    """The long table of a stage, each row with columns that are read from its cell's configuration."""
    tables = RunTable(table)
    cells = []
    for cell in tables.cells[tables.cells.status == "done"].itertuples():
        config = TrainConfig(**json.loads(cell.settings))
        cells.append((cell.cell, *[read(config) for read in columns.values()]))
    return tables.rows.merge(pd.DataFrame(cells, columns=["cell", *columns]), on="cell")


def study_rows(table: Path) -> pd.DataFrame:
    """The long table of a stage, each row with the settings of its cell: phantom, num_train, epochs, lr, weight_decay."""
    return with_settings(
        table,
        phantom=lambda c: c.data_options.get("difficulty", "default"),
        num_train=lambda c: c.data_options["num_train"],
        epochs=lambda c: c.epochs,
        lr=lambda c: c.lr,
        weight_decay=lambda c: c.weight_decay,
    )


def compare(
    rows: pd.DataFrame, by: Sequence[str] = ("phantom", "num_train", "metric"), average: Sequence[str] = ()
) -> pd.DataFrame:
    """Each method minus Equal in the endpoint, paired by replicate and judged; Holm over the methods.

    Args:
        rows: Of `study_rows`.
        by: A comparison for each combination of these columns.
        average: A replicate is the mean over these columns.
    """
    rows = rows.query(f"split == 'test' and task == '{ENDPOINT}'")
    return judge_differences(paired_differences(rows, "equal", by, average=average), by)


def ranked_settings(table: Path, epochs: int, phantoms: Sequence[str] = (*PHANTOMS,)) -> dict[str, list[Setting]]:
    """The settings of each method, best first: by the endpoint on validation, a mean over phantoms; without those that
    diverged on one of them."""
    rows = study_rows(table).query(f"split == 'val' and epochs == {epochs}")
    rows = rows[rows.phantom.isin(list(phantoms))]
    best = rows.groupby(["method", "lr", "weight_decay", "cell"]).value.max()
    means = best.groupby(["method", "lr", "weight_decay"]).agg(["mean", "size"]).sort_values("mean", ascending=False)
    ranked: dict[str, list[Setting]] = {}
    for method, lr, decay in means.index[means["size"] == means["size"].max()]:
        ranked.setdefault(method, []).append({"lr": lr, "weight_decay": decay})
    return ranked


def beyond_the_edge(best: Setting) -> list[Setting]:
    """Four more settings for a method whose best is the lowest or highest rate, or the highest weight decay, of all."""
    tried, more = pd.DataFrame(draw_settings(0, TRIALS, RATES, DECAYS)), (TRIALS, TRIALS + 4)
    low, high, most = tried.lr.min(), tried.lr.max(), tried.weight_decay.max()
    if best["lr"] in (low, high):
        return draw_settings(*more, (low / 4, low) if best["lr"] == low else (high, 4 * high), DECAYS)
    return draw_settings(*more, RATES, (most, 4 * most)) if best["weight_decay"] == most else []


def tuned(out: Path) -> dict[str, Setting]:
    """The setting of each method, once `tune` is through; the first that will be drawn where it has not begun."""
    ranked = ranked_settings(out / "study_tuning.csv", BASE["epochs"])
    return {method: ranked.get(method, draw_settings(0, 1, RATES, DECAYS))[0] for method in METHODS}


def tune(out: Path, methods: Sequence[str]) -> Rounds:
    """Successive halving: all settings for a few epochs on the NIH phantom, the best of each method to the end on both
    phantoms of another replicate; four more where the best lies at the edge. A method's setting serves both phantoms."""
    table, first = "study_tuning", draw_settings(0, TRIALS, RATES, DECAYS)

    def cells(settings: dict[str, list[Setting]], number: int, epochs: int) -> list[Replicate]:
        phantoms = [PHANTOMS["nih"]] if epochs == SHORT else PHANTOMS.values()
        order = [(m, options, s) for m in methods for options in phantoms for s in settings.get(m, [])]
        return [replicate(m, number, s, True, data_options=options, epochs=epochs) for m, options, s in order]

    yield table, cells(dict.fromkeys(methods, first), TUNING[0], SHORT)
    ranked = ranked_settings(out / f"{table}.csv", SHORT, ["nih"])
    yield table, cells({m: ranked.get(m, first)[:SURVIVORS] for m in methods}, TUNING[1], BASE["epochs"])
    ranked = ranked_settings(out / f"{table}.csv", BASE["epochs"])
    best = {m: next(setting for setting in settings if setting in first) for m, settings in ranked.items()}
    yield table, cells({m: beyond_the_edge(setting) for m, setting in best.items()}, TUNING[1], BASE["epochs"])


def main_table(out: Path, methods: Sequence[str]) -> Rounds:
    """Every method in FIRST replicates of both phantoms; then those not far behind Equal in FULL; then, by fives, those
    whose difference is known to no better than WIDE, whatever its sign."""
    settings, table = tuned(out), out / "study_main.csv"
    for count in (FIRST, FULL, *range(FULL + 5, len(MAIN) + 1, 5)):
        stopped = set[tuple[str, str]]()
        if RunTable(table).finished():
            done = compare(study_rows(table)).query("metric == 'auroc'")
            far, known = done.high < FAR, (done.pairs >= FULL) & (done.high - done.low <= 2 * WIDE)
            enough = done[(done.pairs >= FIRST) & (far | known)]
            stopped = set(zip(enough.method, enough.phantom, strict=True))
        order = [(number, phantom, m) for number in MAIN[:count] for phantom in PHANTOMS for m in methods]
        left = [(number, PHANTOMS[phantom], m) for number, phantom, m in order if (m, phantom) not in stopped]
        yield "study_main", [replicate(m, number, settings[m], data_options=options) for number, options, m in left]


def regimes(out: Path, methods: Sequence[str]) -> Rounds:
    """The methods in question in other batches, lengths and populations, at their settings of the main table; in batches of
    256, at the best of three rates there."""
    settings, table = tuned(out), "study_b256_tuning"
    rates = {m: [{**settings[m], "lr": factor * settings[m]["lr"]} for factor in FACTORS] for m in IN_QUESTION}
    larger = {"batch_size": 256, "epochs": SHORT}
    yield table, [replicate(m, TUNING[0], s, True, **larger) for m in IN_QUESTION for s in rates[m]]
    ranked = ranked_settings(out / f"{table}.csv", SHORT, ["default"])
    best = settings | {m: found[0] for m, found in ranked.items()}
    for name, changes in REGIMES.items():
        asked = ("equal", "deepchest", "hedge", "uw_so", "amtl") if name == "saturated" else IN_QUESTION
        chosen = best if "batch_size" in changes else settings
        order = [(number, m) for number in MAIN[:FEW] for m in asked]
        yield f"study_{name}", [replicate(m, number, chosen[m], **changes) for number, m in order]


def curves(out: Path, methods: Sequence[str]) -> Rounds:
    """Two and four times the epochs; and Equal and DeepChest with Equal's other settings that were close: what luck in the
    choice does. Equal has as many replicates as they where a method that is significantly above it has that setting."""
    settings, lengths = tuned(out), (2 * BASE["epochs"], 4 * BASE["epochs"])
    order = [(number, m, epochs) for epochs in lengths for number in MAIN[:FEW] for m in LONGER]
    yield "study_curves", [replicate(m, number, settings[m], epochs=epochs) for number, m, epochs in order]
    close = ranked_settings(out / "study_tuning.csv", SHORT, ["nih"]).get("equal", [])[:CLOSE]
    others = [(m, setting) for m in ("equal", "deepchest") for setting in close if setting != settings[m]]
    table, long = out / "study_main.csv", list[tuple[str, Setting]]()
    if RunTable(table).finished():
        judged = compare(study_rows(table)).query("metric == 'auroc'")
        long = [("equal", settings[m]) for m in judged.method[judged.verdict.str.startswith("higher")]]
    counts = [(m, s, FULL if (m, s) in long else FIRST) for m, s in others]
    data = [(number, options, m, s) for m, s, n in counts for number in MAIN[:n] for options in PHANTOMS.values()]
    yield "study_settings", [replicate(m, number, s, data_options=options) for number, options, m, s in data]


def rule(out: Path, methods: Sequence[str]) -> Rounds:
    """Equal and the one nominated rule, the first of `methods`, at three sizes of both phantoms; and, in a table of its own,
    Equal with the setting of that rule."""
    settings, data = tuned(out), [(size, options) for size in SIZES for options in PHANTOMS.values()]

    def cells(*arms: tuple[str, Setting]) -> list[Replicate]:
        order = [(number, size, options, *arm) for number in RULE for size, options in data for arm in arms]
        return [
            replicate(m, number, setting, epochs=SIZES[size], data_options={**options, "num_train": size})
            for number, size, options, m, setting in order
        ]

    nominee, equal = settings[methods[0]], settings["equal"]
    yield "study_rule", cells(("equal", equal), (methods[0], nominee))
    yield "study_rule_setting", cells(("equal", nominee)) if nominee != equal else []


STAGES: dict[str, Callable[[Path, Sequence[str]], Rounds]] = {
    "tune": tune, "main": main_table, "regimes": regimes, "curves": curves, "rule": rule,
}  # fmt: skip


def run_rounds(rounds: Iterator[tuple[str, list[Any]]], out: Path, jobs: int, plan: bool = False) -> None:
    """Run what is left of a stage's cells, round by round, each in one thread; or, to plan, print their number and hours."""
    for name, trials in rounds:
        table = out / f"{name}.csv"
        left = [trial for trial in trials if trial.id not in RunTable(table).finished()]
        hours = sum(trial.seconds() for trial in left) / 3600 / jobs
        print(f"{name}: {len(trials)} cells, {len(left)} to run, {hours:.1f} h in {jobs} processes", flush=True)
        if left and not plan:
            cells = run_sweep(trials, table, jobs, threads=1).cells
            failed = cells[(cells.status == "failed") & cells.cell.isin([trial.id for trial in trials])]
            for cell in failed.itertuples():
                print(f"failed, and counted as no result: {cell.method} {cell.seed}: {cell.error}", flush=True)
            if len(failed) == len(trials):
                raise SystemExit(f"{table}: every cell has failed.")


def stage_parser(description: str | None, stages: Iterable[str]) -> argparse.ArgumentParser:
    """Of the arguments that every study has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("stage", choices=[*stages])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plan", action="store_true", help="run nothing; what is not known yet is counted at its most")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """STAGE --out FOLDER [--jobs N] [--methods M ...] [--plan]: run a stage, or print its cells and hours."""
    parser = stage_parser(main.__doc__, STAGES)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    given = parser.parse_args(arguments)
    if given.stage != "tune" and not given.plan:
        for name, trials in tune(given.out, METHODS):
            if {trial.id for trial in trials} - set(RunTable(given.out / f"{name}.csv").cells.cell):
                parser.error(f"{given.stage} needs every method's setting, and tune is not through in {given.out}.")
    run_rounds(STAGES[given.stage](given.out, given.methods), given.out, given.jobs, given.plan)
