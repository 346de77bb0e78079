"""Are the maps the network's doing? Weights and labels that are shuffled must cost them their score (Adebayo et al. 2018,
arXiv 1810.03292), and the pixels they point at must matter to the network (Petsiuk et al. 2018, arXiv 1806.07421)."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from deepchest_utils.datasets import Splits
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.trunks import MultiTaskNet


def cascading_randomization(net: MultiTaskNet, rng: torch.Generator) -> Iterator[tuple[str, MultiTaskNet]]:
    """The network with more and more of it shuffled, from the head down: ("head", ...), then the parts of the trunk, last
    first, by name. One copy, changed from step to step; the network itself stays as it is.

    Every weight tensor, and every statistic of batch normalisation, is permuted within itself: its distribution stays,
    what was learned is lost.
    """
    shuffled = copy.deepcopy(net)
    done: set[int] = set()
    for name, part in [("head", shuffled.head), *reversed(_parts(shuffled.trunk)), ("rest", shuffled.trunk)]:
        tensors = [t for t in part.state_dict().values() if t.numel() > 1 and t.data_ptr() not in done]
        for tensor in tensors:
            order = torch.randperm(tensor.numel(), generator=rng).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
        if tensors:
            done |= {tensor.data_ptr() for tensor in tensors}
            yield name, shuffled


def _parts(trunk: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children with weights; those of the child, as long as there is only one."""
    found = [(name, child) for name, child in trunk.named_children() if child.state_dict()]
    return _parts(found[0][1]) if len(found) == 1 else found


def shuffle_labels(data: Splits, rng: np.random.Generator) -> Splits:
    """The data with the labels of training and validation dealt to other images of the same split: prevalence and
    co-occurrence stay, what they have to do with the images does not. The test split stays as it is."""
    parts = {name: replace(part, labels=rng.permutation(part.labels)) for name, part in data.parts.items()}
    return replace(data, train=parts["train"], val=parts["val"])


@torch.no_grad()
def perturbation_curves(
    net: MultiTaskNet,
    images: UInt8[np.ndarray, "n h w"],
    tasks: np.ndarray,
    maps: Float[np.ndarray, "n h w"],
    shares: Float[np.ndarray, " s"],
    insert: bool = False,
    batch_size: int = 256,
) -> Float[np.ndarray, "n s"]:
    """The probability of each image's finding as pixels go, those first that its map ranks highest.

    tasks: (N,), the finding looked at in each image. shares: of the pixels that are gone, in [0, 1]. A pixel that is gone
    shows the image blurred beyond recognition, which leaves no hole that is itself a sign. insert: the other way
    round, pixels come into the blurred image. The network should be in eval mode.
    """
    device = next(net.parameters()).device
    side = images.shape[-1]
    out = np.empty((len(images), len(shares)))
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        x = to_input(torch.tensor(images[rows])).to(device)
        blurred = gaussian_blur(x, [side // 2 * 2 - 1] * 2, [side / 6] * 2)
        ranks = torch.from_numpy(_ranks(maps[rows])).to(device)[:, None]
        before, after = (blurred, x) if insert else (x, blurred)
        wanted = torch.from_numpy(tasks[rows]).to(device)[:, None]
        for column, share in enumerate(shares):
            logits: Tensor = net(torch.where(ranks < share, after, before))
            out[rows, column] = logits.gather(1, wanted)[:, 0].double().sigmoid().cpu().numpy()
    return out


def _ranks(maps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Each pixel's place in its map, from 0 for the highest to just below 1."""
    flat = maps.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1, kind="stable")
    ranks = np.empty(flat.shape, np.float32)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1], dtype=np.float32) / flat.shape[1], axis=1)
    return ranks.reshape(maps.shape)
