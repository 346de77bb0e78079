"""Does weighting change where the network looks? One network a method and seed, scored on the same images and findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from deepchest_utils.config import did_you_mean
from deepchest_utils.datasets import Splits
from deepchest_utils.explain.cam import CAM_METHODS, default_layers
from deepchest_utils.explain.regions import load_regions
from deepchest_utils.explain.scores import SCORES, localize, mean_scores
from deepchest_utils.files import write_file
from deepchest_utils.results.statistics import paired_differences
from deepchest_utils.results.store import LOCALIZATION, RunTable, append_rows, read_results, write_table
from deepchest_utils.sweep import Trial, run_sweep
from deepchest_utils.training import Run


@dataclass(frozen=True)
class LocalizationTrial(Trial):
    """A trial whose maps are scored on the test split before the network is let go.

    Attributes:
        cam: Of CAM_METHODS, at `default_layers`.
        per_finding: Images of each finding at most.
    """

    cam: str = "layercam"
    per_finding: int = 60

    @property
    def files(self) -> tuple[str, ...]:
        return *super().files, LOCALIZATION

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        regions = load_regions(self.config, data, per_finding=self.per_finding)
        scores = localize(run.model, data.test, regions, self.cam)
        layers = default_layers(run.model, data.test.images.shape[-1], self.cam)
        write_table(folder / LOCALIZATION, scores.assign(cam=self.cam, layers=" ".join(layers)))


def localize_runs(
    trials: Sequence[Trial], out: str | Path, cam: str = "layercam", per_finding: int = 60, jobs: int | None = None
) -> pd.DataFrame:
    """Train each trial and score its maps on the test split. A trial that is in the table is not run again.

    Args:
        trials: Of `make_trials`.
        out: A .csv with a row a trial, image and finding. `<out>_cells.csv` has a row a trial with its settings and
            environment, and the sweep that trains is `<out>_runs.csv`, with the folders of the runs.
        cam: See `LocalizationTrial`.
        per_finding: See `LocalizationTrial`.
        jobs: Runs at a time, see `run_sweep`.

    Returns:
        `read_localization` of the trials.

    Raises:
        ValueError: An argument is not as it should be, the table has a trial's scores of another map, or a trial failed;
            the table has all others then.
    """
    if cam not in CAM_METHODS:
        hint = did_you_mean(cam, CAM_METHODS)
        raise ValueError(f"cam should be one of {', '.join(CAM_METHODS)}. Found {cam!r}.{hint}")
    out, ids = Path(out), [trial.id for trial in trials]
    _, records = _read(out)
    if other := set(records[records.cell.isin(ids)].get("cam", ())) - {cam}:
        raise ValueError(f"{out} has scores of {min(other)}. Found cam {cam!r}: choose another out.")
    waiting = [
        LocalizationTrial(trial.method, trial.config, cam=cam, per_finding=per_finding)
        for trial in trials
        if trial.id not in set(records.cell)
    ]
    runs = out.with_name(f"{out.stem}_runs.csv")
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
        row |= {name: run[name] for name in run if name not in {"status", "error", "data", *row}}
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
    """The scores of `localize_runs`, with each trial's method and seed.

    Raises:
        ValueError: There is no such table.
    """
    out = Path(out)
    if not out.exists():
        raise ValueError(f"{out}: no such table.")
    table, records = _read(out)
    return table.merge(records[["cell", "method", "seed"]], on="cell", validate="many_to_one")


def compare_localization(table: pd.DataFrame, baseline: str, score: str, rng: np.random.Generator) -> pd.DataFrame:
    """`paired_differences` of a mean score, paired by seed and image, over seeds and patients.

    Args:
        table: Of `read_localization`.
        baseline: A method that has every seed of the others.
        score: Of SCORES.
        rng: Of the bootstrap over patients.

    Returns:
        A row a method and finding ("macro": their mean). p_holm corrects over all methods and findings.

    Raises:
        ValueError: The score, the baseline or a seed of it is not there.
    """
    if score not in SCORES:
        raise ValueError(f"score should be one of {', '.join(SCORES)}. Found {score!r}.{did_you_mean(score, SCORES)}")
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
