"""What surrounds the network: augmentation, decoding, the memory-mapped cache, the metrics of a test split."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepchest_utils.datasets.cache import decode, decode_all
from deepchest_utils.datasets.findings import NUM_FINDINGS
from deepchest_utils.models.augment import sample_augmentation
from deepchest_utils.results.metrics import choose_thresholds, score_tasks
from deepchest_utils.training.setup import inputs, training_order

CPU = torch.device("cpu")


def input_epoch(images: np.ndarray, augmented: bool = False) -> Callable[[], None]:
    """A function that prepares the network's input for one epoch in batches of 64. images: an array or a memory map."""
    rng = torch.Generator().manual_seed(0)

    def epoch() -> None:
        order = training_order(len(images), 64, rng).numpy()
        views = sample_augmentation(order.size, rng).view(*order.shape, -1) if augmented else None
        for _ in inputs(images, order, CPU, torch.channels_last, views):
            pass

    return epoch


def write_pngs(folder: Path, count: int, size: int, rng: np.random.Generator) -> list[Path]:
    """Write smooth noise as PNGs: it compresses about as well as a radiograph."""
    paths = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.integers(-3, 4, (size, size))
        paths.append(folder / f"{i:05d}.png")
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def decoding_steps(paths: list[Path], size: int) -> dict[str, Callable[[], object]]:
    """Two ways to decode files for the first time: with one thread and no cache, and as the cache is filled."""

    def fill_cache() -> None:
        with tempfile.TemporaryDirectory() as folder:
            decode_all("bench", paths, size, folder)

    return {"one thread": lambda: [decode(path, size) for path in paths], "all cores": fill_cache}


def metrics_of_test_split(rng: np.random.Generator, count: int) -> Callable[[], object]:
    """A function that scores a test split of `count` images. It chooses thresholds, then computes every metric."""
    labels = (rng.random((count, NUM_FINDINGS)) < 0.1).astype(np.float32)
    logits = rng.normal(size=labels.shape).astype(np.float32) + labels
    probabilities = 1 / (1 + np.exp(-logits.astype(float)))
    return lambda: score_tasks(labels, logits, choose_thresholds(labels, probabilities))
