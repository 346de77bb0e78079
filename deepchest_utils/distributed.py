"""Several processes that train one network, started by torchrun. Each has its shard of every batch; losses, gradients
and batch statistics are summed over all, so that all processes take the same step. With one process nothing here acts.

PyTorch's DistributedDataParallel is not used: it averages gradients inside the backward pass, of which gradient methods
take several, and processes that drift apart would go unnoticed. Nor is its SyncBatchNorm, which does not run on CPUs.
A *collective* is a call that all processes must make, in the same order; otherwise they wait for each other.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0. Only rank 0 writes files and prints."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Collective: join the processes of torchrun, if it started this one. gloo on the CPU, NCCL on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:  # NCCL uses the current device
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # rank 0 may have a data set to decode while the others wait; torchrun ends a job of which a process died
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=6))
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Collective: rank 0 runs the block first; then the others run it and find the files that rank 0 has written."""
    if rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Collective: the sum over processes, in place and without gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def shard(tensor: Tensor, dim: int = 0) -> Tensor:
    """No collective: this process's part of a tensor that all processes hold, one of equally long parts along `dim`."""
    return tensor.chunk(world_size(), dim)[rank()]


def all_gather(tensor: Tensor, dim: int = 0) -> Tensor:
    """Collective: the equally long parts of all processes, concatenated along `dim` in the order of ranks."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)


def gather_objects(value: T) -> list[T]:
    """Collective: the small plain values of all processes, in the order of ranks, whatever the device is."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def only_on_rank_zero(tensor: Tensor) -> Tensor:
    """No collective: the tensor on rank 0 and zeros elsewhere, so that a sum over processes counts it once."""
    return tensor if rank() == 0 else torch.zeros_like(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Collective: sum each `.grad` over processes. A parameter has a gradient in all processes or in none."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


class _AllReduce(torch.autograd.Function):
    """Collective: the sum over processes. The gradient is summed too, or passed on as it is."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, sum_gradient: bool) -> Tensor:
        ctx.sum_gradient = sum_gradient
        return all_reduce_sum(part.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient.clone()) if ctx.sum_gradient else gradient, None


def sum_over_ranks(part: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Collective: the losses of the whole batch from those of the shards.

    The backward pass is the identity: each process gets its part of the gradient, for `sum_gradients` to add up.
    """
    return _AllReduce.apply(part, False) if world_size() > 1 else part


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Collective in training: batch normalisation over the shards of all processes, which are equally large."""

    running_mean: Tensor  # kept, as by default
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1] * world_size()
        mean: Tensor = _AllReduce.apply(x.float().mean((0, 2, 3)), True) / world_size()
        centred = x.float() - mean[:, None, None]
        variance: Tensor = _AllReduce.apply((centred**2).mean((0, 2, 3)), True) / world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncBatchNormAct2d(SyncBatchNorm2d):
    """Collective in training: the same for timm's BatchNormAct2d, which goes on to drop and to activate."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return cast(Tensor, self.act(self.drop(super().forward(x))))


def convert_sync_batchnorm(net: nn.Module) -> None:
    """Let the batch normalisation of the network be synchronised, in place, if there are several processes. ValueError for
    an unknown kind, in which each process would go by its own shard."""
    if world_size() == 1:
        return
    of_timm = getattr(sys.modules.get("timm.layers"), "BatchNormAct2d", None)  # imported by whoever has such a network
    known = {nn.BatchNorm2d: SyncBatchNorm2d, of_timm: SyncBatchNormAct2d}
    for name, module in net.named_modules():
        if kind := known.get(type(module)):
            module.__class__ = kind
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SyncBatchNorm2d):
            found = f"{type(module).__name__} ({name})"
            raise ValueError(f"several processes can share BatchNorm2d and timm's BatchNormAct2d alone. Found {found}.")
