"""Who goes into which split: by patient, stratified over findings."""

import numpy as np
from jaxtyping import Float, Int

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


def image_split(
    n: int, fractions: tuple[int | float, ...] = FRACTIONS, seed: int = 0
) -> Int[np.ndarray, " n"]:
    """Each image on its own, whoever it shows: leaks patients between splits. Only for measuring that
    leak."""
    share = np.cumsum(fractions) / sum(fractions)
    rank = np.random.default_rng(seed).permutation(n)
    return np.searchsorted(share, (rank + 0.5) / n)


def limit_images(
    patients: Int[np.ndarray, " n"], max_images: int | None, seed: int = 0
) -> Int[np.ndarray, " m"]:
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
