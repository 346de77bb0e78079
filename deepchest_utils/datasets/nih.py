"""NIH ChestX-ray14 as downloaded, or a part of it: `Data_Entry_2017*.csv`, `images*/`, the official lists, the boxes; or
the public subset of 256 px, `labels/*_labels.csv` and `images/`.

Labels were mined from reports: "No Finding" means that none of the 14 was mentioned. Source: see `findings`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.datasets.table import (
    Table,
    data_folder,
    find_images,
    read_table,
    rows_on_disk,
    walk_images,
)  # fmt: skip

COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "sample_labels.csv")  # the corrected one first; Kaggle's
LISTS = (("train_val_list.txt", "test_list.txt"), ("train_val_list_NIH.txt", "test_list_NIH.txt"))
# MichaelNoya/nih-chest-xray-webdataset-subset on GitHub, whose tables are its split
SUBSET = [f"labels/{part}_labels.csv" for part in ("train", "val", "test")]
NO_FINDING = "No Finding"
ORIGINAL_SIZE = 1024  # px, of the official images; the boxes are in these pixels


def read_nih(root: str | Path | None, table: str | None = None) -> Table:
    """Read and check the folder of the download, of Kaggle's sample of it, or of the public subset of 256 px, whose tables
    are its split. Raises DataError naming what is wrong.

    Images are looked for below folders named images*, or else below all folders, as PNG, JPEG, DICOM or another kind.

    Args:
        table: The table; by default the official one, `TABLES`, or else the only Data_Entry_2017*.csv.
    """
    root = data_folder(root, "nih", "NIH ChestX-ray14")
    official = None
    if table is None and (root / SUBSET[0]).is_file() and not any((root / name).is_file() for name in TABLES):
        source, (frame, labels, official) = root / "labels", _read_subset(root)
    else:
        source = _find_table(root) if table is None else root / table
        frame = read_table(source, COLUMNS, alone=True)
        labels = _parse_labels(source, frame)
    names, patients = frame["Image Index"], frame["Patient ID"]
    codes, texts = pd.factorize(patients)
    for i, text in enumerate(texts):
        if not (text.isascii() and text.isdigit() and len(text) <= 18):  # 1.5 and 1.6 are not both patient 1
            place = f"row {frame.index[codes == i][0]}"
            raise DataError(f"{source}: column 'Patient ID' says {text[:80]!r}, not a whole number, in {place}.")
    folders = [path for path in root.iterdir() if path.name.lower().startswith("images") and path.is_dir()]
    listed: list[str] = names.tolist()
    entries = find_images(source, names, root, walk_images(sorted(folders) or [root]), any_suffix=True)
    looked = f"below {', '.join(path.name for path in sorted(folders)[:5]) or root} for .png, .jpg, .dcm and others"
    rows = rows_on_disk(source, names, entries, looked)
    if official is not None:
        official = official[rows]
    elif (lists := _read_lists(root)) is not None:
        train_val, test = lists
        part_of = np.array([2 if listed[row] in test else 0 if listed[row] in train_val else -1 for row in rows])
        if (unlisted := part_of < 0).any():
            example = listed[rows[unlisted.argmax()]]
            warn(f"{root}: {unlisted.sum()} images are in neither official list and left out, e.g. {example}.")
        if unlisted.all():
            raise DataError(f"{root}: none of its images is in train_val_list.txt or test_list.txt.")
        rows, official = rows[~unlisted], part_of[~unlisted]
    numbers = np.array([int(text) for text in texts], np.int64)[codes]
    ids, paths = np.array([listed[row] for row in rows]), [entries[row].path for row in rows]
    needs = "train_val_list.txt and test_list.txt beside the table. Add them"
    return Table("nih", source, paths, ids, labels[rows], numbers[rows], FINDINGS, official, needs)


def _read_subset(root: Path) -> tuple[pd.DataFrame, Float[np.ndarray, "n 14"], Int[np.ndarray, " n"]]:
    """Images and patients, labels, and the split that the three tables are; a name begins with its patient's number."""
    frames = []
    for name in SUBSET:
        frame = read_table(root / name, ["Image Index", *FINDINGS])
        values = frame[[*FINDINGS]]
        if (wrong := ~values.isin(["0", "1"])).any(axis=None):
            column = values.columns[wrong.any().argmax()]
            place = f"row {values.index[wrong[column].argmax()]}"
            raise DataError(f"{root / name}: column {column!r} should say 0 or 1. Found another value in {place}.")
        frames.append(frame.assign(**{"Patient ID": frame["Image Index"].str.partition("_")[0]}))
    frame = pd.concat(frames)
    return frame, frame[[*FINDINGS]].to_numpy(np.float32), np.repeat([0, 1, 2], [*map(len, frames)])


def _find_table(root: Path) -> Path:
    """The official table; DataError if there is none and not just one copy."""
    others = [path for path in sorted(root.glob("Data_Entry_2017*.csv")) if path.is_file()]
    for path in (root / name for name in TABLES):
        if path.is_file():
            return path
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"{root}: several tables and none of the official name: {names}. Say which with table=...")
    if not others:
        message = f"no table {', '.join(TABLES)} or other Data_Entry_2017*.csv in it; table=... is another name"
        raise DataError(f"{root}: {message}. root (data_root of a run) should be the folder of the download.")
    return others[0]


def _read_lists(root: Path) -> tuple[set[str], set[str]] | None:
    """The two official lists; None, with a warning if there is something like them, where they are not both there."""
    for names in LISTS:
        paths = [root / name for name in names]
        if all(path.is_file() for path in paths):
            try:
                train_val, test = (set(path.read_text(encoding="utf-8-sig").split()) for path in paths)
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{root}: {names[0]} or {names[1]} is not a text file ({error}).") from None
            if both := train_val & test:
                raise DataError(f"{root}: {min(both)} is in {names[0]} and in {names[1]}.")
            return train_val, test
    if others := sorted(path.name for path in root.glob("*_[Ll][Ii][Ss][Tt]*.txt")):
        warn(
            f"{root}: the official split needs {' and '.join(LISTS[0])}. Found {', '.join(others)}, which is not used."
        )
    return None


def _parse_labels(source: Path, frame: pd.DataFrame) -> Float[np.ndarray, "n 14"]:
    """Labels as float32 from `Effusion|Mass`; DataError for a name that is not one of the 14 or "No Finding"."""
    codes, texts = pd.factorize(frame["Finding Labels"])
    labels = np.zeros((len(texts), len(FINDINGS)), np.float32)
    for i, text in enumerate(texts):
        names = set(text.split("|"))
        place = f"{source}: column 'Finding Labels' of {frame['Image Index'].iloc[(codes == i).argmax()]}"
        if "|" in text and NO_FINDING in names:
            raise DataError(f"{place} says {text!r}, which contradicts itself.")
        if unknown := sorted(names - {*FINDINGS, NO_FINDING}):
            raise DataError(f"{place} says {unknown[0]!r}. Allowed are {', '.join(FINDINGS)} and {NO_FINDING}.")
        labels[i] = [name in names for name in FINDINGS]
    return np.asarray(labels[codes])


def load_boxes(root: str | Path, image_size: int = ORIGINAL_SIZE) -> pd.DataFrame:
    """Read the official boxes, `BBox_List_2017.csv`, scaled to an image size in px.

    The columns are image, finding, x, y, width and height; x and y are the upper left corner. Raises DataError if the
    file is missing, is no table of boxes, or has another finding or a box without an area in the image.
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
    near, far = boxes[["x", "y"]].to_numpy(), boxes[["x", "y"]].to_numpy() + boxes[["width", "height"]].to_numpy()
    inside = (far > np.maximum(near, 0)) & (near < image_size) & np.isfinite(far)  # NaN is not
    if not (right := inside.all(1)).all():
        row = int(right.argmin())
        found = f"the box of {boxes['image'][row]} has no area in the image (row {row + 2})"
        raise DataError(f"{path}: {found}. It should be x, y, width and height in px of {ORIGINAL_SIZE}.")
    return boxes
