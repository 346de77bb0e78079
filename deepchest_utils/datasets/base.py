"""The form of every data set: `ChestXrays` (images, labels, patients) in three `Splits` that share no patient."""

import hashlib
import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, compress
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8

from deepchest_utils.config import check_choice
from deepchest_utils.files import FileError

Fractions = tuple[int | float, ...]
FRACTIONS: Fractions = (0.7, 0.1, 0.2)  # train, val, test
SPLITS = ("official", "patient", "image")  # or a fold such as "2/5"


class DataError(FileError):
    """A file, a table or a column is not as it should be. The message names it, what was found and what to do."""


class DataWarning(UserWarning):
    """The data can be used, with a limit that the message counts."""


def warn(message: str) -> None:
    """Give a DataWarning."""
    warnings.warn(message, DataWarning, stacklevel=4)


@dataclass(frozen=True)
class ChestXrays:
    """Greyscale radiographs of one split, in memory or memory-mapped; or features of them, a vector in place of each image.

    Attributes:
        labels: 1 present, 0 absent, NaN unknown; a column a finding.
        ids: Names of the images: the file's, or the split's and a number.

    Raises:
        DataError: Lengths differ, images are not uint8 and features are not floats, labels are not 0, 1 or NaN, or there is no image.
    """

    images: UInt8[np.ndarray, "n h w"] | Float[np.ndarray, "n f"]
    labels: Float[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    findings: tuple[str, ...]
    ids: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("images", "labels", "patients", "ids")}
        if len(set(lengths.values())) != 1:
            raise DataError(f"images, labels, patients and ids should have one length. Found {lengths}.")
        if self.images.dtype != np.uint8 and not self.are_vectors:
            raise DataError(f"images should be uint8. Found {self.images.dtype}.")
        if lengths["images"] == 0:
            raise DataError("a split should hold at least one image. Found none.")
        if self.labels.shape[1] != (count := len(self.findings)):
            raise DataError(f"labels should have one column a finding ({count}). Found {self.labels.shape[1]}.")
        if len(set(self.findings)) != count:
            raise DataError(f"findings should be named once each. Found {', '.join(self.findings)}.")
        wrong = ~(np.isnan(self.labels) | (self.labels == 0) | (self.labels == 1))
        if wrong.any():
            row, k = np.argwhere(wrong)[0]
            place = f"{self.labels[row, k]} for {self.findings[k]} of image {self.ids[row]}"
            raise DataError(f"labels should be 0, 1 or NaN. Found {place}.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def are_vectors(self) -> bool:
        """Whether these are features, embeddings, and no images."""
        return self.images.ndim == 2 and self.images.dtype.kind == "f"

    def subset(self, rows: np.ndarray | slice) -> "ChestXrays":
        """The images of some rows: copied into memory, or a view for a slice."""
        images = np.asarray(self.images[rows])
        return ChestXrays(images, self.labels[rows], self.patients[rows], self.findings, self.ids[rows])

    @property
    def prevalence(self) -> Float[np.ndarray, " k"]:
        """Share of positives among the known labels of each finding; NaN where no label is known."""
        counts = (~np.isnan(self.labels)).sum(0)
        return np.asarray(np.nansum(self.labels, axis=0) / np.where(counts == 0, np.nan, counts))


@dataclass(frozen=True)
class Splits:
    """Train, val and test of one data set. Warns of findings without a positive in a split.

    Attributes:
        split: "official", "patient", a fold such as "2/5", or "image". A patient in two splits is a DataError, unless it is
            "image".
        patients_known: False where the data set does not say which images belong to one patient (ChestMNIST).
        source: The table that was read, if there is one.
        population: Of a phantom, what `phantom_of` draws it with again, beside seed, split and number of images.
    """

    train: ChestXrays
    val: ChestXrays
    test: ChestXrays
    name: str
    split: str
    patients_known: bool = True
    source: str | None = None
    population: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (first, a), (second, b) in combinations(self.parts.items(), 2):
            both = np.intersect1d(a.patients, b.patients)
            if len(both) and self.split != "image":
                images = " and ".join(str(part.ids[part.patients == both[0]][0]) for part in (a, b))
                place = f"{len(both)} of them in {first} and {second}, e.g. that of {images}"
                wrong = f"patients should be in one split only. Found {place}"
                raise DataError(f'{self.source or self.name}: {wrong}. Mend the split, or use split="patient".')
        lacking = []
        for name, xrays in self.parts.items():
            ones, zeros = ((xrays.labels == value).any(axis=0) for value in (1, 0))
            never = [f"{finding} (no negative)" for finding in compress(self.findings, ones & ~zeros)]
            if names := [*compress(self.findings, ~ones), *never]:
                lacking.append(f"{name}: {', '.join(names)}")
        if lacking:
            what = "findings without a positive image, or a negative one, whose metrics there are NaN"
            warn(f"{self.name}: {what}: {'; '.join(lacking)}.")

    @property
    def parts(self) -> dict[str, ChestXrays]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def findings(self) -> tuple[str, ...]:
        """The tasks, in the order of the labels' columns."""
        return self.train.findings

    def fingerprint(self) -> str:
        """A short hash of labels, patients and pixels: a run is only continued on the data it began with.

        The phantom's pixels stay out of it, as another processor may round one of them differently. The visibility of its
        signs, of which its labels know nothing, stands for them.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for xrays in self.parts.values():
            digest.update(repr((xrays.images.shape, xrays.findings)).encode())
            digest.update(xrays.labels.tobytes() + xrays.patients.tobytes())
            for start in range(0, len(xrays) if self.name != "phantom" else 0, 1024):  # it may be larger than memory
                digest.update(hashlib.blake2b(xrays.images[start : start + 1024].tobytes()).digest())
        if visibility := (self.population.get("controlled") or {}).get("visibility"):
            digest.update(repr(sorted(visibility.items())).encode())
        return digest.hexdigest()[:16]

    def summary(self) -> pd.DataFrame:
        """Positive and unknown labels in each split; a row a finding, after one of images and one of patients."""
        columns = {}
        for name, xrays in self.parts.items():
            patients = len(np.unique(xrays.patients)) if self.patients_known else 0
            columns[name, "positive"] = [len(xrays), patients, *np.nansum(xrays.labels, axis=0).astype(int)]
            columns[name, "unknown"] = [0, 0, *np.isnan(xrays.labels).sum(0)]
        return pd.DataFrame(columns, index=["(images)", "(patients)", *self.findings])


def patient_split(
    labels: Float[np.ndarray, "n k"], patients: Int[np.ndarray, " n"], fractions: Fractions = FRACTIONS, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """The number of each image's split: all images of a patient in one, each finding in proportion to the fractions.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011) over patients. The rarest finding comes first. Each
    patient goes to the split that lacks most of it; ties are broken by lack of images, then at random. A label of NaN
    counts as absent. The fractions may have any sum. Raises ValueError for fewer patients than splits.
    """
    rng = np.random.default_rng(seed)
    names, patient_of = np.unique(patients, return_inverse=True)
    if len(names) < len(fractions):
        raise ValueError(f"a split by patient needs at least {len(fractions)} patients. Found {len(names)}.")
    counts = np.zeros((len(names), labels.shape[1] + 1))  # a patient's positives of each finding, and images
    np.add.at(counts, patient_of, np.column_stack([np.nan_to_num(labels), np.ones(len(labels))]))
    lack = np.outer(np.asarray(fractions, float) / sum(fractions), counts.sum(0))  # (splits, K + 1)
    totals = np.where(counts > 0, counts.sum(0), np.inf)
    rarest = totals.argmin(1)  # of the patient's findings; the images, of which there are most, where there is none
    split_of = np.empty(len(names), np.int64)
    # rare findings first; at random within one, so that patients with many images go everywhere
    for patient in np.lexsort((rng.random(len(names)), totals.min(1))):
        candidates = np.arange(len(lack))
        for column in (rarest[patient], -1):
            values = lack[candidates, column]
            candidates = candidates[values >= values.max() - 1e-9]
        split_of[patient] = split = candidates[0] if len(candidates) == 1 else rng.choice(candidates)
        lack[split] -= counts[patient]
    return split_of[patient_of]


def fold_of(split: str) -> tuple[int, int] | None:
    """Fold and number of folds of a split such as "2/5", None of one in `SPLITS`. Raises DataError for any other."""
    fold = re.fullmatch(r"(\d{1,3})/(\d{1,3})", split)
    if fold is None:
        check_choice("split", split, SPLITS, DataError)
        return None
    number, folds = map(int, fold.groups())
    if not 1 <= number <= folds or folds < 3:
        raise DataError(f"split should be a fold from 1/N to N/N, with N at least 3. Found {split!r}.")
    return number, folds


def fold_split(
    labels: Float[np.ndarray, "n k"], patients: Int[np.ndarray, " n"], fold: int, folds: int, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """Cross-validation: of `folds` equal parts of `patient_split`, at least 3, number `fold`, from 1, is test (2), the next
    one val (1), the others train (0). Every image is in test once; another seed deals the patients out anew."""
    number = patient_split(labels, patients, (1,) * folds, seed)
    return np.where(number == fold - 1, 2, np.where(number == fold % folds, 1, 0))


def image_split(n: int, fractions: Fractions = FRACTIONS, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The number of each image's split, drawn image by image. It leaks patients; only for measuring that leak."""
    ends = np.cumsum(fractions) / sum(fractions)
    rank = np.random.default_rng(seed).permutation(n)
    return np.searchsorted(ends, (rank + 0.5) / n)


def limit_images(patients: Int[np.ndarray, " n"], max_images: int | None, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Rows of at most `max_images` images (at least one patient's), whole patients drawn at random, in their order."""
    if max_images is None or max_images >= len(patients):
        return np.arange(len(patients))
    if max_images < 1:
        raise ValueError(f"max_images should be at least 1. Found {max_images}.")
    names, patient_of, counts = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[: max(1, int(np.searchsorted(counts[order].cumsum(), max_images, side="right")))]
    return np.flatnonzero(np.isin(patient_of, kept))
