"""Does weighting change where the network looks? One network a method and seed, scored on the same images and findings."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from deepchest_utils.explain.cam import CAM_METHODS, default_layers
from deepchest_utils.explain.regions import load_regions
from deepchest_utils.explain.scores import SCORES, localize, mean_scores
from deepchest_utils.files import write_file
from deepchest_utils.results.statistics import paired_differences
from deepchest_utils.results.store import environment_report, read_results
from deepchest_utils.sweep import Trial, data_of
from deepchest_utils.training import train


def localize_runs(
    cells: Sequence[Trial], out: str | Path, cam: str = "layercam", per_finding: int = 60
) -> pd.DataFrame:
    """Train each cell of `make_cells`, score its maps on the test split, and write both tables as they grow: `<out>`, a
    row a cell, image and finding, and `<out>_cells.csv` with settings and environment. A cell that has its row there is
    not run again. cam: of CAM_METHODS, at `default_layers`. Returns the rows of the cells asked for."""
    if cam not in CAM_METHODS:
        raise ValueError(f"cam should be one of {', '.join(CAM_METHODS)}. Found {cam!r}.")
    out = Path(out)
    record_path = out.with_name(f"{out.stem}_cells.csv")
    records = _read(record_path)
    rows = _read(out)
    rows = rows[rows.cell.isin(records.cell)]  # a stop between the two files left rows without a record
    for cell in tqdm(cells, desc="localize", unit="run", disable=None):
        if cell.id in set(records.cell):
            continue
        start = time.time()
        data = data_of(cell.config)
        run = train(cell.config, data)
        truth = load_regions(cell.config, data, per_finding=per_finding)
        found = localize(run.model, data.test, truth, cam)
        auroc = run.test.query("task == 'macro' and metric == 'auroc'").value.item()
        record = {"cell": cell.id, "method": cell.method, "seed": cell.config.seed, "cam": cam, "auroc": auroc}
        record["layers"] = " ".join(default_layers(run.model, data.test.images.shape[-1], cam))
        record["settings"] = json.dumps(cell.settings, sort_keys=True)
        record["seconds"] = round(time.time() - start, 1)
        found.insert(0, "cell", cell.id)
        rows = pd.concat([part for part in (rows, found) if len(part)], ignore_index=True)
        records = pd.concat([part for part in (records, pd.DataFrame([record | environment_report()])) if len(part)])
        write_file(out, rows.to_csv(index=False, float_format="%.4g"))
        write_file(record_path, records.to_csv(index=False, float_format="%.7g"))
    found = read_localization(out)
    return found[found.cell.isin([cell.id for cell in cells])].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    return read_results(path, ["cell"], "study", {"cell": str})


def read_localization(out: str | Path) -> pd.DataFrame:
    """The rows of `localize_runs` with each cell's method and seed. Raises ValueError if there is no such table."""
    out = Path(out)
    if not out.exists():
        raise ValueError(f"{out}: no such table.")
    records = _read(out.with_name(f"{out.stem}_cells.csv"))
    return _read(out).merge(records[["cell", "method", "seed"]], on="cell", validate="many_to_one")


def compare_localization(table: pd.DataFrame, baseline: str, score: str, rng: np.random.Generator) -> pd.DataFrame:
    """Each other method's mean score minus the baseline's, paired by seed and image, a row a method and finding ("macro":
    their mean): mean, low and high of the 95% interval over seeds and patients, and p, corrected after Holm over all
    methods and findings. table: of `read_localization`. Raises ValueError for a score or a baseline that is not there,
    or a seed that the baseline does not have."""
    if score not in SCORES:
        raise ValueError(f"score should be one of {', '.join(SCORES)}. Found {score!r}.")
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
