"""ChestMNIST: the images of NIH ChestX-ray14 at 28 to 224 px in one `.npz` file, downloaded when it is missing."""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm.utils import CallbackIOWrapper

from deepchest_utils.datasets.base import ChestXrays, DataError, Splits, limit_images
from deepchest_utils.datasets.findings import FINDINGS, NIH_IMAGES
from deepchest_utils.paths import raw_dir
from deepchest_utils.progress import progress

# Facts of the data set: MedMNIST v2 (Yang et al., Scientific Data 10:41, 2023, arXiv 2110.14795), CC BY 4.0, as the
# authors' package medmnist 3.0.2 lists them in `info.py`. Its 14 labels are `FINDINGS`, in the same order.
SOURCE = "https://zenodo.org/records/10519652/files"
MD5 = {  # px: checksum of the file
    28: "02c8a6516a18b556561a56cbdd36c4a8",
    64: "9de6cd0b934ebb5b7426cfba5efbae16",
    128: "db107e5590b27930b62dbaf558aebee3",
    224: "45bd33e6f06c3e8cdb481c74a89152aa",
}
TIMEOUT = 60.0  # s without a byte


def load_chestmnist(
    root: str | Path | None,
    image_size: int = 64,
    seed: int = 0,
    split: str | None = None,
    download: bool = True,
    max_images: int | None = None,
) -> Splits:
    """Load MedMNIST's own split of the NIH images, at 28, 64, 128 or 224 px.

    The file does not say which images belong to one patient, so each image counts as a patient of its own. Bootstrap
    intervals are then by image, and too narrow.

    Args:
        root: Folder of `chestmnist.npz` (28 px) or `chestmnist_<size>.npz`; `paths.raw_dir()` by default.
        download: Fetch a missing file into `root`.
    Raises DataError: another size or split, or a file that is missing, damaged, or cannot be downloaded.
    """
    if split not in (None, "official"):
        raise DataError(f'chestmnist has only its own split, split="official". Found {split!r}.')
    if image_size not in MD5:
        raise DataError(f"image_size should be one of {tuple(MD5)} for chestmnist. Found {image_size}.")
    file = "chestmnist.npz" if image_size == 28 else f"chestmnist_{image_size}.npz"
    path = (raw_dir() if root is None else Path(root).expanduser()) / file
    if not path.is_file():
        if path.parent.is_file():
            raise DataError(f"{path.parent}: root (data_root of a run) should be a folder. Found a file.")
        if not download:
            raise DataError(f"{path}: no such file, and download=False.")
        _download(f"{SOURCE}/{file}?download=1", path, MD5[image_size])
    splits, first_patient = {}, 0
    for name in ("train", "val", "test"):
        images, labels = _read_split(path, name, image_size)
        rows = limit_images(np.arange(len(images)), max_images, seed)
        ids = np.array([f"{name}/{row}" for row in rows])
        patients = first_patient + np.arange(len(rows))
        splits[name] = ChestXrays(images[rows], labels[rows].astype(np.float32), patients, FINDINGS, ids)
        first_patient += len(rows)
    train, val, test = splits.values()
    return Splits(train, val, test, name="chestmnist", split="official", patients_known=False, source=str(path))


def _read_split(path: Path, name: str, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W) uint8 and labels (N, 14) of one split, checked before and after they are unpacked."""
    allowed_bytes = 2 * NIH_IMAGES * (image_size**2 + len(FINDINGS))  # twice what all images of NIH take
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
        if unpacked_bytes > allowed_bytes:
            raise DataError(f"{path}: would unpack to {unpacked_bytes:,} bytes. At most {allowed_bytes:,} are allowed.")
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    except DataError:
        raise
    except Exception as error:  # a damaged file raises some ten types, MemoryError among them
        raise DataError(f"{path}: not a readable ChestMNIST file ({error}). Delete it and run again.") from None
    count = images.shape[:1]
    shapes = (*count, image_size, image_size), (*count, len(FINDINGS))
    if images.dtype != np.uint8 or (images.shape, labels.shape) != shapes:
        expected = f"uint8 images (N, {image_size}, {image_size}) and labels (N, 14)"
        content = f"{images.dtype} {images.shape} and {labels.shape}"
        raise DataError(f"{path}: {name} should hold {expected}. Found {content}.")
    return images, labels


def _download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` into `path`, one process at a time. A later call goes on from what has arrived, `<path>.part`."""
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():  # another process finished it meanwhile
                return
            _fetch(url, part)
            with open(part, "rb+") as file:
                arrived_md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                os.fsync(file.fileno())
            if arrived_md5 != md5:
                part.unlink()
                message = f"{path}: the download from {url} has MD5 {arrived_md5}, not {md5}"
                raise DataError(f"{message}, and is deleted. Try again.")
            os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        message = f"{path}: the download from {url} stopped ({error})"
        raise DataError(f"{message}. Run again to go on, or put the file there yourself.") from error


def _fetch(url: str, part: Path) -> None:
    """Append the bytes that `part` lacks; all of them, if the server cannot start in the middle."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == 416:  # no byte is missing; the MD5 sum tells whether there are too many
            return
        raise
    with response:
        start, mode = (start, "ab") if response.status == 206 else (0, "wb")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        size = {"initial": start, "unit": "B", "unit_scale": True}
        with open(part, mode) as file, progress(None, part.stem, total, logged=True, **size) as bar:
            shutil.copyfileobj(response, CallbackIOWrapper(bar.update, file, "write"))
    if total is not None and part.stat().st_size < total:
        raise OSError(f"{total - part.stat().st_size:,} bytes are missing")
