"""From a checked table of image files to `Splits`: what nih and csv have in common."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.datasets.base import (
    ChestXrays,
    DataError,
    DataWarning,
    Splits,
    image_split,
    limit_images,
    patient_split,
)
from deepchest_utils.datasets.cache import decode_all
from deepchest_utils.datasets.findings import FINDINGS

SPLITS = ("official", "patient", "image")


@dataclass
class Table:
    """Images on disk and what the table `source` says of them; `official` is 0 for train_val, 1 for test, where the lists are
    there."""

    name: str
    source: Path
    paths: list[Path]
    ids: np.ndarray
    labels: Float[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    findings: tuple[str, ...]
    official: Int[np.ndarray, " n"] | None = None


def inside(root: Path, name: str, table: Path) -> Path:
    """`root / name`; DataError if the name is absolute, climbs out with `..`, or a link leads out."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{table}: image name {name!r} points outside {root}; names should be relative to it.")
    return path


def keep_existing(table_path: Path, names: list[str], exists: np.ndarray) -> np.ndarray:
    """Rows whose image is there: one warning with the count of the others, DataError if none is left."""
    missing = np.flatnonzero(~exists)
    if len(missing) == len(names):
        example = f", e.g. {names[0]}" if names else ""
        raise DataError(f"{table_path}: none of its {len(names)} images is on disk{example}. Check data_root.")
    if len(missing):
        warnings.warn(
            f"{table_path}: {len(missing)} of {len(names)} images are not on disk and left out, e.g. {names[missing[0]]}.",
            DataWarning,
            stacklevel=4,
        )
    return np.flatnonzero(exists)


def assign(table: Table, split: str | None, seed: int) -> tuple[str, np.ndarray]:
    """The split's name and, for each image, 0 train, 1 val, 2 test."""
    split = split or ("official" if table.official is not None else "patient")
    if split == "official":
        if table.official is None:
            raise DataError(
                f'{table.source}: split="official" needs train_val_list.txt and test_list.txt beside the table. Add them, or use split="patient".'
            )
        number = np.full(len(table.ids), 2)
        train_val = np.flatnonzero(table.official == 0)
        if len(np.unique(table.patients[train_val])) < 2:
            raise DataError(
                f'{table.source}: train_val_list.txt names fewer than 2 of the patients here, too few for train and val. Use split="patient".'
            )
        number[train_val] = patient_split(table.labels[train_val], table.patients[train_val], (0.875, 0.125), seed)
        return split, number
    if split == "patient":
        try:
            return split, patient_split(table.labels, table.patients, seed=seed)
        except ValueError as error:
            raise DataError(f"{table.source}: {error}") from None
    if split == "image":
        return split, image_split(len(table.ids), seed=seed)
    raise DataError(f"split should be one of {', '.join(SPLITS)}. Found {split!r}.")


def splits_from_table(
    table: Table, image_size: int, split: str | None, seed: int, max_images: int | None, cache_dir: str | Path | None
) -> Splits:
    """Split, limit, decode in the splits' order (so that each split is one memory-mapped slice)."""
    split, number = assign(table, split, seed)
    rows = []
    for i, name in enumerate(("train", "val", "test")):
        members = np.flatnonzero(number == i)
        if len(members) == 0:
            raise DataError(
                f"{table.source}: the {name} split is empty with split={split!r}. Add images, or use another split."
            )
        rows.append(members[limit_images(table.patients[members], max_images, seed)])
    order = np.concatenate(rows)
    images = decode_all(table.name, [table.paths[i] for i in order], image_size, cache_dir)
    ends = np.cumsum([len(r) for r in rows])
    train, val, test = (
        ChestXrays(images[end - len(r) : end], table.labels[r], table.patients[r], table.findings, table.ids[r])
        for r, end in zip(rows, ends, strict=True)
    )
    return Splits(train, val, test, name=table.name, split=split)


def read_csv_table(
    root: str | Path | None,
    table: str = "labels.csv",
    image_column: str = "image",
    patient_column: str = "patient",
    finding_columns: Sequence[str] | None = None,
) -> Table:
    """Read and check a table of one's own.

    root: folder of the images. table: the CSV, relative to root or absolute. image_column: file names
    relative to root. patient_column: any text or number.
    finding_columns: the tasks; default: those of the 14 findings that the table has.
    Raises DataError naming the table, the column and the row.
    """
    if root is None:
        raise DataError('data_root should name the folder of the images for dataset="csv". Found None.')
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data_root {str(root)!r}: no such folder.")
    path = root / table
    if not path.is_file():
        raise DataError(f"{path}: no such table. Name it with table=...")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable CSV table ({error}).") from None
    findings = tuple(finding_columns or [name for name in FINDINGS if name in frame.columns])
    if not findings:
        raise DataError(f"{path}: no column has the name of a finding. Name them with finding_columns=[...].")
    for column in (image_column, patient_column, *findings):
        if column not in frame.columns:
            raise DataError(f"{path}: no column {column!r}. Found {', '.join(frame.columns)}.")
    if frame.empty:
        raise DataError(f"{path}: the table has a header and no row.")

    labels = np.column_stack([_parse(path, frame, column) for column in findings])
    names = frame[image_column].str.strip().tolist()
    paths = [inside(root, name, path) for name in names]
    if (repeated := pd.Series(paths).duplicated()).any():  # on both sides of a split it would leak
        raise DataError(
            f"{path}: {repeated.sum()} images are listed more than once, e.g. {names[repeated.idxmax()]} in row {repeated.idxmax() + 2}."
        )
    rows = keep_existing(path, names, np.array([p.is_file() for p in paths]))
    patients = frame[patient_column].str.strip()
    if (patients == "").any():
        raise DataError(f"{path}: column {patient_column!r} is empty in row {(patients == '').idxmax() + 2}.")
    return Table(
        name="csv",
        source=path,
        paths=[paths[i] for i in rows],
        ids=np.array(names)[rows],
        labels=labels[rows],
        patients=pd.factorize(patients)[0].astype(np.int64)[rows],
        findings=findings,
    )


def _parse(path: Path, frame: pd.DataFrame, column: str) -> np.ndarray:
    """(N,) float32 of one column: 1, 0, NaN for empty and -1."""
    text = frame[column].str.strip()
    values = pd.to_numeric(text.where(text != "", "-1"), errors="coerce").to_numpy(float)
    wrong = ~np.isin(values, (-1, 0, 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: column {column!r} says {text.iloc[row]!r} in row {row + 2}. Allowed are 1, 0, and empty or -1 for unknown."
        )
    return np.where(values == -1, np.nan, values).astype(np.float32)
