"""Heat maps: a hand-made network whose right map is known, the right layer, and a network left as it was."""

import numpy as np
import pytest
import torch

from deepchest_utils.explain.cam import CAM_METHODS, MIN_SIDE, _channels_first, default_layers, heat_maps
from deepchest_utils.models.augment import MEAN, STD
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.models.sharing import ARCHITECTURES

CLASS_MAPS = [name for name in CAM_METHODS if name != "eigencam"]


@pytest.fixture
def images():
    """Background at the network's zero, four bright squares: left, right, both, none."""
    out = np.full((4, 16, 16), round(255 * (MEAN - STD)), np.uint8)
    out[0, 4:8, 2:6] = out[2, 4:8, 2:6] = 255
    out[1, 8:12, 10:14] = out[2, 8:12, 10:14] = 255
    return out


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "xgradcam", "gradcam++"])
def test_map_lies_on_what_the_task_looks_at(known_network, images, method):
    found = heat_maps(known_network, images, [0, 1, 2], method, layers=["1"])
    assert found.maps.shape == (4, 3, 16, 16)
    assert found.evidence.tolist() == [[True, False, False], [False, True, False], [True, True, False], [False] * 3]
    for image, task, square in ((0, 0, np.s_[4:8, 2:6]), (1, 1, np.s_[8:12, 10:14]), (2, 0, np.s_[4:8, 2:6])):
        inside = np.zeros((16, 16), bool)
        inside[square] = True
        assert ((found.maps[image, task] > 0.5) == inside).all()
    assert (found.maps[~found.evidence] == 0).all()


@pytest.mark.parametrize("method", CAM_METHODS)
def test_each_image_has_the_map_it_would_have_alone(method):
    """One target for a batch is what blanks the rest of it."""
    torch.manual_seed(0)
    net = MultiTaskNet("resnet18_thin", 4)
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    together = heat_maps(net, images, [1, 3], method)
    assert together.evidence.any(axis=0).all()
    for i in range(5):
        alone = heat_maps(net, images[i : i + 1], [1, 3], method)
        np.testing.assert_allclose(together.maps[i], alone.maps[0], atol=2e-3)
    np.testing.assert_allclose(together.maps, heat_maps(net, images, [1, 3], method, batch_size=2).maps, atol=2e-3)


def test_tasks_differ_where_the_method_knows_them():
    torch.manual_seed(0)
    net = MultiTaskNet("resnet18_thin", 4)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    for method in CLASS_MAPS:
        maps = heat_maps(net, images, [0, 1], method).maps
        assert np.abs(maps[:, 0] - maps[:, 1]).max() > 0.1, method


@pytest.mark.parametrize(
    ("backbone", "size", "layer"),
    [
        ("resnet18_thin", 64, "layer3"),
        ("resnet18_thin", 128, "layer4"),
        ("resnet18", 64, "layer3"),
        ("densenet121", 224, "features"),
    ],
)
def test_last_layer_whose_map_is_fine_enough(backbone, size, layer):
    net = MultiTaskNet(backbone, 2, size)
    assert default_layers(net, size, "gradcam") == (layer,)


@pytest.mark.parametrize(("size", "count"), [(64, 4), (128, 5)])  # down to 4 cells a side
def test_layercam_takes_the_last_layer_of_each_size(size, count):
    net = MultiTaskNet("resnet18_thin", 2, size)
    assert default_layers(net, size) == ("relu", "layer1", "layer2", "layer3", "layer4")[:count]


def test_map_of_several_layers_is_their_mean():
    torch.manual_seed(0)
    net = MultiTaskNet("resnet18_thin", 2)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    each = [heat_maps(net, images, [1], layers=[name]).maps for name in ("relu", "layer2")]
    both = heat_maps(net, images, [1], layers=["relu", "layer2"])
    for i in range(2):  # but for how the package scales a map before and after it is made larger
        mean = (each[0] + each[1])[i, 0]
        assert np.corrcoef(both.maps[i, 0].ravel(), mean.ravel())[0, 1] > 0.98
        assert max(np.corrcoef(both.maps[i, 0].ravel(), e[i, 0].ravel())[0, 1] for e in each) < 0.98
    assert both.layers == ("relu", "layer2")


@pytest.mark.parametrize(
    "backbone",
    ["mobilenet_v3_small", "convnext_tiny", *(pytest.param(b, marks=pytest.mark.slow) for b in ("swin_t", "vit_b_16"))],
)
def test_any_trunk_has_a_map(backbone):
    torch.manual_seed(0)
    size = 128
    net = MultiTaskNet(backbone, 2, size)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size), dtype=np.uint8)
    found = heat_maps(net, images, [0, 1])
    assert found.maps.shape == (2, 2, size, size)
    assert found.evidence.any()


@pytest.mark.parametrize(
    ("backbone", "size", "layers"),
    [
        ("vit_tiny_patch16_224", 64, ["blocks.11.norm1"]),  # a class token
        ("deit_tiny_distilled_patch16_224", 64, ["blocks.11.norm1"]),  # and another
        ("swin_tiny_patch4_window7_224", 224, ["layers.0", "layers.1", "layers.2", "norm"]),  # and no attention
    ],
)
def test_a_transformer_of_timm_has_the_map_of_its_patches(backbone, size, layers):
    net = MultiTaskNet(f"timm:{backbone}", 2, size)
    assert list(default_layers(net, size)) == layers
    if len(layers) == 1:
        tokens, maps = net.trunk.get_submodule(layers[0]), []
        tokens.register_forward_hook(lambda _, __, out: maps.append((out, _channels_first(out))))
        assert heat_maps(net, np.zeros((1, size, size), np.uint8), [0]).maps.shape == (1, 1, size, size)
        out, grid = maps[-1]
        assert torch.equal(grid.flatten(2).mT, out[:, -16:])


def test_a_map_that_was_pooled_up_is_no_map():
    """AlexNet pools whatever it has to 6 x 6 cells."""
    net = MultiTaskNet("alexnet", 2, 64)
    assert default_layers(net, 64) == ("features.1", "features.4")
    assert default_layers(net, 64, "gradcam") == ("features.4",)


def test_image_too_small_and_other_architectures_are_refused():
    net = MultiTaskNet("resnet18_thin", 2)
    with pytest.raises(ValueError, match=rf"image_size should give some layer a map of {MIN_SIDE} cells.*Found 2"):
        default_layers(net, 4)
    other = ARCHITECTURES["cross_stitch"]("resnet18_thin", 2, 64, False, None)
    with pytest.raises(ValueError, match=r"net should be a MultiTaskNet.*CrossStitch"):
        default_layers(other, 64)
    with pytest.raises(ValueError, match=r"net should be a MultiTaskNet.*CrossStitch"):
        heat_maps(other, np.zeros((1, 64, 64), np.uint8), [0], layers=["layer1"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "saliency"}, "method should be one of gradcam, .*'saliency'"),
        ({"method": "layer_cam"}, "Found 'layer_cam'. Did you mean 'layercam'?"),
        ({"layers": ["layer2", "layer9"]}, "layers should be modules of the trunk. Found 'layer9'"),
        ({"tasks": [0, 4]}, "tasks should be numbers from 0 to 3. Found 4"),
    ],
)
def test_unknown_names_are_refused(options, named):
    net = MultiTaskNet("resnet18_thin", 4)
    with pytest.raises(ValueError, match=named):
        heat_maps(net, np.zeros((1, 64, 64), np.uint8), **{"tasks": [0], **options})


def test_network_is_left_as_it_was(known_network, images):
    known_network.head.eval()  # modes may differ within a network
    known_network.head.weight.grad = torch.ones_like(known_network.head.weight)
    modes = [m.training for m in known_network.modules()]
    before = {k: v.clone() for k, v in known_network.state_dict().items()}
    heat_maps(known_network, images, [0], layers=["1"])
    assert [m.training for m in known_network.modules()] == modes
    assert (known_network.head.weight.grad == 1).all()
    assert all(p.grad is None for p in known_network.trunk.parameters())
    assert all(torch.equal(v, known_network.state_dict()[k]) for k, v in before.items())
    assert not [m for m in known_network.modules() if m._forward_hooks]


def test_free_cores_are_looked_for_between_batches(known_network, images, monkeypatch):
    looked = []
    monkeypatch.setattr("deepchest_utils.explain.cam.adapt_threads", lambda: looked.append(1))
    heat_maps(known_network, images, [0, 1], layers=["1"], batch_size=3)
    assert len(looked) == 2


def test_frozen_trunk_has_the_same_maps(known_network, images):
    expected = heat_maps(known_network, images, [0, 1], layers=["1"]).maps
    known_network.requires_grad_(False)
    np.testing.assert_array_equal(heat_maps(known_network, images, [0, 1], layers=["1"]).maps, expected)


def test_finer_cam_sets_a_finding_against_the_closest():
    """Two tasks with the same head have nothing that sets them apart; alone, there is nothing to compare with."""
    torch.manual_seed(0)
    net = MultiTaskNet("resnet18_thin", 2)
    with torch.no_grad():
        net.head.weight[1], net.head.bias[1] = net.head.weight[0], net.head.bias[0]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    assert not heat_maps(net, images, [0], "finercam").evidence.any()
    assert heat_maps(net, images, [0], "gradcam").evidence.any()
    with pytest.raises(ValueError, match=r"finercam compares.*Found 1"):
        heat_maps(MultiTaskNet("resnet18_thin", 1), images, [0], "finercam")


def test_an_error_within_is_not_swallowed(known_network, images, monkeypatch):
    """The package's own context manager prints an IndexError and goes on."""
    monkeypatch.setattr(known_network.head, "forward", lambda x: [].pop())
    with pytest.raises(IndexError):
        heat_maps(known_network, images, [0], layers=["1"])
    assert not [m for m in known_network.modules() if m._forward_hooks]
