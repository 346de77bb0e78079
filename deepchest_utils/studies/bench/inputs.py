"""What surrounds the network: augmentation, decoding, the memory-mapped cache, metrics, features of an encoder."""

import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays, load_dataset
from deepchest_utils.datasets.cache import decode_all
from deepchest_utils.datasets.decode import decode
from deepchest_utils.datasets.findings import FINDINGS, NUM_FINDINGS
from deepchest_utils.models.augment import sample_augmentation
from deepchest_utils.models.trunks import build_trunk
from deepchest_utils.results.metrics import choose_thresholds, score_tasks
from deepchest_utils.studies.bench.steps import loop_epoch, resident_mib
from deepchest_utils.studies.bench.timing import measure
from deepchest_utils.training.embed import BATCH, embed_images
from deepchest_utils.training.setup import inputs, resolve_device, training_order


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


def bench_embed(device: str, rounds: int, rng: np.random.Generator, num_images: int = 64) -> pd.DataFrame:
    """`embed`, from images on disk to features on disk, against the bare forward pass of the same encoder on input that is
    ready: EfficientNet-Lite0 at 224 px."""
    where = resolve_device(device)
    trunk, width = build_trunk("lite0", 224)
    trunk = trunk.eval().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", rng.integers(0, 256, (num_images, 224, 224), dtype=np.uint8))
        images = np.load(f"{folder}/images.npy", mmap_mode="r")
        numbers = np.arange(num_images)
        xrays = ChestXrays(images, np.zeros((num_images, 1), np.float32), numbers, ("none",), numbers.astype(str))
        features = np.lib.format.open_memmap(f"{folder}/features.npy", "w+", np.float16, (num_images, width))
        ready = [*inputs(images, numbers.reshape(-1, BATCH), where, torch.channels_last)]

        def bare() -> None:
            with torch.no_grad():
                for x in ready:
                    trunk(x)

        def whole() -> None:
            for rows, values in embed_images(trunk, xrays, where):
                features[rows] = values

        table = measure("embed", {"bare forward": bare, "embed": whole}, rounds, rng, images=num_images)
    return table.assign(backbone="lite0", image_size=224, batch_size=BATCH, device=where.type)


def bench_embeddings(rng: np.random.Generator, count: int = 112_120, width: int = 768) -> pd.DataFrame:
    """Training on a file of features of the size of NIH ChestX-ray14, in half precision, in a process of its own.

    `seconds` are the processor's, of one thread: other programs do not count. `mib` is the peak of the whole process so
    far, the packages included, which Linux counts (OSError on another system).
    """
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/features.npz"
        features = np.empty((count, width), np.float16)
        for start in range(0, count, 4096):  # at once they would need three times the memory
            features[start : start + 4096] = rng.standard_normal(features[start : start + 4096].shape, np.float32)
        labels = (rng.random((count, NUM_FINDINGS)) < 0.1).astype(np.float32)
        patients, ids = np.arange(count) // 4, np.arange(count).astype(str)
        split, findings = np.zeros(count, np.int8), np.array(FINDINGS)
        np.savez(path, features=features, labels=labels, patients=patients, ids=ids, split=split, findings=findings)
        del features
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fork would start with the parent's memory
            table = pd.DataFrame(pool.apply(_train_on_features, (path,)))
    return table.assign(part="embeddings", rounds=1, batch_size=128, backbone="mlp", device="cpu")


def _train_on_features(path: str) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []

    def note(what: str, images: int, start: float) -> None:
        seconds = time.process_time() - start
        rate = images / seconds
        rows.append({"method": what, "seconds": seconds, "images_per_second": rate, "mib": resident_mib("VmHWM")})

    start = time.process_time()
    data = load_dataset("embeddings", path, split="patient")
    note("load and split", sum(map(len, data.parts.values())), start)
    epoch = loop_epoch(TrainConfig(dataset="embeddings", lr=3e-4, batch_size=128, device="cpu"), data)
    start = time.process_time()
    epoch()
    note("epoch on features", len(data.train), start)
    return rows
