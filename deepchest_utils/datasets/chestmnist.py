"""ChestMNIST: the NIH images at 28, 64, 128 or 224 px, through the `medmnist` package (Yang et al. 2023,
arXiv 2110.14795)."""

import zipfile
from pathlib import Path

import numpy as np

from deepchest_utils.datasets.base import ChestXrays, DataError, Splits
from deepchest_utils.datasets.download import download as fetch
from deepchest_utils.datasets.splits import limit_images
from deepchest_utils.findings import FINDINGS

SIZES = (28, 64, 128, 224)
NUM_IMAGES = 112_120  # of NIH ChestX-ray14


def load_chestmnist(
    root: str | Path | None,
    image_size: int = 64,
    download: bool = True,
    max_images: int | None = None,
    seed: int = 0,
) -> Splits:
    """MedMNIST's own split of the NIH images; `chestmnist_<size>.npz` is taken from `root`, or downloaded
    there, checked by MD5 and resumed if it was stopped.

    root: default `data/raw` in the repository. The package does not say which images belong to one patient,
    so each image counts as a patient of its
    own: bootstrap intervals are then by image, and too narrow. Raises DataError for another size, or a file
    that is missing or damaged.
    """
    import medmnist  # slow to import, and needed here only

    from deepchest_utils.datasets.cache import PROJECT

    if image_size not in SIZES:
        raise DataError(f"image_size should be one of {SIZES} for chestmnist. Found {image_size}.")
    root = Path(root).expanduser() if root is not None else PROJECT / "data" / "raw"
    path = root / f"chestmnist{'' if image_size == 28 else f'_{image_size}'}.npz"
    if not path.is_file():
        if not download:
            raise DataError(f"{path}: no such file, and download=False.")
        info, suffix = medmnist.INFO["chestmnist"], "" if image_size == 28 else f"_{image_size}"
        fetch(info[f"url{suffix}"], path, info[f"MD5{suffix}"])
    _refuse_bomb(path, image_size)
    parts, offset = [], 0
    for name in ("train", "val", "test"):
        try:
            part = medmnist.ChestMNIST(split=name, root=str(root), size=image_size)
        except Exception as error:  # a damaged file raises some ten types, MemoryError among them
            raise DataError(
                f"{path}: not a readable ChestMNIST file ({error}). Delete it and run again."
            ) from None
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
        raise DataError(
            f"{path}: not a readable ChestMNIST file ({error}). Delete it and run again."
        ) from None
    if claimed > (most := 2 * NUM_IMAGES * (image_size**2 + len(FINDINGS))):
        raise DataError(
            f"{path}: would unpack to {claimed:,} bytes, and {most:,} is the most it should hold."
        )
