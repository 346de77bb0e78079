"""Device, optimiser, schedule and autocast by name."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from deepchest_utils.distributed import ranks
from deepchest_utils.training.config import TrainConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """ "auto" is cuda if there is one, else the CPU; of several processes each has a GPU of its own. Raises ValueError for
    a device that is unknown or not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N. Found {name!r} ({error}).") from None
    if device.type not in ("cpu", "cuda"):  # Apple's mps has no float64, which the task weights are kept in
        raise ValueError(f"device should be auto, cpu, cuda or cuda:N. Found {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices."
        )
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
