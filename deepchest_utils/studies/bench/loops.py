"""The training loop against the limit: the bare step on batches that lie in memory, ready for the network."""

from collections.abc import Callable

import torch

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import Splits
from deepchest_utils.studies.bench.steps import bare_step
from deepchest_utils.training.loop import Loop
from deepchest_utils.training.setup import inputs, training_order


def whole_loop(config: TrainConfig, data: Splits) -> Callable[[], object]:
    """A function that trains for one epoch, evaluation aside."""
    loop = Loop(config, data)
    return lambda: loop.pass_over_training(1)


def bare_loop(config: TrainConfig, data: Splits) -> Callable[[], None]:
    """A function that takes as many bare steps on as many images. Nothing is fetched, augmented, kept or logged."""
    loop = Loop(config, data)
    order = training_order(len(data.train), config.batch_size, torch.Generator().manual_seed(0)).numpy()
    images = list(inputs(data.train.images, order, loop.device, loop.memory_format))
    labels = torch.from_numpy(data.train.labels[order]).nan_to_num(0.0).to(loop.device)

    def epoch() -> None:
        loop.net.train()
        for x, y in zip(images, labels, strict=True):
            bare_step(loop.net, loop.optimizer, x, y, config.amp, loop.device)

    return epoch
