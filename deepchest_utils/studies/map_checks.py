"""Do the maps depend on the network? Shuffled weights and labels must cost them their score (Adebayo et al. 2018,
arXiv 1810.03292), and the pixels that they point at must matter to the network (Petsiuk et al. 2018, arXiv 1806.07421)."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.explain.cam import evaluated, heat_maps
from deepchest_utils.explain.regions import Regions
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.results.statistics import patient_weights
from deepchest_utils.studies.localization import name_pairs, overlap_columns, score_maps
from deepchest_utils.studies.overlap import overlaps


def cascading_randomization(net: MultiTaskNet, rng: torch.Generator) -> Iterator[tuple[str, MultiTaskNet]]:
    """Shuffle more and more of the network, from the head down: each tensor of weights or of batch normalisation's statistics
    is permuted within itself. Its distribution stays; what was learned is lost. Yields the name of what was shuffled last
    and the network so far, one copy that changes from step to step; `net` stays as it is."""
    shuffled = copy.deepcopy(net)
    done: set[int] = set()
    modules = [("head", shuffled.head), *reversed(_modules_with_weights(shuffled.trunk)), ("rest", shuffled.trunk)]
    for name, module in modules:
        tensors = [t for t in module.state_dict().values() if t.numel() > 1 and t.data_ptr() not in done]
        for tensor in tensors:
            order = torch.randperm(tensor.numel(), generator=rng).to(tensor.device)
            tensor.copy_(tensor.flatten()[order].view_as(tensor))
        if tensors:
            done |= {tensor.data_ptr() for tensor in tensors}
            yield name, shuffled


def _modules_with_weights(trunk: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children that have weights; of an only child, its children."""
    children = [(name, child) for name, child in trunk.named_children() if child.state_dict()]
    return _modules_with_weights(children[0][1]) if len(children) == 1 else children


def shuffle_labels(data: Splits, rng: np.random.Generator) -> Splits:
    """The data with the labels of training and validation dealt to other images of the same split. Prevalence and
    co-occurrence stay, but the images no longer tell the labels. The test split stays as it is."""
    splits = {name: replace(split, labels=rng.permutation(split.labels)) for name, split in data.parts.items()}
    return replace(data, train=splits["train"], val=splits["val"])


def perturbation_curves(
    net: MultiTaskNet,
    images: UInt8[np.ndarray, "n h w"],
    tasks: np.ndarray,
    maps: Float[np.ndarray, "n h w"],
    shares: Float[np.ndarray, " s"],
    normal: UInt8[np.ndarray, "h w"],
    insert: bool = False,
    batch_size: int = 256,
) -> Float[np.ndarray, "n s"]:
    """The probability of each image's finding as its pixels go, those that its map ranks highest first.

    A pixel that is gone shows `normal`: a hole, or the image blurred, looks like a sign itself. The network predicts in
    eval mode, and is left as it was.

    Args:
        tasks: (N,), the finding asked about in each image.
        shares: of the pixels that are gone, in [0, 1].
        normal: a chest without findings, as `normal_chest` makes one.
        insert: the other way round, pixels come into the normal chest.
    """
    device = next(net.parameters()).device
    gone = to_input(torch.tensor(normal[None])).to(device)
    curves = np.empty((len(images), len(shares)))
    with torch.no_grad(), evaluated(net):
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            x = to_input(torch.tensor(images[batch])).to(device)
            ranks = torch.from_numpy(_pixel_ranks(maps[batch])).to(device)[:, None]
            before, after = (gone, x) if insert else (x, gone)
            asked = torch.from_numpy(tasks[batch]).to(device)[:, None]
            for column, share in enumerate(shares):
                logits: Tensor = net(torch.where(ranks < share, after, before))
                curves[batch, column] = logits.gather(1, asked)[:, 0].double().sigmoid().cpu().numpy()
    return curves


def normal_chest(data: ChestXrays) -> UInt8[np.ndarray, "h w"]:
    """The mean of the images that are known to show no finding; of all, if none is."""
    normal = np.flatnonzero((data.labels == 0).all(1))
    images = data.images[normal] if len(normal) else data.images
    return np.asarray(images.mean(0).round().astype(np.uint8))


def _pixel_ranks(maps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """The rank of each pixel in its map, from 0 for the highest to just below 1."""
    order = (-maps.reshape(len(maps), -1)).argsort(axis=1, kind="stable")
    ranks: np.ndarray = (order.argsort(axis=1) / order.shape[1]).astype(np.float32)
    return ranks.reshape(maps.shape)


def score_baseline_maps(
    maps: Float[np.ndarray, "m h w"], data: ChestXrays, truth: Regions, boxes: bool = False
) -> pd.DataFrame:
    """The table of `localize` for maps that no network made, one for each pair of `truth`."""
    columns = overlap_columns(overlaps(maps, truth.masks), truth) if boxes else {}
    return name_pairs(data, truth).assign(evidence=True, **score_maps(maps, truth.masks), **columns)


def centre_prior(size: int) -> Float[np.ndarray, "{size} {size}"]:
    """A Gaussian in the middle of the image, its standard deviation a quarter of the side."""
    x = (np.arange(size) + 0.5) / size - 0.5
    bell = np.exp(-0.5 * (x / 0.25) ** 2).astype(np.float32)
    return np.outer(bell, bell)


def random_maps(count: int, size: int, rng: np.random.Generator) -> Float[np.ndarray, "{count} {size} {size}"]:
    """Uniform noise of 8 x 8 cells, interpolated to be as smooth as a network's maps."""
    noise = torch.from_numpy(rng.random((count, 1, 8, 8), dtype=np.float32))
    scaled = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    return scaled[:, 0].numpy()


def usual_place(known: Regions, truth: Regions) -> Float[np.ndarray, "m h w"]:
    """For each pair of `truth`, the mean region of its finding in `known`, of other patients; blank if there is none. It
    knows anatomy, and which finding is asked for, and never sees the image."""
    places = {task: known.masks[known.tasks == task].mean(0, dtype=np.float32) for task in np.unique(known.tasks)}
    blank = np.zeros(truth.masks.shape[1:], np.float32)
    return np.stack([places.get(task, blank) for task in truth.tasks])


def maps_of_pairs(
    net: nn.Module, data: ChestXrays, truth: Regions, method: str = "layercam"
) -> Float[np.ndarray, "m h w"]:
    """The network's map of each pair of `truth`; `localize` scores as many as you like, and keeps none."""
    maps = np.empty(truth.masks.shape, np.float32)
    for task in np.unique(truth.tasks):
        pairs = np.flatnonzero(truth.tasks == task)
        maps[pairs] = heat_maps(net, data.images[truth.rows[pairs]], [int(task)], method).maps[:, 0]
    return maps


def swap_partners(truth: Regions, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
    """For each pair the number of one with the same finding in another patient, drawn at random; itself if none is."""
    partner = np.arange(len(truth))
    for pair in range(len(truth)):
        others = np.flatnonzero((truth.tasks == truth.tasks[pair]) & (truth.patients != truth.patients[pair]))
        if len(others):
            partner[pair] = rng.choice(others)
    return partner


def normalised_curves(
    curves: Float[np.ndarray, "n s"], patients: Int[np.ndarray, " n"], rng: np.random.Generator, replicates: int = 500
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "r s"]]:
    """The mean of N curves of `perturbation_curves` and its bootstrap over patients, each as a share of the way between its
    ends: 1 is the larger end, as a rule the whole image, and 0 the other. Replicates of one state of `rng` are paired."""
    weights = patient_weights(patients, replicates, rng)
    means = np.vstack([curves.mean(0), weights @ curves / weights.sum(1, keepdims=True)])
    ends = means[:, [0, -1]]
    scaled = (means - ends.min(1, keepdims=True)) / np.maximum(np.ptp(ends, axis=1, keepdims=True), 1e-9)
    return scaled[0], scaled[1:]
