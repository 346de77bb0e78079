"""What surrounds the network: augmentation, decoding, the memory-mapped cache, the metrics of a test split."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from deepchest_utils.datasets.cache import decode_all
from deepchest_utils.datasets.decode import decode
from deepchest_utils.datasets.findings import NUM_FINDINGS
from deepchest_utils.models.augment import sample_augmentation
from deepchest_utils.results.metrics import choose_thresholds, score_tasks
from deepchest_utils.studies.bench.timing import measure
from deepchest_utils.training.setup import inputs, training_order


def write_pngs(folder: Path, count: int, size: int, rng: np.random.Generator) -> list[Path]:
    """Write smooth noise as PNGs: it compresses about as well as a radiograph."""
    paths = [folder / f"{i:05d}.png" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
        Image.fromarray((smooth + rng.integers(-3, 4, (size, size))).clip(0, 255).astype(np.uint8)).save(path)
    return paths


def _prepare_epoch(images: np.ndarray, augmented: bool = False) -> None:
    """The network's input for one epoch in batches of 64."""
    rng = torch.Generator().manual_seed(0)
    order = training_order(len(images), 64, rng).numpy()
    views = sample_augmentation(order.size, rng).view(*order.shape, -1) if augmented else None
    for _ in inputs(images, order, torch.device("cpu"), torch.channels_last, views):
        pass


def bench_inputs(rounds: int, rng: np.random.Generator, num_pngs: int) -> pd.DataFrame:
    """Rates of augmentation; of a memory map against an array in memory; of decoding PNGs of 1024 px on all cores, as the
    cache is filled, against one thread; of thresholds and every metric of a test split."""
    images = rng.integers(0, 256, (4096, 64, 64), dtype=np.uint8)
    labels = (rng.random((22_000, NUM_FINDINGS)) < 0.1).astype(np.float32)
    logits = rng.normal(size=labels.shape).astype(np.float32) + labels
    probabilities = 1 / (1 + np.exp(-logits.astype(float)))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        memory_map = np.load(f"{folder}/images.npy", mmap_mode="r")
        paths = write_pngs(Path(folder), num_pngs, 1024, rng)
        augmented = {"augmented": lambda: _prepare_epoch(images, augmented=True)}
        stored = {"in memory": lambda: _prepare_epoch(images), "memory map": lambda: _prepare_epoch(memory_map)}
        decoding = {
            "one thread": lambda: [decode(path, 64) for path in paths],
            "all cores": lambda: decode_all("bench", paths, 64, tempfile.mkdtemp(dir=folder)),
        }
        scoring = {
            "metrics of a test split": lambda: score_tasks(labels, logits, choose_thresholds(labels, probabilities))
        }
        tables = [
            measure("input", augmented, rounds, rng, images=len(images)),
            measure("input", stored, rounds, rng, images=len(images)),
            measure("input", decoding, max(3, rounds // 5), rng, images=num_pngs),
            measure("input", scoring, rounds, rng, images=len(labels)),
        ]
    return pd.concat(tables, ignore_index=True)
