"""Data sets by name, split by patient: `load_dataset("phantom" | "nih" | "chestmnist" | "csv", ...) -> Splits`."""

from deepchest_utils.datasets.base import ChestXrays, DataError, DataWarning, Splits
from deepchest_utils.datasets.load import DATASETS, load_dataset
from deepchest_utils.datasets.nih import load_boxes

__all__ = ["DATASETS", "ChestXrays", "DataError", "DataWarning", "Splits", "load_boxes", "load_dataset"]
