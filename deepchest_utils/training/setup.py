"""The parts of the loop: device, optimiser, learning-rate schedule, autocast, batches and prediction."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays
from deepchest_utils.distributed import all_gather, rank, world_size
from deepchest_utils.models.augment import to_input
from deepchest_utils.threads import adapt_threads

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# fused: one pass over memory a parameter, a tenth of a step faster on two cores
_OPTIMIZERS: dict[str, Any] = {
    "adamw": partial(torch.optim.AdamW, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
}
EVAL_BATCH, EVAL_PIXELS = 256, 2**22  # of a batch of predict: images, and pixels at most (83 images of 224 px)
BLOCK = 2**20  # pixels prepared at a time: 256 images of 64 px


def resolve_device(name: str) -> torch.device:
    """The device of this process. "auto" is cuda if there is one, and each of several processes has its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = None
    with suppress(RuntimeError):  # of a name that torch does not know
        device = torch.device(name)
    # not Apple's mps: it has no float64, which task weights are kept in
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N. Found {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return device


def make_optimizer(
    config: TrainConfig, network: Iterable[nn.Parameter], method: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimiser of the network's parameters, and of the method's, without weight decay: it would pull learned task
    weights towards equal ones."""
    groups = [{"params": list(network), "weight_decay": config.weight_decay}]
    if method_parameters := list(method):
        groups.append({"params": method_parameters, "weight_decay": 0.0})
    # fp16's first step overflows and is skipped; fused SGD has then made its momentum of memory that nothing has filled
    unfused = {"fused": False} if (config.optimizer, config.amp) == ("sgd", "fp16") else {}
    return cast(torch.optim.Optimizer, _OPTIMIZERS[config.optimizer](groups, lr=config.lr, **unfused))


def moments(config: TrainConfig, device: torch.device) -> dict[str, Tensor]:
    """The optimiser's state of a parameter of shape (1,) after a step."""
    parameter = nn.Parameter(torch.zeros(1, device=device))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(config, [parameter])
    optimizer.step()
    return dict(optimizer.state[parameter])


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """The factor of the learning rate in each step: half a cosine from 1 to 0 over the run, or 1."""
    if config.schedule == "constant":
        return LambdaLR(optimizer, lambda step: 1.0)
    return CosineAnnealingLR(optimizer, T_max=total_steps)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net, for the statistics of batch normalisation too; counts are copied."""
    for mean, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def autocast(amp: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass in half precision; amp: off, bf16 or fp16."""
    return nullcontext() if amp == "off" else torch.autocast(device.type, dtype=_DTYPES[amp])


def epoch_shape(n: int, batch_size: int) -> tuple[int, int]:
    """(steps, images a step) of an epoch over n images: whole batches only, at least one."""
    size = min(batch_size, n)
    if size < 2:
        raise ValueError(
            f"batch_size should be at least 2: batch normalisation compares images. Found {size}, of {n} training images."
        )
    if size % world_size():
        raise ValueError(f"batch_size should be a multiple of the {world_size()} processes. Found {size}.")
    return n // size, size


def training_order(
    n: int,
    batch_size: int,
    generator: torch.Generator,
    labels: Float[np.ndarray, "n k"] | None = None,
    factors: Float[Tensor, " n"] | None = None,
) -> Int[Tensor, "steps b"]:
    """A random order of n images, a batch a row; the few images that fill no batch are left out of this epoch.

    Args:
        labels: Deal the positives of each finding out, the rarest finding first, each to a batch that has the fewest of it:
            every batch has every finding with enough positives. Each image still comes at most once.
        factors: Draw as many images with replacement, each in proportion to its own.
    """
    steps, size = epoch_shape(n, batch_size)
    if factors is None:
        order = torch.randperm(n, generator=generator)[: steps * size]
    else:
        order = torch.multinomial(factors, steps * size, replacement=True, generator=generator)
    if labels is not None:
        positive = labels[order.numpy()] == 1  # unknown is not
        count, free, batch_of = np.zeros((steps, labels.shape[1])), np.full(steps, size), np.full(len(order), -1)
        for k in positive.sum(0).argsort(kind="stable"):
            for image in np.flatnonzero(positive[:, k] & (batch_of < 0)):
                # of those with the fewest the emptiest
                batch = np.where(free > 0, count[:, k] * (size + 1) - free, np.inf).argmin()
                batch_of[image], free[batch] = batch, free[batch] - 1
                count[batch] += positive[image]
        batch_of[batch_of < 0] = np.repeat(np.arange(steps), free)
        order = order[torch.from_numpy(batch_of.argsort(kind="stable"))].view(steps, size)
        order = order[torch.randperm(steps, generator=generator)]
    return order.view(steps, size)


def repeat_factors(labels: Float[np.ndarray, "n k"], threshold: float) -> Float[Tensor, " n"]:
    """How often each image is drawn, next to one without a rare finding: the largest max(1, sqrt(threshold / f_k)) of its
    findings, f_k their prevalence (repeat factors; Gupta et al. 2019, arXiv 1908.03195). An unknown label counts for none."""
    positive = labels == 1
    prevalence = positive.sum(0) / np.maximum((~np.isnan(labels)).sum(0), 1)
    of_finding = np.sqrt(np.maximum(threshold / np.maximum(prevalence, 1 / len(labels)), 1.0))
    return torch.from_numpy(np.where(positive, of_finding, 1.0).max(1))


def _fetch(images: np.ndarray, index: np.ndarray, device: torch.device) -> Tensor:
    batch = torch.from_numpy(images[index])
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def inputs(
    images: np.ndarray,
    order: Int[np.ndarray, "steps b"],
    device: torch.device,
    memory_format: torch.memory_format,
    augmentation: Float[Tensor, "steps b 8"] | None = None,
    padding: str = "border",
) -> Iterator[Float[Tensor, "b *input"]]:
    """The network's input in each step, augmented if there are parameters for it, as `to_input` does.

    Several batches of small images are prepared at once: one alone is too little work to share among cores.
    """
    batches = max(1, BLOCK // (order.shape[1] * images[0].size))
    for start in range(0, len(order), batches):
        steps = slice(start, start + batches)
        parameters = None if augmentation is None else augmentation[steps].flatten(0, 1)
        x = to_input(_fetch(images, order[steps].ravel(), device), parameters, padding)
        if memory_format == torch.channels_last:  # what `to` does, but one channel needs no copy
            x = x.view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
        yield from x.split(order.shape[1])


@torch.no_grad()
def predict(
    net: nn.Module,
    data: ChestXrays,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    augmentation: Float[Tensor, "n 8"] | None = None,
    padding: str = "border",
) -> Float[np.ndarray, "n k"]:
    """Collective: logits of all images in order, float32. The network predicts in eval mode and keeps the mode it had. All
    processes give the same parameters of augmentation, a row an image, if any."""
    was_training = net.training
    net.eval()
    try:
        # one tensor for all: a small one left behind by each batch would keep the memory of large ones from reuse
        share = -(-len(data) // world_size())  # images a process
        logits = torch.zeros(share, data.labels.shape[1], device=device)
        size = max(1, min(EVAL_BATCH, EVAL_PIXELS // data.images[0].size))
        index = np.arange(len(data))[rank() * share : (rank() + 1) * share]
        for start in range(0, len(index), size):
            adapt_threads()
            batch = index[start : start + size]
            parameters = None if augmentation is None else augmentation[batch].to(device)
            x = to_input(_fetch(data.images, batch, device), parameters, padding)
            logits[start : start + len(x)] = net(x.to(memory_format=memory_format))
        return all_gather(logits)[: len(data)].cpu().numpy()
    finally:
        net.train(was_training)
