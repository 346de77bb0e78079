"""What moves the needle: one change to Equal at a time, on features of real radiographs and on the NIH phantom.

data/results/study.sh calls `main`; data/results/PROTOCOL_REAL.md says what is compared. A stage may be stopped and called
again: a finished cell is not run twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepchest_utils.config import LOSSES
from deepchest_utils.datasets import Splits
from deepchest_utils.datasets.embeddings import read_embeddings
from deepchest_utils.files import FileError
from deepchest_utils.results import store
from deepchest_utils.results.metrics import ensemble, score_tasks
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import real, replication
from deepchest_utils.studies.replication import ENDPOINT, MAIN, PHANTOMS, TUNING, Replicate, replicate, run_rounds
from deepchest_utils.sweep import Trial, draw_settings
from deepchest_utils.training import Run, train

Changes = dict[str, Any]  # fields of TrainConfig
Rounds = Iterator[tuple[str, list[Any]]]  # table and cells

BUDGET, REPLICATES = 4, 8  # settings that each lever may try; replicates of the phantom
ENSEMBLES, FURTHER, IMAGES = (3, 5), 10_000, 2206  # networks; distance of their seeds; radiographs of the study
WEIGHTS = ("equal", "deepchest", "uncertainty")  # of the table of losses and weights
# study -> what is usual; pairs of learning rate and weight decay; rates alone, decays alone; thresholds of oversampling; and
# the levers that it has alone
# fmt: off
STUDIES: dict[str, dict[str, Any]] = {
    "embeddings": {
        "usual": {"epochs": 40, "batch_size": 128}, "settings": draw_settings(0, BUDGET, (1e-4, 1e-3), (0.01, 1.0)),
        "rates": (1e-4, 3e-4, 1e-3, 4e-3), "decays": (0.01, 0.2, 1.0, 5.0), "oversample": (0.1, 0.3),
        "own": {  # as many steps
            "data_quarter": [{"data_options": {"max_train": 331}, "epochs": 160}],
            "data_half": [{"data_options": {"max_train": 662}, "epochs": 80}],
        },
    },
    "phantom": {
        "usual": {"epochs": 24, "batch_size": 64}, "settings": draw_settings(0, BUDGET, (2e-3, 1e-2), (0.05, 1.0)),
        "rates": (1e-3, 3e-3, 6e-3, 1e-2), "decays": (0.01, 0.2, 0.5, 2.0), "oversample": (0.02, 0.1),
        "own": {
            "data_quarter": [{"data_options": {"num_train": 1000}, "epochs": 96}],
            "data_4": [{"data_options": {"num_train": 16000}, "epochs": 6}],
            "augmentation": [{"augment": True}], "size_64": [{"image_size": 64}],
        },
    },
}
WORDS = {  # of every lever; the first three are compared with the package's defaults, the others with Equal, tuned
    "tuning": "rate and decay, four pairs", "learning_rate": "learning rate, four", "weight_decay": "weight decay, four",
    "epochs_2": "twice the epochs", "epochs_4": "four times the epochs", "batch_size": "batch a quarter, or four times",
    "no_prior_bias": "heads start at 0", "augmentation": "augmentation", "size_64": "64 px, not 32",
    "data_quarter": "a quarter of the images", "data_half": "half of the images", "data_4": "four times the images",
    "balanced": "balanced loss", "focal": "focal loss", "asymmetric": "asymmetric loss", "logit_adjusted": "logit-adjusted loss",
    "ldam": "LDAM loss", "oversample": "oversampling", "ema": "moving average of weights",
    "ensemble_3": "ensemble of 3", "ensemble_5": "ensemble of 5",
    "deepchest": "DeepChest", "uncertainty": "Uncertainty", "hedge": "Hedge",
    "scratch": "no ImageNet weights", "frozen": "encoder frozen, 224 px",
}
# fmt: on
# name -> loss and weighting: the usual ones, one of the two changed, and both
COMBINED = {
    "equal": ("bce", "equal"),
    **{w: ("bce", w) for w in WEIGHTS[1:]},
    **{loss: (loss, "equal") for loss in LOSSES[1:]},
}
COMBINED |= {f"{w}@{loss}": (loss, w) for w in WEIGHTS[1:] for loss in LOSSES[1:]}
TUNED = ("tuning", "learning_rate", "weight_decay")
KINDS = {  # in a figure: heading -> levers
    "Tuning (against the default)": TUNED,
    "Data": ("data_4", "data_half", "data_quarter", "augmentation", "size_64"),
    "Training": ("epochs_2", "epochs_4", "batch_size", "no_prior_bias", "oversample", "ema"),
    "Loss": LOSSES[1:],
    "Several networks": ("ensemble_3", "ensemble_5"),
    "Task weights": (*WEIGHTS[1:], "hedge"),
    "Encoder (against fine-tuned)": ("scratch", "frozen"),
}
ROWS = ["method", "seed", "fold", "metric", "value", "training_seconds"]
OVERLAPS = {"embeddings": real.OVERLAP, "phantom": 0.0, "finetuned": real.OVERLAP}


def levers(study: str) -> dict[str, list[Changes]]:
    """Lever -> what it tries: changes to the study's usual configuration. `BUDGET` of each, the best on validation counts;
    "default" is the configuration itself, "equal" that with the study's settings. A lever with values of its own has them
    in turn beside the settings. `weight@loss` are those of the table of losses and weights."""
    s = STUDIES[study]
    epochs, batch = s["usual"].values()
    values: dict[str, list[Changes]] = {
        "equal": [{}],
        "epochs_2": [{"epochs": 2 * epochs}],
        "epochs_4": [{"epochs": 4 * epochs}],
        "batch_size": [{"batch_size": batch // 4}, {"batch_size": 4 * batch}],
        "no_prior_bias": [{"prior_bias": False}],
        "oversample": [{"oversample": share} for share in s["oversample"]],
        "ema": [{"ema": decay} for decay in (0.99, 0.998)],
        **s["own"],
        **{method: [{"method": method}] for method in (*WEIGHTS[1:], "hedge")},
        **{loss: [{"loss": loss}] for loss in LOSSES[1:]},
        **{name: [{"method": m, "loss": loss}] for name, (loss, m) in COMBINED.items() if "@" in name},
    }
    alone = {
        "learning_rate": [{"lr": v} for v in s["rates"]],
        "weight_decay": [{"weight_decay": v} for v in s["decays"]],
    }
    tried = {
        name: [{**p, **own} for p, own in zip(s["settings"], cycle(of), strict=False)] for name, of in values.items()
    }
    return {"default": [{}], **alone, **tried}


class Timed(Replicate):
    """A replicate whose record has the seconds of training."""

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        super().analyse(run, data, folder)
        real.note_seconds(folder, run)

    def seconds(self) -> float:
        """On one idle thread: measured on a few steps, 64 px cost 2.1 times as much, batches of 16 2.3 times."""
        factor = (2.1 if self.config.image_size == 64 else 1.0) * (2.3 if self.config.batch_size == 16 else 1.0)
        return factor * super().seconds()


class Ensemble(Trial):
    """Mixed into a cell: beside its own network, further ones that differ in the seed, and the scores of `ENSEMBLES`."""

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        """Add auroc_of_3 and so on to the test scores."""
        super().analyse(run, data, folder)
        seeds = [self.config.seed + FURTHER * number for number in range(1, max(ENSEMBLES))]
        runs = [run, *(train(replace(self.config, seed=seed, run_dir=None), data) for seed in seeds)]
        scores = dict[str, np.ndarray]()
        for count in ENSEMBLES:
            found = score_tasks(data.test.labels, ensemble([r.logits["test"] for r in runs[:count]]))
            scores |= {f"{metric}_of_{count}": found[metric] for metric in BOOTSTRAP_METRICS}
        base = {"method": self.config.method, "seed": self.config.seed, "epoch": run.best_epoch, "split": "test"}
        rows = store.to_table(store.task_rows(base, scores, data.findings, summarise=False))
        test = store.read_results(folder / store.TEST, store.COLUMNS, "run", missing_ok=False)
        store.write_table(folder / store.TEST, pd.concat([test, rows], ignore_index=True))
        real.note_seconds(folder, *runs)

    def seconds(self) -> float:
        return float(max(ENSEMBLES) * super().seconds())  # type: ignore[misc]


class FoldEnsemble(Ensemble, real.Fold): ...


class ReplicateEnsemble(Ensemble, Timed): ...


def embeddings(out: Path, features: Path) -> Rounds:
    """All levers in `real.FEW` rounds of folds, each choosing among its settings inside each fold; then ensembles at the
    settings that Equal chose."""
    table, tried, file = "levers_embeddings", levers("embeddings"), features / "lite0.npz"
    size = len(read_embeddings(file).ids) if file.exists() else IMAGES
    places = [(number, part) for number in range(1, real.FEW + 1) for part in range(1, real.FOLDS + 1)]

    def cell(lever: str, place: tuple[int, int], changes: Changes) -> real.Fold:
        own = {**STUDIES["embeddings"]["usual"], **changes}
        if count := own.get("data_options", {}).get("max_train"):  # a share, also of other data
            own["data_options"] = {"max_train": round(count * size / IMAGES)}
        made = real.fold(file, own.pop("method", "equal"), *place, {}, **own)
        return replace(made, method=lever)

    yield table, [cell(lever, place, c) for place in places for lever, changes in tried.items() for c in changes]
    chosen = real.best_on_validation(real.fold_rows(out / f"{table}.csv")).query("method == 'equal'")
    pairs = {(row.seed, row.fold): {"lr": row.lr, "weight_decay": row.weight_decay} for row in chosen.itertuples()}
    of_fold = {place: pairs.get((place[0], f"{place[1]}/{real.FOLDS}"), tried["equal"][0]) for place in places}
    cells = [cell("equal", place, setting) for place, setting in of_fold.items()]
    yield f"{table}_ensembles", [FoldEnsemble("ensembles", c.config, resamplings=0) for c in cells]


def phantom(out: Path, features: Path) -> Rounds:
    """All levers on one replicate of the NIH phantom, to choose; then each at its best setting on `REPLICATES` others."""
    table, tried = "levers_phantom", levers("phantom")

    def cell(lever: str, number: int, changes: Changes, tune: bool = False) -> Timed:
        own = {**STUDIES["phantom"]["usual"], **changes}
        own["data_options"] = {**PHANTOMS["nih"], **own.get("data_options", {})}
        made = replicate(own.pop("method", "equal"), number, {}, tune, **own)
        return Timed(lever, made.config, tune=tune, resamplings=0)

    asked = {lever: changes for lever, changes in tried.items() if len(changes) > 1}
    cells = [(cell(lever, TUNING[0], c, True), c) for lever, changes in asked.items() for c in changes]
    yield f"{table}_tuning", [trial for trial, _ in cells]
    score = RunTable(out / f"{table}_tuning.csv").rows.groupby("cell").value.max()  # all of validation
    best: dict[str, Changes] = {"default": {}}
    for trial, changes in sorted(cells, key=lambda pair: -score.get(pair[0].id, -np.inf)):
        best.setdefault(trial.method, changes)
    order = [(number, lever) for number in MAIN[:REPLICATES] for lever in tried]
    yield table, [cell(lever, number, best[lever]) for number, lever in order]
    ensembles = [cell("equal", number, best["equal"]) for number in MAIN[:REPLICATES]]
    yield f"{table}_ensembles", [ReplicateEnsemble("ensembles", c.config, resamplings=0) for c in ensembles]


STAGES: dict[str, Callable[[Path, Path], Rounds]] = {"embeddings": embeddings, "phantom": phantom}


def lever_rows(out: Path, study: str) -> pd.DataFrame:
    """The tested rows of a study of `STUDIES`, or of "finetuned" (a fine-tuned encoder, from scratch, and frozen), as far as
    it has run: method (the lever), seed, fold ("" on the phantom), metric, value, training_seconds."""
    if study == "finetuned":
        tuned, main = (real.fold_rows(out / f"real_{name}.csv") for name in ("finetune", "main"))
        frozen = real.best_on_validation(main[main.method == "equal"]).assign(method="frozen")
        tuned = tuned[tuned.method.isin(["equal", real.SCRATCH])].replace({"method": {real.SCRATCH: "scratch"}})
        parts = {"real_finetune": tuned, "real_main": frozen}
    else:
        table = f"levers_{study}"
        rows, several = (real.fold_rows(out / f"{name}.csv") for name in (table, f"{table}_ensembles"))
        number = several.metric.str.extract(r"_of_(\d+)$", expand=False)
        metric = several.metric.str.replace(r"_of_\d+$", "", regex=True)
        several = several.assign(method="ensemble_" + number, metric=metric)[number.notna()]
        rows = real.best_on_validation(rows) if study == "embeddings" else rows
        parts = {table: rows, f"{table}_ensembles": several}
    found = []
    for name, rows in parts.items():
        if len(rows):
            seconds = RunTable(out / f"{name}.csv").cells.reindex(columns=["cell", "training_seconds"])
            found.append(rows.merge(seconds, on="cell"))
    if not found:
        return pd.DataFrame(columns=ROWS)
    rows = pd.concat(found, ignore_index=True).fillna({"fold": ""})
    size = rows.method.str.extract(r"^ensemble_(\d+)$", expand=False).astype(float) / max(ENSEMBLES)
    rows["training_seconds"] *= size.fillna(1.0)  # of an ensemble's cell: those of the largest
    kept = (rows.split == "test") & (rows.task == ENDPOINT) & rows.metric.isin(BOOTSTRAP_METRICS)
    return rows.loc[kept, ROWS].reset_index(drop=True)


def lever_table(out: Path) -> pd.DataFrame:
    """What each lever changes, in AUROC and average precision over the findings of the endpoint.

    Args:
        out: Folder of the tables of `STAGES`, real_finetune.csv and real_main.csv; those that are there are read, of
            which there has to be one.

    Returns:
        A row a study, lever and metric: study (embeddings, phantom or finetuned), lever, words, against, metric, the columns of
        `judge_differences` with Holm over the levers of a study, and cost. against is "equal", tuned with as many settings;
        or "default", the package's rate and decay, for `TUNED`. cost is the shortest training time over that of what it is
        compared with (longer ones measure what else a machine does); for `TUNED` that of all `BUDGET` trials.
    """
    tables = []
    for study in (*STUDIES, "finetuned"):
        rows = lever_rows(out, study)
        rows = rows[~rows.method.str.contains("@")]
        tuned = rows.replace({"method": {"equal": "tuning"}})
        groups = {"default": tuned[tuned.method.isin(["default", *TUNED])]}
        groups["equal"] = rows[~rows.method.isin(["default", *TUNED])]
        found = []
        for baseline, group in groups.items():
            if baseline in set(group.method) and group.method.nunique() > 1:
                pairs = paired_differences(group, baseline, ["metric"], ["seed", "fold"])
                seconds = group.groupby("method").training_seconds.min() * (BUDGET if baseline == "default" else 1)
                cost = pairs.method.map(seconds) / group.training_seconds[group.method == baseline].min()
                found.append(pairs.assign(against=baseline, cost=cost))
        if found:
            judged = judge_differences(pd.concat(found, ignore_index=True), ["metric"], overlap=OVERLAPS[study])
            judged = judged.rename(columns={"method": "lever"})
            judged.insert(0, "study", study)
            judged.insert(2, "words", judged.lever.map(WORDS))
            tables.append(judged)
    if not tables:
        raise FileError(f"{out} has no two levers to compare. It should hold levers_embeddings.csv, of study.sh.")
    return pd.concat(tables, ignore_index=True)


def loss_weight_table(out: Path, study: str) -> pd.DataFrame:
    """Each loss with each weighting of `WEIGHTS`, minus binary cross-entropy with Equal, in a study of `STUDIES`.

    Returns:
        A row a combination and metric: loss, weight, metric, value (its mean), and the columns of `judge_differences`, with
        Holm over the combinations.
    """
    rows = lever_rows(out, study)
    rows = rows[rows.method.isin(COMBINED)]
    levels = rows.groupby(["method", "metric"]).value.mean()
    pairs = paired_differences(rows, "equal", ["metric"], ["seed", "fold"])
    judged = judge_differences(pairs, ["metric"], overlap=OVERLAPS[study])
    judged.insert(2, "value", [levels[row.method, row.metric] for row in judged.itertuples()])
    for position, name in enumerate(("loss", "weight")):
        judged.insert(position, name, [COMBINED[method][position] for method in judged.method])
    return judged.drop(columns="method")


def main(arguments: Sequence[str] | None = None) -> None:
    """embeddings --features FOLDER, or phantom: --out FOLDER [--jobs N] [--plan]."""
    parser = replication.stage_parser(main.__doc__, STAGES)
    parser.add_argument("--features", type=Path, default=Path("data/processed/real"))
    given = parser.parse_args(arguments)
    run_rounds(STAGES[given.stage](given.out, given.features), given.out, given.jobs, given.plan)
