"""Batches of a split, in memory or memory-mapped, onto the device; and a network's logits of a whole
split."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deepchest_utils.augment import to_input
from deepchest_utils.datasets import ChestXrays
from deepchest_utils.models import MultiTaskNet

EVAL_BATCH = 256


def training_order(n: int, batch_size: int, generator: torch.Generator) -> Int[Tensor, "steps b"]:
    """A fresh order of n images as rows of whole batches; the few left over wait for the next epoch's
    order."""
    size = min(batch_size, n)
    steps = n // size
    return torch.randperm(n, generator=generator)[: steps * size].view(steps, size)


def fetch(images: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
    """The uint8 images (B, H, W) of the rows, on the device."""
    batch = torch.from_numpy(images[rows])
    if device.type == "cuda":
        batch = batch.pin_memory()
    return batch.to(device, non_blocking=True)


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@torch.no_grad()
def predict(
    net: MultiTaskNet,
    data: ChestXrays,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Float[np.ndarray, "n k"]:
    """Logits of every image in order, (N, K) float32; the network's mode is put back."""
    was_training = net.training
    net.eval()
    try:
        out = [
            net(
                to_input(fetch(data.images, np.arange(s.start, s.stop), device)).to(
                    memory_format=memory_format
                )
            ).float()
            for s in _slices(len(data), EVAL_BATCH)
        ]
        return torch.cat(out).cpu().numpy()
    finally:
        net.train(was_training)
