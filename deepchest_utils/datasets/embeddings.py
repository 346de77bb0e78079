"""Features of a pretrained encoder in place of images: a file of `python -m deepchest_utils embed`, or made elsewhere."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.label_columns import Names, Policy
from deepchest_utils.datasets.layouts import Root, read_rows
from deepchest_utils.datasets.table import Table, patient_numbers
from deepchest_utils.files import one_line

NAME = "embeddings"
SUFFIXES = (".npz", ".npy")
FEATURES = "features"  # the array of an .npz
BESIDE = {"labels": ("f", 2), "patients": ("iuU", 1), "ids": ("U", 1), "split": ("iu", 1), "findings": ("U", 1)}
"""Further arrays in a file of `embed`: kinds of type, and dimensions."""
WANTED = {"f": "floats", "iu": "whole numbers", "iuU": "whole numbers or texts", "U": "texts: np.array({}, str)"}
ABOUT = "about"  # and a text, what the features were made with
BLOCK = 2**22  # bytes read at a time


@dataclass(frozen=True)
class FeatureTable(Table):
    """A `Table` whose rows are features in an array instead of image files.

    Attributes:
        file: The .npy, or the .npz.
        array: Name of the array in an .npz.
        width: Features of an image.
        rows: Row of the array of each row of the table.
        about: What the features were made with, "" if the file does not say.
    """

    file: Path = Path()
    array: str = ""
    width: int = 0
    rows: Int[np.ndarray, " n"] | None = None
    about: str = ""

    @property
    def origin(self) -> str:
        return f"{self.file}{f' ({self.about})' if self.about else ''}"

    def read(self, order: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m f"]:
        """Features of some rows, as float16 if the file has them so, else as float32. The file is read once from its start
        to its end, so that memory holds no more than the result. DataError for one that is not finite.
        """
        wanted = (np.arange(len(self.ids)) if self.rows is None else self.rows)[order]
        with _open_array(self.file, self.array) as (stream, count, width, dtype):
            place = np.full(count, -1)
            place[wanted] = np.arange(len(wanted))
            features = np.empty((len(wanted), width), np.float16 if dtype == np.float16 else np.float32)
            step = max(1, BLOCK // (width * dtype.itemsize))
            for start in range(0, count, step):
                block = np.frombuffer(
                    _read_exactly(stream, self.file, min(step, count - start) * width * dtype.itemsize), dtype
                )
                to = place[start : start + step]
                features[to[to >= 0]] = block.reshape(-1, width)[to >= 0]
        for start in range(0, len(features), step):
            if not (finite := np.isfinite(features[start : start + step]).all(1)).all():
                name = self.ids[order[start + finite.argmin()]]
                raise DataError(
                    f"{self.file}: features should be finite in {features.dtype}. Found NaN or infinity for {name}."
                )
        if flat := int((features == features[:, :1]).all(1).sum()):
            warn(
                f"{self.file}: {flat} of {len(features)} images have features of one value only, as a failed image leaves them."
            )
        return features


@contextmanager
def _open_array(file: Path, array: str) -> Iterator[tuple[io.BufferedIOBase, int, int, np.dtype[Any]]]:
    """A stream of an array's bytes, behind its header, with its number of rows, of columns and its type."""
    try:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(open(file, "rb"))
            if file.suffix == ".npz":
                stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(stream)).open(f"{array}.npy"))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(stream)
            if len(shape) != 2 or 0 in shape or dtype.kind != "f" or by_columns:
                order = ", column by column" if by_columns else ""
                wanted = "features should be an array of floats, a row an image, stored row by row"
                raise DataError(f"{file}: {wanted}. Found {dtype} of shape {shape}{order}.")
            yield stream, *shape, dtype
    except DataError:
        raise
    except Exception as error:  # zipfile and NumPy raise several types for damaged files
        raise DataError(f"{file}: not readable as an array of features ({one_line(error)}).") from None


def _read_exactly(stream: io.BufferedIOBase, file: Path, size: int) -> bytes:
    if len(content := stream.read(size)) != size:
        raise DataError(f"{file}: it breaks off.")
    return content


def read_embeddings(
    root: Root,
    features: str | None = None,
    table: str | None = None,
    image_column: str = "image",
    patient_column: str = "patient",
    finding_columns: Names = None,
    blank: Policy = None,
    uncertain: Policy = None,
    split_column: str | None = None,
) -> FeatureTable:
    """Read features with their labels and patients. The split of a file of `embed` is kept as the official one, with a table
    as well unless that has a split_column.

    Args:
        root: The .npz or .npy, or its folder.
        features: In a folder with several files, the name of the one.
        table: A table of one's own beside the file, as `read_csv_table` has it, with the options below it, which a file
            with labels of its own refuses. Its rows are those of the features, in their order; or in any order and number
            where an .npz has `ids`, which the image column names. `labels.csv` for a file that has no labels itself.
    """
    file = _find_file(root, features)
    made = _read_made(file) if file.suffix == ".npz" else {}
    array = str(made.pop("array", ""))
    with _open_array(file, array) as (_, count, width, _):
        pass
    if table is not None:  # it has its own
        for name in ("labels", "findings", *(["split"] if split_column else [])):
            made.pop(name, None)
    for name, (kinds, dimensions) in BESIDE.items():
        value = made.get(name)
        if value is not None and (value.dtype.kind not in kinds or value.ndim != dimensions):
            wanted = f"{WANTED[kinds].format(name)}, of {dimensions} dimension{'s' * (dimensions > 1)}"
            found = f"Found {value.dtype} of shape {value.shape}. It should be {wanted}"
            raise DataError(f"{file}: {name} is not as `embed` writes it. {found}.")
        if value is not None and name != "findings" and len(value) != count:
            raise DataError(f"{file}: {name} should have one row for each of the {count} features. Found {len(value)}.")
    if not np.isin(made.get("split", 0), (0, 1, 2)).all():
        found = ", ".join(map(str, np.unique(made["split"])[:10]))
        raise DataError(f"{file}: split should be 0, 1 or 2 for train, val and test. Found {found}.")
    patients = made.get("patients", np.empty(0, np.int64))
    if patients.dtype.kind == "U":  # a blank at the end would make two patients of one
        made["patients"] = np.char.strip(patients)
    elif patients.min(initial=0) < 0:
        raise DataError(f"{file}: patients should be 0 or more. Found {patients.min()}, which names no patient.")
    about = read_about(made)
    common: dict[str, Any] = {
        "name": NAME,
        "paths": [],
        "file": file,
        "array": array,
        "width": width,
        "about": _describe(about),
    }
    if len(twice := np.flatnonzero(pd.Series(made.get("ids", ())).duplicated())):
        raise DataError(f"{file}: ids should name each image once. Found {made['ids'][twice[0]]} twice.")
    if "labels" in made:
        if missing := [name for name in BESIDE if name not in made]:
            raise DataError(f"{file} has labels, but no {', '.join(missing)}. Name a table with table=...")
        options = (image_column, patient_column, finding_columns, blank, uncertain, split_column)
        if options != ("image", "patient", None, None, None, None):
            raise DataError(f"{file} has labels of its own: options of a table need one. Name it with table=...")
        if made["labels"].shape[1] != len(made["findings"]):
            pair = f"{made['labels'].shape[1]} for {len(made['findings'])}"
            raise DataError(f"{file}: labels should have one column a finding. Found {pair}.")
        labels, patients = made["labels"].astype(np.float32), made["patients"]
        if (wrong := ~(np.isnan(labels) | np.isin(labels, (0, 1)))).any():
            row, k = np.argwhere(wrong)[0]
            place = f"{labels[row, k]} for {made['findings'][k]} of image {made['ids'][row]}"
            raise DataError(f"{file}: labels should be 0, 1 or NaN. Found {place}.")
        if patients.dtype.kind == "U":
            patients = patient_numbers(file, pd.Series(patients.astype(object), name="patients"))
        return FeatureTable(
            **common, source=file, ids=made["ids"], labels=labels, patients=patients.astype(np.int64),
            findings=tuple(map(str, made["findings"])),
            official=made["split"].astype(np.int64), patients_known=about.get("patients_known") is not False,
        )  # fmt: skip
    source = file.parent / (table or "labels.csv")
    if not source.is_file():
        raise DataError(f"{file} has no labels, and there is no table {source}. Name it with table=...")
    names, columns = read_rows(source, image_column, patient_column, finding_columns, blank, uncertain, split_column)
    if (twice := names.duplicated()).any():
        raise DataError(f"{source}: image {names[twice].iloc[0]} is there twice, again in row {names.index[twice][0]}.")
    rows = _match(file, source, names, made.get("ids"), count)
    if "patients" in made:  # of whom one could be on two sides of a split
        patients = made["patients"][rows]
        parts = pd.Series(columns["patients"]).groupby(patients).transform("nunique").to_numpy()
        if (parts > 1).any():
            images = ", ".join(names[patients == patients[parts.argmax()]][:5])
            found = f"images of one patient in {file.name} should be of one here. Found several for {images}"
            raise DataError(f"{source}: {found}. Mend the table, or leave patients out of {file.name}.")
    if columns["official"] is None and "split" in made:
        columns["official"] = made["split"].astype(np.int64)[rows]
    return FeatureTable(**common, source=source, ids=names.to_numpy(object).astype(str), rows=rows, **columns)


def _match(file: Path, source: Path, names: pd.Series, ids: np.ndarray | None, count: int) -> Int[np.ndarray, " n"]:
    """The row of the features of each row of the table."""
    if ids is None:
        if len(names) != count:
            wanted = f"should have a row for each of the {count} features of {file.name}, in their order"
            raise DataError(f"{source} {wanted}. Found {len(names)}.")
        return np.arange(count)
    found = pd.Index(ids).get_indexer(names)
    if (missing := found < 0).any():
        example = f"e.g. {names[missing].iloc[0]} in row {names.index[missing][0]}"
        raise DataError(f"{source}: {missing.sum()} images have no features in {file.name}, {example}.")
    return np.asarray(found, np.int64)


def _find_file(root: Root, features: str | None) -> Path:
    if root is None:
        raise DataError("root (data_root of a run) should name a file of features, or its folder. Found None.")
    path = Path(root).expanduser()
    if path.is_file():
        if features not in (None, path.name):
            raise DataError(f"{path}: root names a file already, and features another. Found {features!r}.")
        files = [path]
    elif features is not None:
        files = [path / features]
        if not files[0].is_file():
            raise DataError(f"{files[0]}: no such file. features should name an .npz or .npy in {path}.")
    else:
        files = sorted(child for child in path.glob("*") if child.suffix.lower() in SUFFIXES)
    if len(files) != 1 or files[0].suffix.lower() not in SUFFIXES or not files[0].is_file():
        found = ", ".join(file.name for file in files[:5]) or "none"
        raise DataError(
            f"{path}: should be, or hold, one .npz or .npy of features. Found {found}. Save them so, or name one of several "
            "with features=..."
        )
    return files[0]


def _read_made(file: Path) -> dict[str, Any]:
    """What an .npz has beside the features, and their name as `array`."""
    try:
        # opened here: of a damaged archive NumPy would leave it open
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            names = arrays.files
            made: dict[str, Any] = {name: arrays[name] for name in (*BESIDE, ABOUT) if name in names}
    except Exception as error:  # as above
        advice = " Save texts as np.array(texts, str)." if "Object arrays" in str(error) else ""
        raise DataError(f"{file}: not a readable .npz ({one_line(error)}).{advice}") from None
    others = [name for name in names if name not in (*BESIDE, ABOUT)]
    if FEATURES in others and len(others) > 1 and "ids" not in names:
        unread = ", ".join(name for name in others if name != FEATURES)
        advice = "If one names the images, call it 'ids'; else leave it out"
        raise DataError(f"{file}: arrays are not read: {unread}. {advice}.")
    if FEATURES in others or len(others) == 1:
        return made | {"array": FEATURES if FEATURES in others else others[0]}
    raise DataError(f"{file}: should have an array {FEATURES!r}. Found {', '.join(names) or 'none'}.")


def read_about(made: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of `embed` on the features: backbone, size, versions and the like; nothing of another file's."""
    with suppress(ValueError, RecursionError):
        about = json.loads(str(made.get("about", "")))
        return about if isinstance(about, dict) else {}
    return {}


def _describe(about: Mapping[str, Any]) -> str:
    if not {"backbone", "pretrained", "image_size", "dataset"} <= about.keys():
        return ""
    start = "" if about["pretrained"] else " from random weights"
    return f"{about['backbone']}{start}, {about['image_size']} px, of {about['dataset']}"
