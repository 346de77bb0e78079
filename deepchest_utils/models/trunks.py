"""A shared trunk by name, and one matrix of linear heads, a row a finding."""

from collections import OrderedDict
from typing import Any, cast

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

THIN = "resnet18_thin"
_OPTIONS = {  # what some constructors want when they start from scratch
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def list_backbones() -> list[str]:
    """`resnet18_thin`, then every classifier of `torchvision.models` by its own name."""
    return [THIN, *torchvision.models.list_models(module=torchvision.models)]


def thin_resnet18() -> nn.Sequential:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with 16 channels in its first stage instead of 64;
    128 features."""
    width = 16

    def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        return nn.Sequential(BasicBlock(inside, outside, stride, shortcut), BasicBlock(outside, outside))

    trunk = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, width, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layer1=stage(width, width, 1),
            layer2=stage(width, 2 * width, 2),
            layer3=stage(2 * width, 4 * width, 2),
            layer4=stage(4 * width, 8 * width, 2),
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

    name: one of `list_backbones()`. pretrained: start from torchvision's default ImageNet weights, downloaded
    once to torch's cache.
    Raises ValueError for an unknown name, a thin network with weights, or an image size that the network
    cannot take.
    """
    if name == THIN:
        if pretrained:
            raise ValueError(f"pretrained should be False for backbone={THIN!r}: it has no ImageNet weights.")
        trunk, num_features = thin_resnet18(), 128
    elif name in list_backbones():
        options: dict[str, Any] = {} if pretrained else dict(_OPTIONS.get(name, {}))
        if not pretrained and name.startswith("vit_"):
            options["image_size"] = image_size
        if not pretrained and name.startswith("maxvit"):
            options["input_size"] = (image_size, image_size)
        try:
            trunk = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(f"backbone {name!r} cannot be built for image_size={image_size}: {error}") from None
        if pretrained and name == "inception_v3":  # it comes with its auxiliary classifier
            trunk.aux_logits, trunk.AuxLogits = False, None
        num_features = _drop_classifier(trunk)
    else:
        raise ValueError(f"backbone should be one of {', '.join(list_backbones())}. Found {name!r}.")
    _accept_greyscale(trunk)
    _check_image_size(trunk, name, image_size, num_features)
    return trunk, num_features


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _drop_classifier(trunk: nn.Module) -> int:
    """Replace the last linear layer (SqueezeNet: the last convolution) by the identity; return its number of
    inputs."""
    kinds = (nn.Linear, nn.Conv2d)
    for kind in kinds:
        layers = [(path, m) for path, m in trunk.named_modules() if isinstance(m, kind)]
        if layers:
            path, last = layers[-1]
            _replace(trunk, path, nn.Identity())
            return last.in_features if isinstance(last, nn.Linear) else last.in_channels
    raise ValueError("the network has neither a linear layer nor a convolution.")


def _three_channels(trunk: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].expand(-1, 3, -1, -1)


def _accept_greyscale(trunk: nn.Module) -> None:
    """Sum the first convolution over its three colours: the same output as for a grey image fed three times,
    at a third of the work."""
    if getattr(trunk, "transform_input", False):
        # GoogLeNet and Inception with ImageNet weights standardise each colour in their own way before the
        # first convolution
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


def _check_image_size(trunk: nn.Module, name: str, image_size: int, num_features: int) -> None:
    was_training = trunk.training
    try:
        with torch.no_grad():
            found = trunk.eval()(torch.zeros(1, 1, image_size, image_size)).shape
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone {name!r} cannot take image_size={image_size}: {error}") from None
    finally:
        trunk.train(was_training)
    if tuple(found) != (1, num_features):
        raise ValueError(f"backbone {name!r} should give (1, {num_features}) features. Found {tuple(found)}.")


def prevalence_logit(prevalence: Float[Tensor, " k"] | None, num_tasks: int) -> Float[Tensor, " k"]:
    """Where the biases of the heads start, (K,): zeros if the prevalence is not known."""
    if prevalence is None:
        return torch.zeros(num_tasks)
    return torch.logit(prevalence.nan_to_num(0.5), eps=1e-4)


class MultiTaskNet(nn.Module):
    """Hard sharing: one trunk for all tasks, one linear head a task, kept as one matrix.

    num_tasks: K. prevalence: (K,) shares of positives in training; each head's bias starts at the logit of
    its own, so that the network starts as the best constant predictor (shares are clipped to [1e-4, 1 -
    1e-4]; NaN counts as one half).
    """

    def __init__(
        self,
        backbone: str,
        num_tasks: int,
        image_size: int = 64,
        pretrained: bool = False,
        prevalence: Float[Tensor, " k"] | None = None,
    ):
        super().__init__()
        self.trunk, num_features = build_trunk(backbone, image_size, pretrained)
        self.head = nn.Linear(num_features, num_tasks)
        with torch.no_grad():
            self.head.bias.copy_(prevalence_logit(prevalence, num_tasks))

    def features(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b f"]:
        features: Tensor = self.trunk(x)
        return features

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.head(self.features(x))
        return logits
