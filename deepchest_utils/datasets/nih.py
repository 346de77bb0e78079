"""NIH ChestX-ray14 as downloaded: `Data_Entry_2017*.csv`, `images*/`, the official lists, the boxes; any
subset, any image size.

Wang et al., "ChestX-ray8", CVPR 2017, arXiv 1705.02315. Labels were mined from reports: "No Finding" means
that none of the 14 was mentioned.
"""

import csv
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from deepchest_utils.datasets.base import DataError, DataWarning
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.datasets.table import Table, inside, keep_existing

COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
NO_FINDING = "No Finding"
ORIGINAL_SIZE = 1024  # px, of the official images; the boxes are in these pixels


def read_table(path: Path) -> pd.DataFrame:
    """The columns that are needed, found by name and read by position.

    The header of one release says `OriginalImage[Width,Height]` unquoted, that of the other quotes it, so
    that header and rows can differ in length; only the position of the columns before it can be trusted.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV table ({error}).") from None
    if not rows:
        raise DataError(f"{path}: the table is empty.")
    header = [name.strip() for name in rows[0]]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}. Found {', '.join(header)}.")
    positions = [header.index(name) for name in COLUMNS]
    short = [i for i, row in enumerate(rows[1:], start=2) if len(row) <= max(positions)]
    if short:
        raise DataError(f"{path}: row {short[0]} has {len(rows[short[0] - 1])} fields, too few for its columns.")
    table = pd.DataFrame([[row[i].strip() for i in positions] for row in rows[1:]], columns=list(COLUMNS))
    if table.empty:
        raise DataError(f"{path}: the table has a header and no row.")
    return table


def parse_labels(path: Path, table: pd.DataFrame) -> np.ndarray:
    """(N, 14) float32 from `Effusion|Mass`; DataError for a name that is not one of the 14 or "No
    Finding"."""
    number = {name: i for i, name in enumerate(FINDINGS)}
    labels = np.zeros((len(table), len(FINDINGS)), np.float32)
    for row, text in enumerate(table["Finding Labels"]):
        names = text.split("|")
        if NO_FINDING in names and len(names) > 1:
            raise DataError(
                f"{path}: column 'Finding Labels' of {table['Image Index'][row]} says {text!r}, which contradicts itself."
            )
        for name in names:
            if name in number:
                labels[row, number[name]] = 1
            elif name != NO_FINDING:
                raise DataError(
                    f"{path}: column 'Finding Labels' of {table['Image Index'][row]} says {name!r}. Allowed are {', '.join(FINDINGS)} and {NO_FINDING}."
                )
    return labels


def find_images(root: Path) -> dict[str, Path]:
    """Every .png below the folders `images*` of the root, by name."""
    found: dict[str, Path] = {}
    for top in sorted(root.glob("images*")):
        for folder, _, names in os.walk(top):
            for name in names:
                if name in found:
                    raise DataError(f"{root}: {name} is in {found[name].parent} and in {folder}. Remove one.")
                if name.endswith(".png"):
                    found[name] = Path(folder) / name
    return found


def read_list(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}).") from None


def read_nih(root: str | Path | None) -> Table:
    """Read and check the folder of the download. Raises DataError naming the folder, table, column or row."""
    if root is None:
        raise DataError('data_root should name the folder of NIH ChestX-ray14 for dataset="nih". Found None.')
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data_root {str(root)!r}: no such folder.")
    tables = sorted(root.glob("Data_Entry_2017*.csv"))
    if not tables:
        raise DataError(f"{root}: no table Data_Entry_2017*.csv in it. data_root should be the folder of the download.")
    path = tables[-1]  # v2020 sorts last and is the corrected one
    table = read_table(path)
    names = table["Image Index"].tolist()
    if repeated := table["Image Index"][table["Image Index"].duplicated()].tolist():
        raise DataError(f"{path}: {len(repeated)} images are listed more than once, e.g. {repeated[0]}.")
    for name in names:
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise DataError(
                f"{path}: image name {name!r} points outside the image folders; it should be a plain file name."
            )
    labels = parse_labels(path, table)
    whole = table["Patient ID"].str.fullmatch("[0-9]{1,18}")  # 1.5 and 1.6 are not both patient 1
    if not whole.all():
        raise DataError(
            f"{path}: column 'Patient ID' says {table['Patient ID'][whole.idxmin()]!r}, not a whole number."
        )

    files = find_images(root)
    rows = keep_existing(path, names, np.array([name in files for name in names]))
    official = None
    lists = root / "train_val_list.txt", root / "test_list.txt"
    if all(p.is_file() for p in lists):
        train_val, test = map(read_list, lists)
        if both := train_val & test:
            raise DataError(f"{root}: {min(both)} is in train_val_list.txt and in test_list.txt.")
        unlisted = [i for i in rows if names[i] not in train_val and names[i] not in test]
        if unlisted:
            warnings.warn(
                f"{root}: {len(unlisted)} images are in neither official list and left out, e.g. {names[unlisted[0]]}.",
                DataWarning,
                stacklevel=3,
            )
            rows = np.setdiff1d(rows, unlisted)
            if len(rows) == 0:
                raise DataError(f"{root}: none of its images is in train_val_list.txt or test_list.txt.")
        official = np.array([int(names[i] in test) for i in rows])
    kept = [names[i] for i in rows]
    for name in kept:
        if files[name].is_symlink():
            inside(root, str(files[name].relative_to(root)), path)
            if not files[name].is_file():
                raise DataError(f"{files[name]}: a link that leads to no file.")
    return Table(
        name="nih",
        source=path,
        paths=[files[name] for name in kept],
        ids=np.array(kept),
        labels=labels[rows],
        patients=table["Patient ID"].astype(np.int64).to_numpy()[rows],
        findings=FINDINGS,
        official=official,
    )


def load_boxes(root: str | Path, image_size: int = ORIGINAL_SIZE) -> pd.DataFrame:
    """The official boxes: columns image, finding, x, y, width, height, scaled to `image_size` px; x, y the
    upper left corner.

    The file says `Infiltrate` where the table says `Infiltration`. Raises DataError if it is missing or has
    another finding.
    """
    path = Path(root).expanduser() / "BBox_List_2017.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    sides = ["x", "y", "width", "height"]
    try:
        boxes = pd.read_csv(path, usecols=range(6), header=None, skiprows=1)
        boxes.columns = ["image", "finding", *sides]
        boxes[sides] = boxes[sides].astype(float) * (image_size / ORIGINAL_SIZE)
    except ValueError as error:  # pandas' own errors are of this type
        raise DataError(f"{path}: not a readable table of boxes ({error}).") from None
    boxes["finding"] = boxes["finding"].replace("Infiltrate", "Infiltration")
    unknown = set(boxes["finding"].fillna("")) - set(FINDINGS)
    if unknown:
        raise DataError(f"{path}: column 'Finding Label' says {min(unknown)!r}. Allowed are {', '.join(FINDINGS)}.")
    return boxes
