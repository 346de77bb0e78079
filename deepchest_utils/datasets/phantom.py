"""The phantom as a data set: three populations with patients of their own, drawn once and cached."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deepchest_utils import phantom
from deepchest_utils.datasets.base import ChestXrays, DataError, Splits
from deepchest_utils.datasets.cache import cache_key, cached_images, source_hash
from deepchest_utils.datasets.splits import image_split
from deepchest_utils.findings import FINDINGS

SIZES = {"train": 6000, "val": 2000, "test": 8000}


def phantom_of(seed: int, part: str, num_images: int) -> phantom.Phantom:
    """The population behind one split: `phantom_of(seed, "test", 8000).masks(64, rows)` are the masks of rows
    of `data.test`."""
    return phantom.make_phantom(num_images, seed=3 * seed + list(SIZES).index(part))


def load_phantom(
    image_size: int = 64,
    seed: int = 0,
    split: str | None = None,
    num_train: int = SIZES["train"],
    num_val: int = SIZES["val"],
    num_test: int = SIZES["test"],
    label_noise: float = 0.0,
    unknown: float = 0.0,
    max_images: int | None = None,
    cache_dir: str | Path | None = None,
) -> Splits:
    """Draw (or take from the cache) three splits.

    split: "patient" (default) or "image", which pools all images and deals them out one by one. label_noise:
    share of the images of train and val that get the labels of another of them, so that prevalence and
    co-occurrence stay; test stays clean. unknown: share of all labels made NaN. The test split does not
    depend on num_train. Raises DataError for a share outside [0, 1], or a size outside 28 to 256 px.
    """
    for name, value in (("label_noise", label_noise), ("unknown", unknown)):
        if not 0 <= value <= 1:
            raise DataError(f"{name} should be a share between 0 and 1. Found {value}.")
    if not 28 <= image_size <= phantom.MAX_SIZE:
        raise DataError(
            f"image_size should be between 28 and {phantom.MAX_SIZE} px for the phantom. Found {image_size}."
        )
    if split not in (None, "patient", "image"):
        raise DataError(f'split should be "patient" or "image" for the phantom. Found {split!r}.')
    counts = {"train": num_train, "val": num_val, "test": num_test}
    if max_images is not None:
        counts = {name: min(count, max_images) for name, count in counts.items()}
    parts, offset = {}, 0
    for name, count in counts.items():
        if count < 1:
            raise DataError(f"num_{name} should be at least 1. Found {count}.")
        drawn = phantom_of(seed, name, count)
        images = _images(drawn, name, image_size, cache_dir)
        ids = np.array([f"{name}/{i}" for i in range(count)])
        labels = drawn.labels.astype(np.float32)
        parts[name] = ChestXrays(images, labels, drawn.patients + offset, FINDINGS, ids)
        offset += int(drawn.patients[-1]) + 1
    if split == "image":
        parts = _deal_by_image(parts, seed)
    for i, (name, part) in enumerate(parts.items()):
        rng = np.random.default_rng([seed, 1, i])  # one a split: test does not depend on the size of train
        noisy = part.labels.copy()
        if name != "test" and label_noise:
            # a cycle through the images in random order (neighbours show one patient): none keeps its own
            rows = rng.permutation(np.flatnonzero(rng.random(len(part)) < label_noise))
            noisy[rows] = noisy[np.roll(rows, 1)]
        noisy[rng.random(noisy.shape) < unknown] = np.nan
        parts[name] = replace(part, labels=noisy)
    return Splits(parts["train"], parts["val"], parts["test"], name="phantom", split=split or "patient")


def _images(drawn: phantom.Phantom, name: str, size: int, cache_dir: str | Path | None) -> np.ndarray:
    count, block = len(drawn.labels), 1024
    code = source_hash(Path(phantom.__file__).parent)
    key = cache_key(code=code, seed=drawn.seed, count=count, size=size)

    def make() -> Iterator[tuple[int, np.ndarray]]:
        for start in tqdm(range(0, count, block), desc=f"drawing phantom {name}", disable=None):
            yield start, drawn.render(size, np.arange(start, min(start + block, count)))

    return cached_images(f"phantom-{size}", key, (count, size, size), make, cache_dir)


def _deal_by_image(parts: dict[str, ChestXrays], seed: int) -> dict[str, ChestXrays]:
    images, labels, patients, ids = (
        np.concatenate([getattr(part, name) for part in parts.values()])
        for name in ("images", "labels", "patients", "ids")
    )
    number = image_split(len(images), tuple(len(part) for part in parts.values()), seed)
    pooled = ChestXrays(images, labels, patients, FINDINGS, ids)
    return {name: pooled.subset(np.flatnonzero(number == i)) for i, name in enumerate(parts)}
