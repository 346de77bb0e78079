"""What every data set becomes: `ChestXrays` (images, labels, patients) in three `Splits` that share no
patient."""

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8

from deepchest_utils.files import FileError


class DataError(FileError):
    """A file, a table or a column is not what it should be; the message names it, what was found and what to
    do."""


class DataWarning(UserWarning):
    """The data can be used, with a limit that the message counts."""


@dataclass(frozen=True)
class ChestXrays:
    """Greyscale radiographs of one split.

    images: (N, H, W) uint8, in memory or memory-mapped. labels: (N, K) float32, 1 present, 0 absent, NaN
    unknown.
    patients: (N,) int64. findings: K names. ids: N names, a file's or the number of the image.
    Raises DataError for lengths that differ, images that are not uint8, labels other than 0, 1 and NaN, or no image at all.
    """

    images: UInt8[np.ndarray, "n h w"]
    labels: Float[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    findings: tuple[str, ...]
    ids: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("images", "labels", "patients", "ids")}
        if len(set(lengths.values())) != 1:
            raise DataError(f"images, labels, patients and ids should have one length. Found {lengths}.")
        if self.images.dtype != np.uint8:
            raise DataError(f"images should be uint8. Found {self.images.dtype}.")
        if lengths["images"] == 0:
            raise DataError("a split should hold at least one image. Found none.")
        if self.labels.shape[1] != len(self.findings):
            raise DataError(
                f"labels should have one column a finding ({len(self.findings)}). Found {self.labels.shape[1]}."
            )
        wrong = ~(np.isnan(self.labels) | (self.labels == 0) | (self.labels == 1))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"labels should be 0, 1 or NaN. Found {self.labels[row, column]} for {self.findings[column]} of image {self.ids[row]}."
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: np.ndarray) -> "ChestXrays":
        """The images of `rows`, copied into memory."""
        return ChestXrays(
            np.asarray(self.images[rows]),
            self.labels[rows],
            self.patients[rows],
            self.findings,
            self.ids[rows],
        )

    @property
    def prevalence(self) -> Float[np.ndarray, " k"]:
        """(K,) share of positives among the known labels; NaN for a finding without a known label."""
        known = (~np.isnan(self.labels)).sum(0)
        share: np.ndarray = np.nansum(self.labels, axis=0) / np.where(known == 0, np.nan, known)
        return share


@dataclass(frozen=True)
class Splits:
    """train, val and test of one data set, and how they came about.

    split: "official", "patient" or "image"; only "image" lets a patient be on both sides, to measure what
    that leak is worth.
    patients_known: False where the data set does not say which images belong to one patient (ChestMNIST).
    Raises DataError if a patient is in two splits; warns once (DataWarning) of findings without a positive in
    a split.
    """

    train: ChestXrays
    val: ChestXrays
    test: ChestXrays
    name: str
    split: str
    patients_known: bool = True

    def __post_init__(self) -> None:
        if self.split != "image":
            self._check_patients()
        without = {
            name: [f for f, n in zip(self.findings, np.nansum(part.labels, axis=0), strict=True) if n == 0]
            for name, part in self.parts.items()
        }
        if any(without.values()):
            listed = "; ".join(f"{name}: {', '.join(found)}" for name, found in without.items() if found)
            warnings.warn(
                f"{self.name}: findings without a positive image, whose metrics there are NaN: {listed}.",
                DataWarning,
                stacklevel=3,
            )

    def _check_patients(self) -> None:
        names = list(self.parts)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                both = np.intersect1d(self.parts[first].patients, self.parts[second].patients)
                if len(both):
                    raise DataError(
                        f"patients should be in one split only. Found {len(both)} of them in {first} and {second}, e.g. {both[0]}."
                    )

    @property
    def parts(self) -> dict[str, ChestXrays]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def findings(self) -> tuple[str, ...]:
        return self.train.findings

    def fingerprint(self) -> str:
        """A short hash of labels, patients and image sizes: a run is only continued on the data it began with."""
        digest = hashlib.sha256()
        for part in self.parts.values():
            digest.update(repr((part.images.shape, part.findings)).encode())
            digest.update(part.labels.tobytes() + part.patients.tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> pd.DataFrame:
        """One row a finding and one for the images and patients: positives and unknown labels in each
        split."""
        columns = {}
        for name, part in self.parts.items():
            positive = np.nansum(part.labels, axis=0).astype(int)
            unknown = np.isnan(part.labels).sum(0)
            patients = len(np.unique(part.patients)) if self.patients_known else 0
            columns[name, "positive"] = [len(part), patients, *positive]
            columns[name, "unknown"] = [0, 0, *unknown]
        return pd.DataFrame(columns, index=["(images)", "(patients)", *self.findings])
