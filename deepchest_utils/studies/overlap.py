"""The field's table for NIH's boxes: how often a map overlaps the box by more than T, with one threshold for all maps."""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num
from scipy.ndimage import find_objects, label

from deepchest_utils.files import write_file

THRESHOLDS = np.linspace(0.1, 0.9, 9)  # of a map, relative to its maximum
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # T(IoU) of the table, as in Li et al. 2018
KINDS = ("box_iou", "region_iou")
Box = tuple[slice, slice]


def overlaps(maps: Float[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 2 9"]:
    """Intersection over union, in [0, 1], of N maps and true regions at each of THRESHOLDS; NaN for an empty region.

    - box_iou: of boxes, as Wang et al. 2017 (arXiv 1705.02315) draw them: one around the largest connected part above
      the threshold, and one around each connected part of the region, of which the best counts.
    - region_iou: of the part of the map above the threshold and the region, as in Li et al. 2018 (arXiv 1711.06373)
      and CheXlocalize (Saporta et al. 2022).
    """
    out = np.full((len(maps), len(KINDS), len(THRESHOLDS)), np.nan)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        true = find_objects(label(mask)[0])
        for t, threshold in enumerate(THRESHOLDS if true else ()):
            above = (values >= threshold * values.max()) & (values > 0)
            out[i, 1, t] = (above & mask).sum() / (above | mask).sum()
            parts, count = label(above)
            out[i, 0, t] = 0.0
            if count:
                found = find_objects(parts)[np.bincount(parts.ravel())[1:].argmax()]
                out[i, 0, t] = max(_box_iou(found, box) for box in true)
    return out


def _box_iou(a: Box, b: Box) -> float:
    shared = [max(min(p.stop, q.stop) - max(p.start, q.start), 0) for p, q in zip(a, b, strict=True)]
    areas = [(box[0].stop - box[0].start) * (box[1].stop - box[1].start) for box in (a, b)]
    both = shared[0] * shared[1]
    return float(both / (sum(areas) - both))


def at_one_threshold(
    overlap: Float[np.ndarray, "m 9"], findings: Num[np.ndarray, " m"], patients: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """The overlap of each of M pairs at the threshold that is best, mean over findings, on the other half of the patients.

    So no map is judged at a threshold that it has helped to choose, and no images are needed for the choice alone: all
    of NIH's boxes lie in the official test split. Every second patient, in the order of their numbers, is in one half.
    """
    second = np.unique(patients, return_inverse=True)[1] % 2 == 1
    chosen = np.empty(len(overlap))
    for own in (second, ~second):
        other = ~own if (~own).any() else own
        means = pd.DataFrame(overlap[other]).groupby(findings[other]).mean().mean()
        chosen[own] = overlap[own, int(means.argmax())]
    return chosen


def box_table(scores: pd.DataFrame) -> pd.DataFrame:
    """The share of images whose box_iou is above each of LEVELS, and the mean region_iou.

    Args:
        scores: A row a pair, with columns finding and KINDS, as `localize` makes them.

    Returns:
        A row a finding, and "macro", their mean; columns "T(IoU) 0.1" to "T(IoU) 0.7" and "mean IoU".
    """
    above = {f"T(IoU) {level}": (scores.box_iou > level).astype(float) for level in LEVELS}
    table = pd.DataFrame({**above, "mean IoU": scores.region_iou}).groupby(scores.finding).mean()
    table.loc["macro"] = table.mean()
    return table


def write_box_tables(scores: pd.DataFrame, out: str | Path) -> tuple[pd.DataFrame, Path]:
    """Write `box_table` of each method of `localize_runs` to `<out>_boxes.csv`; return its macro rows and the path.

    The seeds of a method have the same images and are one sample here. Runs measured without boxes are left out.
    """
    known = scores.reindex(columns=[*scores.columns.union(KINDS, sort=False)]).dropna(subset=list(KINDS))
    tables = {str(method): box_table(rows) for method, rows in known.groupby("method", sort=False)}
    empty = box_table(known.iloc[:0])
    table = pd.concat(tables or {"": empty}, names=["method"])
    path = Path(out).with_name(f"{Path(out).stem}_boxes.csv")
    write_file(path, table.to_csv(float_format="%.4g"))
    return table.xs("macro", level="finding"), path
