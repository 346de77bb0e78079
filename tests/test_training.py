"""The loop: runs that continue bit for bit, seeds that matter, a loop that knows nothing of the method, and a
network that learns."""

import dataclasses
import json
import shutil
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from deepchest_utils import FINDINGS, METHODS, Method, Run, Splits, TrainConfig, load_dataset, train
from deepchest_utils.config import check_type
from deepchest_utils.datasets import DataWarning
from deepchest_utils.models import augment
from deepchest_utils.models.augment import apply_augmentation, sample_augmentation, to_input
from deepchest_utils.models.losses import BCE, make_loss, masked_bce
from deepchest_utils.results.checkpoint import read_checkpoint
from deepchest_utils.results.metrics import choose_thresholds, score_tasks
from deepchest_utils.results.store import COLUMNS, write_json
from deepchest_utils.training import loop as loop_module
from deepchest_utils.training import setup
from deepchest_utils.training.loop import Loop, train_once

K = len(FINDINGS)
# small images have too few positives of the rare findings: that is what the warning says, and what some tests
# want
pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def phantom(**sizes) -> Splits:
    with warnings.catch_warnings():  # a fixture is outside the mark above
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset("phantom", image_size=32, **sizes)


@pytest.fixture(scope="module")
def tiny() -> Splits:
    return phantom(num_train=256, num_val=128, num_test=128)


@pytest.fixture(scope="module")
def few(tiny) -> Splits:
    """For what is slow: 32 images a split."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        parts = {name: part.subset(np.arange(32)) for name, part in tiny.parts.items()}
        return Splits(**parts, name="few", split="patient")


def config(**given) -> TrainConfig:
    return TrainConfig(**{"image_size": 32, "epochs": 2, "device": "cpu", **given})


def with_labels(data: Splits, parts=("train", "val", "test"), **columns) -> Splits:
    """The same images with another column of labels, by finding."""
    changed = {}
    for name, part in data.parts.items():
        labels = part.labels.copy()
        for finding, value in columns.items():
            if name in parts:
                labels[:, FINDINGS.index(finding)] = value
        changed[name] = dataclasses.replace(part, labels=labels)
    return dataclasses.replace(data, **changed)


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """All of a table but how long it took, with how many threads."""
    return table[table.task != "run"].reset_index(drop=True)


def get(table: pd.DataFrame, metric: str, task: str, split: str | None = None) -> np.ndarray:
    rows = (table.metric == metric) & (table.task == task)
    return table.value[rows & (table.split == split)].to_numpy() if split else table.value[rows].to_numpy()


def assert_same_run(one: Run, other: Run):
    pd.testing.assert_frame_equal(numbers(one.history), numbers(other.history), check_exact=True)
    pd.testing.assert_frame_equal(one.test, other.test, check_exact=True)
    assert one.best_epoch == other.best_epoch
    assert_same_tree(one.model.state_dict(), other.model.state_dict())
    assert_same_tree(one.method.state_dict(), other.method.state_dict())
    for split in ("val", "test"):
        assert np.array_equal(one.logits[split], other.logits[split])


def assert_same_tree(a, b, where=""):
    """Tensors, numbers and containers of them are equal, NaN to NaN."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{where}: {m}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_same_tree(a[name], b[name], f"{where}/{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_tree(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} and {b}"


class Stopped(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def stop_in_epoch(number: int, patch: pytest.MonkeyPatch):
    """The run breaks off after all steps of that epoch: weights, optimiser and random states have moved on,
    the checkpoint has not."""
    whole = Loop.train_epoch

    def broken(self, epoch):
        out = whole(self, epoch)
        if epoch == number:
            raise Stopped
        return out

    patch.setattr(Loop, "train_epoch", broken)


# continuing


def assert_continues(data: Splits, folder, given: dict, number: int):
    """A run of `number` epochs that breaks off in the last but one goes on to the same bytes as one never stopped."""
    whole = train(config(epochs=number, run_dir=str(folder / "whole"), **given), data)
    again = config(epochs=number, run_dir=str(folder / "stopped"), **given)
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(number - 1, patch)
        with pytest.raises(Stopped):
            train(again, data)
    torch.rand(7)  # what else the process draws is of no consequence
    continued = train(again, data)
    assert_same_run(whole, continued)
    # what the result does not show must be right too: optimiser, schedule and random states
    states = [read_checkpoint(folder / name)[0] for name in ("whole", "stopped")]
    for state in states:
        state["history"] = [row for row in state["history"] if row["task"] != "run"]
    assert_same_tree(*states)
    for name in ("test.csv", "config.json"):
        texts = [(folder / run / name).read_text() for run in ("whole", "stopped")]
        assert texts[0].replace("whole", "stopped") == texts[1]


COMPOSED = {
    "method": "deepchest_relative_loss+deepchest_auroc",
    "method_options": {"initial": torch.full((K,), 0.9), "inner_options": {"scores_from": "val"}},
}


@pytest.mark.parametrize(
    "given",
    [
        {"method": "deepchest_loss_trend", "amp": "bf16", "optimizer": "adam", "batch_size": 100},
        {**COMPOSED, "optimizer": "sgd", "schedule": "constant", "lr": 0.01},
        {"method": "gradnorm", "optimizer": "rmsprop", "channels_last": False},  # whose parameters are trained
        {"method": "gradvac", "method_options": {"level": "features"}},  # whose state is TorchJD's
        # draws from torch's global random state
        {"method": "rlw", "augment": False, "amp": "fp16", "batch_size": 40},
        {"method": "famo", "backbone": "mobilenet_v3_small", "batch_size": 16},
    ],
    ids=["loss-trend-bf16", "composed-sgd", "parameters", "torchjd", "draws-fp16", "dropout"],
)
def test_continued_run_equals_the_uninterrupted_one_bit_for_bit(few, tmp_path, given):
    assert_continues(few, tmp_path, given, 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(METHODS)))
def test_every_method_continues_bit_for_bit(few, tmp_path, number):
    method, optimizer = list(METHODS)[number], ("adamw", "adam", "rmsprop", "sgd")[number % 4]
    options = {"values": [1.0] * K} if method == "static" else {}
    given = {"method": method, "method_options": options, "optimizer": optimizer, "lr": 1e-3, "batch_size": 16}
    assert_continues(few, tmp_path, given, 3)


def test_finished_run_is_returned_without_training_again(tiny, tmp_path, monkeypatch):
    given = config(run_dir=str(tmp_path))
    first = train(given, tiny)

    def never(self):
        raise AssertionError("a finished run should not train")

    monkeypatch.setattr(Loop, "run_epoch", never)
    assert_same_run(first, train(given, tiny))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lr": 1e-3}, "lr: 0.002 there, 0.001 now"),
        ({"epochs": 5}, "epochs: 1 there, 5 now"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"method_options": {"cap": 3.0}}, "method_options"),
        ({"method": "equal", "augment": False}, "method: .*augment: True there, False now"),
    ],
)
def test_run_dir_of_another_configuration_is_refused_by_field(run_dir_of_one_epoch, tiny, changed, named):
    with pytest.raises(ValueError, match=f"checkpoint.pt belongs to another configuration or other data.*{named}"):
        train(config(**{"epochs": 1, "run_dir": str(run_dir_of_one_epoch), **changed}), tiny)


@pytest.fixture(scope="module")
def run_dir_of_one_epoch(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(config(epochs=1, run_dir=str(folder)), tiny)
    return folder


def test_options_are_written_and_compared_as_plain_values(tmp_path):
    options = {"data_options": {"table": Path("films.csv")}, "method_options": {"initial": torch.ones(3)}}
    plain = {"data_options": {"table": "films.csv"}, "method_options": {"initial": [1.0, 1.0, 1.0]}}
    config = TrainConfig(**options)
    write_json(tmp_path / "config.json", dataclasses.asdict(config))
    for found in (config.identity(), json.loads((tmp_path / "config.json").read_text())):
        assert {name: found[name] for name in plain} == plain


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int | float, [1, 1.0, np.float32(0.5)], ["1", None, True, float("nan")]),
        (float | str | None, [1.0, "x", None], [True, [1.0]]),
        (Literal["first", "last"] | None, ["last", None], ["lsat", 1]),
        (list[float] | None, [[1.0], None], [(1.0,)]),
    ],
)
def test_a_value_is_of_one_of_several_types(hint, good, bad):
    for value in good:
        found = check_type("alpha", hint, value)
        assert found == value
        assert isinstance(found, type(None) | int | float | str | list)
    for value in bad:
        with pytest.raises(ValueError, match=r"^alpha should be of type .*\. Found "):
            check_type("alpha", hint, value)


def test_run_dir_of_other_data_is_refused(run_dir_of_one_epoch, few):
    with pytest.raises(ValueError, match=r"other data.*data: "):
        train(config(epochs=1, run_dir=str(run_dir_of_one_epoch)), few)


@pytest.mark.parametrize(
    ("name", "content"), [("test.csv", "Path,Edema\na.jpg,1\n"), ("config.json", '{"mine": 1}'), ("history.csv", "\n")]
)
def test_files_of_ones_own_are_not_written_over(tiny, tmp_path, name, content):
    """CheXpert's own labels of its test set are a test.csv."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name}.*Choose another run_dir\."):
        train(config(epochs=1, run_dir=str(tmp_path)), tiny)
    assert (tmp_path / name).read_text() == content


def test_run_may_move_to_another_folder(run_dir_of_one_epoch, tiny, tmp_path, monkeypatch):
    (tmp_path / "checkpoint.pt").write_bytes((run_dir_of_one_epoch / "checkpoint.pt").read_bytes())
    monkeypatch.setattr(Loop, "run_epoch", None)  # nothing is left to do
    assert train(config(epochs=1, run_dir=str(tmp_path), data_root="elsewhere"), tiny).best_epoch == 1


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "not ours", "code"])
def test_damaged_checkpoint_is_one_clear_error(run_dir_of_one_epoch, tiny, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    whole = (run_dir_of_one_epoch / "checkpoint.pt").read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "text":
            path.write_text("not a checkpoint")
        case "empty":
            path.write_bytes(b"")
        case "not ours":
            torch.save({"net": torch.ones(1)}, path)
        case "code":
            torch.save({"version": 1, "x": Evil()}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*Delete it, or choose another run_dir"):
        train(config(epochs=1, run_dir=str(tmp_path)), tiny)
    assert path.read_bytes() == before  # it may be all that someone has


# trained once


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The folder of networks that are kept, and a count of the epochs trained."""
    monkeypatch.setenv("DEEPCHEST_RUNS", str(tmp_path))
    epochs, train_epoch = [], Loop.train_epoch
    monkeypatch.setattr(Loop, "train_epoch", lambda self, epoch: epochs.append(epoch) or train_epoch(self, epoch))
    return tmp_path / ".networks", epochs


def test_train_once_trains_once(few, tiny, networks):
    folder, epochs = networks
    first = train_once(config(epochs=1), few)
    assert_same_run(first, train(config(epochs=1), few))
    assert epochs == [1, 1]
    assert_same_run(first, train_once(config(epochs=1, data_root="elsewhere"), few))
    assert epochs == [1, 1]
    for other, data in ((config(epochs=1, seed=1), few), (config(epochs=1), tiny), (config(), few)):
        train_once(other, data)
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 4


def test_train_once_with_a_folder_of_the_users_own_trains_there(few, networks, tmp_path):
    train_once(config(epochs=1, run_dir=str(tmp_path / "mine")), few)
    assert (tmp_path / "mine" / "test.csv").exists()
    assert not networks[0].exists()


def test_train_once_loads_the_data_set_itself(networks):
    sizes = {"num_train": 32, "num_val": 16, "num_test": 16}
    given = config(epochs=1, data_options=sizes)
    assert_same_run(train_once(given), train_once(given, phantom(**sizes)))
    assert networks[1] == [1]


def test_changed_code_trains_anew(few, networks, tmp_path, monkeypatch):
    root = tmp_path / "root"
    copy = shutil.copytree(loop_module.PROJECT / "deepchest_utils", root / "deepchest_utils")
    monkeypatch.setattr(loop_module, "PROJECT", root)
    for changed, trained in ((None, 1), ("notebook/figures.py", 1), ("weighting/base.py", 2), ("threads.py", 3)):
        if changed:
            (copy / changed).write_text((copy / changed).read_text() + "# changed")
        train_once(config(epochs=1), few)
        assert len(networks[1]) == trained, changed


def test_method_from_outside_is_trained_each_time(few, networks, monkeypatch):
    """Its code is not among what the id is made of."""
    monkeypatch.setitem(METHODS, "recorder", Recorder)
    for _ in range(2):
        train_once(config(epochs=1, method="equal+recorder"), few)
    assert networks[1] == [1, 1]
    assert not networks[0].exists()


def test_second_notebook_waits_for_the_first(few, networks):
    from concurrent.futures import ThreadPoolExecutor

    started, train_epoch = threading.Event(), Loop.train_epoch

    def slow(self, epoch):
        started.set()
        time.sleep(0.3)
        return train_epoch(self, epoch)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(Loop, "train_epoch", slow)
        first = pool.submit(train_once, config(epochs=1), few)
        started.wait()
        second = pool.submit(train_once, config(epochs=1), few)
        assert_same_run(first.result(), second.result())
    assert networks[1] == [1]


# randomness


def test_random_state_of_the_caller_is_untouched(few):
    torch.manual_seed(123)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  the global one is the point
    train(config(epochs=1, backbone="mobilenet_v3_small"), few)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002


def test_same_seed_same_numbers_other_seed_others(tiny):
    one = train(config(epochs=1, seed=3), tiny)
    torch.rand(5)
    assert_same_run(one, train(config(epochs=1, seed=3), tiny))
    other = train(config(epochs=1, seed=4), tiny)
    assert get(one.history, "loss", "macro", "train") != get(other.history, "loss", "macro", "train")


def test_seed_gives_every_method_the_same_start_and_the_same_order(tiny, monkeypatch):
    """A comparison over methods with one seed is paired: network and batches are the same."""
    seen = []
    original = BCE.forward
    monkeypatch.setattr(BCE, "forward", lambda self, *given: seen.append(given[:2]) or original(self, *given))
    train(config(epochs=1, augment=False), tiny)
    first = list(seen)
    seen.clear()
    train(config(epochs=1, augment=False, method="equal"), tiny)
    assert torch.equal(first[0][0], seen[0][0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, seen, strict=True))


# the method


class Recorder(Method):
    """A method that the loop has never heard of."""

    made: list["Recorder"] = []  # noqa: RUF012  shared by intent

    def __init__(self, num_tasks: int, share: float = 1.0):
        super().__init__(num_tasks)
        self.scale = torch.nn.Parameter(torch.ones(num_tasks))
        self.share, self.calls, self.reports = share, [], []
        Recorder.made.append(self)

    def backward(self, losses, features=None, mask=None):
        shapes = (tuple(losses.shape), tuple(features.shape))
        self.calls.append((*shapes, losses.requires_grad, features.requires_grad, losses.detach().clone()))
        (self.share * (self.scale * losses).sum()).backward()

    def end_epoch(self, report):
        self.reports.append(report)


def test_loop_knows_nothing_of_the_method(tiny, monkeypatch):
    monkeypatch.setitem(METHODS, "recorder", Recorder)
    Recorder.made.clear()
    run = train(config(method="recorder", method_options={"share": 0.5}, batch_size=60), tiny)
    (method,) = Recorder.made
    assert run.method is method
    assert [call[:4] for call in method.calls] == [((K,), (60, 128), True, True)] * (
        2 * 4
    )  # 4 whole batches of 60 in 256 images
    assert [r.epoch for r in method.reports] == [1, 2]
    assert (method.scale != 1).all()  # its parameters are trained with the network's
    expected = torch.from_numpy(tiny.train.prevalence)
    for report in method.reports:
        assert torch.equal(report.prevalence, expected)
        for split in ("train", "val"):
            table = getattr(report, split)
            assert {"loss", "accuracy", "auroc", "balanced_accuracy"} <= set(table)
            for metric, values in table.items():
                logged = [get(run.history, metric, f, split)[report.epoch - 1] for f in FINDINGS]
                np.testing.assert_array_equal(values.numpy(), logged)


def test_weights_in_force_are_logged_and_follow_the_rule(tiny):
    run = train(config(epochs=4, method_options={"normalize": True, "signal": "accuracy"}), tiny)
    raw = np.stack([get(run.history, "raw_weight", f) for f in FINDINGS], axis=1)
    accuracy = np.stack([get(run.history, "accuracy", f, "train") for f in FINDINGS], axis=1)
    assert (raw[0] == 1).all()  # the first epoch is trained with the initial weights
    for t in range(3):
        behind = accuracy[t] < accuracy[t].mean()
        np.testing.assert_allclose(raw[t + 1], np.where(behind, np.minimum(raw[t] * 1.1, 1.5), raw[t] / 1.05))
    weights = np.stack([get(run.history, "weight", f) for f in FINDINGS], axis=1)
    np.testing.assert_allclose(weights, raw / raw.mean(1, keepdims=True))


def test_no_device_is_waited_for_between_the_steps(tiny, monkeypatch):
    """What reads a tensor back into Python is called as often in an epoch of 16 steps as in one of 2."""
    calls = []
    for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__float__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            calls.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for batch_size in (128, 16):
        # sgd: Adam reads its step count, which is kept on the CPU for that purpose
        with torch.random.fork_rng():
            loop = Loop(config(batch_size=batch_size, optimizer="sgd", lr=0.01), tiny)
            calls.clear()
            loop.train_epoch(1)
            counts.append(sorted(calls))
            assert len(loop.data.train) // batch_size == loop.steps
    assert counts[0] == counts[1]
    assert "cpu" in counts[0]  # the counter works: the end of the epoch is read back


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_not_waited_for_between_the_steps(tiny):
    loop = Loop(config(device="cuda", batch_size=16), tiny)
    loop.train_epoch(1)  # the first pass loads kernels
    step = loop.optimizer_step

    def guarded(*given):
        step(*given)
        torch.cuda.set_sync_debug_mode("error")  # from the first step on, until the last has been taken
        loop.taken += 1
        if loop.taken == loop.steps:
            torch.cuda.set_sync_debug_mode("default")

    loop.taken, loop.optimizer_step = 0, guarded
    try:
        loop.train_epoch(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loop.taken == loop.steps


# losses that are not finite


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_loss_that_is_not_finite_stops_the_run_and_is_named(tiny, tmp_path, monkeypatch, value):
    original, step = BCE.forward, [0]

    def poisoned(*given):
        step[0] += 1
        losses = original(*given)
        if step[0] == 4 + 3:  # of 4 steps an epoch
            losses = losses * torch.ones(K).index_fill(0, torch.tensor([FINDINGS.index("Edema")]), value)
        return losses

    monkeypatch.setattr(BCE, "forward", poisoned)
    with pytest.raises(FloatingPointError, match=rf"Edema is {value} in epoch 2, step 3\..*lr \(0.002\)"):
        train(config(run_dir=str(tmp_path)), tiny)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["epoch"] == 1  # the last good epoch is kept
    assert all(v.isfinite().all() for v in state["net"].values())


@pytest.mark.parametrize(
    ("method", "name", "value", "named"),
    [
        ("equal", "net.trunk.conv1.weight", np.inf, r"the val logit of Atelectasis is nan"),
        # the logits are finite
        ("equal", "net.trunk.bn1.running_var", np.inf, r"the network's trunk.bn1.running_var is inf"),
        ("uncertainty", "method.log_variance", np.inf, r"the method's log_variance is inf"),
        ("deepchest", "method._raw_weights", np.nan, rf"the weight of {FINDINGS[3]} is nan"),
    ],
)
@pytest.mark.parametrize("epoch", [1, 2])
def test_what_the_last_step_of_an_epoch_has_left_stops_the_run(
    tiny, tmp_path, monkeypatch, method, name, value, named, epoch
):
    step, steps = Loop.optimizer_step, [0]

    def poisoned(loop, *given):
        step(loop, *given)
        steps[0] += 1
        if steps[0] == 4 * epoch:
            attribute, name_there = name.split(".", 1)
            module = getattr(loop, attribute)
            tensor = module.state_dict()[name_there] if attribute == "net" else getattr(module, name_there)
            tensor.detach().view(-1)[3] = value

    monkeypatch.setattr(Loop, "optimizer_step", poisoned)
    with pytest.raises(
        FloatingPointError, match=rf"^{named} in epoch {epoch}, after step 4, its last\. Lower lr \(0.002\)"
    ):
        train(config(method=method, run_dir=str(tmp_path)), tiny)
    if epoch == 1:
        assert not (tmp_path / "checkpoint.pt").exists()
    else:
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1  # the last good one


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam", "rmsprop"])
def test_learning_rate_that_explodes_in_the_only_step_of_an_epoch_stops_the_run(tiny, optimizer):
    with pytest.raises(
        FloatingPointError, match=r"^the val logit of \w+ is nan in epoch 1, after step 1, its last\. Lower"
    ):
        train(config(lr=1e9, optimizer=optimizer, batch_size=512), tiny)


def test_learning_rate_that_explodes_stops_the_run(tiny):
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d+"):
        train(config(lr=1e30, optimizer="sgd"), tiny)


# unknown labels


@pytest.mark.parametrize("method", ["equal", "deepchest", "deepchest_relative_loss"])
def test_finding_without_a_known_label_is_trained_around(tiny, method):
    run = train(config(method=method), with_labels(tiny, Nodule=np.nan))
    for table in (run.history, run.test):
        for metric in ("auroc", "loss", "accuracy", "brier"):
            assert np.isnan(get(table, metric, "Nodule")).all()
            assert np.isfinite(get(table, metric, "macro")).all()
    assert (get(run.history, "weight", "Nodule") == 1).all()
    assert np.isfinite(run.logits["test"]).all()
    whole = train(config(method=method), tiny)
    assert get(run.test, "auroc_tasks", "macro") == get(whole.test, "auroc_tasks", "macro") - 1


def test_finding_unknown_in_training_alone_keeps_its_head_at_rest(tiny):
    run = train(config(weight_decay=0.0), with_labels(tiny, parts=("train",), Nodule=np.nan))
    k = FINDINGS.index("Nodule")
    start = Loop(config(), with_labels(tiny, Nodule=np.nan)).net.head
    assert torch.equal(run.model.head.weight[k], start.weight[k])
    assert not torch.equal(run.model.head.weight, start.weight)


# choosing and testing


def test_epoch_with_the_best_validation_auroc_is_chosen_and_tested(tiny):
    run = train(config(epochs=5, lr=0.01), tiny)
    by_epoch = get(run.history, "auroc", "macro", "val")
    assert len(by_epoch) == 5
    assert run.best_epoch == 1 + by_epoch.argmax()
    assert run.best_epoch < 5  # else the last weights would pass for the best
    assert set(run.test.epoch) == {run.best_epoch}
    with torch.no_grad():
        x = to_input(torch.from_numpy(np.array(tiny.test.images)))
        logits = run.model(x).numpy()  # in eval mode already
    np.testing.assert_allclose(run.logits["test"], logits, rtol=1e-3, atol=1e-4)
    for split, part, table in (("val", tiny.val, run.history), ("test", tiny.test, run.test)):
        table = table[table.epoch == run.best_epoch]
        for k, finding in enumerate(FINDINGS):
            y = part.labels[:, k]
            expected = roc_auc_score(y, run.logits[split][:, k]) if 0 < y.sum() < len(y) else np.nan
            assert get(table, "auroc", finding, split)[0] == pytest.approx(expected, nan_ok=True)


def test_loss_chooses_where_no_finding_has_both_classes(tiny):
    nothing = with_labels(tiny, parts=("val",), **dict.fromkeys(FINDINGS, 0.0))
    run = train(config(epochs=4, lr=0.01), nothing)
    assert np.isnan(get(run.history, "auroc", "macro", "val")).all()
    assert run.best_epoch == 1 + get(run.history, "loss", "macro", "val").argmin()


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_balanced_accuracy_of_an_epoch_is_at_the_best_constant(tiny, loss):
    run = train(config(epochs=1, loss=loss, lr=0.01), tiny)
    cuts = make_loss(loss, tiny.train.labels).best_constant(torch.from_numpy(tiny.train.prevalence))[0].numpy()
    assert np.allclose(cuts, tiny.train.prevalence) == (loss == "bce")
    p, k = 1 / (1 + np.exp(-run.logits["val"].astype(float))), FINDINGS.index("Infiltration")
    expected = balanced_accuracy_score(tiny.val.labels[:, k], p[:, k] >= cuts[k])
    assert get(run.history, "balanced_accuracy", "Infiltration", "val")[0] == pytest.approx(expected)


def test_thresholds_of_the_test_come_from_validation(tiny):
    run = train(config(epochs=3), tiny)
    p = {name: 1 / (1 + np.exp(-z.astype(float))) for name, z in run.logits.items()}
    chosen = choose_thresholds(tiny.val.labels, p["val"])
    checked = 0
    for metric, score in (("f1", f1_score), ("balanced_accuracy", balanced_accuracy_score)):
        for k, finding in enumerate(FINDINGS):
            t, y = chosen[metric][k], tiny.test.labels[:, k]
            assert get(run.test, f"{metric}_threshold", finding)[0] == pytest.approx(t, nan_ok=True)
            if not np.isnan(t) and 0 < y.sum() < len(y):
                assert get(run.test, metric, finding)[0] == pytest.approx(score(y, p["test"][:, k] >= t))
                checked += 1
    assert checked > 10


def test_tables_are_long_and_whole(tiny, tmp_path):
    run = train(config(epochs=2, seed=5, run_dir=str(tmp_path)), tiny)
    assert list(run.history.columns) == list(run.test.columns) == COLUMNS
    assert set(run.history.split) == {"train", "val"}
    assert set(run.test.split) == {"test"}
    assert not run.history.duplicated(COLUMNS[:-1]).any()
    assert not run.test.duplicated(COLUMNS[:-1]).any()
    assert (run.history.seed == 5).all()
    assert (run.history.value[run.history.metric == "seconds"] > 0).all()
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "calibration.json",
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "config.json",
        "environment.json",
        "history.csv",
        "lock",
        "seconds.csv",
        "test.csv",
    }
    history, seconds = (pd.read_csv(tmp_path / name) for name in ("history.csv", "seconds.csv"))
    assert len(history) + len(seconds) == len(run.history)
    assert set(seconds.metric) == {"seconds", "threads"}
    assert set(seconds.value[seconds.metric == "threads"]) == {1}
    assert not {"seconds", "threads"} & set(history.metric)


# options


def test_autocast_trains_near_to_full_precision(tiny):
    full, half = (  # in small steps: in large ones rounding grows, and how fast depends on the processor
        train(config(epochs=2, lr=5e-4, amp=amp, augment=False, method="equal"), tiny) for amp in ("off", "bf16")
    )
    a, b = (get(run.history, "loss", "macro", "train") for run in (full, half))
    assert not np.array_equal(a, b)
    assert b[1] < 0.95 * b[0]
    np.testing.assert_allclose(a, b, rtol=0.01)


def test_sgd_survives_the_first_step_of_fp16_which_overflows(few):
    """Fused, its momentum would be memory that nothing has filled."""
    given = config(epochs=1, augment=False, batch_size=16, optimizer="sgd", lr=1e-3, amp="fp16")
    torch.full((4_000_000,), torch.nan)  # what freed memory may hold
    run = train(given, few)
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())
    assert setup.make_optimizer(given, run.model.parameters()).defaults["fused"] is False
    assert setup.make_optimizer(config(optimizer="sgd"), run.model.parameters()).defaults["fused"] is True


def test_reweighting_of_ldam_changes_no_unit_for_the_rules(few):
    """The threshold of balanced accuracy and the loss that rules see belong to the phase that is trained."""
    loops = {defer: Loop(config(epochs=2, loss="ldam", loss_options={"defer": defer}), few) for defer in (0.0, 0.5)}
    for loop in loops.values():
        loop.run_epoch()
        loop.run_epoch()
        assert loop.loss.is_reweighted
        output = loop.loss.best_constant(loop.prevalence)[0]
        np.testing.assert_array_equal(loop.thresholds["balanced_accuracy"], output)
    always, later = loops.values()
    start = Loop(always.config, few)
    torch.testing.assert_close(start.net.head.bias.sigmoid().double(), output.clamp(1e-4), rtol=1e-4, atol=1e-6)
    labels = few.train.labels
    constant = np.tile(later.loss.best_constant(later.prevalence)[0].logit().numpy(), (len(labels), 1)).astype(
        np.float32
    )
    outputs = dict.fromkeys(("train", "val"), (labels, constant))
    report = later._report(2, {split: score_tasks(*output) for split, output in outputs.items()}, outputs)
    ratio = (report.train["loss"] / report.constant_loss)[few.train.prevalence > 0]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-3, atol=0)  # a constant predictor: L/H stays 1
    torch.testing.assert_close(report.constant_loss, later.unit)


def test_half_precision_scales_gradients_behind_the_methods_back(few, monkeypatch):
    """fp16's loss scale must show neither in the losses that a method sees nor in the step."""
    monkeypatch.setitem(METHODS, "recorder", Recorder)
    # a first scale that does not overflow, so that no step is skipped; plain descent, since Adam's steps know
    # no scale
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=256.0))
    Recorder.made.clear()
    given = config(epochs=1, method="recorder", augment=False, batch_size=16, optimizer="sgd", lr=1e-3)
    runs = [train(dataclasses.replace(given, amp=amp), few) for amp in ("fp16", "off")]
    half, full = (torch.stack([loss for *_, loss in method.calls]) for method in Recorder.made)
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.01)
    start = Loop(given, few).net.head.weight
    moved = [(run.model.head.weight - start).norm().item() for run in runs]
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad", "excess_mtl(warmup=0)", "dwa+fairgrad"])
@pytest.mark.parametrize("level", ["parameters", "features"])
def test_half_precision_scales_no_step_of_a_method_that_answers_the_length_of_gradients(few, name, level):
    """Twice the gradient is not twice NashMTL's or FairGrad's answer, and ExcessMTL remembers it from step to step."""
    options = {"inner_options": {"level": level}} if "+" in name else {"level": level}
    given = config(method=name, method_options=options, augment=False, batch_size=16, optimizer="sgd", lr=1e-3)
    y, steps = torch.from_numpy(few.train.labels[:16]), []
    for scale in (1.0, 64.0):
        with torch.random.fork_rng():
            loop = Loop(given, few)
            x = torch.rand(16, 1, 32, 32)
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        before = [parameter.detach().clone() for parameter in loop.net.trunk.parameters()]
        for _ in range(2):
            features = loop.net.features(x)
            loop.optimizer_step(masked_bce(loop.net.head(features), y), features, torch.ones(y.shape[1]) > 0)
        moved = zip(loop.net.trunk.parameters(), before, strict=True)
        steps.append(torch.cat([(after - before).detach().flatten() for after, before in moved]))
    assert steps[0].norm() > 0
    assert (steps[1] - steps[0]).norm() < 1e-3 * steps[0].norm()


def test_half_precision_looks_for_its_scale_in_silence(few):
    """The usual first scale overflows here: that step is skipped, and torch's remark on the order of the
    steps would mislead."""
    with torch.random.fork_rng():
        loop = Loop(config(amp="fp16", batch_size=16, augment=False), few)
        loop.train_epoch(1)
    assert loop.scaler.get_scale() < 2.0**16
    assert loop.schedule.last_epoch == loop.steps


def test_augmentation_can_be_switched_off(tiny, monkeypatch):
    seen = []
    original = augment.apply_augmentation
    monkeypatch.setattr(augment, "apply_augmentation", lambda x, *given: seen.append(len(x)) or original(x, *given))
    train(config(epochs=1, augment=False), tiny)
    assert seen == []
    run = train(config(epochs=1), tiny)
    assert sum(seen) == 4 * run.config.batch_size  # training batches alone: neither validation nor test


@pytest.mark.parametrize("level", ["parameters", "features"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layout_of_memory_changes_nothing_but_the_rounding(few, level, optimizer):
    """Fused optimisers take a gradient as it lies in memory, whatever its strides."""
    given = {"method": "pcgrad", "method_options": {"level": level}, "optimizer": optimizer, "epochs": 1}
    runs = [train(config(batch_size=32, lr=1e-3, channels_last=last, **given), few) for last in (False, True)]
    start = Loop(config(**given), few).net
    moved, apart = (
        sum((a - b).double().square().sum().item() for a, b in zip(one, other, strict=True)) ** 0.5
        for one, other in (
            (runs[0].model.parameters(), start.parameters()),
            (runs[0].model.parameters(), runs[1].model.parameters()),
        )
    )
    assert apart < 0.1 * moved


@pytest.mark.parametrize("block", [1, 3 * 8 * 32**2, 2**30])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_input_does_not_depend_on_how_many_batches_are_prepared_at_a_time(monkeypatch, block, memory_format):
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32), dtype=np.uint8)
    order = setup.training_order(70, 8, torch.Generator().manual_seed(0)).numpy()
    augmentation = sample_augmentation(order.size, torch.Generator().manual_seed(1)).view(*order.shape, 8)
    monkeypatch.setattr(setup, "BLOCK", block)
    for given in (None, augmentation):
        found = list(setup.inputs(images, order, torch.device("cpu"), memory_format, given))
        assert len(found) == len(order) == 8
        for step, x in enumerate(found):
            expected = to_input(torch.from_numpy(images[order[step]]))
            if given is not None:
                expected = apply_augmentation(expected, augmentation[step])
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
            assert x.stride() == expected.contiguous().to(memory_format=memory_format).stride()


def test_batch_larger_than_the_data_is_all_of_it(tiny):
    run = train(config(epochs=1, batch_size=10_000), tiny)
    assert np.isfinite(get(run.history, "loss", "macro", "train")).all()


def test_every_image_is_seen_at_most_once_an_epoch_in_a_new_order_each_time():
    generator = torch.Generator().manual_seed(0)
    orders = [setup.training_order(103, 10, generator) for _ in range(2)]
    for order in orders:
        assert order.shape == (10, 10)
        assert len(order.unique()) == 100
        assert order.max() < 103
    assert not torch.equal(*orders)


def test_stratified_batches_have_each_finding_as_far_as_there_are_positives():
    """Of 620 images in 62 batches of 10: 70 with the first finding, 31 with the second, most of them of those 70, 3 with the
    third; the fourth is known of none."""
    rng = np.random.default_rng(0)
    labels = np.zeros((625, 4), np.float32)
    labels[:70, 0], labels[50:81, 1], labels[[0, 1, 300], 2], labels[:, 3] = 1, 1, 1, np.nan
    labels[rng.permutation(625)[:100], 0] = np.nan
    generator = torch.Generator().manual_seed(0)
    orders = [setup.training_order(625, 10, generator, labels).numpy() for _ in range(3)]
    for order in orders:
        assert order.shape == (62, 10)
        assert len(np.unique(order)) == 620
        counts = (labels[order] == 1).sum(1)  # (batches, findings)
        for k, positives in enumerate(counts.sum(0)):
            assert (counts[:, k] > 0).sum() == min(positives, 62)
            assert counts[:, k].max() <= max(2, -(-positives // 62))  # the second comes with another finding
    plain = setup.training_order(625, 10, generator).numpy()
    assert ((labels[plain] == 1).sum(1)[:, 0] == 0).sum() > 10  # what the plain order leaves without
    firsts = [tuple(order[0]) for order in orders]
    assert len(set(firsts)) == 3
    # the rare ones are not always in the same batches
    assert len({tuple(np.flatnonzero((labels[order] == 1)[..., 2].any(1))) for order in orders}) == 3


def test_stratified_run_trains_on_stratified_batches(tiny, monkeypatch):
    seen = []
    order_of = setup.training_order
    monkeypatch.setattr(setup, "training_order", lambda *a: seen.append(order_of(*a)) or seen[-1])
    for stratified in (False, True):
        train(config(epochs=1, stratified=stratified, batch_size=16), tiny)
    counts = [(tiny.train.labels[order.numpy()] == 1).any(1).sum(0) for order in seen]
    assert (counts[1] >= counts[0]).all()
    assert counts[1].sum() > counts[0].sum()


def test_findings_with_few_positives_do_not_choose_the_epoch(tiny):
    """With so many asked for that one finding is left, its AUROC alone chooses."""
    positives = np.sort((tiny.val.labels == 1).sum(0))
    k = (tiny.val.labels == 1).sum(0).argmax()
    assert positives[-1] > positives[-2]
    run = train(config(epochs=5, lr=0.01, min_positives=int(positives[-1])), tiny)
    assert run.best_epoch == 1 + get(run.history, "auroc", FINDINGS[k], "val").argmax()
    whole = train(config(epochs=5, lr=0.01), tiny)
    assert get(whole.history, "auroc", "macro", "val").tolist() == get(run.history, "auroc", "macro", "val").tolist()
    with pytest.warns(DataWarning, match=rf"min_positives=10000: .*, {positives[-1]} at most: the loss chooses"):
        none = train(config(epochs=3, lr=0.01, min_positives=10_000), tiny)
    assert none.best_epoch == 1 + get(none.history, "loss", "macro", "val").argmin()


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"min_positives": 0}, "min_positives.*0"),
        ({"optimizer": "lion"}, "optimizer.*adamw, adam, rmsprop, sgd.*'lion'"),
        ({"schedule": "linear"}, "schedule.*cosine, constant.*'linear'"),
        ({"amp": "fp8"}, "amp.*off, bf16, fp16.*'fp8'"),
        ({"epochs": 0}, "epochs.*0"),
        ({"batch_size": -1}, "batch_size.*-1"),
        ({"image_size": 0}, "image_size.*0"),
        ({"lr": 0.0}, "lr.*0.0"),
        ({"lr": float("nan")}, "lr.*nan"),
        ({"weight_decay": -0.1}, "weight_decay.*-0.1"),
        ({"seed": -1}, "seed.*-1"),
        ({"data_seed": -1}, "data_seed.*-1"),
    ],
)
def test_configuration_errors_name_the_field(bad, named):
    with pytest.raises(ValueError, match=named):
        TrainConfig(**bad)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"method": "magic"}, "method should be one of .*'magic'"),
        ({"backbone": "resnet"}, "backbone should be one of"),
        ({"device": "quantum"}, "device.*'quantum'"),
        ({"device": "mps"}, "device.*'mps'"),
        ({"device": "cuda:99"}, "cuda:99.*not there"),
    ],
)
def test_names_that_the_run_does_not_know(tiny, bad, named):
    with pytest.raises(ValueError, match=named):
        train(config(**bad), tiny)


# what it is all for


@pytest.mark.slow
def test_default_run_learns_the_phantom():
    """Five epochs of the default run's twelve, and fewer images to choose and test with: the shortest run
    that is safely above the mark."""
    data = load_dataset("phantom", num_train=6000, num_val=1000, num_test=3000)
    run = train(TrainConfig(epochs=5, device="cpu"), data)
    auroc = np.array([get(run.test, "auroc", f)[0] for f in FINDINGS])
    common = np.nansum(data.test.labels, axis=0) >= 20  # the AUROC of a handful of positives may be anything
    assert common.sum() >= 12
    assert auroc[common].mean() >= 0.80
    assert np.ptp(auroc[common]) >= 0.15  # some findings are much harder than others: what weighting is about
