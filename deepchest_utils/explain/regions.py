"""The true regions of findings: the masks of the phantom, or the boxes of NIH ChestX-ray14."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import Splits, load_boxes
from deepchest_utils.datasets.phantom.load import phantom_of


@dataclass(frozen=True)
class Regions:
    """The regions of M pairs of an image and a finding that it shows."""

    rows: Int[np.ndarray, " m"]  # of the images in their split
    tasks: Int[np.ndarray, " m"]  # numbers of the findings
    patients: Int[np.ndarray, " m"]  # of the images
    masks: Bool[np.ndarray, "m h w"]  # True inside the region

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, pairs: np.ndarray) -> "Regions":
        """The regions of these pairs, by number or by mask."""
        return Regions(self.rows[pairs], self.tasks[pairs], self.patients[pairs], self.masks[pairs])


def find_boxes(config: TrainConfig) -> pd.DataFrame | None:
    """The boxes of NIH, None for the phantom, whose regions are drawn. ValueError for a data set without regions; DataError for
    an NIH folder without a table of boxes."""
    if config.dataset == "nih":
        return load_boxes(config.data_root or "", config.image_size)
    if config.dataset != "phantom" or config.split not in (None, "patient"):
        wanted = 'dataset should be "phantom", split by patient, or "nih": no other has regions'
        raise ValueError(f"{wanted}. Found {config.dataset!r}, split={config.split!r}.")
    return None


def load_regions(config: TrainConfig, data: Splits, part: str = "test", per_finding: int = 60) -> Regions:
    """The regions in the first `per_finding` images of each finding in one split; 60 give an interval about 0.1 wide.

    Of the boxes of NIH, only those in the split are taken, so that no network is judged on a patient of its training.
    `config` is what `data` was loaded with; `part` is "test", or "val" to choose a map method or a layer. Raises
    ValueError if the data set has no regions, or no image of the split has one.
    """
    boxes = find_boxes(config)
    images = data.parts[part]
    size = images.images.shape[-1]
    if boxes is None:
        phantom = phantom_of(config.data_seed, part, len(images), **data.population)
        rows, tasks = _first_positives(phantom.labels == 1, per_finding)
        masks = np.empty((len(rows), size, size), bool)
        for start in range(0, len(rows), 64):  # in blocks: the masks of all 14 findings come at once, and one is kept
            block = slice(start, start + 64)
            masks[block] = phantom.masks(size, rows[block])[np.arange(len(rows[block])), tasks[block]]
    else:
        has_box = [np.isin(images.ids, boxes.image[boxes.finding == name]) for name in data.findings]
        rows, tasks = _first_positives(np.stack(has_box, axis=1), per_finding)
        ids = [images.ids[rows[tasks == k]] for k in range(len(data.findings))]
        masks = np.concatenate([boxes_to_masks(boxes, *pair, size) for pair in zip(ids, data.findings, strict=True)])
    visible: np.ndarray = np.any(masks, axis=(1, 2))
    if not visible.any():
        raise ValueError(f"{config.dataset}: none of the {len(images)} images of {part} has a region of a finding.")
    return Regions(rows, tasks, images.patients[rows], masks).subset(visible)


def _first_positives(is_positive: np.ndarray, per_finding: int) -> tuple[np.ndarray, ...]:
    """Rows and columns of up to `per_finding` positives in each column, by column."""
    return np.nonzero((is_positive & (is_positive.cumsum(0) <= per_finding)).T)[::-1]


def boxes_to_masks(boxes: pd.DataFrame, ids: np.ndarray, finding: str, image_size: int) -> Bool[np.ndarray, "n s s"]:
    """The union of the boxes of a finding in each of N images; a pixel counts if its centre lies in a box.

    `boxes` are as `load_boxes` scales them to `image_size`; `ids` are the names of the images.
    """
    centres = np.arange(image_size) + 0.5
    masks = np.zeros((len(ids), image_size, image_size), bool)
    for box in boxes[boxes.finding == finding].itertuples():
        across = (centres >= box.x) & (centres < box.x + box.width)
        down = (centres >= box.y) & (centres < box.y + box.height)
        masks[ids == box.image] |= np.outer(down, across)
    return masks
