"""Trunks by name: what they give, what they refuse, and what the grey first convolution and the heads start
with."""

from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.transforms.functional import normalize

from deepchest_utils.models.augment import to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.models.trunks import build_trunk, list_backbones

CHEAP = {  # features of one network of each family that is quick enough
    "resnet18_thin": 128,
    "resnet18": 512,
    "densenet121": 1024,
    "mobilenet_v3_small": 1024,
    "squeezenet1_1": 512,
    "efficientnet_b0": 1280,
    "shufflenet_v2_x0_5": 1024,
    "vit_b_16": 768,
    "googlenet": 1024,
}


def grey(size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(0))


def scramble(net: torch.nn.Module) -> torch.nn.Module:
    """Running statistics other than zero and one, as after training."""
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize(("name", "features"), CHEAP.items())
def test_trunk_gives_features_and_the_net_a_logit_a_task(name, features):
    net = MultiTaskNet(name, num_tasks=5, image_size=64)
    x = grey(64)
    found = net.features(x)
    assert found.shape == (2, features)
    assert torch.equal(net.eval()(x), net.head(net.features(x)))
    assert net.head.weight.shape == (5, features)
    net.train()(x).sum().backward()
    first = next(net.trunk.parameters())
    assert first.grad.abs().sum() > 0  # what enters the first layer reaches the heads


def test_thin_network_is_a_sixteenth_of_the_whole():
    size = {name: sum(p.numel() for p in build_trunk(name)[0].parameters()) for name in ("resnet18", "resnet18_thin")}
    assert 15 < size["resnet18"] / size["resnet18_thin"] < 17


# pretrained: torchvision's loader and file names, without the network


def put_weights(name: str, weights, folder: Path, **options) -> dict:
    """Weights made here in torch's cache, under the name that torchvision gives the downloaded file."""
    torch.manual_seed(1)
    state = scramble(torchvision.models.get_model(name, weights=None, **options)).state_dict()
    target = folder / "hub" / "checkpoints" / weights.DEFAULT.url.rpartition("/")[2]
    target.parent.mkdir(parents=True)
    torch.save(state, target)
    return state


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_download(*args, **kwargs):
        raise AssertionError("a test should not download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "weights", "options", "size"),
    [
        ("resnet18", torchvision.models.ResNet18_Weights, {}, 64),
        # these two would standardise each colour anew before their first convolution when they come with weights
        ("googlenet", torchvision.models.GoogLeNet_Weights, {"aux_logits": True, "init_weights": False}, 64),
        ("inception_v3", torchvision.models.Inception_V3_Weights, {"init_weights": False}, 96),
    ],
)
def test_pretrained_trunk_sees_grey_pixels_as_the_original_was_trained_to(torch_home, name, weights, options, size):
    """Up to the border, where the original's padding is of ImageNet's mean colour."""
    put_weights(name, weights, torch_home, **options)
    original = torchvision.models.get_model(name, weights="DEFAULT").eval()
    original.fc = torch.nn.Identity()
    trunk, num_features = build_trunk(name, size, pretrained=True)
    pixels = torch.randint(0, 256, (2, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = to_input(pixels)
    own = weights.DEFAULT.transforms()
    with torch.no_grad():
        expected = original(normalize(pixels[:, None].expand(-1, 3, -1, -1) / 255, own.mean, own.std))
        found = trunk.eval()(x)
    assert expected.std() > 0.01  # else there is nothing to compare
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert trunk.train()(x).shape == (2, num_features)  # no auxiliary outputs either


def test_pretrained_weights_are_really_loaded(torch_home):
    state = put_weights("resnet18", torchvision.models.ResNet18_Weights, torch_home)
    loaded, scratch = (MultiTaskNet("resnet18", 3, pretrained=p).trunk.state_dict() for p in (True, False))
    for name, value in loaded.items():
        assert torch.equal(value, state[name]), name
    assert not torch.equal(loaded["layer4.1.conv2.weight"], scratch["layer4.1.conv2.weight"])
    assert set(state) - set(loaded) == {"fc.weight", "fc.bias"}


# heads


def test_network_starts_as_the_best_constant_predictor():
    prevalence = torch.tensor([0.002, 0.1, 0.5, 0.9], dtype=torch.float64)
    net = MultiTaskNet("resnet18_thin", 4, 32, prevalence=prevalence)
    with torch.no_grad():
        net.head.weight.zero_()
        p = net(grey(32)).sigmoid()
    torch.testing.assert_close(p.double(), prevalence.expand(2, 4), rtol=1e-5, atol=1e-7)


def test_prevalence_at_the_ends_gives_finite_biases():
    prevalence = torch.tensor([0.0, 1.0, torch.nan])
    bias = MultiTaskNet("resnet18_thin", 3, 32, prevalence=prevalence).head.bias
    torch.testing.assert_close(bias.sigmoid(), torch.tensor([1e-4, 1 - 1e-4, 0.5]), rtol=1e-3, atol=0)


def test_biases_are_zero_without_a_prevalence():
    assert MultiTaskNet("resnet18_thin", 3, 32).head.bias.tolist() == [0, 0, 0]


# errors


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"backbone.*'resnet1'") as error:
        build_trunk("resnet1")
    assert all(name in str(error.value) for name in CHEAP)
    assert list_backbones()[0] == "resnet18_thin"
    assert not any("fcn" in name or "rcnn" in name for name in list_backbones())  # classifiers alone


@pytest.mark.parametrize(("name", "size"), [("densenet121", 16), ("squeezenet1_1", 8), ("vit_b_16", 40)])
def test_image_that_the_network_cannot_take(name, size):
    with pytest.raises(ValueError, match=f"'{name}'.*image_size={size}"):
        build_trunk(name, size)


def test_thin_network_has_no_pretrained_weights():
    with pytest.raises(ValueError, match=r"pretrained.*resnet18_thin"):
        build_trunk("resnet18_thin", pretrained=True)


def test_checking_the_image_size_leaves_the_network_fresh():
    trunk, _ = build_trunk("resnet18_thin", 32)
    assert trunk.training
    assert trunk.bn1.num_batches_tracked == 0
