"""Features of all images of a data set by a pretrained encoder, in one file: `dataset="embeddings"` trains on it."""

import glob
import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays, Splits, load_dataset
from deepchest_utils.datasets.cache import cache_key
from deepchest_utils.datasets.embeddings import ABOUT, FEATURES, read_about
from deepchest_utils.files import FileError, atomic_write, exclusive_lock
from deepchest_utils.models.trunks import TIMM, build_trunk, is_registered
from deepchest_utils.progress import progress
from deepchest_utils.results.store import environment_report
from deepchest_utils.threads import adapt_threads
from deepchest_utils.training.setup import inputs, resolve_device

MADE_OF = ("backbone", "pretrained", "image_size", "dataset", "split", "data_seed", "data_options", "seed")
BATCH = 32  # images: on two cores more are no faster


def embed(config: TrainConfig, out: str | Path, data: Splits | None = None, batch_size: int = BATCH) -> Path:
    """Write an .npz with `features` (N, F) in half precision, labels, patients, ids, split (0 train, 1 val, 2 test),
    findings, and `about`, a JSON text of all that they were made with.

    A call that was stopped goes on from the batch that it had reached, and a finished file is not made again.

    Args:
        config: The data set, its size and split, backbone, pretrained, device, and seed, of an encoder without weights.
        data: The data set, if it is loaded already.

    Raises:
        FileError: The file cannot be written, holds other features, or another process is at work on it.
        ValueError: out is no .npz, a feature is not finite in half precision, or the encoder cannot be built.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise ValueError(f"out should be the name of an .npz. Found {str(out)!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size should be at least 1. Found {batch_size}.")
    c = config
    with exclusive_lock(out.with_name(f"{out.name}.lock"), "embed"):
        if data is None:
            data = load_dataset(c.dataset, c.data_root, c.image_size, c.data_seed, c.split, **c.data_options)
        if data.train.are_vectors:
            raise ValueError(f"dataset should be one of images. Found {c.dataset!r}, which has features.")
        identity = {name: c.identity()[name] for name in MADE_OF} | {"data": data.fingerprint()}
        identity |= {"network": _digest(_build(c)[0])} if is_registered(c.backbone) else {}  # a name does not tell it
        key = cache_key(**identity)
        if out.exists():
            found, ids = _made_of(out)
            if found == key and np.array_equal(ids, np.concatenate([part.ids for part in data.parts.values()])):
                return out  # the fingerprint knows nothing of the images' names
            what = "holds other features" if found else "is damaged, or no file of embed"
            raise FileError(f"{out} {what}. Choose another out.")
        features = _embed_all(c, data, out.with_name(f".{out.name}.{key}.part.npy"), batch_size)
        packages = {"timm": metadata.version("timm")} if c.backbone == "lite0" or c.backbone.startswith(TIMM) else {}
        about = {"key": key, **identity, "split": data.split, "patients_known": data.patients_known}
        about |= {"features": features.shape[1], **packages, **environment_report()}
        write_features(out, features, data, **{ABOUT: np.array(json.dumps(about, default=str))})
        del features  # Windows removes no file that is mapped
        for part in out.parent.glob(f".{glob.escape(out.name)}.*.part.npy"):
            part.unlink()
    return out


def _build(config: TrainConfig) -> tuple[nn.Module, int]:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_trunk(config.backbone, config.image_size, config.pretrained)


def _digest(trunk: nn.Module) -> str:
    digest = hashlib.sha256(repr(trunk).encode())
    for value in trunk.state_dict().values():
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def write_features(out: Path, features: Float[np.ndarray, "n f"], data: Splits, **arrays: np.ndarray) -> None:
    """Write a file that `dataset="embeddings"` reads: features in the order of train, val and test, with the labels, patients,
    ids and split of these images, and further arrays."""
    parts = [*data.parts.values()]
    of_images = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "patients", "ids")
    }
    of_images |= {"labels": of_images["labels"].astype(np.float32), "ids": of_images["ids"].astype(str)}
    split = np.repeat(np.arange(3, dtype=np.int8), [*map(len, parts)])
    with atomic_write(out) as temporary, open(temporary, "wb") as file:
        made = {FEATURES: np.ascontiguousarray(features), **of_images}
        np.savez(file, allow_pickle=False, **made, split=split, findings=np.array(data.findings), **arrays)


def _made_of(out: Path) -> tuple[object, np.ndarray]:
    """The key of a finished file, None if it is no file of `embed`, and its names of images."""
    try:
        with open(out, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return read_about({ABOUT: arrays[ABOUT]}).get("key"), arrays["ids"]
    except Exception:  # np.load raises one of several types for what is no archive
        return None, np.empty(0)


def _embed_all(config: TrainConfig, data: Splits, part: Path, batch_size: int) -> np.memmap:
    """The features of all splits, one below the other, in a memory-mapped file: those that it has already are kept."""
    device = resolve_device(config.device)
    trunk, width = _build(config)
    shape = (sum(map(len, data.parts.values())), width)
    if not part.exists():
        with atomic_write(part) as temporary, open(temporary, "wb") as file:
            # its size is taken now: no full disk later
            np.save(file, np.broadcast_to(np.float16(np.nan), shape))
    features: np.memmap = np.load(part, mmap_mode="r+", allow_pickle=False)
    if features.shape != shape or features.dtype != np.float16:
        raise FileError(
            f"{part}: should hold float16 of shape {shape}. Found {features.dtype} {features.shape}: delete it."
        )
    trunk = trunk.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = 0
    with progress(title=f"embedding {data.name}", total=len(features), logged=True, unit="image") as bar:
        for xrays in data.parts.values():
            own = features[first : first + len(xrays)]
            done = _first_missing(own)
            bar.update(done)
            for rows, values in embed_images(trunk, xrays, device, batch_size, done):
                if not (finite := np.isfinite(values).all(1)).all():  # not kept, or the next call would go on behind it
                    name = xrays.ids[rows][~finite][0]
                    raise ValueError(f"features should be finite in half precision. Found another for {name}.")
                own[rows] = values
                bar.update(len(values))
            first += len(xrays)
    features.flush()
    return features


def _first_missing(features: np.ndarray) -> int:
    """The first row that is not written yet, or in part; their number if there is none."""
    step = 4096  # of 112,120 rows at once a mask would take half as much memory as they
    for start in range(0, len(features), step):
        if (missing := np.isnan(features[start : start + step]).any(1)).any():
            return start + int(missing.argmax())
    return len(features)


def embed_images(
    trunk: nn.Module, xrays: ChestXrays, device: torch.device, batch_size: int = BATCH, start: int = 0
) -> Iterator[tuple[slice, Float[np.ndarray, "b f"]]]:
    """Rows and their features, batch by batch, in half precision, from row `start` on. While a batch is under way on a GPU, the next
    one is fetched."""
    whole = start + (len(xrays) - start) // batch_size * batch_size
    orders = [np.arange(start, whole).reshape(-1, batch_size), np.arange(whole, len(xrays)).reshape(1, -1)]
    batches = (x for order in orders if order.size for x in inputs(xrays.images, order, device, torch.channels_last))
    x: Tensor | None = next(batches, None)
    while x is not None:
        adapt_threads()
        with torch.no_grad():
            out = trunk(x)
        x = next(batches, None)
        rows = slice(start, start := start + len(out))
        yield rows, out.half().cpu().numpy()
