"""Where a finding really is: the phantom's masks, the boxes of NIH ChestX-ray14."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import Splits, load_boxes
from deepchest_utils.datasets.phantom.load import phantom_of

PER_FINDING = 60  # images: enough for an interval of a tenth or so


@dataclass(frozen=True)
class Regions:
    """M pairs of an image and a finding that it shows, with the region.

    rows: of the split. tasks: numbers of the findings. patients: whose images. masks: (M, H, W).
    """

    rows: Int[np.ndarray, " m"]
    tasks: Int[np.ndarray, " m"]
    patients: Int[np.ndarray, " m"]
    masks: Bool[np.ndarray, "m h w"]

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, chosen: np.ndarray) -> "Regions":
        return Regions(self.rows[chosen], self.tasks[chosen], self.patients[chosen], self.masks[chosen])


def load_regions(config: TrainConfig, data: Splits, part: str = "test", per_finding: int = PER_FINDING) -> Regions:
    """Regions on a split of `data`, which `config` describes: the first `per_finding` images of each finding.

    part: "test", or "val" to choose a method or a layer by. The phantom knows its masks; of NIH's boxes, those of
    images in the split: no network is judged on a patient it was trained on. Raises ValueError for another data set, or
    if no image of the split has a region.
    """
    images = data.parts[part]
    size = images.images.shape[-1]
    if config.dataset == "phantom" and data.split == "patient":
        drawn = phantom_of(config.data_seed, part, len(images), config.data_options.get("controlled"))
        rows, tasks = _first_positives(drawn.labels, per_finding)
        masks = np.empty((len(rows), size, size), bool)
        for start in range(0, len(rows), 64):  # all findings' masks of an image come at once: keep one of 14
            block = slice(start, start + 64)
            masks[block] = drawn.masks(size, rows[block])[np.arange(len(rows[block])), tasks[block]]
    elif config.dataset == "nih":
        boxes = load_boxes(cast(str, config.data_root), size)  # whence `data` came
        boxed = [np.isin(images.ids, boxes.image[boxes.finding == name]) for name in data.findings]
        rows, tasks = _first_positives(np.stack(boxed, axis=1), per_finding)
        parts = [
            boxes_to_masks(boxes, images.ids[rows[tasks == k]], name, size) for k, name in enumerate(data.findings)
        ]
        masks = np.concatenate(parts)
    else:
        raise ValueError(
            f'dataset should be "phantom", split by patient, or "nih": no other has regions. Found {config.dataset!r}, split={data.split!r}.'
        )
    seen = cast(np.ndarray, masks.any((1, 2)))
    if not seen.any():
        raise ValueError(f"{config.dataset}: none of the {len(images)} images of {part} has a region of a finding.")
    return Regions(rows, tasks, images.patients[rows], masks).subset(seen)


def _first_positives(labels: np.ndarray, per_finding: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Rows and columns of up to so many positives in each column, by column."""
    rows = [np.flatnonzero(column == 1)[:per_finding] for column in labels.T]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(r) for r in rows])


def boxes_to_masks(
    boxes: pd.DataFrame, ids: np.ndarray, finding: str, image_size: int
) -> Bool[np.ndarray, "n {image_size} {image_size}"]:
    """A mask an image, the union of its boxes of the finding; empty where it has none. boxes: as `load_boxes` gives
    them, scaled to `image_size`. A pixel counts if its centre lies in a box."""
    centres = np.arange(image_size) + 0.5
    masks = np.zeros((len(ids), image_size, image_size), bool)
    rows = {name: row for row, name in enumerate(ids)}
    for box in boxes[(boxes.finding == finding) & boxes.image.isin(rows)].itertuples():
        across = (centres >= box.x) & (centres < box.x + box.width)
        down = (centres >= box.y) & (centres < box.y + box.height)
        masks[rows[box.image]] |= np.outer(down, across)
    return masks
