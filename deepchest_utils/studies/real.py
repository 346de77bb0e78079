"""The study of data/results/PROTOCOL_REAL.md: real radiographs as a frozen encoder sees them, in folds by patient.

data/results/study.sh calls `main`. A stage may be stopped and called again: a finished cell is not run twice.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from deepchest_utils.config import TrainConfig, parse_method
from deepchest_utils.datasets import ChestXrays, Splits, load_dataset
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.results import store
from deepchest_utils.results.statistics import judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies.replication import DEARER, ENDPOINT, FAR, METHODS, VAL_POSITIVES, run_rounds, with_settings
from deepchest_utils.sweep import Setting, Trial, draw_settings
from deepchest_utils.training.embed import embed, write_features

MIN_SIZE = 100  # px: thumbnails among the originals tell where an image comes from
RARE = ("Consolidation", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")  # below 20 positives in a test fold
COUNTED = tuple(finding for finding in FINDINGS if finding not in RARE)  # findings of the endpoint
FOLDS, FEW, ROUNDS = 5, 2, 10  # folds a round, rounds of every method, rounds of those not far behind
OVERLAP = 1 / (FOLDS - 2)  # test images over training images: a fold is test, the next one validation
SETTINGS = draw_settings(0, 8, (1e-4, 1e-3), (0.01, 1.0))
BASE: dict[str, Any] = {
    "dataset": "embeddings",
    "epochs": 40,
    "batch_size": 128,
    "min_positives": VAL_POSITIVES,
    "device": "cpu",
}
ENCODER = TrainConfig(dataset="nih", backbone="lite0", pretrained=True, image_size=224, split="patient", device="cpu")
BORDER = 3  # px of 64
Rounds = Iterator[tuple[str, list["Fold"]]]


def border(xrays: ChestXrays) -> Float[np.ndarray, "n f"]:
    """The outermost `BORDER` pixels on each side, from 0 to 1: no lung, and yet markers, collimation and the source."""
    inside = np.zeros(xrays.images.shape[1:], bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    return (xrays.images[:, ~inside] / 255).astype(np.float32)


def statistics(xrays: ChestXrays) -> Float[np.ndarray, "n 11"]:
    """Mean, standard deviation and the nine deciles of an image's pixels, from 0 to 1: nothing of where they lie."""
    pixels = xrays.images.reshape(len(xrays), -1) / 255
    deciles = np.quantile(pixels, np.arange(1, 10) / 10, axis=1).T
    return np.column_stack([pixels.mean(1), pixels.std(1), deciles]).astype(np.float32)


BLIND: dict[str, Callable[[ChestXrays], Float[np.ndarray, "n f"]]] = {"border": border, "statistics": statistics}


def make_features(root: Path, folder: Path) -> None:
    """Write the encoder's features of the NIH images in `root`, and `BLIND`, which see no anatomy, as files of features."""
    options: dict[str, Any] = {"min_size": MIN_SIZE}
    folder.mkdir(parents=True, exist_ok=True)
    embed(replace(ENCODER, data_root=str(root), data_options=options), folder / "lite0.npz")
    data = load_dataset("nih", root, 64, split="patient", **options)
    for name, of in BLIND.items():
        values = np.concatenate([of(part) for part in data.parts.values()])
        values = (values - values.mean(0)) / values.std(0).clip(1e-6)  # each feature on one scale, over all images
        write_features(folder / f"{name}.npz", values, data)


class Fold(Trial):
    """A trial whose table has the endpoint: on test, and its best on validation, with the epoch."""

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """AUROC and average precision, mean over the findings of the endpoint."""
        table = run.rows[run.rows.task.isin(COUNTED) & run.rows.metric.isin(["auroc", "average_precision"])]
        means = table.groupby(["seed", "epoch", "split", "metric"], sort=False).value.mean().reset_index()
        val = means[(means.split == "val") & (means.metric == "auroc")]
        kept = pd.concat([means[means.split == "test"], val.loc[[val.value.idxmax()]]], ignore_index=True)
        return kept.assign(task=ENDPOINT, method=self.method).reindex(columns=store.COLUMNS)

    def seconds(self) -> float:
        """On one idle thread of the machine that the study was planned on."""
        return float(0.07 * self.config.epochs * DEARER.get(self.config.method, 1.0))


def fold(features: Path, method: str, number: int, part: int, setting: Setting, **changes: Any) -> Fold:
    """The cell of a method in fold `part` of round `number`, trained with one setting."""
    name, options = parse_method(method)
    fields = {**BASE, **setting, **changes, "data_root": str(features), "split": f"{part}/{FOLDS}"}
    config = TrainConfig(method=name, method_options=options, seed=number, data_seed=number, **fields)
    return Fold(method, config, resamplings=0)


def fold_rows(table: Path) -> pd.DataFrame:
    """The long table of a stage, each row with its cell's fold, lr and weight_decay; its seed is the round."""
    return with_settings(table, fold=lambda c: c.split, lr=lambda c: c.lr, weight_decay=lambda c: c.weight_decay)


def choose(rows: pd.DataFrame, budget: int = len(SETTINGS)) -> pd.DataFrame:
    """The test rows of the setting that is best on validation, in each fold for itself, among the first `budget`.

    Columns method, seed (the round), fold, metric, value, epoch (that was chosen), lr and weight_decay.
    """
    tried = {(setting["lr"], setting["weight_decay"]) for setting in SETTINGS[:budget]}
    rows = rows[[pair in tried for pair in zip(rows.lr, rows.weight_decay, strict=True)]]
    val = rows[rows.split == "val"]
    best = val.loc[val.groupby(["method", "seed", "fold"], sort=False).value.idxmax(), "cell"]
    columns = ["method", "seed", "fold", "metric", "value", "epoch", "lr", "weight_decay"]
    return rows[(rows.split == "test") & rows.cell.isin(best)][columns].reset_index(drop=True)


def compare_folds(rows: pd.DataFrame, baseline: str = "equal") -> pd.DataFrame:
    """Each method minus a baseline, paired by fold, judged with the correction for shared training images.

    Args:
        rows: Of `choose`.
    """
    pairs = paired_differences(rows, baseline, ["metric"], ["seed", "fold"])
    return judge_differences(pairs, ["metric"], overlap=OVERLAP)


def main_table(out: Path, features: Path, methods: Sequence[str]) -> Rounds:
    """Every method with all settings in `FEW` rounds of folds; then in `ROUNDS`, unless it is far behind Equal."""
    table = out / "real_main.csv"
    for count in (FEW, ROUNDS):
        far = set[str]()
        if RunTable(table).finished() and len(methods) > 1:
            done = compare_folds(choose(fold_rows(table))).query("metric == 'auroc'")
            far = set(done.method[(done.pairs >= FEW * FOLDS) & (done.high < FAR)])
        order = [(number, part, m) for number in range(1, count + 1) for part in range(1, FOLDS + 1) for m in methods]
        yield (
            "real_main",
            [
                fold(features / "lite0.npz", m, number, part, setting)
                for number, part, m in order
                if m not in far or number <= FEW
                for setting in SETTINGS
            ],
        )


def blind_table(out: Path, features: Path, methods: Sequence[str]) -> Rounds:
    """Equal on features that see no anatomy, in `FEW` rounds."""
    places = [(number, part) for number in range(1, FEW + 1) for part in range(1, FOLDS + 1)]
    for name in BLIND:
        cells = [fold(features / f"{name}.npz", "equal", *place, setting) for place in places for setting in SETTINGS]
        yield f"real_{name}", cells


STAGES: dict[str, Callable[[Path, Path, Sequence[str]], Rounds]] = {"main": main_table, "blind": blind_table}


def main(arguments: Sequence[str] | None = None) -> None:
    """features --root NIH, or STAGE: --features FOLDER --out FOLDER [--jobs N] [--methods M ...] [--plan]."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stage", choices=["features", *STAGES])
    parser.add_argument("--root", type=Path, help="of NIH ChestX-ray14 or a part of it, for `features`")
    parser.add_argument("--features", type=Path, default=Path("data/processed/real"))
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--plan", action="store_true", help="run nothing; what is not known yet is counted at its most")
    given = parser.parse_args(arguments)
    if given.stage == "features":
        if given.root is None:
            parser.error("features needs --root, the folder of NIH ChestX-ray14.")
        make_features(given.root, given.features)
        return
    run_rounds(STAGES[given.stage](given.out, given.features, given.methods), given.out, given.jobs, given.plan)
