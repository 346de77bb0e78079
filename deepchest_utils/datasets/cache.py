"""Files are decoded and phantoms drawn once, into a memory-mapped `.npy` whose name covers what it was made from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from joblib import Parallel, delayed
from PIL import Image
from tqdm import tqdm

from deepchest_utils.datasets.base import DataError
from deepchest_utils.files import FileError, atomic_write, one_line
from deepchest_utils.paths import default_cache_dir

MAX_PIXELS = 50_000_000  # the largest NIH original has 13 million; more is refused before it is decoded
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP")  # others, as EPS, hand the file to a program
BLOCK = 16  # images a job
Blocks = Iterator[tuple[int, np.ndarray]]  # first row, block of images


def cache_key(**made_from: object) -> str:
    """A short hash of everything that the array depends on."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached_images(
    name: str, key: str, shape: tuple[int, int, int], make: Callable[[], Blocks], cache_dir: str | Path | None = None
) -> UInt8[np.ndarray, "n h w"]:
    """The memory-mapped array `<cache_dir>/<name>-<key>.npy`, made if it is not there.

    Args:
        key: `cache_key` of all that the images depend on.
        make: Yields blocks in any order. The file gets its name after the last one.
    Raises FileError: the file cannot be written, or holds something else.
    """
    path = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / f"{name}-{key}.npy"
    if not path.exists():
        with atomic_write(path) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):  # else a full disk would show as a bus error in the middle of it
                with open(temporary, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            for start, block in make():
                images[start : start + len(block)] = block
            images.flush()
            del images  # Windows renames no file that is mapped
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        content = f"{images.dtype} {images.shape}"
    except (ValueError, EOFError, OSError) as error:
        content = f"no array ({one_line(error)})"
    if content != f"uint8 {shape}":
        raise FileError(f"{path} should hold uint8 {shape}. Found {content}: delete it and run again.")
    return images


def decode(path: Path, size: int) -> UInt8[np.ndarray, "{size} {size}"]:
    """One image file as grey values, whatever its size and mode. An oblong image becomes square, alpha is ignored,
    a 16-bit file keeps its upper 8 bits. Raises DataError for a file that is missing, too large or no readable image."""
    image: Image.Image
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                dimensions = f"{image.width} x {image.height}"
                raise DataError(f"{path}: an image should have at most {MAX_PIXELS:,} pixels. Found {dimensions}.")
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            if image.mode == "P":  # straight to grey, Pillow warns of a palette with transparency
                image = image.convert("RGBA")
            # averages when it shrinks
            return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file.") from None
    except Exception as error:  # Pillow raises some ten types for damaged files
        raise DataError(f"{path}: not a readable image ({type(error).__name__}: {error}).") from error


def decode_all(
    name: str, paths: list[Path], size: int, cache_dir: str | Path | None = None
) -> UInt8[np.ndarray, "n {size} {size}"]:
    """Decode files into `cached_images`. Its key covers their paths, sizes in bytes and times of change."""

    def decode_block(start: int) -> tuple[int, np.ndarray]:
        return start, np.stack([decode(path, size) for path in paths[start : start + BLOCK]])

    def make() -> Blocks:
        starts = range(0, len(paths), BLOCK)
        # threads: Pillow decodes and resizes outside Python's lock
        pool = Parallel(n_jobs=os.cpu_count(), prefer="threads", return_as="generator_unordered")
        blocks = pool(delayed(decode_block)(start) for start in starts)
        bar = {"desc": f"decoding {name}", "unit": "image", "unit_scale": BLOCK, "disable": None}
        yield from tqdm(blocks, total=len(starts), **bar)

    files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    key = cache_key(decoder=1, size=size, files=files)
    return cached_images(f"{name}-{size}", key, (len(paths), size, size), make, cache_dir)
