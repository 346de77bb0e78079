"""Device, optimiser, schedule and autocast by name."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays
from deepchest_utils.distributed import all_gather, rank, world_size
from deepchest_utils.models.augment import apply_augmentation, fold_normalization, to_input

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """ "auto" is cuda if there is one, else the CPU; of several processes each has a GPU of its own. Raises ValueError for
    a device that is unknown or not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N. Found {name!r} ({error}).") from None
    if device.type not in ("cpu", "cuda"):  # Apple's mps has no float64, which the task weights are kept in
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N. Found {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    return device


def make_optimizer(
    config: TrainConfig, network: Iterable[nn.Parameter], method: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Over all parameters of the network, and those of the method, which weight decay leaves alone: it would pull
    learned task weights towards equal ones. A task without a label in a batch gets a zero gradient, not none, from
    one matrix of heads."""
    groups = [{"params": list(network), "weight_decay": config.weight_decay}]
    if own := list(method):
        groups.append({"params": own, "weight_decay": 0.0})
    # fused: one pass over memory a parameter, a tenth of a step faster on two cores
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=config.lr)
        case _:
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)


def make_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A factor a step: half a cosine from 1 to 0 over the run, or 1."""
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)


def autocast(amp: str, device: torch.device) -> AbstractContextManager[object]:
    if amp == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[amp])


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `scale`: fp16's loss scaling, without a method seeing scaled
    losses."""

    @staticmethod
    def forward(ctx: FunctionCtx, losses: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return losses.view_as(losses)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


EVAL_BATCH, EVAL_BLOCK = 256, 2**22  # images at a time, and pixels at most: 83 images of 224 px
BLOCK = 2**20  # pixels prepared at a time: 256 images of 64 px


def epoch_shape(n: int, batch_size: int) -> tuple[int, int]:
    """Steps of an epoch over n images, and images a step: whole batches only, at least one. Raises ValueError for a batch
    of one, or one that the processes cannot share evenly."""
    size = min(batch_size, n)
    if size < 2:
        raise ValueError(
            f"batch_size should be at least 2: batch normalisation compares images. Found {size}, of {n} training images."
        )
    if size % world_size():
        raise ValueError(f"batch_size should be a multiple of the {world_size()} processes. Found {size}.")
    return n // size, size


def training_order(n: int, batch_size: int, generator: torch.Generator) -> Int[Tensor, "steps b"]:
    """A fresh order of n images as rows of whole batches; the few left over wait for the next epoch's
    order."""
    steps, size = epoch_shape(n, batch_size)
    return torch.randperm(n, generator=generator)[: steps * size].view(steps, size)


def fetch(images: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    """The uint8 images (B, H, W) of the rows, on the device."""
    batch = torch.from_numpy(images[rows])
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def inputs(
    images: np.ndarray,
    order: Int[np.ndarray, "steps b"],
    device: torch.device,
    memory_format: torch.memory_format,
    views: Float[Tensor, "steps b 8"] | None = None,
    first: int = 0,
) -> Iterator[Float[Tensor, "b 1 h w"]]:
    """The network's input in each step from the `first` on, augmented if there are views. Small images are prepared several
    batches at a time: one alone is too little work to share among cores."""
    several = max(1, BLOCK // (order.shape[1] * images[0].size))
    # the same blocks whatever the first: a product of matrices may round otherwise in another company
    for start in range(first // several * several, len(order), several):
        steps = slice(start, start + several)
        x = fetch(images, order[steps].ravel(), device)
        x = (
            to_input(x)
            if views is None
            else apply_augmentation(x[:, None].float(), fold_normalization(views[steps].flatten(0, 1)))
        )
        if memory_format == torch.channels_last:  # what `to` does, but one channel needs no copy
            x = x.view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
        yield from x.split(order.shape[1])[max(0, first - start) :]


@torch.no_grad()
def predict(
    net: nn.Module, data: ChestXrays, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format
) -> Float[np.ndarray, "n k"]:
    """Logits of every image in order, (N, K) float32; the network's mode is put back."""
    was_training = net.training
    net.eval()
    try:
        # one tensor for all: a small one left behind by each batch would keep the memory of large ones from reuse
        each = -(-len(data) // world_size())  # images a process
        logits = torch.zeros(each, data.labels.shape[1], device=device)
        size = max(1, min(EVAL_BATCH, EVAL_BLOCK // data.images[0].size))
        own = np.arange(len(data))[rank() * each : (rank() + 1) * each]
        for start in range(0, len(own), size):
            x = to_input(fetch(data.images, own[start : start + size], device))
            logits[start : start + len(x)] = net(x.to(memory_format=memory_format))
        return all_gather(logits)[: len(data)].cpu().numpy()
    finally:
        net.train(was_training)
