"""One loop for every method: `train(TrainConfig(...)) -> Run`."""

from deepchest_utils.training.config import TrainConfig
from deepchest_utils.training.run import Run, train

__all__ = ["Run", "TrainConfig", "train"]
