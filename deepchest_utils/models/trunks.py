"""A shared trunk by name."""

from collections import OrderedDict
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from deepchest_utils.config import check_choice

THIN = "resnet18_thin"


def list_backbones() -> list[str]:
    """`resnet18_thin`, then every classifier of `torchvision.models` by its own name."""
    return [THIN, *torchvision.models.list_models(module=torchvision.models)]


def thin_resnet18() -> nn.Sequential:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with 16 channels in its first stage instead of 64, 128 features."""

    def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        return nn.Sequential(BasicBlock(inside, outside, stride, shortcut), BasicBlock(outside, outside))

    trunk = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layer1=stage(16, 16, 1),
            layer2=stage(16, 32, 2),
            layer3=stage(32, 64, 2),
            layer4=stage(64, 128, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk


def build_trunk(name: str, image_size: int = 64, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A trunk (B, 1, H, W) -> (B, F) and its number of features F.

    Args:
        pretrained: Start from torchvision's default ImageNet weights, downloaded once to torch's cache.

    Raises:
        ValueError: For an unknown name, a thin network with weights, or a size that the network cannot take.
    """
    check_choice("backbone", name, list_backbones())
    if name == THIN and pretrained:
        raise ValueError(f"pretrained should be False for backbone={THIN!r}: it has no ImageNet weights.")
    trunk = thin_resnet18() if name == THIN else _torchvision_trunk(name, image_size, pretrained)
    _accept_greyscale(trunk)
    try:
        with torch.no_grad():
            shape = tuple(trunk.eval()(torch.zeros(1, 1, image_size, image_size)).shape)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone {name!r} cannot take image_size={image_size}: {error}") from None
    if len(shape) != 2:
        raise ValueError(f"backbone {name!r} should give features of shape (1, F). Found {shape}.")
    return trunk.train(), int(shape[1])


def _torchvision_trunk(name: str, image_size: int, pretrained: bool) -> nn.Module:
    """A classifier without its last linear layer (SqueezeNet: its last convolution)."""
    options: dict[str, Any] = {}
    if not pretrained and name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif not pretrained and name.startswith("vit_"):
        options = {"image_size": image_size}
    elif not pretrained and name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    try:
        trunk: Any = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone {name!r} cannot be built for image_size={image_size}: {error}") from None
    if pretrained and name == "inception_v3":  # it comes with its auxiliary classifier
        trunk.aux_logits, trunk.AuxLogits = False, None
    linear = [path for path, m in trunk.named_modules() if isinstance(m, nn.Linear)]
    convolutions = [path for path, m in trunk.named_modules() if isinstance(m, nn.Conv2d)]
    _replace(trunk, (linear or convolutions)[-1], nn.Identity())
    return cast(nn.Module, trunk)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _three_channels(trunk: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].expand(-1, 3, -1, -1)


def _accept_greyscale(trunk: nn.Module) -> None:
    """Sum the first convolution over its colours: the output for a grey image fed three times, for less work."""
    if getattr(trunk, "transform_input", False):
        # with ImageNet weights GoogLeNet and Inception first standardise each colour in its own way
        trunk.register_forward_pre_hook(_three_channels)
        return
    path, first = next((path, m) for path, m in trunk.named_modules() if isinstance(m, nn.Conv2d))
    # Any: torch types them as tuples of any length, and takes pairs
    kernel, stride, padding = cast("tuple[Any, Any, Any]", (first.kernel_size, first.stride, first.padding))
    grey = nn.Conv2d(1, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    with torch.no_grad():
        grey.weight.copy_(first.weight.sum(1, keepdim=True))
        if first.bias is not None:
            cast(Tensor, grey.bias).copy_(first.bias)
    _replace(trunk, path, grey)
