"""One store of runs: a folder a run, and tables of many.

Tables are long: a value a row. A task is a finding, "macro" (the mean over the findings where the metric is defined,
and for AUROC `auroc_tasks`, their number), "worst" (the lowest AUROC), or "run" for what belongs to no task.
"""

import dataclasses
import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from deepchest_utils.config import TrainConfig, to_plain
from deepchest_utils.distributed import world_size
from deepchest_utils.files import FileError, atomic_write, csv_path, one_line, write_file
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.checkpoint import CHECKPOINT, PREVIOUS, is_plain, read_checkpoint
from deepchest_utils.results.labels import MAX_NAME
from deepchest_utils.results.metrics import CALIBRATION, macro

COLUMNS = ["method", "seed", "epoch", "split", "task", "metric", "value"]
CONFIG, ENVIRONMENT = "config.json", "environment.json"  # what the run depends on
HISTORY, SECONDS = "history.csv", "seconds.csv"  # of each epoch
TEST = "test.csv"  # once, at the end, beside CALIBRATION
REPLICATES, FAILURE = "replicates.npz", "failure.json"  # of a sweep: the test scores in resamplings, or the error
LOCALIZATION = "localization.csv"  # of a localisation study
DIGITS = "%.7g"  # in a RunTable: those of a float32, and the same text whenever a run is repeated
_CELLS = "_cells.csv"
_TYPES = {"cell": str, "data": str, "commit": str, "value": float}  # a hash may look like a number: 0123, or 12e3
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "scipy", "torchjd")


def task_rows(
    base: Mapping[str, object], metrics: Mapping[str, Iterable[float]], tasks: Sequence[str], summarise: bool = True
) -> list[dict[str, Any]]:
    """Rows of the long table: one for each metric and task, and with `summarise` for "macro" and "worst".

    Args:
        base: method, seed, epoch and split.
        metrics: Name -> (K,) values of the K tasks.
    """
    rows: list[tuple[str, str, float]] = []
    for metric, values in metrics.items():
        values = np.asarray(values, dtype=float)
        rows += [(task, metric, value) for task, value in zip(tasks, values.tolist(), strict=True)]
        if summarise:
            mean, count = macro(values)
            rows.append(("macro", metric, mean))
            if metric == "auroc":
                worst = float(np.nanmin(values)) if count else np.nan
                rows += [("macro", "auroc_tasks", float(count)), ("worst", "auroc", worst)]
    return [{**base, "task": task, "metric": metric, "value": value} for task, metric, value in rows]


def to_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The long table of `task_rows`."""
    return pd.DataFrame(rows, columns=COLUMNS)


def environment_report() -> dict[str, object]:
    """Versions, commit and hardware: what a result depends on beside its configuration."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    processor = {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}
    processes = {"threads": torch.get_num_threads(), "processes": world_size()}
    return {**versions, "commit": _commit(), **processor, **processes, "gpu": gpu, "system": sys.platform}


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with "+" if files differ from it; None outside one."""
    folder = PROJECT / "deepchest_utils"
    with suppress(OSError, subprocess.CalledProcessError):
        options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "check": True}
        commit: str = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "."], **options).stdout.strip()
        return commit + ("+" if changed else "")
    return None


def _processor() -> str:
    with suppress(OSError):
        if model := re.search(r"^model name[^:\n]*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1].strip()
    return platform.processor() or platform.machine()


def read_results(
    path: str | Path, columns: list[str], what: str, missing_ok: bool = True, name: str = "out"
) -> pd.DataFrame:
    """Read a CSV of results that has these columns; an empty table if there is no file and `missing_ok`: it may be written,
    and an error advises another value of the argument `name`.
    Raises FileError: it is no readable CSV, breaks off, or lacks a column: it is no table of `what`, a "sweep", say.
    """
    advice = f" Choose another {name}." if missing_ok else ""
    if missing_ok and not Path(path).exists():
        return pd.DataFrame(columns=columns)
    try:
        content = _read(Path(path))
        if not content.endswith(b"\n"):
            raise ValueError("it breaks off")
        table = pd.read_csv(io.BytesIO(content), dtype=_TYPES)
    except (ValueError, OSError) as error:  # pandas' own errors are of the first type
        raise FileError(f"{path}: not a readable table ({one_line(error)}).{advice}") from None
    if missing := set(columns) - set(table.columns):
        raise FileError(f"{path} has no column {min(missing)!r}: no table of a {what}.{advice}")
    return table


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a CSV with enough digits to get the same numbers back."""
    write_file(path, table.to_csv(index=False))


def write_json(path: str | Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=1, default=to_plain) + "\n")


def check_place(folder: Path) -> None:
    """FileError if a file in the folder is not of a run, and `write_run` would write over it."""
    for name in (HISTORY, SECONDS, TEST):
        read_results(folder / name, COLUMNS, "run", name="run_dir")
    with suppress(FileNotFoundError):
        if '"backbone"' not in (folder / CONFIG).read_text(encoding="utf-8", errors="replace"):
            raise FileError(f"{folder / CONFIG}: no configuration of a run. Choose another run_dir.")


def write_run(
    folder: str, config: TrainConfig, data: str, history: pd.DataFrame, test: pd.DataFrame, calibration: dict[str, Any]
) -> None:
    """Write all of a finished run but its checkpoint. Where it is repeated, all but seconds.csv has the same bytes.

    Args:
        data: Fingerprint of the data.
        history: Long table of training and validation; its rows of task "run" go to seconds.csv.
        calibration: Finding -> [slope, offset].
    """
    path, of_run = Path(folder), history.task == "run"
    write_json(path / CONFIG, dataclasses.asdict(config))
    write_json(path / ENVIRONMENT, {"data": data, **environment_report()})
    write_table(path / HISTORY, history[~of_run])
    write_table(path / SECONDS, history[of_run])
    write_table(path / TEST, test)
    write_json(path / CALIBRATION, calibration)


@dataclass(frozen=True)
class RunRecord:
    """The store's record of a run."""

    run: str  # its folder, or "<table>:<id>"
    config: TrainConfig
    environment: dict[str, Any]  # `environment_report`, and "data", the fingerprint of its data
    rows: pd.DataFrame  # long table of all epochs and splits


def read_run(folder: str | Path) -> RunRecord:
    """Read the folder of a finished run, without test.csv its history alone. A damaged file may raise any error."""
    folder = Path(folder)
    config = _read_settings(_read(folder / CONFIG))
    environment = json.loads(_read(folder / ENVIRONMENT))
    if not isinstance(environment, dict) or not is_plain(environment):
        raise ValueError(f"{ENVIRONMENT} should hold a few names with their values")
    rows = read_results(folder / HISTORY, COLUMNS, "run", missing_ok=False)
    if (folder / TEST).exists():
        test = read_results(folder / TEST, COLUMNS, "run", missing_ok=False)
        if {(config.method, config.seed)} != set(zip(test.method, test.seed, strict=True)):
            raise ValueError("test.csv is of another method or seed than config.json")
        if set(test.split) != {"test"} or "test" in set(rows.split):
            raise ValueError("test.csv, and it alone, should have the rows of split test")
        scores = test.metric[test.task == "macro"].value_counts()
        if any(scores.get(name) != 1 for name in ("auroc", "average_precision", "auroc_tasks")):
            raise ValueError("test.csv should have one macro AUROC and one macro AP")
        rows = pd.concat([rows, test], ignore_index=True)
    return RunRecord(str(folder), config, environment, rows)


def _read(path: Path) -> bytes:
    """The content of a file. Raises OSError for what is none: a FIFO would block, and a device has no end."""
    if not path.is_file():
        raise OSError(f"{path.name} is no file")
    return path.read_bytes()


def _read_settings(text: str | bytes) -> TrainConfig:
    settings = json.loads(text)
    if not isinstance(settings, dict) or not is_plain(settings):
        raise ValueError("a configuration should hold the settings of a run, of at most 100,000 characters")
    config = TrainConfig(**settings)
    if not config.method.isprintable() or len(config.method) > MAX_NAME:
        raise ValueError(f"method should be a name of at most {MAX_NAME} characters. Found {config.method[:40]!r}.")
    return config


def collect(folder: str | Path) -> tuple[list[RunRecord], list[str]]:
    """Read every tested run below a folder, however deep: folders of runs, and trials of a `RunTable` that have none.
    Returns the runs, and a remark for each other run: "unfinished: ...", "untested: ...", "failed: ..." or "damaged: ...".
    """
    items: list[RunRecord | str] = []
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(child for child in folders if not child.startswith("."))
        path, started = Path(name), files == ["lock"] and not folders
        sources = [(path / file, _read_exported) for file in sorted(files) if file.endswith(_CELLS)]
        if started or {CHECKPOINT, PREVIOUS, FAILURE} & {*files} or len({CONFIG, HISTORY, TEST, "lock"} & {*files}) > 1:
            sources.insert(0, (path, _read_folder))
        for source, read in sources:
            try:
                items += [*read(source)]
            except Exception as error:  # a damaged file raises one of several types
                items.append(f"damaged: {source}: {one_line(error)}")
    remarks = [item for item in items if isinstance(item, str)]
    return [item for item in items if isinstance(item, RunRecord)], remarks


def _read_folder(path: Path) -> Iterator[RunRecord | str]:
    """The run, or why there is none; if it belongs to a table, that says which have failed and which only tune."""
    in_table = os.path.exists(os.path.abspath(path.parent) + _CELLS)  # absolute: "." has no name
    if (path / TEST).exists():
        yield read_run(path)
    elif (path / FAILURE).exists():
        failure = json.loads(_read(path / FAILURE))
        if not in_table:
            yield f"failed: {path}: {failure['method']} seed {failure['seed']}: {failure['error']}"
    elif (path / CHECKPOINT).exists() or (path / PREVIOUS).exists():
        state, _ = read_checkpoint(path)
        method, seed, epochs = (state["identity"].get(name) for name in ("method", "seed", "epochs"))
        progress = f"{state['epoch']} of {epochs} epochs; its command goes on from there"
        yield f"unfinished: {path}: {method} seed {seed}, {progress}"
    elif not (path / HISTORY).exists():
        yield f"unfinished: {path}: neither test.csv nor a checkpoint"
    elif not in_table:
        yield f"untested: {path}: validation scores alone"


def _read_exported(path: Path) -> Iterator[RunRecord | str]:
    """The finished trials of a `RunTable` that have no folder. path: of the table of trials."""
    trials = read_results(path, ["cell"], "sweep", missing_ok=False)
    if "status" not in trials:  # of a localisation study
        return
    out = path.with_name(path.name.removesuffix(_CELLS) + ".csv")
    rows = read_results(out, ["cell", *COLUMNS], "sweep", missing_ok=False)
    tables, tested = dict(list(rows.groupby("cell"))), trials.cell.isin(rows.cell[rows.split == "test"])
    for trial in trials[trials.status == "failed"].itertuples():
        yield f"failed: {out}: {trial.method} seed {trial.seed}: {trial.error}"
    for trial in trials[(trials.status == "done") & tested].itertuples():
        if not (out.with_suffix("") / trial.cell / TEST).exists():
            config = _read_settings(trial.settings)
            environment = {"data": trial.data, "commit": trial.commit}
            yield RunRecord(f"{out}:{trial.cell}", config, environment, tables[trial.cell][COLUMNS])
    if untested := sum((trials.status == "done") & ~tested):
        yield f"untested: {out}: validation scores alone of {untested} runs"


class RunTable:
    """The runs of a sweep as three files, read when it is made. The files call a run a "cell".

    Attributes:
        rows: The long table `<out>`, with columns "cell" and COLUMNS.
        cells: `<out>_cells.csv`, a row a run: settings, status, error, seconds, environment.
        replicates: `<out>_replicates.npz`, an array (M, R, K) a finished run: the M BOOTSTRAP_METRICS in R resamplings
            of the test patients, the same in every run.
        folder: `<out>/`, which has the folders of the runs.
    """

    def __init__(self, out: str | Path, name: str = "out"):
        self.out = csv_path(out, name)
        self.folder = self.out.with_suffix("")
        self.cells_path, self.summary_path, self.replicates_path = (
            self.out.with_name(self.out.stem + end) for end in (_CELLS, "_summary.csv", "_replicates.npz")
        )
        self.rows = read_results(self.out, ["cell", *COLUMNS], "sweep", name=name)
        self.cells = read_results(self.cells_path, ["cell", "status"], "sweep", name=name)
        self.replicates: dict[str, np.ndarray] = {}
        if self.replicates_path.exists():
            try:
                # opened here: of a damaged archive NumPy would leave its own handle open
                with open(self.replicates_path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    self.replicates = dict(arrays)
            except Exception as error:  # a damaged archive raises one of several types
                reason = f"not a readable archive of arrays ({one_line(error)})"
                raise FileError(f"{self.replicates_path}: {reason}. Choose another {name}.") from error

    def finished(self) -> set[str]:
        """Ids of the finished runs."""
        return set(self.cells.cell[self.cells.status == "done"])

    def add(self, record: Mapping[str, object], rows: pd.DataFrame, replicates: np.ndarray) -> None:
        """Write a run, in place of an earlier one with its id: the row of `cells` comes last, and makes it count."""
        cell = str(record["cell"])
        if len(replicates):
            self.replicates[cell] = replicates
            write_arrays(self.replicates_path, self.replicates)
        # as the file has them: what follows from the table is the same now and when it is read again
        rows = rows.assign(cell=cell, value=[float(DIGITS % value) for value in rows.value])[["cell", *COLUMNS]]
        self.rows = append_rows(self.rows[self.rows.cell != cell], rows)
        self.cells = append_rows(self.cells[self.cells.cell != cell], pd.DataFrame([record]))
        write_file(self.out, self.rows.to_csv(index=False, float_format=DIGITS))
        write_file(self.cells_path, self.cells.to_csv(index=False))

    def write_summary(self, summary: pd.DataFrame) -> None:
        """Write the table of `compare_methods`."""
        write_file(self.summary_path, summary.to_csv(index=False, float_format=DIGITS))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed .npz."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **cast("dict[str, Any]", arrays))  # a checker takes any name for that of an option


def append_rows(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """One below the other; an empty table has no types worth keeping."""
    filled = [part for part in (table, rows) if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else table
