"""The phantom as a data set: three populations with patients of their own, drawn once and cached."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deepchest_utils.datasets import phantom
from deepchest_utils.datasets.base import ChestXrays, DataError, Splits, image_split
from deepchest_utils.datasets.cache import cache_key, cached_images, source_hash
from deepchest_utils.datasets.findings import FINDINGS

SIZES = {"train": 6000, "val": 2000, "test": 8000}
# of a finding that `controlled` does not name
CONTROLLED = {"prevalence": 0.1, "visibility": 1.0, "loading": 0.0, "label_noise": 0.0}


def phantom_of(
    seed: int, part: str, num_images: int, controlled: dict[str, dict[str, float]] | None = None
) -> phantom.Phantom:
    """The population behind one split: `phantom_of(seed, "test", 8000).masks(64, rows)` are the masks of rows
    of `data.test`. controlled: see `load_phantom`."""
    design = {} if controlled is None else _design(controlled)
    design.pop("label_noise", None)  # of the labels, not of what is drawn
    return phantom.make_phantom(num_images, seed=3 * seed + list(SIZES).index(part), **design)


def _design(controlled: dict[str, dict[str, float]]) -> dict[str, np.ndarray]:
    """Each factor as (K,). Raises DataError naming what is wrong."""
    if unknown := set(controlled) - set(CONTROLLED):
        raise DataError(f"controlled should have factors among {', '.join(CONTROLLED)}. Found {min(unknown)!r}.")
    out = {}
    for factor, usual in CONTROLLED.items():
        given = controlled.get(factor, {})
        if unknown := set(given) - set(FINDINGS):
            raise DataError(f"controlled {factor!r} should name findings. Found {min(unknown)!r}.")
        out[factor] = np.array([float(given.get(name, usual)) for name in FINDINGS])
        # a finding that nobody or everybody has cannot be learned; nor can signs be more than themselves
        low, high = (0.001, 0.999) if factor == "prevalence" else (0.0, 1.0)
        if not ((out[factor] >= low) & (out[factor] <= high)).all():
            raise DataError(f"controlled {factor!r} should be between {low} and {high}. Found {given}.")
    return out


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
    controlled: dict[str, dict[str, float]] | None = None,
    cache_dir: str | Path | None = None,
) -> Splits:
    """Draw (or take from the cache) three splits.

    split: "patient" (default) or "image", which pools all images and deals them out one by one. label_noise:
    share of the images of train and val that get the labels of another of them, so that prevalence and
    co-occurrence stay; test stays clean. unknown: share of all labels made NaN. The test split does not
    depend on num_train. controlled: a population for experiments, in which findings differ in nothing but what is named: factor ->
    finding -> value, with factors "prevalence" (0.1 where not named), "visibility" (1; the contrast of the sign), "loading" (0, i.e.
    independent; the correlation of two findings is the product of theirs) and "label_noise" (0; share of the images of train
    and val that get another of them's label of that finding alone). Raises DataError for a share outside [0, 1], a size outside
    28 to 256 px, or an unknown factor or finding.
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
        drawn = phantom_of(seed, name, count, controlled)
        images = _images(drawn, name, image_size, cache_dir, controlled)
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
            rows, others = _swapped(len(part), label_noise, rng)
            noisy[rows] = noisy[others]
        if name != "test" and controlled is not None:
            for k, share in enumerate(_design(controlled)["label_noise"]):
                rows, others = _swapped(len(part), share, rng)
                noisy[rows, k] = noisy[others, k]
        noisy[rng.random(noisy.shape) < unknown] = np.nan
        parts[name] = replace(part, labels=noisy)
    return Splits(parts["train"], parts["val"], parts["test"], name="phantom", split=split or "patient")


def _swapped(count: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A share of the images, and for each the one whose labels it gets: a cycle through them in random order (neighbours show
    one patient), so that none keeps its own."""
    rows = rng.permutation(np.flatnonzero(rng.random(count) < share))
    return rows, np.roll(rows, 1)


def _images(
    drawn: phantom.Phantom,
    name: str,
    size: int,
    cache_dir: str | Path | None,
    controlled: dict[str, dict[str, float]] | None,
) -> np.ndarray:
    count, block = len(drawn.labels), 1024
    code = source_hash(Path(phantom.__file__).parent)
    more = {} if controlled is None else {"controlled": controlled}
    key = cache_key(code=code, seed=drawn.seed, count=count, size=size, **more)

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
