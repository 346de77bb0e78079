"""Heat maps of where a network looks, through the `grad-cam` package: one target an image and finding, at the right layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from deepchest_utils.models.augment import to_input
from deepchest_utils.models.trunks import MultiTaskNet

CAM_METHODS = {  # name -> class of pytorch_grad_cam
    "gradcam": "GradCAM",  # Selvaraju et al. 2017, arXiv 1610.02391
    "gradcam++": "GradCAMPlusPlus",  # Chattopadhyay et al. 2018, arXiv 1710.11063
    "hirescam": "HiResCAM",  # Draelos and Carin 2020, arXiv 2011.08891
    "layercam": "LayerCAM",  # Jiang et al. 2021
    "xgradcam": "XGradCAM",  # Fu et al. 2020, arXiv 2008.02312
    "eigencam": "EigenCAM",  # Muhammad and Yeasin 2020, arXiv 2008.00299; knows no finding
    "finercam": "FinerCAM",  # Zhang et al. 2025, arXiv 2501.11309; a finding against the three closest in logit
}
MIN_SIDE = 4  # cells of a map, along a side: fewer point at nothing
FUSED = "layercam"  # the method whose paper takes the mean over layers: it weighs each place by its own gradient


@dataclass(frozen=True)
class HeatMaps:
    """maps: (B, T, H, W) float32 in [0, 1], each scaled to its own maximum, at the size of the image. evidence: (B, T),
    False where the method found no positive evidence: the map is blank. layers: where in the trunk."""

    maps: Float[np.ndarray, "b t h w"]
    evidence: Bool[np.ndarray, "b t"]
    layers: tuple[str, ...]


def default_layers(net: nn.Module, image_size: int, method: str = FUSED) -> tuple[str, ...]:
    """Names of the modules of the trunk whose maps are taken, in forward order.

    For LayerCAM, the last of each size of map down to MIN_SIDE cells a side, whose mean is the map. For the others, the
    last of these: at 64 px `layer3` of a ResNet, whose last map has 2 x 2 cells there. For a vision transformer, the
    normalisation before its last attention. Raises ValueError for a network that is not hard sharing, or a trunk
    without a map of MIN_SIDE.
    """
    net = _with_one_trunk(net)
    blocks = getattr(getattr(net.trunk, "encoder", None), "layers", None)
    if blocks is not None and hasattr(blocks[-1], "ln_1"):
        called = {module: name for name, module in net.trunk.named_modules()}
        return (called[blocks[-1].ln_1],)
    seen: list[tuple[str, int]] = []
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.append((name, _side(out))))
        for name, module in net.trunk.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), _evaluating(net):
            net.trunk(next(net.parameters()).new_zeros(1, 1, image_size, image_size))
    finally:
        for handle in handles:
            handle.remove()
    last = {side: name for name, side in seen if side >= MIN_SIDE}
    if not last:
        found = max((side for _, side in seen), default=0)
        raise ValueError(f"image_size should give some layer a map of {MIN_SIDE} cells a side. Found {found} at most.")
    names = [last[side] for side in sorted(last, reverse=True)]
    return tuple(names) if method == FUSED else (names[-1],)


def _with_one_trunk(net: nn.Module) -> MultiTaskNet:
    if not isinstance(net, MultiTaskNet):
        raise ValueError(f"net should be a MultiTaskNet: one trunk for all findings. Found {type(net).__name__}.")
    return net


def _side(out: object) -> int:
    """Cells along a side of a square map, channels first or last; 0 for anything else."""
    if not isinstance(out, Tensor) or out.ndim != 4:
        return 0
    if out.shape[2] == out.shape[3]:
        return out.shape[2]
    return out.shape[1] if out.shape[1] == out.shape[2] else 0


def _channels_first(out: Tensor) -> Tensor:
    """A map as (B, C, H, W), from channels last (Swin) or from tokens, the first of which is the class (ViT)."""
    if out.ndim == 3:
        side = int((out.shape[1] - 1) ** 0.5)
        cells: Tensor = out[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        return cells
    return out if out.shape[2] == out.shape[3] else out.permute(0, 3, 1, 2)


def heat_maps(
    net: nn.Module,
    images: UInt8[np.ndarray, "b h w"],
    tasks: Sequence[int],
    method: str = FUSED,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
) -> HeatMaps:
    """A map of every image for every one of T tasks.

    tasks: their numbers. method: one of CAM_METHODS. layers: modules of the trunk by name, in forward order, whose maps are
    averaged; default `default_layers`.
    The network may be frozen; its gradients and its modes are put back as they were. Memory does not grow with the
    number of images beyond the maps themselves. Raises ValueError for an unknown method, layer or task, or a
    network that is not hard sharing.
    """
    if method not in CAM_METHODS:
        raise ValueError(f"method should be one of {', '.join(CAM_METHODS)}. Found {method!r}.")
    net = _with_one_trunk(net)
    num_tasks = net.head.out_features
    layers = tuple(layers or default_layers(net, images.shape[-1], method))
    modules = dict(net.trunk.named_modules())
    if unknown := [name for name in layers if name not in modules]:
        raise ValueError(f"layers should be modules of the trunk. Found {unknown[0]!r}.")
    if wrong := [t for t in tasks if not 0 <= t < num_tasks]:
        raise ValueError(f"tasks should be numbers from 0 to {num_tasks - 1}. Found {wrong[0]}.")
    if method == "finercam" and num_tasks == 1:
        raise ValueError("method finercam compares a finding with others: the network should have several. Found 1.")
    device = next(net.parameters()).device
    maps = np.empty((len(images), len(tasks), *images.shape[1:]), np.float32)
    with _untouched(net), _evaluating(net), _mapper(method, net, [modules[name] for name in layers]) as mapper:
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            # asks for a gradient itself, so that there is one in a frozen trunk
            x = to_input(torch.tensor(images[rows])).to(device).requires_grad_()
            for column, task in enumerate(tasks):
                maps[rows, column] = mapper(x, task)
                x.grad = None
    return HeatMaps(maps, maps.max(axis=(2, 3)) > 0, layers)


@contextmanager
def _mapper(method: str, net: nn.Module, layers: list[nn.Module]) -> Iterator[Callable[[Tensor, int], np.ndarray]]:
    """A function of a batch and a task that gives the maps, (B, H, W)."""
    # imported here: the package brings OpenCV and more, which no one else needs
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, CAM_METHODS[method])(net, layers, reshape_transform=_channels_first)
    try:
        if method == "finercam":  # makes its targets itself, one an image
            yield lambda x, task: cam(x, None, target_idx=task)
        else:  # one target an image: with fewer, the rest of the batch would be blank, and nothing said
            yield lambda x, task: cam(x, [ClassifierOutputTarget(task)] * len(x))
    finally:
        cam.__exit__(None, None, None)  # releases its hooks; as a context it would swallow an IndexError


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _untouched(net: nn.Module) -> Iterator[None]:
    """The package sets gradients to none, and leaves new ones: give back those that were there."""
    gradients = [(p, p.grad) for p in net.parameters()]
    for p, _ in gradients:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in gradients:
            p.grad = gradient
