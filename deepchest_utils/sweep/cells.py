"""A cell of a sweep: one run, what it is called, and what comes of it."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

from deepchest_utils.datasets import Splits, load_dataset
from deepchest_utils.records import environment_report, task_rows, to_table
from deepchest_utils.statistics import BOOTSTRAP_METRICS, bootstrap_metric
from deepchest_utils.training import Run, TrainConfig, train
from deepchest_utils.weighting import check_names
from deepchest_utils.weighting.spec import parse_method

PATIENTS_SEED = (
    20_250_523  # of the bootstrap: every cell draws the same patients, so that cells can be compared
)
REPLICATES = 100
ONE_AT_A_TIME = Lock()  # in a process: threads, as a Dask worker may have, share PyTorch's random state


@dataclass(frozen=True)
class Cell:
    """One run. method: as the user wrote it, options included. config: the run. tune: keep its macro AUROC on validation
    alone, for `best_lr`: what is chosen with must not see the test. history: keep the weights and the validation AUROC of every
    epoch too, beside the test scores."""

    method: str
    config: TrainConfig
    tune: bool = False
    history: bool = True

    @property
    def settings(self) -> dict[str, object]:
        """What differs from TrainConfig's defaults, where it runs aside."""
        found = self.config.identity()
        default = TrainConfig().identity()
        return {name: value for name, value in found.items() if value != default[name]}

    @property
    def id(self) -> str:
        """A short hash of the settings: the same run, the same id, also when TrainConfig grows."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell. replicates: (M, R, K) of BOOTSTRAP_METRICS over test patients; empty if it failed."""

    cell: Cell
    record: dict[str, object]
    rows: pd.DataFrame
    replicates: np.ndarray


def make_cells(
    base: TrainConfig,
    lists: dict[str, Sequence[Any]],
    lr: dict[str, float] | None = None,
    tune: bool = False,
    history: bool = True,
) -> list[Cell]:
    """The product of the lists, seed by seed: the first cells are one whole comparison.

    lists: field of TrainConfig -> values; those of "method" may carry options and an architecture,
    `deepchest(floor=0.25)` or `equal@single_task`. lr: a learning rate for each method, as `best_lr` finds them, in
    place of the lists'; another architecture takes the method's unless it has its own. tune, history: see `Cell`. Raises
    ValueError for an unknown field, a value that TrainConfig refuses, or a method without a learning rate.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    known -= {"method_options", "run_dir"}  # the method's own text has its options, and the sweep its folders
    if unknown := set(lists) - known:
        raise ValueError(f"{min(unknown)!r} is no setting of a run. There are {', '.join(sorted(known))}.")
    if "method" in lists and base.method_options:
        raise ValueError(
            f"method_options belong to one method, and the sweep has its own. Found {base.method_options}: "
            "write them into the method's text, as in deepchest(floor=0.25)."
        )
    names = sorted(lists, key=lambda name: name != "seed")
    cells = {}
    for values in itertools.product(*(lists[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        if "method" in given:
            spec = given["method"]
            method, _, architecture = spec.partition("@")
            given["method"], given["method_options"] = parse_method(method)
            check_names(given["method"])
            if architecture:
                given["architecture"] = architecture
        else:
            spec = method = base.method
        if lr is not None:
            if not {spec, method} & set(lr):
                raise ValueError(
                    f"lr should have every method's. Found none for {spec!r}, only {', '.join(lr)}."
                )
            given["lr"] = lr[spec if spec in lr else method]
        cell = Cell(spec, dataclasses.replace(base, **given), tune, history)
        cells[cell.id] = cell
    return list(cells.values())


@lru_cache(maxsize=1)
def _load(described: str) -> Splits:
    name, root, size, seed, split, options = json.loads(described)
    return load_dataset(name, root, size, seed, split, **options)


def data_of(c: TrainConfig) -> Splits:
    """The run's data; those of the last run are kept at hand."""
    return _load(json.dumps([c.dataset, c.data_root, c.image_size, c.data_seed, c.split, c.data_options]))


def run_cell(cell: Cell, threads: int, folder: str | None = None) -> Outcome:
    """Train and test; whatever goes wrong in it is noted. folder: keeps the run's checkpoint, from which a stopped
    cell goes on."""
    with ONE_AT_A_TIME:
        return _run_cell(cell, threads, folder)


def _run_cell(cell: Cell, threads: int, folder: str | None) -> Outcome:
    import torch

    torch.set_num_threads(threads)
    start, rows, replicates = time.time(), to_table([]), np.empty(0, dtype=np.float32)
    record = {"cell": cell.id, "method": cell.method, "seed": cell.config.seed, "status": "done", "error": ""}
    try:
        c = dataclasses.replace(cell.config, run_dir=folder)
        data = data_of(c)
        record["data"] = data.fingerprint()
        run = train(c, data)
        rows = _kept_rows(run, data, cell).assign(method=cell.method)
        if not cell.tune:
            replicates = _replicates(run, data)
        if folder:  # its checkpoint has served
            shutil.rmtree(folder)
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record |= {
        "settings": json.dumps(cell.settings, sort_keys=True),
        "seconds": round(time.time() - start, 1),
    }
    return Outcome(cell, record | environment_report(), rows.assign(cell=cell.id), replicates)


def _kept_rows(run: Run, data: Splits, cell: Cell) -> pd.DataFrame:
    """The test table, the prevalence, and of the history what the study asks: weights that moved, the validation AUROC."""
    history = run.history
    auroc = history[(history.metric == "auroc") & (history.split == "val")]
    if cell.tune:
        return auroc[auroc.task == "macro"]
    weights = history[history.metric == "weight"]
    if weights.groupby("task").value.nunique().max() == 1:
        weights = weights[:0]
    base = {"method": "", "seed": run.config.seed, "epoch": 0, "split": "train"}
    known = to_table(task_rows(base, {"prevalence": data.train.prevalence}, data.findings, summarise=False))
    return pd.concat([run.test, known, *([weights, auroc] if cell.history else [])], ignore_index=True)


def _replicates(run: Run, data: Splits) -> np.ndarray:
    """(M, R, K) float32: the test scores in R resamplings of the patients."""
    rng, test = np.random.default_rng(PATIENTS_SEED), data.test
    each = [
        bootstrap_metric(test.labels, [run.logits["test"]], test.patients, rng, metric, REPLICATES)
        for metric in BOOTSTRAP_METRICS
    ]
    return np.concatenate(each).astype(np.float32)


def lost(cell: Cell, error: str) -> Outcome:
    """Of a cell whose process could not say what went wrong in it."""
    record = {"cell": cell.id, "method": cell.method, "seed": cell.config.seed, "status": "failed"}
    record |= {"error": error, "settings": json.dumps(cell.settings, sort_keys=True)}
    return Outcome(cell, record, to_table([]).assign(cell=cell.id), np.empty(0, dtype=np.float32))
