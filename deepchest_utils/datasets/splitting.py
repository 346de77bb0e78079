"""A checked `Table` of image files becomes `Splits`: by patient, by official lists, as a fold, or image by image."""

import hashlib
from dataclasses import replace
from itertools import compress, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from deepchest_utils.datasets.base import (
    ChestXrays,
    DataError,
    Splits,
    fold_of,
    fold_split,
    image_split,
    limit_images,
    patient_split,
    warn,
)
from deepchest_utils.datasets.cache import decode_all
from deepchest_utils.datasets.decode import has_few_levels, stored_size
from deepchest_utils.datasets.embeddings import FeatureTable
from deepchest_utils.datasets.table import Table


def _warn_of_labels(table: Table) -> None:
    """One warning that lists findings of which nearly all known labels are positive, or most are unknown."""
    known, doubtful = (~np.isnan(table.labels)).sum(0), []
    for finding, positive, count in zip(table.findings, np.nansum(table.labels, 0), known, strict=True):
        if count < 0.3 * len(table.ids):
            doubtful.append(f"{finding} (known of {count} of {len(table.ids)} images)")
        elif positive > 0.9 * count:
            doubtful.append(f"{finding} ({positive / count:.0%} of those known are positive)")
    if doubtful:
        advice = "blank='absent' takes empty cells for absent, and uncertain='absent' -1, where the table has such"
        warn(f"{table.source}: few labels to learn from: {', '.join(doubtful)}. {advice}.")


def _warn_of_twins(
    table: Table, images: Shaped[np.ndarray, "n ..."], rows: Int[np.ndarray, " n"], split_of: Int[np.ndarray, " n"]
) -> None:
    """One warning that counts pictures, or features, which lie, bit by bit the same, in two splits. rows, split_of: of them."""
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images]
    pictures = pd.factorize(np.array(digests))[0]
    twin = pd.Series(split_of).groupby(pictures).transform("nunique").to_numpy() > 1
    is_blank = has_few_levels if images.dtype == np.uint8 else lambda features: np.ptp(features) == 0
    twin[twin] = [not is_blank(image) for image in images[twin]]  # of these there is a warning
    if twin.any():
        alike = table.ids[rows[pictures == pictures[twin.argmax()]]]
        of = f"{twin.sum()} images are the same, bit by bit, as one in another split, e.g. {alike[0]} and {alike[-1]}"
        warn(f"{table.source}: {of}. Give both one patient, or remove one.")


def split_rows(table: Table, split: str | None, seed: int) -> tuple[str, Int[np.ndarray, " n"]]:
    """The split in words, the data set's default where it is None, and each row's: 0 train, 1 val, 2 test."""
    split = split or ("official" if table.official is not None else "patient")
    fold = fold_of(split)
    _warn_of_labels(table)
    if split == "image":
        return split, image_split(len(table.ids), seed=seed)
    try:
        if fold is not None:
            return split, fold_split(table.labels, table.patients, *fold, seed)
        if split == "patient":
            return split, patient_split(table.labels, table.patients, seed=seed)
    except ValueError as error:
        raise DataError(f"{table.source}: {error}") from None
    if table.official is None:
        raise DataError(f'{table.source}: split="official" needs {table.to_be_official}. Or use split="patient".')
    split_of = table.official.copy()
    if not (split_of == 1).any():
        rest = split_of == 0
        if len(np.unique(table.patients[rest])) < 2:
            few = "the official split has fewer than 2 of the patients here outside test, too few for train and val"
            raise DataError(f'{table.source}: {few}. Use split="patient".')
        split_of[rest] = patient_split(table.labels[rest], table.patients[rest], (0.875, 0.125), seed)
    return split, split_of


def without_small(table: Table, min_size: int) -> Table:
    """The rows whose image file has at least `min_size` px on its shorter side."""
    large = np.array([min(stored_size(Path(path))) >= min_size for path in table.paths], bool)
    if not large.any():
        raise DataError(f"{table.source}: no image has min_size={min_size} px on its shorter side.")
    of_rows = {name: getattr(table, name)[large] for name in ("ids", "labels", "patients")}
    official = None if table.official is None else table.official[large]
    return replace(table, paths=[*compress(table.paths, large)], official=official, **of_rows)


def splits_from_table(
    table: Table,
    image_size: int,
    split: str | None,
    seed: int,
    cache_dir: str | Path | None,
    max_images: int | None = None,
    max_train: int | None = None,
    min_size: int | None = None,
) -> Splits:
    """Split a table, limit each split and decode its images, or read their features; the arguments are those of
    `load_dataset`."""
    table = table if min_size is None else without_small(table, min_size)
    split, split_of = split_rows(table, split, seed)
    rows_of, few = [], min(filter(None, (max_images, max_train)), default=None)
    for i, (name, limit) in enumerate({"train": few, "val": max_images, "test": max_images}.items()):
        if not len(rows := np.flatnonzero(split_of == i)):
            message = f"{table.source}: the {name} split is empty with split={split!r}"
            raise DataError(f"{message}. Add images, or use another split.")
        rows_of.append(rows[limit_images(table.patients[rows], limit, seed)])
    order = np.concatenate(rows_of)  # by split: each is one slice of the memory map
    if isinstance(table, FeatureTable):
        images = table.read(order)
    else:
        images = decode_all(table.name, [Path(table.paths[row]) for row in order], image_size, cache_dir)
    _warn_of_twins(table, images, order, split_of[order])
    pooled = ChestXrays(images, table.labels[order], table.patients[order], table.findings, table.ids[order])
    ends = np.cumsum([0, *map(len, rows_of)])
    train, val, test = (pooled.subset(slice(start, end)) for start, end in pairwise(ends))
    return Splits(train, val, test, table.name, split, table.patients_known, table.origin)
