"""A run that is interrupted, killed, or finds its checkpoint damaged ends as one never stopped, byte for byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from deepchest_utils import TrainConfig, train
from deepchest_utils.__main__ import main
from deepchest_utils.files import FileError
from deepchest_utils.results.store import CHECKPOINT, DAMAGED, PREVIOUS
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
            KeyboardInterrupt, match=f"stopped after {epochs} epochs; the same command goes on from {tmp_path}"
        ):
            train(config(tmp_path))
    assert (tmp_path / CHECKPOINT).exists() == (epochs > 0)
    if epochs:
        assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"] == epochs
    train(config(tmp_path))
    assert_same_bytes(whole, tmp_path)


@pytest.mark.parametrize(
    ("where", "call", "epochs"),
    [("store.save_checkpoint", 2, 1), ("setup.predict", 2, 1), ("setup.predict", 5, 3), ("store.write_run", 1, 3)],
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
        with pytest.raises(KeyboardInterrupt, match=f"stopped after {epochs} epochs"):
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
    assert f"stopped after 1 epochs; the same command goes on from {tmp_path}" in capsys.readouterr().err
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


@pytest.fixture
def two_checkpoints(tmp_path):
    """A run that was stopped after its second epoch: its last checkpoint, and the one before."""
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(13, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path))
    assert (tmp_path / PREVIOUS).exists()
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def unfolds(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))


def missing_part(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    del state["optimizer"]
    torch.save(state, path)


@pytest.mark.parametrize("damage", [cut, foreign, unfolds, missing_part])
def test_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(whole, two_checkpoints, damage):
    damage(two_checkpoints / CHECKPOINT)
    damaged = (two_checkpoints / CHECKPOINT).read_bytes()
    with pytest.warns(UserWarning, match=rf"{CHECKPOINT}: .* the run goes on from {PREVIOUS}"):
        train(config(two_checkpoints))
    assert (two_checkpoints / DAMAGED).read_bytes() == damaged
    assert_same_bytes(whole, two_checkpoints)


def test_killed_between_two_names_the_one_before_is_used(whole, two_checkpoints):
    (two_checkpoints / CHECKPOINT).unlink()
    train(config(two_checkpoints))
    assert_same_bytes(whole, two_checkpoints)


@pytest.mark.filterwarnings("ignore:.*the run goes on from")
def test_two_damaged_checkpoints_are_one_error(two_checkpoints):
    for name in (CHECKPOINT, PREVIOUS):
        cut(two_checkpoints / name)
    with pytest.raises(FileError, match=rf"{PREVIOUS}: not a readable checkpoint"):
        train(config(two_checkpoints))
    assert (two_checkpoints / PREVIOUS).exists()


def test_changed_configuration_is_refused_and_the_checkpoint_kept(two_checkpoints):
    before = (two_checkpoints / CHECKPOINT).read_bytes()
    with pytest.raises(FileError, match=r"another configuration.*lr: 0.002 there, 0.01 now"):
        train(config(two_checkpoints, lr=0.01))
    assert (two_checkpoints / CHECKPOINT).read_bytes() == before


def test_state_that_does_not_fit_is_refused(two_checkpoints):
    state = torch.load(two_checkpoints / CHECKPOINT, weights_only=True)
    state["net"] = {}
    torch.save(state, two_checkpoints / CHECKPOINT)
    with pytest.raises(FileError, match=r"does not fit the run.*Choose another run_dir"):
        train(config(two_checkpoints))


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
