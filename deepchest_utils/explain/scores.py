"""Does a heat map point at the finding? Scores of maps against the truth, pair by pair, and what those reach that look
at no image."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import nn

from deepchest_utils.datasets import ChestXrays
from deepchest_utils.explain.cam import heat_maps
from deepchest_utils.explain.regions import Regions
from deepchest_utils.results.metrics import Ranking
from deepchest_utils.results.statistics import patient_weights

SCORES = {
    "pointing": "pointing game",
    "energy": "energy inside",
    "iou": "IoU over thresholds",
    "pixel_ap": "AP of pixels",
}
THRESHOLDS = np.linspace(0.1, 0.9, 9)  # of the IoU, as shares of a map's maximum
TOLERANCE = 1 / 16  # of the side: half a cell of a map of 8 x 8


def score_maps(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "m a b"], tolerance: float = TOLERANCE
) -> dict[str, Float[np.ndarray, " n"]]:
    """Each of SCORES for each image, in [0, 1]. masks: as many as maps, and of their size.

    pointing: whether the maximum lies in the mask, or `tolerance` (a share of the side) from it (Zhang et al. 2016, arXiv
    1608.00507); the share of the maxima if there are several. energy: share of the map's sum in the mask (Wang et al.
    2020, arXiv 1910.01279); the mask's share of the image for a blank map. iou: mean over THRESHOLDS of the overlap of
    the mask with the map above the threshold. pixel_ap: average precision of the pixels. NaN for an empty mask.
    Raises ValueError if the shapes differ.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps and masks should have one shape. Found {maps.shape} and {masks.shape}.")
    out = {name: np.full(len(maps), np.nan) for name in SCORES}
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if not mask.any():
            continue
        top, total = values.max(), values.sum(dtype=float)
        near = distance_transform_edt(~mask) <= tolerance * mask.shape[0]
        out["pointing"][i] = near[values == top].mean()
        out["energy"][i] = values[mask].sum(dtype=float) / total if total > 0 else mask.mean()
        if top > 0:
            above = values >= THRESHOLDS[:, None, None] * top
            out["iou"][i] = ((above & mask).sum((1, 2)) / (above | mask).sum((1, 2))).mean()
        else:
            out["iou"][i] = 0.0
        pixels = Ranking(mask.ravel().astype(np.float32), values.ravel())
        out["pixel_ap"][i] = 1.0 if mask.all() else pixels.average_precision()[0]
    return out


def localize(
    net: nn.Module,
    data: ChestXrays,
    truth: Regions,
    method: str = "layercam",
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
) -> pd.DataFrame:
    """How well a network's maps point at the regions of `truth`, a row a pair, in its order: image, finding, patient,
    evidence and SCORES. data: the split that `truth` is of. method, layers: as in `heat_maps`.

    Maps are made, scored and let go batch by batch: memory does not grow with the number of images.
    """
    parts = []
    for task in np.unique(truth.tasks):
        pairs = np.flatnonzero(truth.tasks == task)
        for chosen in np.split(pairs, range(batch_size, len(pairs), batch_size)):
            found = heat_maps(net, data.images[truth.rows[chosen]], [int(task)], method, layers, batch_size)
            scores = score_maps(found.maps[:, 0], truth.masks[chosen])
            parts.append(pd.DataFrame({"pair": chosen, "evidence": found.evidence[:, 0], **scores}))
    scores = pd.concat(parts).sort_values("pair").drop(columns="pair").reset_index(drop=True)
    return pd.concat([_names(data, truth), scores], axis=1)


def score_baseline_maps(maps: Float[np.ndarray, "m h w"], data: ChestXrays, truth: Regions) -> pd.DataFrame:
    """The same table for maps that no network made, one a pair."""
    return _names(data, truth).assign(evidence=True, **score_maps(maps, truth.masks))


def _names(data: ChestXrays, truth: Regions) -> pd.DataFrame:
    findings = np.array(data.findings)[truth.tasks]
    return pd.DataFrame({"image": data.ids[truth.rows], "finding": findings, "patient": truth.patients})


def centre_prior(size: int) -> Float[np.ndarray, "{size} {size}"]:
    """The map of one who looks at no image: a Gaussian in the middle, its standard deviation a quarter of the side."""
    x = (np.arange(size) + 0.5) / size - 0.5
    bell = np.exp(-0.5 * (x / 0.25) ** 2).astype(np.float32)
    return np.outer(bell, bell)


def random_maps(count: int, size: int, rng: np.random.Generator) -> Float[np.ndarray, "{count} {size} {size}"]:
    """Uniform noise of 8 x 8 cells, as smooth as a network's map."""
    noise = torch.from_numpy(rng.random((count, 1, 8, 8), dtype=np.float32))
    scaled = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    return scaled[:, 0].numpy()


def mean_region_baseline(truth: Regions) -> Float[np.ndarray, "m h w"]:
    """For each pair, the mean region of the finding in other patients: what one would point at who knows the finding and
    no more of the image. Blank where no other patient has it."""
    out = np.zeros(truth.masks.shape, np.float32)
    for task in np.unique(truth.tasks):
        pairs = np.flatnonzero(truth.tasks == task)
        whole = truth.masks[pairs].sum(0, dtype=np.float32)
        for patient in np.unique(truth.patients[pairs]):
            own = pairs[truth.patients[pairs] == patient]
            others = len(pairs) - len(own)
            out[own] = (whole - truth.masks[own].sum(0)) / max(others, 1)
    return out


def mean_scores(
    tables: Sequence[pd.DataFrame], score: str, rng: np.random.Generator, replicates: int = 1000
) -> tuple[pd.DataFrame, Float[np.ndarray, "t r f"]]:
    """The mean of a score for each finding, and over the findings ("macro"), of T tables of the same pairs.

    Returns the means, a column a table and a row a finding, and their replicates under a bootstrap over patients, which
    draws the same patients for all tables: differences are paired. Raises ValueError if the pairs differ.
    """
    first = tables[0]
    for table in tables[1:]:
        if not table[["image", "finding"]].equals(first[["image", "finding"]]):
            raise ValueError("tables should be of the same images and findings, in the same order.")
    findings, index = np.unique(first.finding, return_inverse=True)
    member = (index[:, None] == np.arange(len(findings))).astype(float)  # pair -> finding
    weights = patient_weights(first.patient.to_numpy(np.int64), replicates, rng)
    values = np.stack([table[score].to_numpy(float) for table in tables])
    means, count = values @ member / member.sum(0), weights @ member
    with np.errstate(invalid="ignore"):  # a replicate without a patient of the finding
        samples = np.stack([(weights * v) @ member / count for v in values])
    samples = np.concatenate([samples, np.nanmean(samples, axis=2, keepdims=True)], axis=2)
    means = np.column_stack([means, means.mean(1)])
    return pd.DataFrame(means.T, index=pd.Index([*findings, "macro"], name="finding")), samples
