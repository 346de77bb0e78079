"""Heat maps of where a network looks, made by the `grad-cam` package at the right layer, one target per image."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from deepchest_utils.config import check_choice, did_you_mean
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.models.trunks import SharedLayer
from deepchest_utils.threads import adapt_threads

CAM_METHODS = {  # name -> class of pytorch_grad_cam
    "gradcam": "GradCAM",  # Selvaraju et al. 2017, arXiv 1610.02391
    "gradcam++": "GradCAMPlusPlus",  # Chattopadhyay et al. 2018, arXiv 1710.11063
    "hirescam": "HiResCAM",  # Draelos and Carin 2020, arXiv 2011.08891
    "layercam": "LayerCAM",  # Jiang et al. 2021
    "xgradcam": "XGradCAM",  # Fu et al. 2020, arXiv 2008.02312
    "eigencam": "EigenCAM",  # Muhammad and Yeasin 2020, arXiv 2008.00299; the same map for every finding
    "finercam": "FinerCAM",  # Zhang et al. 2025, arXiv 2501.11309; a finding against the three closest in logit
}
MIN_SIDE = 4  # cells along a side of a map; a coarser map points at nothing
FUSED = "layercam"  # its paper averages over layers, since it weighs each cell by its own gradient


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps of B images for T tasks."""

    maps: Float[
        np.ndarray, "b t h w"
    ]  # float32 in [0, 1], each from its minimum to its maximum, at the size of the images
    evidence: Bool[np.ndarray, "b t"]  # False where the method found no positive evidence: the map is blank
    layers: tuple[str, ...]  # modules of the trunk whose maps were taken


def default_layers(net: nn.Module, image_size: int, method: str = FUSED) -> tuple[str, ...]:
    """Names of the modules of the trunk whose maps are taken, in forward order.

    For LayerCAM, these are the last module of each map size down to MIN_SIDE cells a side; the heat map is their mean.
    For other methods, it is the last of these: `layer3` of a ResNet at 64 px, where `layer4` has 2 x 2 cells. For a
    vision transformer, it is the normalisation before the last attention. Raises ValueError if there is none.
    """
    net = _checked(net)
    seen = list[tuple[str, Sequence[int]]]()  # modules with the shapes of their outputs
    with torch.no_grad(), evaluated(net), ExitStack() as hooks:
        for name, module in net.trunk.named_modules():
            if not isinstance(module, nn.modules.dropout._DropoutNd | nn.Softmax):  # theirs may be attention: no map
                hook = module.register_forward_hook(partial(_note_shape, seen, name))
                hooks.callback(hook.remove)
        net.trunk(next(net.parameters()).new_zeros(1, 1, image_size, image_size))
    norms = [(name, shape) for name, shape in seen if len(shape) == 3 and name.endswith((".ln_1", ".norm1"))]
    if before_attention := [name for name, shape in norms if isqrt(shape[1]) >= MIN_SIDE]:
        return (before_attention[-1],)
    sides = [(name, _side(shape)) for name, shape in seen]
    last = {side: name for name, side in sides if side >= MIN_SIDE}
    if not last:
        finest = max(side for _, side in sides)
        raise ValueError(f"image_size should give some layer a map of {MIN_SIDE} cells a side. Found {finest} at most.")
    names = [last[side] for side in sorted(last, reverse=True)]
    return tuple(names) if method == FUSED else (names[-1],)


def _note_shape(seen: list[tuple[str, Sequence[int]]], name: str, _: nn.Module, given: Any, made: Any) -> None:
    """Unless the module makes a larger map of a smaller one, as an adaptive pooling of a small image does."""
    before, after = (getattr(x, "shape", ()) for x in (given[0] if given else None, made))
    if not 0 < _side(before) < _side(after):
        seen.append((name, after))


def _checked(net: nn.Module) -> MultiTaskNet:
    if not isinstance(net, MultiTaskNet):
        raise ValueError(f"net should be a MultiTaskNet: one trunk for all findings. Found {type(net).__name__}.")
    if isinstance(net.trunk, SharedLayer):
        raise ValueError("net should be of images: this one was trained on embeddings, and heat maps need images.")
    return net


def _side(shape: Sequence[int]) -> int:
    """Cells along a side of a square map, channels first or last; 0 for anything else."""
    return shape[2] if len(shape) == 4 and shape[2] in (shape[1], shape[3]) else 0


def _channels_first(out: Tensor) -> Tensor:
    """A map as (B, C, H, W), from channels last (Swin) or from tokens (ViT), which follow a class token or several."""
    if out.ndim == 3:
        side = isqrt(out.shape[1])
        return out[:, -(side**2) :].mT.reshape(len(out), -1, side, side)
    return out if out.shape[2] == out.shape[3] else out.permute(0, 3, 1, 2)


def heat_maps(
    net: nn.Module,
    images: UInt8[np.ndarray, "b h w"],
    tasks: Sequence[int],
    method: str = FUSED,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
) -> HeatMaps:
    """A heat map of every image for every task.

    The network may be frozen; its gradients and modes are the same afterwards. Memory grows by the maps alone.

    Args:
        net: A MultiTaskNet (hard sharing); ValueError for another.
        tasks: Numbers of the T tasks.
        method: A key of CAM_METHODS.
        layers: Modules of the trunk by name, in forward order, whose maps are averaged; `default_layers` if None.
    """
    check_choice("method", method, CAM_METHODS)
    net = _checked(net)
    num_tasks = net.head.out_features
    layers = tuple(layers or default_layers(net, images.shape[-1], method))
    modules = dict(net.trunk.named_modules())
    if unknown := [name for name in layers if name not in modules]:
        close = did_you_mean(unknown[0], modules)
        raise ValueError(f"layers should be modules of the trunk. Found {unknown[0]!r}.{close}")
    if outside := [task for task in tasks if not 0 <= task < num_tasks]:
        raise ValueError(f"tasks should be numbers from 0 to {num_tasks - 1}. Found {outside[0]}.")
    if method == "finercam" and num_tasks == 1:
        raise ValueError("method finercam compares a finding with others: the network should have several. Found 1.")
    # imported late: the package brings OpenCV and more, which nothing else needs
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    device = next(net.parameters()).device
    maps = np.empty((len(images), len(tasks), *images.shape[1:]), np.float32)
    with evaluated(net), ExitStack() as hooks:
        target_layers = [modules[name] for name in layers]
        cam = getattr(pytorch_grad_cam, CAM_METHODS[method])(net, target_layers, reshape_transform=_channels_first)
        hooks.callback(cam.__exit__, None, None, None)  # as a context manager it would swallow an IndexError
        for start in range(0, len(images), batch_size):
            adapt_threads()
            batch = slice(start, start + batch_size)
            # the input asks for a gradient, so that there is one in a frozen trunk too
            x = to_input(torch.tensor(images[batch])).to(device).requires_grad_()
            for column, task in enumerate(tasks):
                if method == "finercam":  # makes its targets itself, one per image
                    maps[batch, column] = cam(x, None, target_idx=task)
                else:  # one target per image: with fewer, the package leaves the other maps blank without an error
                    maps[batch, column] = cam(x, [ClassifierOutputTarget(task)] * len(x))
                x.grad = None
    return HeatMaps(maps, maps.max(axis=(2, 3)) > 0, layers)


@contextmanager
def evaluated(net: nn.Module) -> Iterator[None]:
    """The network in eval mode without gradients; afterwards modes and gradients are as before."""
    modes = [(module, module.training) for module in net.modules()]
    gradients = [(parameter, parameter.grad) for parameter in net.parameters()]
    net.eval()
    net.zero_grad()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
