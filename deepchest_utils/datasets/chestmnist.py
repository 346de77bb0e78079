"""A file from the network: resumed where an earlier try stopped, checked by its hash, and never half there under its
name."""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from deepchest_utils.datasets.base import ChestXrays, DataError, Splits, limit_images
from deepchest_utils.datasets.findings import FINDINGS

TIMEOUT = 60.0  # s without a byte
CHUNK = 2**20  # bytes


def download_file(url: str, path: Path, md5: str) -> None:
    """Fetch `url` into `path`. What has arrived is kept in `<path>.part`, and a later call goes on from there.

    Raises DataError if the server does not answer, the connection breaks, the disk is full, another process is at it, or
    what came has another MD5 sum (it is deleted then).
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists():  # just now finished by another
                raise BlockingIOError
            _fetch(url, file, path.name)
            os.fsync(file.fileno())
            found = _md5(part)
            if found != md5:
                part.unlink()
                raise DataError(
                    f"{path}: the download from {url} has MD5 {found}, not {md5}, and is deleted. Try again."
                )
            os.replace(part, path)
    except BlockingIOError:
        raise DataError(f"{path}: another process is downloading it. Wait for it.") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{path}: the download from {url} stopped ({error}). Run again to go on, or put the file there yourself."
        ) from error
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def _fetch(url: str, file: BinaryIO, name: str) -> None:
    """Append what is missing; from the start, if the server cannot go on in the middle."""
    begin = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if begin and error.code == 416:  # nothing is missing, or what is here is too long: the hash will tell
            return
        raise
    with answer:
        if begin and answer.status != 206:
            file.truncate(0)
            begin = 0
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length else None
        with tqdm(desc=name, total=total, initial=begin, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(CHUNK):
                file.write(block)
                bar.update(len(block))
    if total is not None and file.tell() < total:
        raise OSError(f"{total - file.tell():,} bytes are missing")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


SIZES = (28, 64, 128, 224)
NUM_IMAGES = 112_120  # of NIH ChestX-ray14


def load_chestmnist(
    root: str | Path | None, image_size: int = 64, download: bool = True, max_images: int | None = None, seed: int = 0
) -> Splits:
    """MedMNIST's own split of the NIH images; `chestmnist_<size>.npz` is taken from `root`, or downloaded
    there, checked by MD5 and resumed if it was stopped.

    root: default `data/raw` in the repository. The package does not say which images belong to one patient,
    so each image counts as a patient of its
    own: bootstrap intervals are then by image, and too narrow. Raises DataError for another size, or a file
    that is missing or damaged.
    """
    import medmnist  # slow to import, and needed here only

    from deepchest_utils.paths import PROJECT

    if image_size not in SIZES:
        raise DataError(f"image_size should be one of {SIZES} for chestmnist. Found {image_size}.")
    root = Path(root).expanduser() if root is not None else PROJECT / "data" / "raw"
    path = root / f"chestmnist{'' if image_size == 28 else f'_{image_size}'}.npz"
    if not path.is_file():
        if not download:
            raise DataError(f"{path}: no such file, and download=False.")
        info, suffix = medmnist.INFO["chestmnist"], "" if image_size == 28 else f"_{image_size}"
        download_file(info[f"url{suffix}"], path, info[f"MD5{suffix}"])
    _refuse_bomb(path, image_size)
    parts, offset = [], 0
    for name in ("train", "val", "test"):
        try:
            part = medmnist.ChestMNIST(split=name, root=str(root), size=image_size)
        except Exception as error:  # a damaged file raises some ten types, MemoryError among them
            raise DataError(f"{path}: not a readable ChestMNIST file ({error}). Delete it and run again.") from None
        if (
            part.imgs.dtype != np.uint8
            or part.imgs.ndim != 3
            or part.imgs.shape[1:] != (image_size, image_size)
            or part.labels.shape != (len(part.imgs), len(FINDINGS))
        ):
            raise DataError(
                f"{path}: {name} should hold uint8 images (N, {image_size}, {image_size}) and labels (N, 14). Found {part.imgs.dtype} {part.imgs.shape} and {part.labels.shape}."
            )
        rows = limit_images(np.arange(len(part.imgs)), max_images, seed)
        parts.append(
            ChestXrays(
                part.imgs[rows],
                part.labels[rows].astype(np.float32),
                np.arange(offset, offset + len(rows)),
                FINDINGS,
                np.array([f"{name}/{i}" for i in rows]),
            )
        )
        offset += len(rows)
    train, val, test = parts
    return Splits(train, val, test, name="chestmnist", split="official", patients_known=False)


def _refuse_bomb(path: Path, image_size: int) -> None:
    """Before anything is unpacked: no array may claim more than NIH has images."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:
        raise DataError(f"{path}: not a readable ChestMNIST file ({error}). Delete it and run again.") from None
    if claimed > (most := 2 * NUM_IMAGES * (image_size**2 + len(FINDINGS))):
        raise DataError(f"{path}: would unpack to {claimed:,} bytes, and {most:,} is the most it should hold.")
