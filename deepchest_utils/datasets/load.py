"""`load_dataset`: every data set by name, with the same arguments wherever they make sense."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepchest_utils.datasets.base import DataError, Splits
from deepchest_utils.datasets.chestmnist import load_chestmnist
from deepchest_utils.datasets.nih import read_nih
from deepchest_utils.datasets.phantom.load import load_phantom
from deepchest_utils.datasets.table import read_csv_table, splits_from_table

_Folder = str | Path | None


def _phantom(
    root: _Folder, image_size: int, seed: int, split: str | None, cache_dir: _Folder, **options: Any
) -> Splits:
    return load_phantom(image_size, seed, split, cache_dir=cache_dir, **options)


def _nih(
    root: _Folder, image_size: int, seed: int, split: str | None, cache_dir: _Folder, max_images: int | None = None
) -> Splits:
    return splits_from_table(read_nih(root), image_size, split, seed, max_images, cache_dir)


def _chestmnist(
    root: _Folder, image_size: int, seed: int, split: str | None, cache_dir: _Folder, **options: Any
) -> Splits:
    if split not in (None, "official"):
        raise DataError(f'chestmnist has only its own split, split="official". Found {split!r}.')
    return load_chestmnist(root, image_size, seed=seed, **options)


def _csv(
    root: _Folder,
    image_size: int,
    seed: int,
    split: str | None,
    cache_dir: _Folder,
    max_images: int | None = None,
    **options: Any,
) -> Splits:
    return splits_from_table(read_csv_table(root, **options), image_size, split, seed, max_images, cache_dir)


DATASETS: dict[str, Callable[..., Splits]] = {"phantom": _phantom, "nih": _nih, "chestmnist": _chestmnist, "csv": _csv}
_OPTIONS: dict[str, Callable[..., object]] = {
    "phantom": load_phantom,
    "nih": _nih,
    "chestmnist": load_chestmnist,
    "csv": read_csv_table,
}


def load_dataset(
    name: str = "phantom",
    root: str | Path | None = None,
    image_size: int = 64,
    seed: int = 0,
    split: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> Splits:
    """Load a data set, split by patient.

    name: "phantom", "nih", "chestmnist" or "csv". root: the folder of its files (not needed for the phantom).
    image_size: px, square. seed: of the phantom and of our own splits. split: "official" where the official
    lists are there (then the default), "patient", or "image" (leaks; only to measure the leak). cache_dir:
    where decoded images are kept, default `data/processed`. options: of that data set; `max_images` (at most
    so many a split) goes with all. Raises DataError for anything that is not as it should be.
    """
    if name not in DATASETS:
        raise DataError(f"dataset should be one of {', '.join(DATASETS)}. Found {name!r}.")
    if image_size < 16:
        raise DataError(f"image_size should be at least 16 px. Found {image_size}.")
    if seed < 0:
        raise DataError(f"seed should be non-negative. Found {seed}.")
    allowed = {*inspect.signature(_OPTIONS[name]).parameters, "max_images"}
    allowed -= {"root", "image_size", "seed", "split", "cache_dir"}
    if unknown := set(options) - allowed:
        raise DataError(f"{min(unknown)!r} is no option of dataset {name!r}. It has {', '.join(sorted(allowed))}.")
    return DATASETS[name](root, image_size, seed, split, cache_dir, **options)
