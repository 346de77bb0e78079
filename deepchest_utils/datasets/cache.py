"""Files are decoded and phantoms drawn once, into a memory-mapped `.npy` whose name covers what it was made from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from joblib import Parallel, delayed

from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.decode import MIN_LEVELS, decode, has_few_levels
from deepchest_utils.files import FileError, atomic_write, one_line
from deepchest_utils.paths import default_cache_dir
from deepchest_utils.progress import progress

BLOCK = 16  # images a job
DECODER = 3  # the form of what `decode` gives: one more whenever that changes
MAX_DAMAGED = 100  # and no more are looked for
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
    except OSError as error:  # too many open files, say: nothing is wrong with this one
        raise FileError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, EOFError) as error:
        content = f"no array ({one_line(error)})"
    if content != f"uint8 {shape}":
        raise FileError(f"{path} should hold uint8 {shape}. Found {content}: delete it and run again.")
    return images


def decode_all(
    name: str, paths: list[Path], size: int, cache_dir: str | Path | None = None
) -> UInt8[np.ndarray, "n {size} {size}"]:
    """Decode files into `cached_images`. Warns of pictures with next to no grey levels.

    Its key covers their paths, sizes in bytes and both times of change: that of the content can be set to what it was, that of
    the file itself cannot. So files that were moved, linked or given other rights are decoded anew.
    """

    damaged: list[str] = []

    def decode_one(path: Path) -> np.ndarray:
        try:
            return decode(path, size)
        except DataError as error:
            damaged.append(str(error))
            if len(damaged) > MAX_DAMAGED:
                raise DataError(f"{name}: more than {MAX_DAMAGED} images cannot be used, e.g. {damaged[0]}") from None
            return np.zeros((size, size), np.uint8)

    def decode_block(start: int) -> tuple[int, np.ndarray]:
        return start, np.stack([decode_one(path) for path in paths[start : start + BLOCK]])

    def make() -> Blocks:
        starts = range(0, len(paths), BLOCK)
        # threads: Pillow decodes and resizes outside Python's lock
        pool = Parallel(n_jobs=os.cpu_count(), prefer="threads", return_as="generator_unordered")
        blocks = pool(delayed(decode_block)(start) for start in starts)
        bar = {"unit": "image", "unit_scale": BLOCK}
        yield from progress(blocks, f"decoding {name}", len(starts), logged=True, **bar)
        if damaged:  # all of them: each further attempt would decode the others again
            count = f"{len(damaged)} of {len(paths)} images" if len(damaged) > 1 else "an image"
            raise DataError(f"{name}: {count} cannot be used. Mend or remove: " + " ".join(sorted(damaged)))

    files = [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path in paths]
    key = cache_key(decoder=DECODER, size=size, files=files)
    images = cached_images(f"{name}-{size}", key, (len(paths), size, size), make, cache_dir)
    if poor := [path for path, image in zip(paths, images, strict=True) if has_few_levels(image)]:
        of = f"{len(poor)} of {len(paths)} pictures have fewer than {MIN_LEVELS} grey levels, e.g. {poor[0]}"
        warn(f"{name}: {of}. They are blank, or were saved in a fraction of their depth.")
    return images
