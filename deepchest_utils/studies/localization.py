"""Do heat maps point at the findings, and does weighting change where the network looks? Scores of maps against the
true regions, then one network a method and seed, scored on the same images and findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import nn

from deepchest_utils.config import check_choice
from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.explain.cam import CAM_METHODS, default_layers, heat_maps
from deepchest_utils.explain.regions import Regions, find_boxes, load_regions
from deepchest_utils.files import csv_path, exclusive_lock, write_file
from deepchest_utils.results.metrics import Ranking
from deepchest_utils.results.statistics import interval, paired_differences, patient_weights
from deepchest_utils.results.store import LOCALIZATION, RunTable, append_rows, read_results, write_table
from deepchest_utils.studies.overlap import KINDS, THRESHOLDS, at_one_threshold, overlaps
from deepchest_utils.sweep import Trial, check_data, run_sweep
from deepchest_utils.training import Run

SCORES = {
    "pointing": "pointing game", "energy": "energy inside", "iou": "IoU over thresholds", "pixel_ap": "AP of pixels"
}  # fmt: skip
TOLERANCE = 1 / 16  # of the side: half a cell of an 8 x 8 map


def score_maps(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "m a b"], tolerance: float = TOLERANCE
) -> dict[str, Float[np.ndarray, " n"]]:
    """Each of SCORES, in [0, 1], for N maps that are not negative; NaN for an empty mask.

    - pointing: 1 if the maximum lies within `tolerance` (1 is the side) of the mask, else 0; the share of the maxima if
      there are several (Zhang et al. 2016, arXiv 1608.00507).
    - energy: the share of the map's sum inside the mask (Wang et al. 2020, arXiv 1910.01279); for a blank map, the
      share of the image inside the mask.
    - iou: intersection over union of the mask and the map above a threshold, mean over THRESHOLDS.
    - pixel_ap: average precision of the pixels.

    Raises ValueError if maps and masks differ in shape.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps and masks should have one shape. Found {maps.shape} and {masks.shape}.")
    out = {name: np.full(len(maps), np.nan) for name in SCORES}
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if not mask.any():
            continue
        top, total = values.max(), values.sum(dtype=float)
        near = distance_transform_edt(~mask) <= tolerance * mask.shape[0]
        out["pointing"][i] = near[values == top].mean()
        out["energy"][i] = values[mask].sum(dtype=float) / total if total > 0 else mask.mean()
        above = (values >= THRESHOLDS[:, None, None] * top) & (top > 0)
        out["iou"][i] = ((above & mask).sum((1, 2)) / (above | mask).sum((1, 2))).mean()
        pixels = Ranking(mask.ravel().astype(np.float32), values.ravel())
        out["pixel_ap"][i] = 1.0 if mask.all() else pixels.average_precision()[0]
    return out


def localize(
    net: nn.Module,
    data: ChestXrays,
    truth: Regions,
    method: str = "layercam",
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
    boxes: bool = False,
) -> pd.DataFrame:
    """How well the heat maps of a network, made by `heat_maps`, point at the true regions in the split `data`.

    Returns a row for each pair of `truth`, in its order: image, finding, patient, evidence and SCORES; with `boxes`,
    also what `box_table` reads. Memory does not grow with the number of maps.
    """
    tables, found = [], np.empty((len(truth), len(KINDS), len(THRESHOLDS)))
    for task in np.unique(truth.tasks):
        pairs = np.flatnonzero(truth.tasks == task)
        for batch in np.split(pairs, range(batch_size, len(pairs), batch_size)):
            heat = heat_maps(net, data.images[truth.rows[batch]], [int(task)], method, layers, batch_size)
            scores = score_maps(heat.maps[:, 0], truth.masks[batch])
            tables.append(pd.DataFrame({"evidence": heat.evidence[:, 0], **scores}, index=batch))
            if boxes:
                found[batch] = overlaps(heat.maps[:, 0], truth.masks[batch])
    columns = overlap_columns(found, truth) if boxes else {}
    return name_pairs(data, truth).join(pd.concat(tables)).assign(**columns)


def overlap_columns(found: Float[np.ndarray, "m k t"], truth: Regions) -> dict[str, Float[np.ndarray, " m"]]:
    """The columns that `box_table` reads, of the `overlaps` of each pair of `truth`."""
    return {kind: at_one_threshold(found[:, i], truth.tasks, truth.patients) for i, kind in enumerate(KINDS)}


def name_pairs(data: ChestXrays, truth: Regions) -> pd.DataFrame:
    findings = np.array(data.findings)[truth.tasks]
    return pd.DataFrame({"image": data.ids[truth.rows], "finding": findings, "patient": truth.patients})


def mean_scores(
    tables: Sequence[pd.DataFrame], score: str, rng: np.random.Generator, replicates: int = 1000
) -> tuple[pd.DataFrame, Float[np.ndarray, "t r f"]]:
    """Mean of a score for each finding and over the findings ("macro"), with a bootstrap over patients.

    Args:
        tables: T tables of `localize` with the same pairs of F findings; ValueError if they differ.
        score: A key of SCORES.

    Returns:
        The means, a row for each finding and for "macro", a column for each table; and their R replicates, paired
        between the tables, (T, R, F + 1).
    """
    first = tables[0]
    if not all(table[["image", "finding"]].equals(first[["image", "finding"]]) for table in tables):
        raise ValueError("tables should be of the same images and findings, in the same order.")
    findings, index = np.unique(first.finding, return_inverse=True)
    is_finding = (index[:, None] == np.arange(len(findings))).astype(float)  # (pairs, findings)
    weights = patient_weights(first.patient.to_numpy(np.int64), replicates, rng)
    values = np.stack([table[score].to_numpy(float) for table in tables])
    means, count = values @ is_finding / is_finding.sum(0), weights @ is_finding
    with np.errstate(invalid="ignore"):  # a replicate may have no patient with the finding
        samples = np.stack([(weights * v) @ is_finding / count for v in values])
    samples = np.concatenate([samples, np.nanmean(samples, axis=2, keepdims=True)], axis=2)
    means = np.column_stack([means, means.mean(1)])
    return pd.DataFrame(means.T, index=pd.Index([*findings, "macro"], name="finding")), samples


def scores_with_intervals(tables: Mapping[str, pd.DataFrame], score: str, rng: np.random.Generator) -> pd.DataFrame:
    """`mean_scores` of each table by name, with 95% intervals: columns `<name>`, `<name>_low`, `<name>_high`."""
    means, samples = mean_scores(list(tables.values()), score, rng)
    low, high = interval(samples.transpose(1, 0, 2))
    columns: dict[str, np.ndarray] = {}
    for i, name in enumerate(tables):
        columns |= {name: means[i].to_numpy(), f"{name}_low": low[i], f"{name}_high": high[i]}
    return pd.DataFrame(columns, index=means.index)


@dataclass(frozen=True)
class LocalizationTrial(Trial):
    """A trial whose maps are scored on the test split before the network is let go."""

    cam: str = "layercam"  # of CAM_METHODS, at `default_layers`
    per_finding: int = 60  # images of each finding at most

    @property
    def files(self) -> tuple[str, ...]:
        return *super().files, LOCALIZATION

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        regions = load_regions(self.config, data, per_finding=self.per_finding)
        scores = localize(run.model, data.test, regions, self.cam, boxes=True)
        layers = default_layers(run.model, data.test.images.shape[-1], self.cam)
        write_table(folder / LOCALIZATION, scores.assign(cam=self.cam, layers=" ".join(layers)))


def localize_runs(
    trials: Sequence[Trial], out: str | Path, cam: str = "layercam", per_finding: int = 60, jobs: int | None = None
) -> pd.DataFrame:
    """Train each trial, score its maps on the test split, and return `read_localization` of the trials.

    `out` is a .csv with a row a trial, image and finding; a trial that is in it is not run again. `<out>_cells.csv` has
    settings and environment of each trial. The sweep that trains is `<out>_runs.csv`, with the folders of the runs.
    Raises ValueError if a trial failed (the table has all others then), or if the table has scores of another map or
    of other data.
    """
    check_choice("cam", cam, CAM_METHODS)
    if per_finding < 1:
        raise ValueError(f"per_finding should be at least 1. Found {per_finding}.")
    out, ids = csv_path(out), [trial.id for trial in trials]
    with exclusive_lock(out.with_suffix(".lock"), "study"):
        _, records = _read(out)
        if other := set(records[records.cell.isin(ids)].get("cam", ())) - {cam}:
            raise ValueError(f"{out} has scores of {min(other)}. Found cam {cam!r}: choose another out.")
        runs = out.with_name(f"{out.stem}_runs.csv")
        swept = RunTable(runs).cells
        for finished in (records, swept[swept.status == "done"]):  # records of before had no fingerprint
            check_data(finished, out, trials)
        waiting = [
            LocalizationTrial(trial.method, trial.config, cam=cam, per_finding=per_finding)
            for trial in trials
            if trial.id not in set(records.cell)
        ]
        for trial in waiting:
            find_boxes(trial.config)
        try:
            if waiting:
                run_sweep(waiting, runs, jobs)
        finally:  # also what has finished before a stop
            cells = _export(RunTable(runs), {trial.id: trial for trial in waiting}, out)
        if len(failed := cells[cells.status == "failed"]):
            run = failed.iloc[0]
            raise ValueError(f"{len(failed)} of {len(ids)} runs failed. {run.method} seed {run.seed}: {run.error}")
        table = read_localization(out)
        return table[table.cell.isin(ids)].reset_index(drop=True)


def _export(runs: RunTable, trials: dict[str, LocalizationTrial], out: Path) -> pd.DataFrame:
    """Add the trials that have finished to the two tables; the records that the sweep has of all of them."""
    scores, records = _read(out)
    scores = scores[scores.cell.isin(records.cell)]  # a stop between the two files left rows without a record
    macro = runs.rows.query("split == 'test' and task == 'macro' and metric == 'auroc'").set_index("cell").value
    cells = runs.cells[runs.cells.cell.isin(list(trials))]
    for run in cells[cells.status == "done"].to_dict("records"):
        trial = trials[run["cell"]]
        table = read_results(runs.folder / trial.id / LOCALIZATION, ["cam", "layers"], "study", missing_ok=False)
        row = {"cell": trial.id, "method": trial.method, "seed": trial.config.seed, "cam": trial.cam}
        row |= {"auroc": macro[trial.id], "layers": table.layers.iloc[0]}
        row |= {name: run[name] for name in run if name not in {"status", "error", *row}}
        table.insert(0, "cell", trial.id)
        scores = append_rows(scores, table.drop(columns=["cam", "layers"]))
        records = append_rows(records, pd.DataFrame([row]))
    if len(records):
        write_file(out, scores.to_csv(index=False, float_format="%.4g"))
        write_file(_cells_path(out), records.to_csv(index=False, float_format="%.7g"))
    return cells


def _read(out: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table and its records."""
    return read_results(out, ["cell"], "study"), read_results(_cells_path(out), ["cell"], "study")


def _cells_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_cells.csv")


def read_localization(out: str | Path) -> pd.DataFrame:
    """The scores of `localize_runs`, with each trial's method and seed."""
    out = Path(out)
    if not out.exists():
        raise ValueError(f"{out}: no such table.")
    table, records = _read(out)
    return table.merge(records[["cell", "method", "seed"]], on="cell", validate="many_to_one")


def compare_localization(table: pd.DataFrame, baseline: str, score: str, rng: np.random.Generator) -> pd.DataFrame:
    """`paired_differences` of a mean score of `read_localization`, paired by seed and image, over seeds and patients.

    A row a method and finding ("macro": their mean); p_holm corrects over all methods and findings. The baseline must
    have every seed of the others.
    """
    check_choice("score", score, SCORES)
    methods = list(dict.fromkeys(table.method))
    if baseline not in methods or len(methods) < 2:
        raise ValueError(f"baseline should be one of two methods or more, {', '.join(methods)}. Found {baseline!r}.")
    runs = {key: part.reset_index(drop=True) for key, part in table.groupby(["method", "seed"], sort=False)}
    if missing := [key for key in runs if (baseline, key[1]) not in runs]:
        raise ValueError(f"{baseline} should have every seed. Found none for seed {missing[0][1]} of {missing[0][0]}.")
    means, samples = mean_scores(list(runs.values()), score, rng)
    values = [
        pd.DataFrame({"method": method, "seed": seed, "finding": means.index, "value": means.iloc[:, run].to_numpy()})
        for run, (method, seed) in enumerate(runs)
    ]
    replicates = np.concatenate(samples.transpose(0, 2, 1))  # a row a run and finding, as the values have them
    return paired_differences(pd.concat(values), baseline, by=["finding"], family=(), replicates=replicates)
