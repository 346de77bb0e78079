"""Data sets by name, split by patient: `load_dataset(NAME, root, ...) -> Splits`; `DATASETS` has the names."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from deepchest_utils.config import check_choice, check_type, did_you_mean
from deepchest_utils.datasets.base import ChestXrays, DataError, DataWarning, Splits
from deepchest_utils.datasets.chestmnist import load_chestmnist
from deepchest_utils.datasets.embeddings import read_embeddings
from deepchest_utils.datasets.layouts import read_chexpert, read_csv_table, read_mimic, read_padchest, read_vindr
from deepchest_utils.datasets.nih import load_boxes, read_nih
from deepchest_utils.datasets.phantom.load import load_phantom
from deepchest_utils.datasets.splitting import splits_from_table
from deepchest_utils.datasets.table import Table

__all__ = ["DATASETS", "ChestXrays", "DataError", "DataWarning", "Splits", "load_boxes", "load_dataset"]

Reader = Callable[..., Splits | Table]
DATASETS: dict[str, Reader] = {
    "phantom": load_phantom, "nih": read_nih, "chestmnist": load_chestmnist, "csv": read_csv_table,
    "chexpert": read_chexpert, "mimic": read_mimic, "padchest": read_padchest, "vindr": read_vindr,
    "embeddings": read_embeddings,
}  # fmt: skip
"""A reader's parameters are its data set's options, and those of `load_dataset` that it needs. It returns `Splits`, or a
`Table` of image files that is then split, limited and decoded here."""
_PLAIN = (int, float, str, bool, int | None, float | None, str | None)  # options of other types the reader checks


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

    Args:
        name: One of `DATASETS`.
        root: Folder of its files, or the file of embeddings; the phantom needs none.
        image_size: px, square, at least 16; embeddings have none.
        seed: Of the phantom, and of our own splits.
        split: "official" (the default where the official lists are there), "patient", a fold of a cross-validation by
            patient (of "1/5" to "5/5" each is test once; the next is val), or "image" (leaks patients between the
            splits; only to measure that leak).
        cache_dir: Folder of decoded images; `paths.default_cache_dir()` by default.
        options: Of that data set, see its reader in `DATASETS`; all have `max_images`, at most so many a split, those of
            files `max_train`, at most so many to train on, and those of image files `min_size`: images with fewer px on
            the shorter side stay out.

    Raises:
        DataError: An argument, a file or a table is not as it should be; the message names it.
    """
    check_choice("dataset", name, DATASETS, DataError)
    image_size = check_type("image_size", int, image_size, DataError)
    seed = check_type("seed", int, seed, DataError)
    split = check_type("split", str | None, split, DataError)
    cache_dir = check_type("cache_dir", str | None, cache_dir, DataError)
    if image_size < 16:
        raise DataError(f"image_size should be at least 16 px. Found {image_size}.")
    if seed < 0:
        raise DataError(f"seed should be non-negative. Found {seed}.")
    if seed >= 2**60:  # the phantom's three populations have three times as many
        raise DataError(f"seed should be less than {2**60}. Found {seed}.")
    reader = DATASETS[name]
    common = {"root": root, "image_size": image_size, "seed": seed, "split": split, "cache_dir": cache_dir}
    parameters = inspect.signature(reader).parameters
    returned = get_type_hints(reader)["return"]
    files = () if returned is Splits else ("max_train", "min_size") if returned is Table else ("max_train",)
    limits = ("max_images", *files)
    allowed = sorted({*parameters, *limits} - {*common})
    if unknown := sorted({*options} - {*allowed}):
        message = f"{unknown[0]!r} is no option of dataset {name!r}. It has {', '.join(allowed)}."
        raise DataError(message + did_you_mean(unknown[0], allowed))
    hints = dict.fromkeys(limits, int | None) | get_type_hints(reader)
    for key in [key for key in options if hints[key] in _PLAIN]:
        options[key] = check_type(key, hints[key], options[key], DataError)
    for key in limits:
        if options.get(key) is not None and options[key] < 1:
            raise DataError(f"{key} should be at least 1. Found {options[key]}.")
    data = reader(**{key: value for key, value in {**common, **options}.items() if key in parameters})
    if isinstance(data, Splits):
        return data
    return splits_from_table(data, image_size, split, seed, cache_dir, **{key: options.get(key) for key in limits})
