"""`run_sweep`: every cell that is not finished yet, and the two tables that hold what came of them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from deepchest_utils.datasets.cache import PROJECT
from deepchest_utils.files import FileError, alone, brief, new_file, read_results, write_atomic
from deepchest_utils.records import COLUMNS
from deepchest_utils.sweep.cells import Cell, Outcome, data_of
from deepchest_utils.sweep.workers import with_dask, with_joblib

BACKENDS = ("joblib", "dask")
TYPES = {"cell": str, "data": str, "commit": str}  # a hash may look like a number: 0123, or 12e3
DIGITS = "%.7g"  # of a float32, and the same text whenever the same cell is run again


class Tables:
    """The long table `<out>` (column "cell", then those of `records`); `<out>_cells.csv`, a row a cell: settings, status,
    error, seconds, environment; and `<out>_replicates.npz`, an array a finished cell: (M, R, K) values of the M
    BOOTSTRAP_METRICS in R resamplings of the test patients, the same in every cell."""

    def __init__(self, out: str | Path):
        self.out = Path(out)
        if self.out.suffix != ".csv":
            raise ValueError(f"out should be the name of a .csv. Found {str(out)!r}.")
        self.cells_path = self.out.with_name(f"{self.out.stem}_cells.csv")
        self.summary_path = self.out.with_name(f"{self.out.stem}_summary.csv")
        self.replicates_path = self.out.with_name(f"{self.out.stem}_replicates.npz")
        self.rows = read_results(self.out, ["cell", *COLUMNS], "sweep", TYPES)
        self.cells = read_results(self.cells_path, ["cell", "status"], "sweep", TYPES)
        self.replicates: dict[str, np.ndarray] = {}
        if self.replicates_path.exists():
            try:
                # opened here: of a damaged archive NumPy would leave its own handle open
                with open(self.replicates_path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    self.replicates = dict(arrays)
            except Exception as error:  # a damaged archive raises one of several types
                raise FileError(
                    f"{self.replicates_path}: not a readable archive of arrays ({brief(error)}). Choose another out."
                ) from error

    def finished(self) -> set[str]:
        return set(self.cells.cell[self.cells.status == "done"])

    def add(self, outcome: Outcome) -> None:
        """Write what came of a cell, in place of what an earlier try left. A cell counts from its row in the table of
        cells on, which is written last."""
        cell = outcome.cell.id
        if len(outcome.replicates):
            self.replicates[cell] = outcome.replicates
            with new_file(self.replicates_path) as part, open(part, "wb") as file:
                # a checker takes any name for that of an option
                np.savez_compressed(file, **cast("dict[str, Any]", self.replicates))
        rows, record = outcome.rows[["cell", *COLUMNS]], pd.DataFrame([outcome.record])
        # as the file has them: what follows from the table is the same now and when it is read again
        rows = rows.assign(value=[float(DIGITS % value) for value in rows.value])
        self.rows = _append(self.rows[self.rows.cell != cell], rows)
        self.cells = _append(self.cells[self.cells.cell != cell], record)
        write_atomic(self.out, self.rows.to_csv(index=False, float_format=DIGITS))
        write_atomic(self.cells_path, self.cells.to_csv(index=False))

    def check_data(self, cells: Sequence[Cell]) -> None:
        """Raise ValueError if a finished cell ran on other data than it would now: cells do not say where data lie."""
        known = self.cells[self.cells.status == "done"].set_index("cell")
        for cell in sorted(cells, key=lambda c: json.dumps(c.config.data_options, sort_keys=True)):
            if cell.id in known.index and known.data[cell.id] != data_of(cell.config).fingerprint():
                raise ValueError(
                    f"{self.out} has {cell.method} seed {cell.config.seed} on other data than "
                    f"{cell.config.dataset} in {cell.config.data_root} now. Choose another out."
                )

    def write_summary(self, summary: pd.DataFrame) -> None:
        write_atomic(self.summary_path, summary.to_csv(index=False, float_format=DIGITS))


def _append(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One below the other; an empty table has no types worth keeping."""
    filled = [part for part in (table, rows) if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else table


def run_sweep(
    cells: Sequence[Cell],
    out: str | Path,
    jobs: int | None = None,
    backend: str = "joblib",
    scheduler: str | None = None,
    folder: str | Path | None = None,
) -> Tables:
    """Run every cell that has not finished yet; a stop loses the epoch it is in, a failed cell does not stop the rest
    and is tried again by the next call.

    out: the long table, a .csv. jobs: processes at a time, default one a core; each has an even share of the cores.
    backend: "joblib", or "dask" with the address of its scheduler. folder: of the checkpoints of unfinished runs, default
    `runs/sweeps/<name of out>`. Raises ValueError for an argument that is not as it should be, for finished cells of
    other data, or while another sweep is at work on the same folder.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend should be one of {', '.join(BACKENDS)}. Found {backend!r}.")
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(
            f"scheduler goes with backend dask, and dask with it. Found {backend!r}, {scheduler!r}."
        )
    cores = os.cpu_count() or 1
    jobs = cores if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs should be at least 1. Found {jobs}.")
    threads = max(1, cores // jobs)
    cells = list({cell.id: cell for cell in cells}.values())  # the same one twice would share a checkpoint
    tables = Tables(out)
    folder = Path(folder) if folder else PROJECT / "runs" / "sweeps" / tables.out.stem
    with alone(folder, "sweep"):
        tables = Tables(out)  # once more: another sweep may have ended just now
        finished = tables.finished()
        if backend == "joblib":  # a cluster may have data that are not here
            tables.check_data(cells)
        tested = set(tables.rows.cell[tables.rows.split == "test"])  # not those that were there to tune
        waiting = [c for c in cells if c.id not in finished or not (c.tune or c.id in tested)]
        if scheduler is not None:  # of backend dask
            outcomes = with_dask(waiting, scheduler, threads)
        else:
            outcomes = with_joblib(waiting, jobs, threads, folder)
        bar = tqdm(
            total=len(cells), initial=len(cells) - len(waiting), desc="sweep", unit="run", disable=None
        )
        with bar:
            for outcome in outcomes:
                tables.add(outcome)
                bar.set_postfix_str(
                    f"{outcome.cell.method} seed {outcome.cell.config.seed}: {outcome.record['status']}"
                )
                bar.update()
    return tables
