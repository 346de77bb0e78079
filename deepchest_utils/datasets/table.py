"""Data sets of image files: a checked `Table`, the reader of a CSV of one's own, and the way from a table to `Splits`.

A reader of another layout returns a `Table` and is added to `DATASETS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.config import check_choice
from deepchest_utils.datasets.base import ChestXrays, DataError, Splits, image_split, limit_images, patient_split, warn
from deepchest_utils.datasets.cache import decode_all
from deepchest_utils.datasets.findings import FINDINGS


@dataclass(frozen=True)
class Table:
    """N image files and what the file `source` says of them; labels as in `ChestXrays`.

    `official` is 0 for the official list of training and validation, 1 for that of test; None without the lists.
    """

    name: str
    source: Path
    paths: list[Path]
    ids: np.ndarray
    labels: Float[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    findings: tuple[str, ...]
    official: Int[np.ndarray, " n"] | None = None


def data_folder(root: str | Path | None, dataset: str, content: str) -> Path:
    """The folder `root`; DataError if there is none. dataset, content: for the message."""
    if root is None:
        raise DataError(f'data_root should name the folder of {content} for dataset="{dataset}". Found None.')
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data_root {str(folder)!r}: no such folder.")
    return folder


def path_inside(root: Path, name: str, source: Path) -> Path:
    """`root / name`; DataError if the name is absolute, climbs out with `..`, or a link leads out."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{source}: image name {name!r} points outside {root}; names should be relative to it.")
    return path


def rows_on_disk(source: Path, names: list[str], files: list[Path] | list[str], exists: np.ndarray) -> np.ndarray:
    """Rows whose file is there. Warns once with the count of the others. DataError if none is left, or if a file is
    listed twice: it could be on both sides of a split."""
    repeated = pd.Series(files).duplicated()
    if repeated.any():
        example = f"{names[repeated.idxmax()]} in row {repeated.idxmax() + 2}"
        raise DataError(f"{source}: {repeated.sum()} images are listed more than once, e.g. {example}.")
    missing = np.flatnonzero(~exists)
    if len(missing) == len(names):
        raise DataError(f"{source}: none of its {len(names)} images is on disk, e.g. {names[0]}. Check data_root.")
    if len(missing):
        example = names[missing[0]]
        warn(f"{source}: {len(missing)} of {len(names)} images are not on disk and left out, e.g. {example}.")
    return np.flatnonzero(exists)


def splits_from_table(
    table: Table, image_size: int, split: str | None, seed: int, max_images: int | None, cache_dir: str | Path | None
) -> Splits:
    """Split a table, limit each split and decode its images; the arguments are those of `load_dataset`."""
    split = split or ("official" if table.official is not None else "patient")
    check_choice("split", split, ("official", "patient", "image"), DataError)
    if split == "image":
        split_of = image_split(len(table.ids), seed=seed)
    elif split == "patient":
        try:
            split_of = patient_split(table.labels, table.patients, seed=seed)
        except ValueError as error:
            raise DataError(f"{table.source}: {error}") from None
    elif table.official is None:
        needs = "train_val_list.txt and test_list.txt beside the table"
        raise DataError(f'{table.source}: split="official" needs {needs}. Add them, or use split="patient".')
    else:
        train_val = table.official == 0
        if len(np.unique(table.patients[train_val])) < 2:
            few = "train_val_list.txt names fewer than 2 of the patients here, too few for train and val"
            raise DataError(f'{table.source}: {few}. Use split="patient".')
        split_of = np.full(len(table.ids), 2)
        split_of[train_val] = patient_split(table.labels[train_val], table.patients[train_val], (0.875, 0.125), seed)
    rows_of = []
    for i, name in enumerate(("train", "val", "test")):
        if not len(rows := np.flatnonzero(split_of == i)):
            message = f"{table.source}: the {name} split is empty with split={split!r}"
            raise DataError(f"{message}. Add images, or use another split.")
        rows_of.append(rows[limit_images(table.patients[rows], max_images, seed)])
    order = np.concatenate(rows_of)  # by split: each is one slice of the memory map
    images = decode_all(table.name, [table.paths[row] for row in order], image_size, cache_dir)
    pooled = ChestXrays(images, table.labels[order], table.patients[order], table.findings, table.ids[order])
    ends = np.cumsum([0, *map(len, rows_of)])
    train, val, test = (pooled.subset(slice(start, end)) for start, end in pairwise(ends))
    return Splits(train, val, test, name=table.name, split=split)


def read_csv_table(
    root: str | Path | None,
    table: str = "labels.csv",
    image_column: str = "image",
    patient_column: str = "patient",
    finding_columns: Sequence[str] | None = None,
) -> Table:
    """Read and check a table of one's own. Raises DataError naming the table, column or row that is wrong.

    Args:
        table: The CSV file, relative to root or absolute.
        image_column: File names relative to root.
        patient_column: Any text or number.
        finding_columns: The tasks; by default those of the 14 findings that the table has.
    """
    root = data_folder(root, "csv", "the images")
    source = root / table
    if not source.is_file():
        raise DataError(f"{source}: no such table. Name it with table=...")
    try:
        frame = pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a readable CSV table ({error}).") from None
    findings = tuple(finding_columns or [name for name in FINDINGS if name in frame.columns])
    if not findings:
        raise DataError(f"{source}: no column has the name of a finding. Name them with finding_columns=[...].")
    for column in (image_column, patient_column, *findings):
        if column not in frame.columns:
            raise DataError(f"{source}: no column {column!r}. Found {', '.join(frame.columns)}.")
    if frame.empty:
        raise DataError(f"{source}: the table has a header and no row.")
    labels = np.column_stack([_parse_labels(source, frame, column) for column in findings])
    names = frame[image_column].str.strip().tolist()
    paths = [path_inside(root, name, source) for name in names]
    rows = rows_on_disk(source, names, paths, np.array([path.is_file() for path in paths]))
    patients = frame[patient_column].str.strip()
    if (patients == "").any():
        raise DataError(f"{source}: column {patient_column!r} is empty in row {(patients == '').idxmax() + 2}.")
    numbers = pd.factorize(patients)[0].astype(np.int64)[rows]
    kept = [paths[row] for row in rows]
    return Table("csv", source, kept, np.array(names)[rows], labels[rows], numbers, findings)


def _parse_labels(source: Path, frame: pd.DataFrame, column: str) -> Float[np.ndarray, " n"]:
    """One column as float32: 1, 0, and NaN for empty and -1."""
    text = frame[column].str.strip()
    values = pd.to_numeric(text.where(text != "", "-1"), errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~np.isin(values, (-1, 0, 1)))
    if len(wrong):
        message = f"{source}: column {column!r} says {text.iloc[wrong[0]]!r} in row {wrong[0] + 2}"
        raise DataError(f"{message}. Allowed are 1, 0, and empty or -1 for unknown.")
    return np.where(values == -1, np.nan, values).astype(np.float32)
