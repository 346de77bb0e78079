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
            np.asarray(self.images[rows]), self.labels[rows], self.patients[rows], self.findings, self.ids[rows]
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


FRACTIONS = (0.7, 0.1, 0.2)  # train, val, test


def patient_split(
    labels: Float[np.ndarray, "n k"],
    patients: Int[np.ndarray, " n"],
    fractions: tuple[int | float, ...] = FRACTIONS,
    seed: int = 0,
) -> Int[np.ndarray, " n"]:
    """The number of the split of each image (N,), all images of a patient in one, each finding spread in
    proportion.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) over patients: the rarest finding first,
    each patient to the split that lacks most of it, ties by lack of images, then at random. labels: NaN
    counts as absent. fractions: positive, any sum.
    Raises ValueError if there are fewer patients than splits.
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(patients, return_inverse=True)
    if len(names) < len(fractions):
        raise ValueError(f"a split by patient needs at least {len(fractions)} patients. Found {len(names)}.")
    share = np.asarray(fractions, float) / sum(fractions)
    counts = np.zeros((len(names), labels.shape[1] + 1))  # positives of each finding, and images
    np.add.at(counts, index, np.column_stack([np.nan_to_num(labels), np.ones(len(labels))]))

    wanted = np.outer(share, counts.sum(0))
    totals = np.where(counts[:, :-1].sum(0) > 0, counts[:, :-1].sum(0), np.inf)
    rarest = np.where(counts[:, :-1] > 0, totals, np.inf)
    has_any = np.isfinite(rarest).any(1)
    column = np.where(has_any, rarest.argmin(1) if labels.shape[1] else 0, labels.shape[1])
    rank = np.where(has_any, rarest.min(1, initial=np.inf), np.inf)
    # rare findings first; at random within one, so that patients with many images go everywhere
    order = np.lexsort((rng.random(len(names)), rank))
    split_of = np.empty(len(names), np.int64)
    for patient in order:
        need = wanted[:, column[patient]]
        best = np.flatnonzero(need >= need.max() - 1e-9)
        lack = wanted[best, -1]
        best = best[lack >= lack.max() - 1e-9]
        chosen = best[0] if len(best) == 1 else rng.choice(best)
        split_of[patient] = chosen
        wanted[chosen] -= counts[patient]
    return split_of[index]


def image_split(n: int, fractions: tuple[int | float, ...] = FRACTIONS, seed: int = 0) -> Int[np.ndarray, " n"]:
    """Each image on its own, whoever it shows: leaks patients between splits. Only for measuring that
    leak."""
    share = np.cumsum(fractions) / sum(fractions)
    rank = np.random.default_rng(seed).permutation(n)
    return np.searchsorted(share, (rank + 0.5) / n)


def limit_images(patients: Int[np.ndarray, " n"], max_images: int | None, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Rows of at most `max_images` images (at least one patient's), whole patients drawn at random; in their
    old order."""
    if max_images is None or max_images >= len(patients):
        return np.arange(len(patients))
    if max_images < 1:
        raise ValueError(f"max_images should be at least 1. Found {max_images}.")
    names, index, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[: max(1, int(np.searchsorted(counts[order].cumsum(), max_images, side="right")))]
    return np.flatnonzero(np.isin(index, kept))
