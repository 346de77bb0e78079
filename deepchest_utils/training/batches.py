"""Batches of a split, in memory or memory-mapped, onto the device; and a network's logits of a whole
split."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepchest_utils.augment import to_input
from deepchest_utils.datasets import ChestXrays

EVAL_BATCH = 256


def epoch_shape(n: int, batch_size: int) -> tuple[int, int]:
    """Steps of an epoch over n images, and images a step: whole batches only, at least one."""
    size = min(batch_size, n)
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


@torch.no_grad()
def predict(
    net: nn.Module,
    data: ChestXrays,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Float[np.ndarray, "n k"]:
    """Logits of every image in order, (N, K) float32; the network's mode is put back."""
    was_training = net.training
    net.eval()
    try:
        out = []
        for rows in np.split(np.arange(len(data)), range(EVAL_BATCH, len(data), EVAL_BATCH)):
            x = to_input(fetch(data.images, rows, device))
            out.append(net(x.to(memory_format=memory_format)).float())
        return torch.cat(out).cpu().numpy()
    finally:
        net.train(was_training)
