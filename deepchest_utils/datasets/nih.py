"""NIH ChestX-ray14 as downloaded, or a part of it: `Data_Entry_2017*.csv`, `images*/`, the official lists, the boxes.

Labels were mined from reports: "No Finding" means that none of the 14 was mentioned. Source: see `findings`.
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.datasets.table import Table, data_folder, path_inside, rows_on_disk

COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
NO_FINDING = "No Finding"
ORIGINAL_SIZE = 1024  # px, of the official images; the boxes are in these pixels


def read_nih(root: str | Path | None) -> Table:
    """Read and check the folder of the download. Raises DataError naming the folder, table, column or row."""
    root = data_folder(root, "nih", "NIH ChestX-ray14")
    sources = sorted(root.glob("Data_Entry_2017*.csv"))
    if not sources:
        raise DataError(f"{root}: no table Data_Entry_2017*.csv in it. data_root should be the folder of the download.")
    source = sources[-1]  # v2020 sorts last and is the corrected one
    table = _read_columns(source)
    is_plain = table["Image Index"].str.fullmatch(r"[^/\\]*[^/\\.][^/\\]*")
    if not is_plain.all():
        name = table["Image Index"][is_plain.idxmin()]
        raise DataError(f"{source}: image name {name!r} points outside the folders; it should be a plain file name.")
    names, patients = table["Image Index"].tolist(), table["Patient ID"]
    labels = _parse_labels(source, table)
    is_number = patients.str.fullmatch("[0-9]{1,18}")  # 1.5 and 1.6 are not both patient 1
    if not is_number.all():
        raise DataError(f"{source}: column 'Patient ID' says {patients[is_number.idxmin()]!r}, not a whole number.")
    files: dict[str, Path] = {}
    for path in sorted(root.glob("images*/**/*.png")):
        if path.name in files:
            raise DataError(f"{root}: {path.name} is in {files[path.name].parent} and in {path.parent}. Remove one.")
        files[path.name] = path
    rows = rows_on_disk(source, names, names, np.array([name in files for name in names]))
    official = None
    lists = root / "train_val_list.txt", root / "test_list.txt"
    if all(path.is_file() for path in lists):
        try:
            train_val, test = (set(path.read_text(encoding="utf-8").split()) for path in lists)
        except UnicodeDecodeError as error:
            raise DataError(f"{root}: {lists[0].name} or {lists[1].name} is not a text file ({error}).") from None
        if both := train_val & test:
            raise DataError(f"{root}: {min(both)} is in train_val_list.txt and in test_list.txt.")
        listed = np.array([names[row] in train_val or names[row] in test for row in rows])
        if not listed.all():
            example = names[rows[listed.argmin()]]
            warn(f"{root}: {(~listed).sum()} images are in neither official list and left out, e.g. {example}.")
        if not listed.any():
            raise DataError(f"{root}: none of its images is in train_val_list.txt or test_list.txt.")
        rows = rows[listed]
        official = np.array([int(names[row] in test) for row in rows])
    ids = np.array(names)[rows]
    paths = [files[name] for name in ids]
    for path in filter(Path.is_symlink, paths):
        path_inside(root, str(path.relative_to(root)), source)
        if not path.is_file():
            raise DataError(f"{path}: a link that leads to no file.")
    numbers = patients.astype(np.int64).to_numpy()[rows]
    return Table("nih", source, paths, ids, labels[rows], numbers, FINDINGS, official)


def _read_columns(source: Path) -> pd.DataFrame:
    """The columns that are needed, found by name and read by position: one release leaves the comma of
    `OriginalImage[Width,Height]` unquoted, the other quotes it, so header and rows can differ in length."""
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a readable CSV table ({error}).") from None
    if not lines:
        raise DataError(f"{source}: the table is empty.")
    header = [name.strip() for name in lines[0]]
    for name in COLUMNS:
        if name not in header:
            raise DataError(f"{source}: no column {name!r}. Found {', '.join(header)}.")
    if len(lines) == 1:
        raise DataError(f"{source}: the table has a header and no row.")
    positions = [header.index(name) for name in COLUMNS]
    for number, line in enumerate(lines, start=1):
        if len(line) <= max(positions):
            raise DataError(f"{source}: row {number} has {len(line)} fields, too few for its columns.")
    return pd.DataFrame([[line[i].strip() for i in positions] for line in lines[1:]], columns=list(COLUMNS))


def _parse_labels(source: Path, table: pd.DataFrame) -> Float[np.ndarray, "n 14"]:
    """Labels as float32 from `Effusion|Mass`; DataError for a name that is not one of the 14 or "No Finding"."""
    labels = np.zeros((len(table), len(FINDINGS)), np.float32)
    for row, (image, text) in enumerate(zip(table["Image Index"], table["Finding Labels"], strict=True)):
        place, names = f"{source}: column 'Finding Labels' of {image}", set(text.split("|"))
        if "|" in text and NO_FINDING in names:
            raise DataError(f"{place} says {text!r}, which contradicts itself.")
        if unknown := sorted(names - {*FINDINGS, NO_FINDING}):
            raise DataError(f"{place} says {unknown[0]!r}. Allowed are {', '.join(FINDINGS)} and {NO_FINDING}.")
        labels[row] = [name in names for name in FINDINGS]
    return labels


def load_boxes(root: str | Path, image_size: int = ORIGINAL_SIZE) -> pd.DataFrame:
    """Read the official boxes, `BBox_List_2017.csv`, scaled to an image size in px.

    The columns are image, finding, x, y, width and height; x and y are the upper left corner. Raises DataError if the
    file is missing, is no table of boxes, or has another finding.
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
    boxes["finding"] = boxes["finding"].replace("Infiltrate", "Infiltration")  # as the table of labels says
    if unknown := set(boxes["finding"].fillna("")) - set(FINDINGS):
        raise DataError(f"{path}: column 'Finding Label' says {min(unknown)!r}. Allowed are {', '.join(FINDINGS)}.")
    return boxes
