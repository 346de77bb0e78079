"""The study of data/results/PROTOCOL_REAL.md: real radiographs, a frozen encoder and a fine-tuned one, the published recipe.

data/results/study.sh calls `main`. A stage may be stopped and called again: a finished cell is not run twice, and what
follows from results (rates, the methods that go on) follows from the tables alone.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from deepchest_utils.config import PUBLISHED_RECIPE, TrainConfig, parse_method
from deepchest_utils.datasets import ChestXrays, Splits, load_dataset
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.files import FileError
from deepchest_utils.results import store
from deepchest_utils.results.statistics import judge_differences, paired_differences
from deepchest_utils.studies import replication
from deepchest_utils.studies.better_rule import expected_best
from deepchest_utils.studies.replication import DEARER, ENDPOINT, METHODS, VAL_POSITIVES, run_rounds, with_settings
from deepchest_utils.sweep import Setting, Trial, draw_settings
from deepchest_utils.training import Run
from deepchest_utils.training.embed import embed, write_features

MIN_SIZE = 100  # px: thumbnails among the originals tell where an image comes from
RARE = ("Consolidation", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")  # below 20 positives in a test fold
COUNTED = tuple(finding for finding in FINDINGS if finding not in RARE)  # findings of the endpoint
FOLDS, FEW, ROUNDS = 5, 2, 10  # folds a round, rounds of every method, rounds of `ASKED`
OVERLAP = 1 / (FOLDS - 2)  # test images over training images: a fold is test, the next one validation
SETTINGS = draw_settings(0, 8, (1e-4, 1e-3), (0.01, 1.0))
COUNTS = (1, 2, 4, 8)  # of settings, in tuning curves
BASE: dict[str, Any] = {
    "dataset": "embeddings",
    "epochs": 40,
    "batch_size": 128,
    "min_positives": VAL_POSITIVES,
    "device": "cpu",
}
# fmt: off
FINETUNE: dict[str, Any] = {  # what the encoder itself is trained with, beside BASE
    "dataset": "nih", "data_options": {"min_size": MIN_SIZE}, "backbone": "lite0", "pretrained": True, "hidden": 512,
    "image_size": 128, "epochs": 10, "batch_size": 32,
}
PUBLISHED: dict[str, Any] = {
    **PUBLISHED_RECIPE, "dataset": "nih", "data_options": {"min_size": MIN_SIZE}, "min_positives": VAL_POSITIVES // 2, "device": "cpu",
}
RUNGS: dict[str, tuple[str, dict[str, Any]]] = {  # of the ladder: in words, and what changes
    "published": ("as published", {}),
    "size": ("64 px", {"image_size": 64}),
    "patients": ("split by patient", {"split": "patient"}),
    "test_images": ("test images as they are", {"augment_test": False}),
    "epoch": ("epoch chosen on validation", {"select": "best"}),
    "optimizer": ("AdamW, cosine, tuned rate", {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.05}),
    "bias": ("heads start at the prevalence", {"prior_bias": True}),
    "augmentation": ("small augmentation", {"augmentation": "small"}),
    "initial": ("task weights start at 1", {"method_options": {}}),
}
# fmt: on
ASKED = ("equal", "deepchest", "prevalence_oracle")  # in every stage
SCRATCH = "equal@scratch"
RATES, TUNING = (1e-4, 3e-4, 1e-3), 2003  # of networks of images; the round that they are tuned on
WIDE_SPLITS, SPLITS = 5, 8  # splits of the published rung, which is the dearest, and of the others
HELD_OUT = 2 / 7  # test images over training images of these splits
SECONDS = {128: 0.023, 64: 0.0045}  # of a training image and its share of validation, one thread
ENCODER = TrainConfig(dataset="nih", backbone="lite0", pretrained=True, image_size=224, split="patient", device="cpu")
BORDER = 3  # px of 64
NETWORKS = {  # what Equal is trained on, and how; the last two see no shape in the lungs
    "frozen": "encoder frozen, 224 px", "finetuned": "encoder fine-tuned, 128 px", "scratch": "from scratch, 128 px",
    "border": f"border of {BORDER} px alone", "statistics": "11 statistics of grey alone",
}  # fmt: skip
Rounds = Iterator[tuple[str, list["Fold"]]]


def border(xrays: ChestXrays) -> Float[np.ndarray, "n f"]:
    """The outermost `BORDER` pixels on each side, from 0 to 1: neck, arms, abdomen, markers and collimation, and no lung."""
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
    """Write the encoder's features of the NIH images in `root`, and `BLIND`, which see no shape in the lungs, as files of features."""
    options: dict[str, Any] = {"min_size": MIN_SIZE}
    folder.mkdir(parents=True, exist_ok=True)
    embed(replace(ENCODER, data_root=str(root), data_options=options), folder / "lite0.npz")
    write_blind(load_dataset("nih", root, 64, split="patient", **options), folder)


def write_blind(data: Splits, folder: Path) -> None:
    """Write `BLIND` of a data set's images as files of features."""
    for name, of in BLIND.items():
        values = np.concatenate([of(part) for part in data.parts.values()])
        values = (values - values.mean(0)) / values.std(0).clip(1e-6)  # each feature on one scale, over all images
        write_features(folder / f"{name}.npz", values, data)


def note_seconds(folder: Path, *runs: Run) -> None:
    """Add the seconds that training took, without validation and test, to the environment of a run: a column of `cells`."""
    history, path = pd.concat([run.history for run in runs]).query("task == 'run'"), folder / store.ENVIRONMENT
    spent = history.value[(history.metric == "seconds") & (history.split == "train")].sum()
    store.write_json(path, {**json.loads(path.read_text()), "training_seconds": round(spent, 4)})


class Fold(Trial):
    """A trial whose table has the endpoint: on test, and its best on validation, with the epoch."""

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        note_seconds(folder, run)

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """AUROC and average precision, mean over the findings of the endpoint."""
        table = run.rows[run.rows.task.isin(COUNTED) & run.rows.metric.str.startswith(("auroc", "average_precision"))]
        means = table.groupby(["seed", "epoch", "split", "metric"], sort=False).value.mean().reset_index()
        val = means[(means.split == "val") & (means.metric == "auroc")]
        kept = pd.concat([means[means.split == "test"], val.loc[[val.value.idxmax()]]], ignore_index=True)
        return kept.assign(task=ENDPOINT, method=self.method).reindex(columns=store.COLUMNS)

    def seconds(self) -> float:
        """On one idle thread of the machine that the study was planned on."""
        config = self.config
        epoch = 0.07 if config.dataset == "embeddings" else 1400 * SECONDS.get(config.image_size, 0.0)
        return float(epoch * config.epochs * DEARER.get(config.method, 1.0))


class Rung(Fold):
    """A fold whose table has the published measure as well: accuracy at 0.5, mean over all findings."""

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """Those of a fold, and accuracy."""
        table = run.rows[(run.rows.split == "test") & (run.rows.task == "macro") & (run.rows.metric == "accuracy")]
        return pd.concat([super().rows(run, data), table[store.COLUMNS].assign(method=self.method)], ignore_index=True)


def fold(source: Path, method: str, number: int, part: int, setting: Setting, **changes: Any) -> Fold:
    """The cell of a method in fold `part` of round `number`, trained with one setting. source: file of features, or the
    folder of images, with the changes of `FINETUNE`."""
    name, options = parse_method(method)
    fields = {**BASE, **setting, **changes, "data_root": str(source), "split": f"{part}/{FOLDS}"}
    config = TrainConfig(method=name, method_options=options, seed=number, data_seed=number, **fields)
    return Fold(method, config, resamplings=0)


def fold_rows(table: Path) -> pd.DataFrame:
    """The long table of a stage, each row with its cell's fold, lr and weight_decay; its seed is the round."""
    return with_settings(table, fold=lambda c: c.split, lr=lambda c: c.lr, weight_decay=lambda c: c.weight_decay)


CHOSEN = ["method", "seed", "fold", "metric", "value", "epoch", "lr", "weight_decay"]


def best_on_validation(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method, round and fold the test rows of the cell whose endpoint on validation is highest."""
    val = rows[rows.split == "val"]
    best = val.loc[val.groupby(["method", "seed", "fold"], sort=False).value.idxmax(), "cell"]
    return rows[(rows.split == "test") & rows.cell.isin(best)].reset_index(drop=True)


def choose(rows: pd.DataFrame, budget: int = len(SETTINGS)) -> pd.DataFrame:
    """The test rows of the setting that is best on validation, in each fold for itself, among the first `budget`.

    Columns method, seed (the round), fold, metric, value, epoch (that was chosen), lr and weight_decay.
    """
    tried = {(setting["lr"], setting["weight_decay"]) for setting in SETTINGS[:budget]}
    rows = rows[np.array([pair in tried for pair in zip(rows.lr, rows.weight_decay, strict=True)], bool)]
    return best_on_validation(rows)[CHOSEN]


def finetune_rows(table: Path) -> pd.DataFrame:
    """The test rows of the stage `finetune`, with the columns of `choose`."""
    return fold_rows(table).query("split == 'test'")[CHOSEN].reset_index(drop=True)


def compare_folds(rows: pd.DataFrame, baseline: str | None = "equal") -> pd.DataFrame:
    """Each method minus a baseline, paired by fold, judged with the correction for shared training images.

    Args:
        rows: Of `choose`, `finetune_rows` or `network_rows`.
        baseline: None gives means and intervals of the scores themselves, for which p and verdict mean nothing.
    """
    pairs = paired_differences(rows, baseline, ["metric"], ["seed", "fold"])
    return judge_differences(pairs, ["metric"], overlap=OVERLAP)


def network_rows(out: Path) -> pd.DataFrame:
    """Equal in the first `FEW` rounds on each of `NETWORKS` that the tables have: their names in place of the method."""
    places = {"frozen": "main", **{name: name for name in BLIND}}
    parts = {name: choose(fold_rows(out / f"real_{table}.csv")) for name, table in places.items()}
    tuned = finetune_rows(out / "real_finetune.csv").replace({"method": {SCRATCH: "scratch"}})
    parts |= {"finetuned": tuned, "scratch": tuned}
    kept = {name: part[part.method == ("scratch" if name == "scratch" else "equal")] for name, part in parts.items()}
    if not any(map(len, kept.values())):
        raise FileError(f"{out} has no network of Equal. It should hold real_main.csv, of study.sh.")
    rows = pd.concat([kept[name].assign(method=name) for name in NETWORKS if len(kept[name])], ignore_index=True)
    return rows[rows.seed <= FEW].reset_index(drop=True)


def budget_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """What tuning is worth: of each method (rows) the tested AUROC of the best on validation of 1, 2, 4 and 8 settings
    (columns), mean over all choices of so many, and over the folds that all methods have.

    Args:
        rows: Of `fold_rows`.
    """
    rows = rows[rows.groupby(["seed", "fold"]).method.transform("nunique") == rows.method.nunique()]
    auroc = rows[rows.metric == "auroc"].pivot_table("value", ["method", "seed", "fold", "cell"], "split")
    curves = {
        key: {
            count: expected_best(part.test.to_numpy(), min(count, len(part)), part.val.to_numpy()) for count in COUNTS
        }
        for key, part in auroc.groupby(["method", "seed", "fold"])
    }
    return pd.DataFrame(curves).T.groupby(level=0).mean()


def best_two(table: Path) -> list[str]:
    """The two methods, beside `ASKED`, with the highest endpoint on validation, mean over the folds that all `METHODS` have, by
    the table of the stage `main`; none before these are a round. Test scores play no part."""
    val = fold_rows(table).query("split == 'val'")
    best = val.pivot_table("value", ["seed", "fold"], "method", "max").reindex(columns=METHODS)
    shared = best.dropna().drop(columns=list(ASKED))
    return [] if len(shared) < FOLDS else list(shared.mean().sort_values(ascending=False, kind="stable").index[:2])


def tuned_rate(table: Path, methods: Sequence[str]) -> float:
    """The rate with the highest endpoint on validation, mean over methods that all got through with it; before there is one,
    the middle of `RATES`."""
    rows = fold_rows(table)
    scores = rows[rows.method.isin(methods)].pivot_table(index="lr", columns="method", values="value").dropna()
    return float(scores.mean(axis=1).idxmax()) if len(scores) else RATES[1]


def main_table(out: Path, features: Path, methods: Sequence[str]) -> Rounds:
    """`ASKED` with all settings in `ROUNDS` rounds of folds, every other method in `FEW`."""
    order = [(number, part, m) for number in range(1, ROUNDS + 1) for part in range(1, FOLDS + 1) for m in methods]
    wanted = [(number, part, m) for number, part, m in order if m in ASKED or number <= FEW]
    yield "real_main", [fold(features / "lite0.npz", m, n, part, s) for n, part, m in wanted for s in SETTINGS]


def blind_table(out: Path, features: Path, methods: Sequence[str]) -> Rounds:
    """Equal on features that see no shape in the lungs, in `FEW` rounds."""
    places = [(number, part) for number in range(1, FEW + 1) for part in range(1, FOLDS + 1)]
    for name in BLIND:
        cells = [fold(features / f"{name}.npz", "equal", *place, setting) for place in places for setting in SETTINGS]
        yield f"real_{name}", cells


def finetune(out: Path, images: Path, methods: Sequence[str]) -> Rounds:
    """The encoder itself is trained: `ASKED` and the best two of `main` in `FEW` rounds, at one rate that Equal and DeepChest
    choose together; and Equal without ImageNet's weights in one round, at a rate of its own."""

    def cell(method: str, number: int, part: int, rate: float) -> Fold:
        start = {"pretrained": False} if method == SCRATCH else {}
        made = fold(images, method.partition("@")[0], number, part, {"lr": rate}, **{**FINETUNE, **start})
        return replace(made, method=method, tune=number == TUNING)

    table = "real_finetune_tuning"
    yield table, [cell(m, TUNING, 1, rate) for rate in RATES for m in (*ASKED[:2], SCRATCH)]
    rate, own = (tuned_rate(out / f"{table}.csv", chosen_by) for chosen_by in (ASKED[:2], [SCRATCH]))
    asked = (*ASKED, *(best_two(out / "real_main.csv") or ("uncertainty", "hedge")))
    order = product(range(1, FEW + 1), range(1, FOLDS + 1), (*asked, SCRATCH))
    wanted = [place for place in order if place[0] == 1 or place[2] != SCRATCH]
    wanted.sort(key=lambda place: (place[0], place[2] not in (*ASKED, SCRATCH)))  # the best two at the end of a round
    yield "real_finetune", [cell(m, n, part, own if m == SCRATCH else rate) for n, part, m in wanted]


def ladder_fields(rate: float) -> dict[str, dict[str, Any]]:
    """Rung -> fields of TrainConfig: the published recipe with the changes of this rung and of those before it."""
    fields, rungs = PUBLISHED, {}
    for rung, (_, changes) in RUNGS.items():
        fields = {**fields, **changes, **({"lr": rate} if "optimizer" in changes else {})}
        rungs[rung] = fields
    return rungs


def ladder(out: Path, images: Path, methods: Sequence[str]) -> Rounds:
    """The published recipe, step by step to ours: Equal and DeepChest on each rung, on the same splits of 70, 10 and 20%."""

    def cell(method: str, number: int, fields: dict[str, Any], tune: bool = False) -> Rung:
        options = fields["method_options"] if method == "deepchest" else {}
        own = {"method": method, "method_options": options, "seed": number, "data_seed": number}
        return Rung(method, TrainConfig(**{**fields, **own}, data_root=str(images)), tune=tune, resamplings=0)

    pair = ASKED[:2]
    yield "real_ladder_tuning", [cell(m, TUNING, ladder_fields(rate)["initial"], True) for rate in RATES for m in pair]
    rungs = ladder_fields(tuned_rate(out / "real_ladder_tuning.csv", pair))
    order = [(number, rung, m) for number in range(1, SPLITS + 1) for rung in RUNGS for m in pair]
    wanted = [(number, rung, m) for number, rung, m in order if rung != "published" or number <= WIDE_SPLITS]
    # cells at 128 px take five times as long
    wanted.sort(key=lambda cell: (cell[0] > WIDE_SPLITS, cell[1] == "published"))
    # Equal has no weights that could start anywhere else: its last rung is the one before
    cells: list[Fold] = [
        cell(m, number, rungs[rung]) for number, rung, m in wanted if (rung, m) != ("initial", "equal")
    ]
    yield "real_ladder", cells


def ladder_rows(table: Path) -> pd.DataFrame:
    """The test rows of the stage `ladder`, with `rung`; the last rung has Equal's rows of the rung before."""
    changed = dict.fromkeys(name for _, changes in RUNGS.values() for name in changes if name != "method_options")
    rows = with_settings(
        table,
        place=lambda c: json.dumps([getattr(c, name) for name in changed]),
        options=lambda c: json.dumps(c.method_options),
    ).query("split == 'test'")
    parts = []
    for rung, fields in ladder_fields(RATES[1]).items():
        here = rows.place == json.dumps([fields[name] for name in changed])
        own = (rows.method == "equal") | (rows.options == json.dumps(fields["method_options"]))
        parts.append(rows[here & own].assign(rung=rung))
    return pd.concat(parts, ignore_index=True)


def ladder_step(rows: pd.DataFrame, above: str, rung: str) -> pd.DataFrame:
    """Equal on a rung minus Equal on one above it, paired by split, with the correction for overlap: a row a metric."""
    equal = rows[(rows.method == "equal") & rows.rung.isin([above, rung])]
    pairs = paired_differences(equal.assign(method=equal.rung), above, ["metric"])
    return judge_differences(pairs, ["metric"], overlap=HELD_OUT).set_index("metric")


def ladder_table(table: Path) -> pd.DataFrame:
    """DeepChest minus Equal on each rung of the ladder, and how Equal changes from rung to rung.

    Args:
        table: Of the stage `ladder`.

    Returns:
        A row a rung and metric (auroc, average_precision over the findings of the endpoint; accuracy at 0.5 over all):
        rung, words, metric, equal and deepchest (their means over the splits that both have), the columns of
        `judge_differences` with Holm over the rungs, and step, step_low, step_high: `ladder_step` from the rung above; NaN
        on the first.
    """
    rungs = ladder_rows(table)
    differences = paired_differences(rungs, "equal", ["rung", "metric"], family=["metric"])
    judged = judge_differences(differences, ["metric"], overlap=HELD_OUT).drop(columns="method")
    both = rungs[rungs.groupby(["rung", "metric", "seed"]).method.transform("nunique") == 2]
    levels = both.pivot_table(index=["rung", "metric"], columns="method", values="value").reset_index()
    found = judged.merge(levels, on=["rung", "metric"]).assign(step=np.nan, step_low=np.nan, step_high=np.nan)
    for above, rung in pairwise(found.rung.unique()):
        step, here = ladder_step(rungs, above, rung), found.rung == rung
        for name, column in (("step", "mean"), ("step_low", "low"), ("step_high", "high")):
            found.loc[here, name] = found.metric[here].map(step[column])
    found.insert(1, "words", [RUNGS[rung][0] for rung in found.rung])
    if "published" not in set(found.rung):
        found.loc[found.rung == "size", "words"] = f"as published, {RUNGS['size'][0]}"
    return found


STAGES: dict[str, Callable[[Path, Path, Sequence[str]], Rounds]] = {
    "main": main_table, "blind": blind_table, "finetune": finetune, "ladder": ladder,
}  # fmt: skip
ON_IMAGES = ("features", "finetune", "ladder")


def main(arguments: Sequence[str] | None = None) -> None:
    """features, finetune or ladder --root NIH, or main or blind --features FOLDER: --out FOLDER [--jobs N] [--methods M ...] [--plan]."""
    parser = replication.stage_parser(main.__doc__, ["features", *STAGES])
    parser.add_argument("--root", type=Path, help="of NIH ChestX-ray14 or a part of it, for stages on images")
    parser.add_argument("--features", type=Path, default=Path("data/processed/real"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    given = parser.parse_args(arguments)
    if given.stage in ON_IMAGES and given.root is None and not given.plan:
        parser.error(f"{given.stage} needs --root, the folder of NIH ChestX-ray14.")
    if given.stage == "features":
        make_features(given.root, given.features)
        return
    if given.stage == "finetune" and not given.plan and len(best_two(given.out / "real_main.csv")) < 2:
        parser.error(f"finetune needs the best two of main, which is not through in {given.out}.")
    source = given.root if given.stage in ON_IMAGES else given.features
    run_rounds(STAGES[given.stage](given.out, source, given.methods), given.out, given.jobs, given.plan)
