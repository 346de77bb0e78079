"""Batches of a split, in memory or memory-mapped, onto the device; and a network's logits of a whole
split."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deepchest_utils.augment import of_pixels, see, to_input
from deepchest_utils.datasets import ChestXrays
from deepchest_utils.distributed import gathered, rank, ranks

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
    if size % ranks():
        raise ValueError(f"batch_size should be a multiple of the {ranks()} processes. Found {size}.")
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
        x = to_input(x) if views is None else see(x[:, None].float(), of_pixels(views[steps].flatten(0, 1)))
        if memory_format == torch.channels_last:  # what `to` does, but one channel needs no copy
            x = x.view(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
        yield from x.split(order.shape[1])[max(0, first - start) :]


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
        # one tensor for all: a small one left behind by each batch would keep the memory of large ones from reuse
        each = -(-len(data) // ranks())  # images a process
        logits = torch.zeros(each, data.labels.shape[1], device=device)
        size = max(1, min(EVAL_BATCH, EVAL_BLOCK // data.images[0].size))
        own = np.arange(len(data))[rank() * each : (rank() + 1) * each]
        for start in range(0, len(own), size):
            x = to_input(fetch(data.images, own[start : start + size], device))
            logits[start : start + len(x)] = net(x.to(memory_format=memory_format))
        return gathered(logits)[: len(data)].cpu().numpy()
    finally:
        net.train(was_training)
