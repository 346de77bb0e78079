"""Does a heat map point at the finding? Scores of maps against the true regions, and of baselines that see no image."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import nn

from deepchest_utils.datasets import ChestXrays
from deepchest_utils.explain.cam import heat_maps
from deepchest_utils.explain.regions import Regions
from deepchest_utils.results.metrics import Ranking
from deepchest_utils.results.statistics import patient_weights

SCORES = {
    "pointing": "pointing game", "energy": "energy inside", "iou": "IoU over thresholds", "pixel_ap": "AP of pixels"
}  # fmt: skip
THRESHOLDS = np.linspace(0.1, 0.9, 9)  # of the IoU, relative to a map's maximum
TOLERANCE = 1 / 16  # of the side: half a cell of an 8 x 8 map


def score_maps(
    maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "m a b"], tolerance: float = TOLERANCE
) -> dict[str, Float[np.ndarray, " n"]]:
    """Each of SCORES, in [0, 1], for N maps that are not negative; NaN for an empty mask.

    - pointing: 1 if the maximum lies within `tolerance` (1 is the side) of the mask, else 0; the share of the maxima if
      there are several (Zhang et al. 2016, arXiv 1608.00507).
    - energy: the share of the map's sum inside the mask (Wang et al. 2020, arXiv 1910.01279); for a blank map, the
      share of the image inside the mask.
    - iou: intersection over union of the mask and the map above a threshold, mean over THRESHOLDS.
    - pixel_ap: average precision of the pixels.

    Raises ValueError if maps and masks differ in shape.
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
        above = (values >= THRESHOLDS[:, None, None] * top) & (top > 0)
        out["iou"][i] = ((above & mask).sum((1, 2)) / (above | mask).sum((1, 2))).mean()
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
    """How well the heat maps of a network, made by `heat_maps`, point at the true regions in the split `data`.

    Returns a row for each pair of `truth`, in its order: image, finding, patient, evidence and SCORES. Memory does not
    grow with the number of images.
    """
    tables = []
    for task in np.unique(truth.tasks):
        pairs = np.flatnonzero(truth.tasks == task)
        for batch in np.split(pairs, range(batch_size, len(pairs), batch_size)):
            heat = heat_maps(net, data.images[truth.rows[batch]], [int(task)], method, layers, batch_size)
            scores = score_maps(heat.maps[:, 0], truth.masks[batch])
            tables.append(pd.DataFrame({"evidence": heat.evidence[:, 0], **scores}, index=batch))
    return name_pairs(data, truth).join(pd.concat(tables))


def name_pairs(data: ChestXrays, truth: Regions) -> pd.DataFrame:
    findings = np.array(data.findings)[truth.tasks]
    return pd.DataFrame({"image": data.ids[truth.rows], "finding": findings, "patient": truth.patients})


def mean_scores(
    tables: Sequence[pd.DataFrame], score: str, rng: np.random.Generator, replicates: int = 1000
) -> tuple[pd.DataFrame, Float[np.ndarray, "t r f"]]:
    """Mean of a score for each finding and over the findings ("macro"), with a bootstrap over patients.

    Args:
        tables: T tables of `localize` with the same pairs of F findings; ValueError if they differ.
        score: A key of SCORES.

    Returns:
        The means, a row for each finding and for "macro", a column for each table; and their R replicates, paired
        between the tables, (T, R, F + 1).
    """
    first = tables[0]
    if not all(table[["image", "finding"]].equals(first[["image", "finding"]]) for table in tables):
        raise ValueError("tables should be of the same images and findings, in the same order.")
    findings, index = np.unique(first.finding, return_inverse=True)
    is_finding = (index[:, None] == np.arange(len(findings))).astype(float)  # (pairs, findings)
    weights = patient_weights(first.patient.to_numpy(np.int64), replicates, rng)
    values = np.stack([table[score].to_numpy(float) for table in tables])
    means, count = values @ is_finding / is_finding.sum(0), weights @ is_finding
    with np.errstate(invalid="ignore"):  # a replicate may have no patient with the finding
        samples = np.stack([(weights * v) @ is_finding / count for v in values])
    samples = np.concatenate([samples, np.nanmean(samples, axis=2, keepdims=True)], axis=2)
    means = np.column_stack([means, means.mean(1)])
    return pd.DataFrame(means.T, index=pd.Index([*findings, "macro"], name="finding")), samples
