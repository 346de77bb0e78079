"""What the published recipe and the levers need: two-way heads, a shared layer, its augmentation, the last epoch, a moving
average, repeated images. Each alone, and all in runs that go on bit for bit."""

import math
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import assert_continues, assert_same_tree, config, get, phantom
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from deepchest_utils import METHODS, TrainConfig, train
from deepchest_utils.__main__ import parse
from deepchest_utils.config import LOSSES, PUBLISHED_RECIPE
from deepchest_utils.datasets import DataWarning
from deepchest_utils.explain.cam import heat_maps
from deepchest_utils.explain.predict import load_trained
from deepchest_utils.models.augment import apply_augmentation, sample_resized_crop, to_input
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.results.metrics import ensemble
from deepchest_utils.training import setup
from deepchest_utils.training.loop import Loop

pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def few():
    return phantom(num_train=48, num_val=32, num_test=32)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the network


def test_two_way_heads_are_a_softmax_over_two():
    torch.manual_seed(0)
    prevalence = torch.tensor([0.1, 0.5, 0.9])
    net = MultiTaskNet("resnet18_thin", 3, 32, prevalence=prevalence, head="two_way")
    features, labels = torch.randn(6, 128), torch.randint(0, 2, (6, 3)).float()
    outputs = (features @ net.head.two.weight.T + net.head.two.bias).view(6, 3, 2)
    expected = cross_entropy(outputs.flatten(0, 1), labels.flatten().long(), reduction="none").view(6, 3).mean(0)
    torch.testing.assert_close(masked_bce(net.head(features), labels), expected)
    torch.testing.assert_close(net.head(torch.zeros(1, 128))[0].sigmoid(), prevalence)
    assert net.head.out_features == 3


def test_shared_layer_is_what_the_heads_see():
    net = MultiTaskNet("resnet18_thin", 3, 32, hidden=20).eval()
    x = torch.randn(4, 1, 32, 32, generator=generator())
    features = net.features(x)
    assert features.shape == (4, 20)
    assert (features >= 0).all()
    torch.testing.assert_close(features, torch.relu(net.shared[0](net.trunk(x))))
    torch.testing.assert_close(net(x), features @ net.head.weight.T + net.head.bias)
    maps = heat_maps(net, np.zeros((2, 32, 32), np.uint8), [0, 2], "gradcam")
    assert maps.maps.shape == (2, 2, 32, 32)


def test_without_prior_bias_the_heads_start_at_zero(few):
    assert (Loop(config(prior_bias=False), few).net.head.bias == 0).all()
    start = Loop(
        config(loss="logit_adjusted"), few
    ).net.head.bias  # neither class preferred, but for a finding without one
    prevalence = few.train.prevalence
    assert start[(prevalence > 0) & (prevalence < 1)].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": 8, "architecture": "mtan"}, "hidden goes with architecture 'hard_sharing'. Found 'mtan'"),
        ({"head": "two_way", "architecture": "single_task"}, "head goes with architecture 'hard_sharing'"),
        ({"hidden": -1}, "hidden should not be negative. Found -1"),
        ({"ema": 1.0}, "ema should be less than 1. Found 1.0"),
        ({"oversample": -0.1}, "oversample should not be negative"),
        ({"select": "first"}, "select should be one of best, last"),
        ({"augmentation": "big"}, "augmentation should be one of small, resized_crop"),
    ],
)
def test_what_goes_with_nothing_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


def test_logit_adjustment_is_cross_entropy_with_a_bias_that_starts_elsewhere(few):
    """The equivalence that the loss's docstring states: step by step the same network, but for the bias."""
    given = {"optimizer": "sgd", "lr": 0.01, "weight_decay": 0.0, "method": "equal"}
    one, other = (Loop(config(loss=loss, **given), few) for loss in ("bce", "logit_adjusted"))
    seen = few.train.prevalence > 0  # of a finding without a positive the bias starts at the end of its range
    x, labels = torch.randn(16, 1, 32, 32, generator=generator()), torch.tensor(few.train.labels[:16])
    for loop in (one, other):
        loop.net.train()
    for _ in range(4):
        (z, loss), (adjusted, other_loss) = (loop.training_step(x, labels) for loop in (one, other))
        expected = adjusted + other.loss.offset.float()
        torch.testing.assert_close(z[:, seen], expected[:, seen], rtol=0, atol=1e-3)
        torch.testing.assert_close(loss[seen], other_loss[seen], rtol=1e-3, atol=1e-4)


# its augmentation


def test_resized_crop_draws_as_torchvision_does():
    """Area, ratio and place of the crop and the share of mirrors, against torchvision's own draws on a large image."""
    n = 20_000
    rows = sample_resized_crop(n, generator())
    turned = rows[:, :6].view(n, 2, 3)
    width, height = turned[:, :, 0].norm(dim=1), turned[:, :, 1].norm(dim=1)
    centre = turned[:, :, 2].norm(dim=1)  # of the crop, from the centre of the image, before and after the rotation
    image = torch.empty(1, 4000, 4000)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8)
    made = [crop.make_params([image]) for _ in range(4000)]
    drawn = np.array([[box[side] for side in ("top", "left", "height", "width")] for box in made], dtype=float)
    top, left, tall, wide = (drawn[:, i] / 4000 for i in range(4))
    theirs = np.hypot(2 * left + wide - 1, 2 * top + tall - 1)
    for ours, other in ((width, wide), (height, tall), (width * height, wide * tall), (centre, theirs)):
        ours = np.sort(ours.numpy())
        grid = np.quantile(other, np.linspace(0.02, 0.98, 25))
        assert np.abs(np.searchsorted(ours, grid) / n - np.linspace(0.02, 0.98, 25)).max() < 0.02
    angle = torch.atan2(-turned[:, 0, 1], turned[:, 1, 1]).rad2deg()
    assert angle.abs().max() <= 30.001
    assert angle.std().item() == pytest.approx(30 / math.sqrt(3), rel=0.02)
    mirrored = turned[:, 0, 0] * turned[:, 1, 1] - turned[:, 0, 1] * turned[:, 1, 0] < 0
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert (rows[:, 6:] == torch.tensor([1.0, 0.0])).all()


def test_resized_crop_is_torchvisions_on_a_smooth_image():
    """The one affine map against a rotation, then a crop that is stretched, then a mirror, one after the other."""
    side, rows = 128, sample_resized_crop(40, generator(3))
    line = torch.linspace(-1, 1, side)
    image = (torch.sin(3 * line)[:, None] + torch.cos(2 * line + 1)[None]).expand(1, 1, side, side) + 3
    for row in rows:
        a = row[:6].view(2, 3)
        angle = torch.atan2(-a[0, 1], a[1, 1])
        mirrored = bool(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0] < 0)
        width, height = a[:, 0].norm().item(), a[:, 1].norm().item()
        back = torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]])
        x, y = (back @ a[:, 2]).tolist()
        # torchvision turns counter-clockwise, as seen
        turned = v2.functional.rotate(image, -angle.rad2deg().item() * -1, interpolation=v2.InterpolationMode.BILINEAR)
        left, top = ((x - width + 1) / 2 * side, (y - height + 1) / 2 * side)
        box = [round(top), round(left), round(height * side), round(width * side)]
        expected = v2.functional.resized_crop(turned, *box, [side, side])
        expected = expected.flip(-1) if mirrored else expected
        found = apply_augmentation(image, row[None], "zeros")
        inside = expected > 1  # black corners are jagged
        assert (found - expected)[inside].abs().quantile(0.98) < 0.12, row


def test_outside_of_a_turned_image_is_black():
    white = torch.full((64, 32, 32), 255, dtype=torch.uint8)
    x = to_input(white, sample_resized_crop(64, generator()), "zeros")
    darkest, brightest = to_input(torch.tensor([[[0, 255]]], dtype=torch.uint8)).flatten()
    assert x.min() == pytest.approx(darkest.item(), abs=1e-4)
    assert x.max() == pytest.approx(brightest.item(), abs=1e-4)
    assert x[0].unique().numel() > 2 or x[1].unique().numel() > 2


def test_each_image_has_a_crop_of_its_own():
    assert len(sample_resized_crop(100, generator()).unique(dim=0)) == 100


def test_test_images_are_augmented_if_asked_alone_and_always_the_same(few):
    given = {"augmentation": "resized_crop", "epochs": 1}
    plain, asked, again = (train(config(**given, augment_test=t), few) for t in (False, True, True))
    assert_same_tree(plain.model.state_dict(), asked.model.state_dict())  # training is the same
    assert np.array_equal(asked.logits["test"], again.logits["test"])
    assert not np.array_equal(plain.logits["test"], asked.logits["test"])
    assert not np.array_equal(plain.logits["val"], asked.logits["val"])
    rows = sample_resized_crop(32, generator(1_000_003 * 4))  # seed 0, the test of epoch 1
    x = to_input(torch.tensor(few.test.images), rows, "zeros")
    with torch.no_grad():
        np.testing.assert_allclose(asked.model(x).numpy(), asked.logits["test"], rtol=1e-3, atol=1e-4)


# which network, which images


def test_last_epoch_can_be_tested(few):
    best = train(config(epochs=4, lr=0.02), few)
    last = train(config(epochs=4, lr=0.02, select="last"), few)
    assert last.best_epoch == 4
    assert best.best_epoch == get(best.history, "auroc", "macro", "val").argmax() + 1
    assert best.best_epoch < 4  # or the two would be alike
    np.testing.assert_array_equal(get(last.history, "loss", "macro", "val"), get(best.history, "loss", "macro", "val"))


def test_moving_average_is_that_of_the_weights_after_each_step(few, monkeypatch):
    seen, step = [], Loop.optimizer_step

    def noted(self, *given):
        if not seen:
            seen.append({name: value.clone() for name, value in self.net.state_dict().items()})
        step(self, *given)
        seen.append({name: value.clone() for name, value in self.net.state_dict().items()})

    monkeypatch.setattr(Loop, "optimizer_step", noted)
    given = {"epochs": 2, "batch_size": 16, "select": "last", "method": "equal"}
    run = train(config(**given, ema=0.3), few)
    expected = seen[0]["head.weight"].double()
    # batch normalisation had its statistics changed by the forward pass before the first step, so look at a weight
    for t, state in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * state["head.weight"].double()
    assert len(seen) == 1 + 2 * 3
    torch.testing.assert_close(run.model.state_dict()["head.weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert run.model.state_dict()["trunk.bn1.num_batches_tracked"] == 6
    monkeypatch.undo()
    plain = train(config(**given), few)  # the network that is trained is the same one
    assert_same_tree(plain.model.state_dict(), seen[-1])
    for metric in ("loss", "auroc"):
        same = get(plain.history, metric, "macro", "train") == get(run.history, metric, "macro", "train")
        assert same.all()
    assert not np.array_equal(plain.logits["val"], run.logits["val"])


def test_repeat_factors_by_hand():
    # 0.1, 0.4 and half of 10 images; of the last finding 4 labels are known, one positive
    labels = np.zeros((10, 4))
    labels[0, 0], labels[:4, 1], labels[:5, 2] = 1, 1, 1
    labels[4:, 3], labels[1, 3] = np.nan, 1
    found = setup.repeat_factors(labels, 0.4)
    expected = [2.0, math.sqrt(0.4 / 0.25), 1, 1, 1, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(found, expected)
    assert (setup.repeat_factors(labels, 0.05) == 1).all()


def test_oversampling_draws_in_proportion_and_by_the_seed():
    factors = torch.tensor([1.0, 1.0, 2.0, 4.0])
    orders = [setup.training_order(4, 4, generator(seed), factors=factors) for seed in range(4000)]
    share = torch.stack(orders).flatten().bincount() / 16_000
    np.testing.assert_allclose(share, factors / 8, atol=0.015)
    assert orders[0].shape == (1, 4)
    assert torch.equal(orders[7], setup.training_order(4, 4, generator(7), factors=factors))


def test_an_epoch_that_oversamples_is_as_long_and_has_more_of_what_is_rare(few):
    seen = {}
    for share in (0.0, 0.5):
        loop = Loop(config(oversample=share, batch_size=16), few)
        labels = np.concatenate([loop.train_epoch(epoch)[0] for epoch in range(1, 13)])
        assert len(labels) == 12 * 48
        seen[share] = labels.mean(0)
    rarest = np.argsort(few.train.prevalence + (few.train.prevalence == 0))[0]
    assert seen[0.5][rarest] > 1.5 * seen[0.0][rarest]


def test_ensemble_has_the_mean_probability():
    logits = np.random.default_rng(0).normal(size=(3, 5, 2)) * 4
    np.testing.assert_allclose(1 / (1 + np.exp(-ensemble(list(logits)))), (1 / (1 + np.exp(-logits))).mean(0))
    np.testing.assert_allclose(ensemble([logits[0]]), logits[0])
    huge = ensemble([np.full((1, 1), 60.0), np.full((1, 1), 61.0)])
    assert 60 < huge.item() < 61


# everything together

NEW = {
    "focal, average": {"loss": "focal", "ema": 0.9},
    "ldam": {"loss": "ldam(defer=0.3)", "method": "deepchest_relative_loss", "optimizer": "rmsprop"},
    "balanced, oversampled": {"loss": "balanced", "oversample": 0.5, "stratified": True, "method": "famo"},
    "asymmetric, half": {"loss": "asymmetric", "amp": "bf16", "method": "hedge"},
    "adjusted, fp16": {"loss": "logit_adjusted", "amp": "fp16", "ema": 0.5, "method": "uncertainty"},
    "head, last": {"head": "two_way", "hidden": 16, "prior_bias": False, "select": "last", "method": "pcgrad"},
    "crop": {"augmentation": "resized_crop", "augment_test": True, "select": "last", "schedule": "constant"},
}


@pytest.mark.parametrize("given", NEW.values(), ids=NEW)
def test_runs_with_the_new_fields_continue_bit_for_bit(few, tmp_path, given):
    assert_continues(few, tmp_path, {"batch_size": 16, **given}, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(METHODS)))
def test_every_method_takes_the_losses(few, number):
    method, loss = list(METHODS)[number], LOSSES[1:][number % 5]
    options = {"values": [1.0] * 14} if method == "static" else {}
    run = train(config(method=method, method_options=options, loss=loss, lr=1e-4, ema=0.5, head="two_way"), few)
    assert np.isfinite(run.logits["test"]).all()
    assert run.method.weights.isfinite().all()


def test_network_of_a_checkpoint_is_the_one_that_was_tested(few, tmp_path):
    given = {"hidden": 16, "head": "two_way", "ema": 0.5, "epochs": 1}
    run = train(config(**given, run_dir=str(tmp_path)), few)
    assert_same_tree(load_trained(tmp_path).net.state_dict(), run.model.state_dict())


@pytest.mark.parametrize("loss", ["balanced", "focal", "asymmetric", "logit_adjusted", "ldam"])
def test_methods_learn_from_the_loss_that_is_trained_and_tables_have_cross_entropy(few, loss):
    loop = Loop(config(loss=loss, method="deepchest_relative_loss", epochs=2), few)
    reports = []
    loop.method.end_epoch = reports.append
    loop.run_epoch()
    (report,) = reports
    logits = torch.from_numpy(loop.predict("val", 1))
    labels = torch.from_numpy(few.val.labels)
    torch.testing.assert_close(report.val["loss"], loop.loss(logits, labels).double(), equal_nan=True)
    rows = [row for row in loop.history if row["metric"] == "loss" and row["split"] == "val"]
    values = {row["task"]: row["value"] for row in rows}
    found = torch.tensor([values[finding] for finding in few.findings], dtype=torch.float32)
    torch.testing.assert_close(found, masked_bce(logits, labels), rtol=1e-4, atol=1e-6)
    prevalence = torch.from_numpy(few.train.prevalence)
    both = (prevalence > 0) & (prevalence < 1)
    assert both.any()
    assert not both.all()
    relative = report.relative_loss("val")
    assert relative[~both].isnan().all()
    expected = loop.loss.best_constant(prevalence)[1]
    torch.testing.assert_close(relative[both] * expected[both], report.val["loss"][both])


def test_published_recipe_is_the_command_of_the_readme():
    text = (Path(__file__).parents[1] / "deepchest_utils" / "README.md").read_text()
    command = text[text.index("train --dataset nih --data-root") :].split("```")[0]
    given = parse(shlex.split(command)).config
    assert TrainConfig(**vars(given)) == TrainConfig(**PUBLISHED_RECIPE, dataset="nih", data_root="FOLDER")


def test_published_recipe_runs_small(few):
    small = {
        "backbone": "resnet18_thin",
        "pretrained": False,
        "image_size": 32,
        "epochs": 2,
        "batch_size": 16,
        "split": None,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        run = train(TrainConfig(**{**PUBLISHED_RECIPE, **small, "device": "cpu"}), few)
    assert run.best_epoch == 2
    assert np.isfinite(get(run.test, "loss", "macro", "test")).all()
