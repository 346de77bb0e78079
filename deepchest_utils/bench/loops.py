"""The training loop against the limit: the bare step on batches that lie in memory, ready for the network."""

from collections.abc import Callable

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from deepchest_utils.augment import to_input
from deepchest_utils.datasets import Splits
from deepchest_utils.training import TrainConfig
from deepchest_utils.training.batches import fetch, training_order
from deepchest_utils.training.loop import Loop
from deepchest_utils.training.setup import autocast


def whole_loop(config: TrainConfig, data: Splits) -> Callable[[], object]:
    """A function that trains for one epoch, evaluation aside."""
    loop = Loop(config, data)
    return lambda: loop.pass_over_training(1)


def bare_loop(config: TrainConfig, data: Splits) -> Callable[[], None]:
    """A function that takes as many steps on as many images: network, mean loss, one backward pass, optimiser. Nothing
    is fetched, augmented, kept or logged."""
    loop = Loop(config, data)
    order = training_order(len(data.train), config.batch_size, torch.Generator().manual_seed(0)).numpy()
    images = [to_input(fetch(data.train.images, rows, loop.device)) for rows in order]
    images = [x.to(memory_format=loop.memory_format) for x in images]
    labels = [torch.from_numpy(data.train.labels[rows]).nan_to_num(0.0).to(loop.device) for rows in order]

    def epoch() -> None:
        loop.net.train()
        for x, y in zip(images, labels, strict=True):
            with autocast(config.amp, loop.device):
                logits = loop.net(x)
            loss = binary_cross_entropy_with_logits(logits.float(), y)
            loop.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            loop.optimizer.step()

    return epoch
