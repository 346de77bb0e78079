"""What is not a number, or is too little to learn from: every method does something that is known beforehand."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from deepchest_utils import METHODS, DataError, DeepChest, Splits, TrainConfig, load_dataset, make_method, train
from deepchest_utils.datasets import DataWarning
from deepchest_utils.models.losses import BCE, count_known, masked_bce

K, NAN, INF = 3, math.nan, math.inf
pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def options(name: str, num_tasks: int) -> dict:
    return {"values": [1.0] * num_tasks} if name == "static" else {}


class Step:
    """One step of a method on a trunk and heads of a few numbers."""

    def __init__(self, name: str, labels: torch.Tensor, spoilt: float | None = None):
        num_tasks = labels.shape[1]
        torch.manual_seed(0)
        self.method = make_method(name, num_tasks=num_tasks, **options(name, num_tasks))
        self.method.begin(torch.full((num_tasks,), 0.3))
        trunk, head = nn.Linear(5, 6), nn.Linear(6, num_tasks)
        features = torch.relu(trunk(torch.randn(len(labels), 5)))
        losses = masked_bce(head(features), labels)
        if spoilt is not None:
            losses = losses * torch.ones(num_tasks).index_fill(0, torch.tensor([1]), spoilt)
        self.method.backward(losses, features, count_known(labels) > 0)
        if self.method.needs_losses_after_step:
            self.method.after_step(losses.detach())
        self.gradients = torch.cat([p.grad.flatten() for p in (*trunk.parameters(), *head.parameters())])


LITTLE = {
    "one task": torch.tensor([[1.0], [0.0], [0.0], [1.0]]),
    "one image": torch.tensor([[1.0, 0.0, 0.0]]),
    "one class": torch.zeros(4, K),
    "one known label": torch.tensor([[NAN, 1.0, NAN], [NAN, NAN, NAN]]),
    "a task without one": torch.tensor([[0.0, NAN, 1.0], [1.0, NAN, 0.0]]),
}


@pytest.mark.parametrize("case", LITTLE)
@pytest.mark.parametrize("name", METHODS)
def test_little_to_learn_from_is_learned_from(name, case):
    step = Step(name, LITTLE[case])
    assert step.gradients.isfinite().all()
    assert step.gradients.any()
    assert step.method.weights.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_no_known_label_is_no_gradient(name):
    step = Step(name, torch.full((4, K), NAN))
    assert not step.gradients.any()
    assert step.method.weights.isfinite().all()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", METHODS)
def test_loss_that_is_not_finite_is_seen_in_the_gradients(name, value):
    """And not as an error from inside a solver, nor as a step as good as any."""
    step = Step(name, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), value)
    assert not step.gradients.isfinite().all()


# whole runs


@pytest.fixture(scope="module")
def few() -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset("phantom", image_size=32, num_train=24, num_val=16, num_test=16)


def changed(data: Splits, change) -> Splits:
    parts = {name: change(part) for name, part in data.parts.items()}
    return dataclasses.replace(data, **parts)


def config(method: str, num_tasks: int, **given) -> TrainConfig:
    return TrainConfig(
        image_size=32, epochs=2, batch_size=8, device="cpu", method=method,
        method_options=options(method, num_tasks), **given,
    )  # fmt: skip


CASES = {
    "one finding": lambda p: dataclasses.replace(p, labels=p.labels[:, :1], findings=p.findings[:1]),
    "two images": lambda p: p.subset(np.arange(2)),
    "one patient": lambda p: p.subset(np.flatnonzero(p.patients == p.patients[0])),
    "one class": lambda p: dataclasses.replace(p, labels=np.zeros_like(p.labels)),
    "nothing known": lambda p: dataclasses.replace(p, labels=np.full_like(p.labels, NAN)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["equal", "deepchest", "deepchest_relative_loss", "famo", "upgrad"])
def test_run_on_too_little_ends_with_what_is_defined(few, method, case):
    data = changed(few, CASES[case])
    run = train(config(method, len(data.findings)), data)
    assert np.isfinite(run.logits["test"]).all()
    weights = run.history.value[run.history.metric == "weight"]
    assert np.isfinite(weights).all()
    test = run.test.set_index(["metric", "task"]).value
    if case in ("one class", "nothing known"):
        assert math.isnan(test["auroc", "macro"])
        assert test["auroc_tasks", "macro"] == 0
    assert math.isnan(test["loss", "macro"]) == (case == "nothing known")


def test_run_on_one_image_is_refused(few):
    data = changed(few, lambda part: part.subset(np.arange(1)))
    with pytest.raises(ValueError, match=r"batch_size should be at least 2: .*Found 1, of 1 training images"):
        train(config("equal", 14), data)


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "upgrad", "nash_mtl", "deepchest+pcgrad"])
def test_loss_that_is_not_finite_stops_every_kind_of_run(few, monkeypatch, method):
    original = BCE.forward
    monkeypatch.setattr(BCE, "forward", lambda *given: original(*given) * NAN)
    with pytest.raises(FloatingPointError, match="the loss of Atelectasis is nan in epoch 1, step 1"):
        train(config(method, 14), few)


@pytest.mark.parametrize("wrong", [INF, -1.0, 2.0, 0.5])
def test_labels_that_are_none(few, wrong):
    labels = few.train.labels.copy()
    labels[3, 5] = wrong
    with pytest.raises(DataError, match=rf"labels should be 0, 1 or NaN. Found {wrong} for Nodule of image"):
        dataclasses.replace(few.train, labels=labels)


OUTSIDE_THE_CHECKS = """
import numpy as np
from deepchest_utils import DataError
from deepchest_utils.datasets import ChestXrays
try:
    ChestXrays(np.full((2, 8, 8), np.nan), np.zeros((2, 1), np.float32), np.arange(2), ("Mass",), np.arange(2))
except DataError as error:
    print(error)
"""


def test_images_that_are_no_bytes():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", OUTSIDE_THE_CHECKS], capture_output=True, text=True, check=True)
    assert done.stdout == "images should be uint8. Found float64.\n"


@pytest.mark.parametrize("wrong", [INF, -INF])
def test_scores_that_are_infinite(wrong):
    weighting = DeepChest(num_tasks=3)
    with pytest.raises(ValueError, match="scores should be finite, or NaN if there is none"):
        weighting.update([0.5, wrong, 0.7])
    assert (weighting.weights == 1).all()


@pytest.mark.parametrize("wrong", [NAN, INF, -1.0])
def test_weights_that_are_none(wrong):
    for make in (lambda w: DeepChest(num_tasks=3, initial=w), lambda w: make_method("static", 3, values=w)):
        with pytest.raises(ValueError, match="finite and not negative"):
            make([1.0, wrong, 1.0])
