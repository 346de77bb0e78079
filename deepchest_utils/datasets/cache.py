"""A uint8 array made once, kept as `.npy` under a name that covers what it was made from, and memory-mapped
ever after."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8

from deepchest_utils.files import FileError, brief, new_file

PROJECT = Path(__file__).resolve().parents[2]


def default_cache_dir() -> Path:
    """`DEEPCHEST_CACHE` if set; else the repository's `data/processed`; else, installed elsewhere,
    `~/.cache/deepchest`."""
    if folder := os.environ.get("DEEPCHEST_CACHE"):
        return Path(folder)
    if (PROJECT / "pyproject.toml").exists():
        return PROJECT / "data" / "processed"
    return Path.home() / ".cache" / "deepchest"


def cache_key(**made_from: object) -> str:
    """A short hash of everything that the array depends on."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()[:16]


def source_hash(folder: Path) -> str:
    """A hash of the Python files of a folder: a change of the code that draws is a change of what is
    drawn."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cached_images(
    name: str,
    key: str,
    shape: tuple[int, int, int],
    make: Callable[[], Iterator[tuple[int, np.ndarray]]],
    cache_dir: str | Path | None = None,
) -> UInt8[np.ndarray, "n h w"]:
    """The memory-mapped array `<cache_dir>/<name>-<key>.npy`, made if it is not there.

    make: yields (first row, rows of images), in any order. The file appears under its name only when it is
    whole.
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    path = folder / f"{name}-{key}.npy"
    if not path.exists():
        with new_file(path) as part:
            new = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(
                os, "posix_fallocate"
            ):  # else a full disk would show as a bus error in the middle of it
                with open(part, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            for start, rows in make():
                new[start : start + len(rows)] = rows
            new.flush()
            del new
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        found = f"{array.dtype} {array.shape}"
    except (ValueError, EOFError, OSError) as error:
        array, found = None, f"no array ({brief(error)})"
    if array is None or array.shape != shape or array.dtype != np.uint8:
        raise FileError(f"{path} should hold uint8 {shape}. Found {found}: delete it and run again.")
    return cast(np.ndarray, array)
