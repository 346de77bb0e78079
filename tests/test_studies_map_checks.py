"""Shuffled weights and labels lose what was learned and nothing else; pixels go in the order of the map."""

import numpy as np
import pytest
import torch

from deepchest_utils.datasets import ChestXrays
from deepchest_utils.explain import heat_maps
from deepchest_utils.explain.regions import Regions
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.studies.map_checks import (
    cascading_randomization,
    maps_of_pairs,
    normal_chest,
    normalised_curves,
    perturbation_curves,
    shuffle_labels,
    swap_partners,
)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = MultiTaskNet("resnet18_thin", 3)
    for buffer in net.buffers():  # statistics of a network that was trained
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return net.eval()


def changed(net, other):
    """Names of the first level that differ."""
    a, b = net.state_dict(), other.state_dict()
    return {k.replace("trunk.", "").split(".")[0] for k in a if not torch.equal(a[k], b[k])}


def test_cascade_goes_from_the_head_down(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    order = ["head", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
    seen = []
    for name, shuffled in cascading_randomization(net, torch.Generator().manual_seed(0)):
        seen.append(name)
        assert changed(net, shuffled) == set(seen)
        for key, tensor in shuffled.state_dict().items():  # a permutation: the same values
            torch.testing.assert_close(tensor.flatten().sort()[0], before[key].flatten().sort()[0], rtol=0, atol=0)
    assert seen == order
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_cascade_is_by_seed(net):
    ends = []
    for seed in (0, 0, 1):
        *_, (_, shuffled) = cascading_randomization(net, torch.Generator().manual_seed(seed))
        ends.append(shuffled.head.weight)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("backbone", ["densenet121", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_cascade_reaches_every_weight_of_any_trunk(backbone):
    """DenseNet's weights lie a level deeper; a vision transformer has some that belong to no layer."""
    torch.manual_seed(0)
    net = MultiTaskNet(backbone, 8, 64)
    for tensor in net.parameters():  # zeros and ones look the same in any order
        torch.nn.init.normal_(tensor)
    steps = list(cascading_randomization(net, torch.Generator().manual_seed(0)))
    assert len(steps) > 3
    shuffled = steps[-1][1]
    for key, tensor in net.named_parameters():
        assert tensor.numel() == 1 or not torch.equal(tensor, shuffled.get_parameter(key)), key


@pytest.mark.filterwarnings("ignore:phantom. findings without a positive")
def test_labels_are_dealt_to_other_images(splits):
    shuffled = shuffle_labels(splits, np.random.default_rng(0))
    for name, part in splits.parts.items():
        other = shuffled.parts[name]
        assert other.images is part.images
        np.testing.assert_array_equal(other.prevalence, part.prevalence)
        rows = (np.sort(labels.view("f4,f4,f4,f4,f4,f4,f4,f4,f4,f4,f4,f4,f4,f4").ravel()) for labels in (part.labels.copy(), other.labels.copy()))  # fmt: skip
        np.testing.assert_array_equal(*rows)  # whole rows: co-occurrence stays
        assert np.array_equal(other.labels, part.labels) == (name == "test")


def squares(count=3):
    images = np.full((count, 16, 16), 110, np.uint8)
    masks = np.zeros((count, 16, 16), np.float32)
    images[:, 4:8, 2:6] = 255
    masks[:, 4:8, 2:6] = 1
    return images, masks


EMPTY = np.full((16, 16), 110, np.uint8)


def test_probability_falls_with_the_pixels_that_matter(known_network):
    images, masks = squares()
    tasks, shares = np.zeros(3, np.int64), np.array([0, 16 / 256, 0.5, 1.0])
    right = perturbation_curves(known_network, images, tasks, masks, shares, EMPTY)
    wrong = perturbation_curves(known_network, images, tasks, 1 - masks, shares, EMPTY)
    with torch.no_grad():
        whole = known_network(to_input(torch.from_numpy(images)))[:, 0].sigmoid()
    np.testing.assert_allclose(right[:, 0], whole, rtol=1e-5)
    assert (right[:, 1] < right[:, 0] - 0.02).all()  # the square is gone at once
    assert (wrong[:, 1] > right[:, 1] + 0.02).all()  # something else is
    np.testing.assert_allclose(right[:, 3], wrong[:, 3])  # all is gone, whatever the order
    back = perturbation_curves(known_network, images, tasks, masks, shares, EMPTY, insert=True)
    np.testing.assert_allclose(back[:, 0], right[:, 3], rtol=1e-5)
    np.testing.assert_allclose(back[:, 3], right[:, 0], rtol=1e-5)
    assert (back[:, 1] > back[:, 0]).all()


def test_curves_are_of_eval_mode_and_leave_the_network_as_it_was(net):
    images, masks = squares(5)
    tasks, shares = np.array([0, 1, 2, 0, 1]), np.array([0.0, 0.3])
    with torch.no_grad():
        right = net(to_input(torch.from_numpy(images))).gather(1, torch.from_numpy(tasks)[:, None])[:, 0].sigmoid()
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    curves = perturbation_curves(net, images, tasks, masks, shares, EMPTY, batch_size=2)
    np.testing.assert_allclose(curves[:, 0], right, rtol=1e-5)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_each_image_is_asked_about_its_own_finding(known_network):
    """Task 0 looks left, where the square is; task 1 right, where nothing is."""
    images, masks = squares(2)
    shares = np.array([0.0, 16 / 256])
    both = perturbation_curves(known_network, images, np.array([0, 1]), masks, shares, EMPTY, batch_size=1)
    assert both[0, 0] - both[0, 1] > 10 * abs(both[1, 0] - both[1, 1])


def test_a_normal_chest_is_the_mean_of_those_without_a_finding():
    images = np.repeat(np.array([10, 20, 40, 90], np.uint8), 4).reshape(4, 2, 2)
    labels = np.array([[0, 0], [0, 0], [0, 1], [0, np.nan]], np.float32)
    data = ChestXrays(images, labels, np.arange(4), ("A", "B"), np.arange(4))
    assert (normal_chest(data) == 15).all()
    assert (normal_chest(data.subset(np.array([2, 3]))) == 65).all()  # of all, as none is known to be normal


def pairs_of(patients, tasks):
    return Regions(np.arange(len(tasks)), np.array(tasks), np.array(patients), np.ones((len(tasks), 64, 64), bool))


def test_partners_have_the_finding_and_are_other_patients():
    truth = pairs_of([0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 1, 2])
    partner = swap_partners(truth, np.random.default_rng(0))
    assert (truth.tasks[partner] == truth.tasks).all()
    assert (truth.patients[partner[:4]] != truth.patients[:4]).all()
    assert partner[4:].tolist() == [4, 5]  # nobody else has it
    assert len({tuple(swap_partners(truth, np.random.default_rng(seed))) for seed in range(9)}) > 1


def test_maps_of_pairs_are_those_of_their_image_and_finding(net):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8)
    truth = pairs_of([0, 1, 2, 3], [2, 0, 2, 1])
    data = ChestXrays(images, np.ones((4, 3), np.float32), truth.patients, ("A", "B", "C"), np.arange(4))
    maps = maps_of_pairs(net, data, truth)
    for row, task in enumerate(truth.tasks):
        np.testing.assert_allclose(maps[row], heat_maps(net, images[row : row + 1], [int(task)]).maps[0, 0], atol=1e-5)


def test_curves_are_normalised_to_their_ends_and_patients_drawn_together():
    curves = np.array([[0.9, 0.5, 0.1], [0.7, 0.6, 0.3], [0.7, 0.6, 0.3]])
    mean, samples = normalised_curves(curves, np.array([0, 1, 1]), np.random.default_rng(0), 400)
    ends = curves.mean(0)[[2, 0]]
    assert mean == pytest.approx([1, (curves[:, 1].mean() - ends[0]) / (ends[1] - ends[0]), 0])
    assert np.allclose(samples[:, [0, 2]], [1, 0])
    single = {0.5: (0.5 - 0.1) / 0.8, 0.6: (0.6 - 0.3) / 0.4}  # one patient drawn twice
    assert {round(v, 6) for v in samples[:, 1]} >= {round(v, 6) for v in single.values()}
    rising, _ = normalised_curves(curves[:, ::-1], np.array([0, 1, 1]), np.random.default_rng(0), 9)
    assert rising == pytest.approx(mean[::-1])
