"""One loop for every method: `train(TrainConfig(...)) -> Run`."""

from deepchest_utils.config import TrainConfig
from deepchest_utils.training.loop import Run, train, train_once

__all__ = ["Run", "TrainConfig", "train", "train_once"]
