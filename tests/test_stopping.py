"""A run that is interrupted, killed, or finds its checkpoint damaged ends as one never stopped, byte for byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from deepchest_utils import TrainConfig, train
from deepchest_utils.__main__ import main
from deepchest_utils.explain.predict import load_trained
from deepchest_utils.files import FileError
from deepchest_utils.results.checkpoint import CHECKPOINT, DAMAGED, PREVIOUS, read_checkpoint, save_checkpoint
from deepchest_utils.results.store import collect
from deepchest_utils.training import loop as loop_module
from deepchest_utils.training.loop import Loop

pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]
ROOT = Path(__file__).parent.parent
SIZES = {"num_train": 96, "num_val": 48, "num_test": 48}
SAME = ("history.csv", "test.csv", "calibration.json")


def config(run_dir: Path | None, **given) -> TrainConfig:
    small = {"image_size": 32, "epochs": 3, "batch_size": 16, "device": "cpu", "data_options": SIZES}
    return TrainConfig(**{**small, **given}, run_dir=str(run_dir) if run_dir else None)


def assert_same_bytes(one: Path, other: Path):
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(config(folder))
    return folder


def signal_in_step(number: int, patch: pytest.MonkeyPatch, sent: signal.Signals = signal.SIGINT) -> None:
    """The process gets a signal, for real, while the run is in its step of that number."""
    step, steps = Loop.optimizer_step, []

    def signalled(self, *given):
        steps.append(1)
        step(self, *given)
        if len(steps) == number:
            os.kill(os.getpid(), sent)

    patch.setattr(Loop, "optimizer_step", signalled)


@pytest.mark.parametrize("step", [1, 8, 12, 18])  # the first, in the middle, the last of an epoch, and of the run
def test_interrupted_run_loses_the_epoch_under_way_alone(whole, tmp_path, step):
    epochs = (step - 1) // 6
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(step, patch)
        with pytest.raises(
            KeyboardInterrupt, match=f"stopped after {epochs} epochs?; the same command goes on from {tmp_path}"
        ):
            train(config(tmp_path))
    assert (tmp_path / CHECKPOINT).exists() == (epochs > 0)
    if epochs:
        assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"] == epochs
    train(config(tmp_path))
    assert_same_bytes(whole, tmp_path)


@pytest.mark.parametrize(
    ("where", "call", "epochs"),
    [("checkpoint.save_checkpoint", 2, 1), ("setup.predict", 2, 1), ("setup.predict", 5, 3), ("store.write_run", 1, 3)],
    ids=["checkpoint", "validation", "test", "tables"],
)
def test_interrupted_between_the_steps(whole, tmp_path, where, call, epochs):
    """After the second epoch, before its checkpoint is written; in its validation; in the test; before the tables."""
    module, name = where.split(".")
    original, calls = getattr(getattr(loop_module, module), name), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(getattr(loop_module, module), name, interrupted)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after {epochs} epochs?;"):
            train(config(tmp_path))
    train(config(tmp_path))
    assert_same_bytes(whole, tmp_path)


def test_without_a_folder_nothing_is_said_of_going_on(monkeypatch):
    signal_in_step(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as error:
        train(config(None, epochs=1))
    assert str(error.value) == ""


def shell(run_dir: Path, *more: object) -> list[str]:
    given = ["--image-size", 32, "--epochs", 3, "--batch-size", 16, "--device", "cpu", "--run-dir", run_dir, *more]
    sizes = [word for name, number in SIZES.items() for word in ("--data-options", name, number)]
    return [sys.executable, "-m", "deepchest_utils", "train", *map(str, [*given, *sizes])]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_command_says_how_to_go_on(whole, tmp_path, capsys, sent):
    arguments, before = shell(tmp_path)[3:], signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(8, patch, sent)
        assert main(arguments) == 128 + sent
    assert f"stopped after 1 epoch; the same command goes on from {tmp_path}" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert main(arguments) == 0
    assert_same_bytes(whole, tmp_path)


def test_second_process_on_a_run_is_refused(tmp_path):
    held = tmp_path / "held"
    code = "import time; from deepchest_utils.files import exclusive_lock\n"
    code += f"with exclusive_lock({str(held / 'lock')!r}, 'run'): print('in', flush=True); time.sleep(60)"
    with start([sys.executable, "-c", code]) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(FileError, match="another run is at work in"):
            train(config(held))
        other.kill()
    train(config(held, epochs=1))


# checkpoints that are not what they were


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after its second epoch: its last checkpoint, and the one before."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(13, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config(folder))
    assert (folder / PREVIOUS).exists()
    return folder


@pytest.fixture
def two_checkpoints(stopped, tmp_path):
    """A copy to spoil."""
    for name in (CHECKPOINT, PREVIOUS):
        shutil.copy(stopped / name, tmp_path)
    return tmp_path


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """The state is changed, and the file is whole."""
    state, _ = read_checkpoint(path)
    change(state)
    path.unlink()
    save_checkpoint(path.parent, state)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped_weight(path: Path) -> None:
    """One bit of one number of the network: the file is read as if nothing were the matter."""
    weights = torch.load(path, weights_only=True)["net"]["head.weight"].numpy().tobytes()
    flip(path, 8 * (path.read_bytes().index(weights) + len(weights) // 2))
    assert torch.load(path, weights_only=True)["epoch"] == 2


def foreign(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def unfolds(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    path.write_bytes(path.read_bytes() + zlib.crc32(path.read_bytes()).to_bytes(4))


def missing_part(path: Path) -> None:
    rewrite(path, lambda state: state.pop("optimizer"))


@pytest.mark.parametrize("damage", [cut, flipped_weight, foreign, unfolds, missing_part])
def test_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(whole, two_checkpoints, damage):
    damage(two_checkpoints / CHECKPOINT)
    damaged = (two_checkpoints / CHECKPOINT).read_bytes()
    with pytest.warns(UserWarning, match=rf"{CHECKPOINT}: .* {two_checkpoints / PREVIOUS}, the one before it, is used"):
        train(config(two_checkpoints))
    assert (two_checkpoints / DAMAGED).read_bytes() == damaged
    assert_same_bytes(whole, two_checkpoints)


def test_killed_between_two_names_the_one_before_is_used(whole, two_checkpoints):
    (two_checkpoints / CHECKPOINT).unlink()
    with pytest.warns(
        UserWarning, match=rf"{CHECKPOINT}: no such checkpoint\. .*{PREVIOUS}, the one before it, is used"
    ):
        train(config(two_checkpoints))
    assert_same_bytes(whole, two_checkpoints)
    assert not (two_checkpoints / DAMAGED).exists()


@pytest.mark.parametrize("damage", [Path.unlink, flipped_weight])
@pytest.mark.parametrize("given", ["", CHECKPOINT])  # the folder, and the file
def test_predict_and_report_use_the_one_before_too(two_checkpoints, damage, given):
    first = torch.load(two_checkpoints / PREVIOUS, weights_only=True)
    damage(two_checkpoints / CHECKPOINT)
    said = rf"{two_checkpoints / CHECKPOINT}: .* {two_checkpoints / PREVIOUS}, the one before it, is used"
    with pytest.warns(UserWarning, match=said):
        net = load_trained(two_checkpoints / given).net
    assert all(torch.equal(net.state_dict()[name], value) for name, value in first["best"]["model"].items())
    with pytest.warns(UserWarning, match=said):
        runs, remarks = collect(two_checkpoints)
    assert (runs, len(remarks)) == ([], 1)
    assert "deepchest seed 0, 1 of 3 epochs; its command goes on from there" in remarks[0]
    with pytest.raises(FileError, match=r"copy\.pt: no such checkpoint"):  # of another name none is the one before
        load_trained(two_checkpoints / "copy.pt")


def test_two_damaged_checkpoints_are_one_error(two_checkpoints):
    for name in (CHECKPOINT, PREVIOUS):
        cut(two_checkpoints / name)
    for read in (lambda folder: train(config(folder)), load_trained):
        with pytest.raises(FileError, match=rf"{CHECKPOINT}: not a readable .*{PREVIOUS}: not a readable checkpoint"):
            read(two_checkpoints)
    assert (two_checkpoints / CHECKPOINT).exists()
    assert (two_checkpoints / PREVIOUS).exists()


def notices(path: Path, bits: Iterable[int]) -> int:
    """How many flips of one bit make a checkpoint unreadable, each in the file as it was."""
    content, count = path.read_bytes(), 0
    for bit in bits:
        flip(path, bit)
        try:
            read_checkpoint(path)
        except FileError:
            count += 1
        path.write_bytes(content)
    return count


def test_flipped_bits_are_noticed_at_both_ends(two_checkpoints):
    path = two_checkpoints / CHECKPOINT
    (two_checkpoints / PREVIOUS).unlink()
    last = 8 * path.stat().st_size
    assert notices(path, [0, 8 * 40, 8 * 70, last - 8 * 30, last - 8 * 5, last - 1]) == 6
    assert read_checkpoint(path)[0]["epoch"] == 2


@pytest.mark.slow
def test_two_hundred_flipped_bits_are_noticed(two_checkpoints, tally):
    path, rng = two_checkpoints / CHECKPOINT, random.Random(0)
    (two_checkpoints / PREVIOUS).unlink()
    count = notices(path, [rng.randrange(8 * path.stat().st_size) for _ in range(200)])
    assert count == 200
    tally("flipped bits noticed", count)


def test_changed_configuration_is_refused_and_the_checkpoint_kept(two_checkpoints):
    before = (two_checkpoints / CHECKPOINT).read_bytes()
    with pytest.raises(FileError, match=r"another configuration.*lr: 0.002 there, 0.01 now"):
        train(config(two_checkpoints, lr=0.01))
    assert (two_checkpoints / CHECKPOINT).read_bytes() == before


def groups_of(state: dict) -> dict:
    return state["optimizer"]["param_groups"][0]


def first_moments(state: dict) -> dict:
    return state["optimizer"]["state"][0]


def nested() -> list:
    """A list of 2^45 numbers in a few bytes."""
    value = [0]
    for _ in range(45):
        value = [value, value]
    return value


HUGE = torch.zeros(1).expand(10**6, 10**6)
HOSTILE = {
    "no best network": lambda s: s["best"].update(model=None),
    "best": lambda s: s.update(best=None),
    "best network is cut": lambda s: s["best"]["model"].popitem(),
    "best network is huge": lambda s: s["best"]["model"].update({"head.bias": HUGE}),
    "best epoch": lambda s: s["best"].update(epoch=3),
    "network is cut": lambda s: s["net"].clear(),
    "network is huge": lambda s: s["net"].update({"head.weight": HUGE}),
    "schedule with a method": lambda s: s["schedule"].update(get_lr=1),
    "schedule is empty": lambda s: s["schedule"].clear(),
    "schedule at another step": lambda s: s["schedule"].update(last_epoch=7),
    "schedule of another length": lambda s: s["schedule"].update(T_max=5),
    "scaler": lambda s: s["scaler"].update(scale=1.0),
    "lr is a text": lambda s: groups_of(s).update(lr="abc"),
    "lr is text everywhere": lambda s: (groups_of(s).update(lr="abc"), s["schedule"].update(_last_lr=["abc"])),
    "lr is NaN": lambda s: (groups_of(s).update(lr=float("nan")), s["schedule"].update(_last_lr=[float("nan")])),
    "betas": lambda s: groups_of(s).update(betas=0.9),
    "expanded moments": lambda s: first_moments(s).update(exp_avg=torch.zeros(1).expand(16, 1, 7, 7)),
    "overlapping moments": lambda s: first_moments(s).update(
        exp_avg=torch.zeros(784).as_strided((16, 1, 7, 7), (7, 1, 7, 1))
    ),
    "moments of another shape": lambda s: first_moments(s).update(exp_avg=torch.zeros(1)),
    "moments of integers": lambda s: first_moments(s).update(exp_avg=torch.zeros(16, 1, 7, 7, dtype=torch.int64)),
    "moments are huge": lambda s: first_moments(s).update(exp_avg=HUGE),
    "moments are cut": lambda s: first_moments(s).popitem(),
    "moments of no parameter": lambda s: s["optimizer"]["state"].update({10**9: {}}),
    "no moments": lambda s: s["optimizer"]["state"].clear(),
    "epoch -5": lambda s: s.update(epoch=-5),
    "epoch 10^6": lambda s: s.update(epoch=10**6),
    "epoch is true": lambda s: s.update(epoch=True),
    "epoch is a number less": lambda s: s.update(epoch=1),
    "history is cut": lambda s: s.update(history=[r for r in s["history"] if r["epoch"] == 2]),
    "history is empty": lambda s: s["history"].clear(),
    "history is a number": lambda s: s.update(history=7),
    "row is cut": lambda s: s["history"][3].pop("value"),
    "row is a list": lambda s: s["history"].append([1, 2]),
    "row with a text for a value": lambda s: s["history"][3].update(value="high"),
    "random state": lambda s: s["rng"].update(order=torch.zeros(3)),
    "no random state": lambda s: s["rng"].clear(),
    "findings": lambda s: s.update(findings=[nested()]),
    "nested findings": lambda s: s["findings"].append(nested()),
    "weights of the method": lambda s: s["method"].update({next(iter(s["method"])): HUGE}),
    "nested lr": lambda s: s["identity"].update(lr=nested()),
    "nested options": lambda s: s["identity"]["data_options"].update(num_train=nested()),
    "long text": lambda s: s["identity"].update(backbone="x" * 10**7),
    "long number": lambda s: s["identity"].update(seed=10**6000),
    "deep options": lambda s: s["identity"].update(method_options=deep()),
}  # fmt: skip


def deep() -> dict:
    value: dict = {}
    for _ in range(150):
        value = {"a": value}
    return value


@pytest.mark.parametrize("name", HOSTILE)
def test_state_that_no_run_writes_is_one_line(two_checkpoints, name):
    """Whatever is wrong is found before the first step, in no time, and the file is left as it is."""
    (two_checkpoints / PREVIOUS).unlink()
    rewrite(two_checkpoints / CHECKPOINT, HOSTILE[name])
    content, begun = (two_checkpoints / CHECKPOINT).read_bytes(), time.monotonic()
    with pytest.raises(FileError, match="checkpoint") as error:
        train(config(two_checkpoints))
    assert time.monotonic() - begun < 10  # most of it PyTorch's, on a machine that is busy
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert str(two_checkpoints) in str(error.value)
    assert (two_checkpoints / CHECKPOINT).read_bytes() == content


# repeated, and killed


@pytest.mark.slow
def test_two_processes_of_the_same_seed_write_the_same_bytes(tmp_path):
    """Whatever the order of hashes, and whoever draws the phantom."""
    for name in ("1", "2"):
        cache = {"DEEPCHEST_CACHE": str(tmp_path / f"cache{name}"), "PYTHONHASHSEED": name}
        with start(shell(tmp_path / name, "--epochs", 2), **cache) as process:
            _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    assert_same_bytes(tmp_path / "1", tmp_path / "2")


def killed_after(seconds: float, command: list[str], **environment: str) -> int | None:
    """SIGKILL after so many seconds: None, or the exit status of a process that was done by then."""
    with start(command, **environment) as process:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return None
    return process.returncode


@pytest.mark.slow
def test_run_survives_being_killed_at_any_moment(whole, tmp_path, tally):
    """SIGKILL at random moments from the first import to the last table, then once to the end."""
    rng, kills = random.Random(0), 0
    cache = {"DEEPCHEST_CACHE": str(tmp_path / "cache")}  # drawn anew, so that some kills hit the drawing
    with start(shell(tmp_path / "timed"), **cache) as process:
        begun = time.monotonic()
        process.communicate(timeout=300)
    seconds = time.monotonic() - begun
    shutil.rmtree(tmp_path / "cache")
    run_dir = tmp_path / "run"
    while kills < 14:
        ended = killed_after(rng.uniform(0.3, 1.05) * seconds, shell(run_dir), **cache)
        if ended is None:
            kills += 1
            continue
        assert ended == 0
        assert_same_bytes(whole, run_dir)  # finished before its time was up: start over
        shutil.rmtree(run_dir)
        shutil.rmtree(tmp_path / "cache")
    with start(shell(run_dir), **cache) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert_same_bytes(whole, run_dir)
    assert not [*run_dir.rglob("*.part"), *(tmp_path / "cache").rglob("*.part")]
    tally("kills survived", kills)


SWEEP = """
import sys
from deepchest_utils.sweep import make_trials, run_sweep
from deepchest_utils.training import TrainConfig
sizes = {"num_train": 96, "num_val": 48, "num_test": 48}
base = TrainConfig(image_size=32, epochs=2, batch_size=16, device="cpu", data_options=sizes)
run_sweep(make_trials(base, {"method": ["equal", "deepchest"], "seed": [0, 1, 2]}), sys.argv[1] + "/out.csv", jobs=2)
"""


@pytest.mark.slow
def test_sweep_survives_being_killed_at_any_moment(tmp_path, tally):
    rng, kills = random.Random(1), 0
    with start([sys.executable, "-c", SWEEP, str(tmp_path / "whole")]) as process:
        begun = time.monotonic()
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    seconds, out = time.monotonic() - begun, tmp_path / "killed"
    while kills < 4:
        if killed_after(rng.uniform(0.2, 0.9) * seconds, [sys.executable, "-c", SWEEP, str(out)]) is None:
            kills += 1
        else:
            shutil.rmtree(out)  # finished before its time was up: start over
    with start([sys.executable, "-c", SWEEP, str(out)]) as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    key = ["cell", "epoch", "split", "task", "metric"]
    tables = [
        pd.read_csv(folder / "out.csv").sort_values(key, ignore_index=True) for folder in (tmp_path / "whole", out)
    ]
    pd.testing.assert_frame_equal(*tables)
    arrays = [np.load(folder / "out_replicates.npz") for folder in (tmp_path / "whole", out)]
    assert set(arrays[0]) == set(arrays[1])
    for name in arrays[0]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    assert not list(out.rglob("*.part"))
    tally("kills survived", kills)
