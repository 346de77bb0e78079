"""Several processes that train one network, started by torchrun: each sees its share of every batch, and whatever a method
learns from is of the whole batch, so that all of them do the same. In one process nothing here does anything.

PyTorch's DistributedDataParallel is not used: it averages gradients inside the backward pass, of which gradient methods
take several, and its processes would part without a word. Nor is its SyncBatchNorm, which knows no CPU.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

Net = TypeVar("Net", bound=nn.Module)
# the first process may have a data set to decode; a job whose process died is ended by torchrun
TIMEOUT = timedelta(hours=6)


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0; the first alone writes and prints."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes of torchrun, if it has started this one: gloo on the CPU, NCCL on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:  # NCCL talks through the current one
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """The first process runs the block alone, then the others: they find what it has put on disk."""
    if rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place, without gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(number: int) -> int:
    """The highest over the processes."""
    if world_size() == 1:
        return number
    found = torch.tensor(number, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def shard(tensor: Tensor, dim: int = 0) -> Tensor:
    """This process' part of what all have, as long as the others' along `dim`."""
    return tensor.chunk(world_size(), dim)[rank()]


def all_gather(tensor: Tensor, dim: int = 0) -> Tensor:
    """The parts of all processes, equally long, in order."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)


def only_on_rank_zero(tensor: Tensor) -> Tensor:
    """What every process has in full counts once in a sum over them: zeros in all but the first."""
    return tensor if rank() == 0 else torch.zeros_like(tensor)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """`.grad` of each, summed over the processes in one go. A parameter has a gradient in all or in none."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        return all_reduce_sum(part.clone())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient


def sum_over_ranks(part: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The sum over the processes of their parts of the losses. Its gradient by the network's parameters is this process'
    part of the whole gradient: the parts are to be summed, see `sum_gradients`."""
    return _SumOverRanks.apply(part) if world_size() > 1 else part


class _AllReduceWithGrad(torch.autograd.Function):
    """The sum over the processes, of values and of gradients: each process' part enters the output of all."""

    @staticmethod
    def forward(ctx: FunctionCtx, part: Tensor) -> Tensor:
        return all_reduce_sum(part.clone())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone())


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes; they have equal shares of it."""

    running_mean: Tensor  # kept, as by default
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or world_size() == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1] * world_size()
        mean: Tensor = _AllReduceWithGrad.apply(x.float().mean((0, 2, 3))) / world_size()
        centred = x.float() - mean[:, None, None]
        variance: Tensor = _AllReduceWithGrad.apply((centred**2).mean((0, 2, 3))) / world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            pace = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, pace)
            self.running_var.lerp_(variance * count / max(count - 1, 1), pace)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def convert_sync_batchnorm(net: Net) -> Net:
    """The same network, its batch normalisation over all processes' batches; nothing changes in one process."""
    if world_size() > 1:
        for module in net.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncBatchNorm2d
    return net
