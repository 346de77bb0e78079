"""The long table of every result, and where it came from.

Columns: method, seed, epoch, split, task, metric, value. A task is a finding, or "macro" (the mean over the
findings where the metric is defined; "<metric>_tasks" counts them) or "worst" (the lowest AUROC), or "run"
for what belongs to no task (seconds).
"""

import io
import json
import os
import platform
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from deepchest_utils.files import FileError, atomic_write, one_line, write_file
from deepchest_utils.results.metrics import macro

COLUMNS = ["method", "seed", "epoch", "split", "task", "metric", "value"]
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn")


def task_rows(
    base: Mapping[str, object], metrics: Mapping[str, Iterable[float]], tasks: Iterable[str], summarise: bool = True
) -> list[dict[str, Any]]:
    """Rows of the long table: one a task and metric and, with `summarise`, macro and worst.

    base: method, seed, epoch and split. metrics: name -> (K,) values.
    """
    rows, tasks = [], list(tasks)
    for metric, values in metrics.items():
        values = np.asarray(values, dtype=float)
        rows += [
            {**base, "task": task, "metric": metric, "value": float(value)}
            for task, value in zip(tasks, values, strict=True)
        ]
        if summarise:
            mean, count = macro(values)
            rows.append({**base, "task": "macro", "metric": metric, "value": mean})
            if metric == "auroc":
                rows.append({**base, "task": "macro", "metric": "auroc_tasks", "value": float(count)})
                worst = float(np.nanmin(values)) if count else float("nan")
                rows.append({**base, "task": "worst", "metric": "auroc", "value": worst})
    return rows


def to_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def environment_report() -> dict[str, object]:
    """Versions, commit and hardware: what a result depends on beside its configuration."""
    import torch

    from deepchest_utils.distributed import world_size

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "gpu": gpu,
        "system": sys.platform,
    }


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with "+" if files differ from it; None outside
    one."""
    folder = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.CalledProcessError):
        run: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "check": True}
        commit: str = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "."], **run).stdout.strip()
        return commit + ("+" if changed else "")
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def read_results(
    path: str | Path, columns: list[str], what: str, types: Mapping[str, type[str]] | None = None
) -> pd.DataFrame:
    """Read a CSV of results; an empty table of these columns where there is no file.

    Args:
        path: The CSV.
        columns: Columns that it must have.
        what: What wrote it, for the message: "sweep", say.
        types: Types of columns, as pandas takes them.

    Raises:
        FileError: The file is no readable CSV, or lacks a column.
    """
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path, dtype=types)
    except (ValueError, OSError) as error:  # pandas' own errors are of the first type
        raise FileError(f"{path}: not a readable table ({one_line(error)}). Choose another out.") from None
    if missing := set(columns) - set(table.columns):
        raise FileError(f"{path} has no column {min(missing)!r}: no table of a {what}. Choose another out.")
    return table


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """A CSV with enough digits to get the same numbers back."""
    write_file(path, table.to_csv(index=False))


def write_json(path: str | Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=1, default=str) + "\n")


NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
VERSION = 4  # 4: after an epoch, never in the middle of one
_CONTENT: dict[str, type | tuple[type, ...]] = {
    "identity": dict, "findings": list, "epoch": int, "history": list, "best": dict, "rng": dict, "net": dict,
    "method": dict, "optimizer": dict, "schedule": dict, "scaler": dict,
}  # fmt: skip


def save_checkpoint(run_dir: str | Path, state: dict[str, Any]) -> None:
    """Write `run_dir/checkpoint.pt`; the one that was there becomes `checkpoint.previous.pt`. state: tensors, numbers,
    strings, and dicts and lists of them. Raises FileError if it cannot be written; the older ones stay."""
    path = Path(run_dir) / NAME
    buffer = io.BytesIO()  # writing to the file itself, PyTorch would hide what went wrong
    torch.save({"version": VERSION, **state}, buffer)
    with atomic_write(path) as part:
        part.write_bytes(buffer.getbuffer())
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))


def load_checkpoint(run_dir: str | Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest readable state of the run in `run_dir`, on the CPU; None if there is none.

    A damaged file is put aside under another name, with a warning, and the one before is used. Raises FileError if there
    is no readable one, or if it belongs to another configuration (naming the fields that differ).
    """
    paths = [path for name in (NAME, PREVIOUS) if (path := Path(run_dir) / name).exists()]
    for path in paths:
        try:
            state = read_checkpoint(path)
            break
        except FileError as error:
            if path == paths[-1]:
                raise
            os.replace(path, path.with_name(DAMAGED))
            warnings.warn(f"{error} It is now {DAMAGED}, and the run goes on from {PREVIOUS}.", stacklevel=3)
    else:
        return None
    found = state["identity"]
    names = [name for name in identity if found.get(name) != identity[name]]
    if names:
        listed = ", ".join(f"{name}: {found.get(name)!r} there, {identity[name]!r} now" for name in names)
        raise FileError(f"{path} belongs to another configuration or other data ({listed}). Choose another run_dir.")
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the file, on the CPU. Raises FileError if there is none, or it is no checkpoint of this version."""
    if not path.is_file():
        raise FileError(f"{path}: no such checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch stores: what unfolds to more than its size is a bomb
            unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > path.stat().st_size:
            raise ValueError(f"it would unfold to {unfolded:,} bytes")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises one of several types
        raise FileError(
            f"{path}: not a readable checkpoint ({type(error).__name__}). Delete it, or choose another run_dir."
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise FileError(f"{path}: not a checkpoint of this version. Delete it, or choose another run_dir.")
    for name, kind in _CONTENT.items():
        right = isinstance(state.get(name), kind)
        if not right or (name == "findings" and not all(isinstance(f, str) for f in state[name])):
            raise FileError(f"{path}: its {name!r} is not what it should be. Delete it, or choose another run_dir.")
    return state


TYPES = {"cell": str, "data": str, "commit": str}  # a hash may look like a number: 0123, or 12e3
DIGITS = "%.7g"  # of a float32, and the same text whenever the same cell is run again


class RunTable:
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
                    f"{self.replicates_path}: not a readable archive of arrays ({one_line(error)}). Choose another out."
                ) from error

    def finished(self) -> set[str]:
        return set(self.cells.cell[self.cells.status == "done"])

    def add(self, outcome: Any) -> None:
        """Write what came of a cell, in place of what an earlier try left. A cell counts from its row in the table of
        cells on, which is written last."""
        cell = outcome.cell.id
        if len(outcome.replicates):
            self.replicates[cell] = outcome.replicates
            with atomic_write(self.replicates_path) as part, open(part, "wb") as file:
                # a checker takes any name for that of an option
                np.savez_compressed(file, **cast("dict[str, Any]", self.replicates))
        rows, record = outcome.rows[["cell", *COLUMNS]], pd.DataFrame([outcome.record])
        # as the file has them: what follows from the table is the same now and when it is read again
        rows = rows.assign(value=[float(DIGITS % value) for value in rows.value])
        self.rows = _append(self.rows[self.rows.cell != cell], rows)
        self.cells = _append(self.cells[self.cells.cell != cell], record)
        write_file(self.out, self.rows.to_csv(index=False, float_format=DIGITS))
        write_file(self.cells_path, self.cells.to_csv(index=False))

    def write_summary(self, summary: pd.DataFrame) -> None:
        write_file(self.summary_path, summary.to_csv(index=False, float_format=DIGITS))


def _append(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One below the other; an empty table has no types worth keeping."""
    filled = [part for part in (table, rows) if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else table
