"""The runs below a folder: their long tables in one, what differs between them, and which of them may share a mean."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from deepchest_utils.files import brief
from deepchest_utils.records import COLUMNS
from deepchest_utils.report.groups import describe_run, differing_settings, name_groups
from deepchest_utils.sweep.run import TYPES
from deepchest_utils.training import TrainConfig
from deepchest_utils.training.checkpoint import NAME, PREVIOUS, read_checkpoint

CELLS = "_cells.csv"
SAME = ["method", "seed", "data", "key"]  # columns that are the same in a run and its repetition
RUN_FILES = {"config.json", "history.csv", "test.csv", "lock"}
Found = tuple[list[tuple[dict[str, Any], pd.DataFrame]], list[str]]


@dataclass(frozen=True)
class Reruns:
    """Runs that have been tested.

    runs: a row a run: run (folder, or table and cell), method (options included), seed, data_seed, data, commit,
    settings (name -> value, method and seed apart), group (a text; what may share a mean). rows: `records`' long table of all
    epochs and splits, with run, group and the settings that differ before it. remarks: a line for each run that is
    not among them, and why.
    """

    runs: pd.DataFrame
    rows: pd.DataFrame
    remarks: list[str]


def collect_runs(folder: str | Path) -> Reruns:
    """Read, however deep below `folder`: the folders of `train` (config.json, environment.json, history.csv, test.csv), as
    a notebook's `run_dir` has them, and the tables of `sweep` (X.csv with X_cells.csv). Those of `localize` are no scores
    of runs and are left alone.

    Two runs have the same group if they ran on the same data with the same settings, method and seed apart. Phantoms that
    were drawn with the seed of the run, as in notebook 03, are a group of their own: independent draws, one a seed. A run
    that is there twice counts once. Raises ValueError if there is no such folder, or no tested run below it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"folder should hold runs. Found no folder {str(folder)!r}.")
    found: list[tuple[dict[str, Any], pd.DataFrame]] = []
    remarks: list[str] = []
    for path in _sources(root):
        try:
            more, said = _read_sweep(path) if path.name.endswith(CELLS) else _read_run(path)
        except Exception as error:  # a damaged file raises one of several types
            more, said = [], [f"damaged: {path}: {brief(error)}"]
        found, remarks = found + more, remarks + said
    if not found:
        listed = _listed(remarks, "; ") or "neither a folder of train nor a table of sweep"
        raise ValueError(
            f"folder should hold runs that have been tested. Found none in {str(folder)!r}: {listed}."
        )
    runs = pd.DataFrame([record for record, _ in found])
    again = runs.duplicated(SAME)
    if again.any():
        scores = runs.assign(score=[_macro(rows) for _, rows in found]).groupby([*SAME], dropna=False).score
        alike = (scores.max() - scores.min()).max() < 1e-5
        first = "" if alike else ", the first, although their scores are not the same"
        remarks.append(f"repeated: {_listed(runs.run[again])}: counted once{first}")
    if runs.commit.nunique() > 1:
        commits = runs.commit.dropna().unique()
        remarks.append(f"note: the runs are of {len(commits)} commits of the code: {_listed(commits)}")
    runs = runs[~again].reset_index(drop=True)
    tables = [rows for (_, rows), repeated in zip(found, again, strict=True) if not repeated]
    differing = differing_settings(runs)
    runs["group"] = name_groups(runs, differing)
    parts = [
        rows.assign(run=run.run, group=run.group, method=run.method, **differing.loc[run.Index])
        for run, rows in zip(runs.itertuples(), tables, strict=True)
    ]
    columns = ["run", "group", *differing.columns, *COLUMNS]
    return Reruns(runs.drop(columns="key"), pd.concat(parts, ignore_index=True)[columns], remarks)


def _macro(rows: pd.DataFrame) -> float:
    return float(rows.query("split == 'test' and task == 'macro' and metric == 'auroc'").value.iloc[0])


def _listed(texts: Iterable[str], separator: str = ", ") -> str:
    """The first three, and how many more."""
    names = [*texts]
    return separator.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sources(root: Path) -> Iterator[Path]:
    """Folders of runs, finished or not, and tables of cells, in the order of their names."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        path, names = Path(here), set(files)
        # a sweep keeps a lock of its own where its cells are
        started = names == {"lock"} and not folders and path.parent.name != "sweeps"
        if started or names & {NAME, PREVIOUS} or len(names & RUN_FILES) > 1:
            yield path
        yield from (path / name for name in sorted(files) if name.endswith(CELLS))


def _read_run(path: Path) -> Found:
    """A folder of `train`."""
    if not (path / "test.csv").exists():
        return [], [_unfinished(path)]
    config = TrainConfig(**json.loads((path / "config.json").read_text()))
    known = json.loads((path / "environment.json").read_text())
    history, test = _read(path / "history.csv", COLUMNS), _read(path / "test.csv", COLUMNS)
    if {(config.method, config.seed)} != set(zip(test.method, test.seed, strict=True)):
        raise ValueError("test.csv is of another method or seed than config.json")
    if len(test.query("task == 'macro' and metric in ['auroc', 'average_precision']")) != 2:
        raise ValueError("test.csv should have one macro AUROC and one macro AP")
    record = describe_run(str(path), config, known.get("data"), known.get("commit"))
    return [(record, pd.concat([history, test], ignore_index=True))], []


def _unfinished(path: Path) -> str:
    checkpoint = next((path / name for name in (NAME, PREVIOUS) if (path / name).exists()), None)
    if checkpoint is None:
        return f"unfinished: {path}: neither test.csv nor a checkpoint"
    state = read_checkpoint(checkpoint)
    its = state["identity"]
    done = f"{state['epoch']} of {its.get('epochs')} epochs"
    return f"unfinished: {path}: {its.get('method')} seed {its.get('seed')}, {done}; its command goes on from there"


def _read_sweep(path: Path) -> Found:
    """The finished cells of a sweep. path: of the table of its cells."""
    cells = _read(path, ["cell"])
    if "status" not in cells:  # of `localize`
        return [], []
    out = path.with_name(path.name.removesuffix(CELLS) + ".csv")
    tables = dict(list(_read(out, ["cell", *COLUMNS]).groupby("cell")))
    failed, done = cells[cells.status == "failed"], cells[cells.status == "done"]
    remarks = [f"failed: {out}: {c.method} seed {c.seed}: {c.error}" for c in failed.itertuples()]
    tested = [cell in tables and bool((tables[cell].split == "test").any()) for cell in done.cell]
    if not all(tested):
        remarks.append(f"untested: {out}: validation scores alone of {tested.count(False)} runs")
    found = [
        (
            describe_run(f"{out}:{c.cell}", TrainConfig(**json.loads(c.settings)), c.data, c.commit),
            tables[c.cell],
        )
        for c in done[tested].itertuples()
    ]
    return found, remarks


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table; ValueError if it is not whole."""
    text = path.read_text()
    if not text.endswith("\n"):
        raise ValueError(f"{path.name} breaks off")
    table = pd.read_csv(io.StringIO(text), dtype={**TYPES, "value": float})
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path.name} has no column {missing[0]!r}")
    return table
