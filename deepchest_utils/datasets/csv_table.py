"""Any table with an image column, a patient column and one column a finding, e.g. CheXpert: 1, 0, empty or -1
= unknown."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deepchest_utils.datasets.base import DataError
from deepchest_utils.datasets.table import Table, inside, keep_existing
from deepchest_utils.findings import FINDINGS


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
