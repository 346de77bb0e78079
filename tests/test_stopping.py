"""A run that is stopped in the middle of an epoch, killed, or finds its checkpoint damaged ends as one never stopped, byte
for byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
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
from deepchest_utils.results.store import DAMAGED, NAME, PREVIOUS
from deepchest_utils.training.loop import GracefulShutdown, Loop, TrainingInterrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]
ROOT = Path(__file__).parent.parent
SIZES = {"num_train": 96, "num_val": 48, "num_test": 48}
SAME = ("history.csv", "test.csv", "calibration.json")


def config(run_dir: Path, **given) -> TrainConfig:
    small = {"image_size": 32, "epochs": 3, "batch_size": 16, "device": "cpu", "data_options": SIZES}
    return TrainConfig(**{**small, **given}, run_dir=str(run_dir))


def assert_same_bytes(one: Path, other: Path):
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(config(folder))
    return folder


def signal_in_step(number: int, sent: signal.Signals, patch: pytest.MonkeyPatch, times: int = 1) -> None:
    """The process gets a signal, for real, while the run is in its step of that number."""
    step, seen = Loop.step, []

    def signalled(self, losses, features):
        seen.append(1)
        step(self, losses, features)
        if len(seen) == number:
            for _ in range(times):
                os.kill(os.getpid(), sent)

    patch.setattr(Loop, "step", signalled)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 5, 8, 12, 18])  # the first, the last of an epoch, and of the run
def test_stopped_run_finishes_the_step_and_goes_on_byte_for_byte(whole, tmp_path, sent, step):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(step, sent, patch)
        where = rf"after {step // 6} epochs" + (rf" and {step % 6} of 6 steps" if step % 6 else "")
        with pytest.raises(
            TrainingInterrupted, match=f"stopped {where}; the same command goes on from {tmp_path}"
        ) as error:
            train(config(tmp_path))
    assert error.value.signal == sent
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    state = torch.load(tmp_path / NAME, weights_only=True)
    assert (state["epoch"], (state["under_way"] or {"done": 0})["done"]) == divmod(step, 6)
    train(config(tmp_path))
    assert_same_bytes(whole, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "gradvac", "method_options": {"level": "features"}},
        {"method": "deepchest_loss_trend+uncertainty"},
        {"method": "rlw", "augment": False, "batch_size": 40},
        {"method": "famo", "backbone": "mobilenet_v3_small", "optimizer": "sgd", "epochs": 1},
    ],
    ids=["gradvac", "composed", "rlw", "dropout"],
)
def test_what_a_method_has_gathered_of_the_epoch_is_not_lost(tmp_path, given):
    train(config(tmp_path / "whole", **given))
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(1, signal.SIGTERM, patch)
        with pytest.raises(TrainingInterrupted):
            train(config(tmp_path / "stopped", **given))
    train(config(tmp_path / "stopped", **given))
    assert_same_bytes(tmp_path / "whole", tmp_path / "stopped")


def test_second_signal_stops_at_once(tmp_path, monkeypatch):
    signal_in_step(3, signal.SIGINT, monkeypatch, times=2)
    with pytest.raises(KeyboardInterrupt) as error:
        train(config(tmp_path))
    assert not isinstance(error.value, TrainingInterrupted)


def test_without_a_folder_the_first_signal_stops_at_once(monkeypatch):
    signal_in_step(3, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt) as error:
        train(TrainConfig(image_size=32, epochs=1, device="cpu", data_options=SIZES, batch_size=16))
    assert not isinstance(error.value, TrainingInterrupted)


def test_another_thread_trains_and_leaves_signals_alone():
    found = []

    def look():
        with GracefulShutdown() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(0, signal.default_int_handler)]


def shell(run_dir: Path, *more: object) -> list[str]:
    given = ["--image-size", 32, "--epochs", 3, "--batch-size", 16, "--device", "cpu", "--run-dir", run_dir, *more]
    sizes = [word for name, number in SIZES.items() for word in ("--data-options", name, number)]
    return [sys.executable, "-m", "deepchest_utils", "train", *map(str, [*given, *sizes])]


def start(command: list[str], **environment: str) -> subprocess.Popen:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_command_says_how_to_go_on(whole, tmp_path, monkeypatch, capsys):
    signal_in_step(8, signal.SIGTERM, monkeypatch)
    arguments = shell(tmp_path)[3:]
    assert main(arguments) == 128 + signal.SIGTERM
    assert (
        f"stopped after 1 epochs and 2 of 6 steps; the same command goes on from {tmp_path}" in capsys.readouterr().err
    )
    assert main(arguments) == 0
    assert_same_bytes(whole, tmp_path)


def test_second_process_on_a_run_is_refused(tmp_path):
    held, words = tmp_path / "held", "from deepchest_utils.files import alone"
    code = f"import time; {words}; lock = alone({str(held)!r}, 'run'); lock.__enter__(); print('in', flush=True); time.sleep(60)"
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
        signal_in_step(12, signal.SIGTERM, patch)
        with pytest.raises(TrainingInterrupted):
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
    damage(two_checkpoints / NAME)
    damaged = (two_checkpoints / NAME).read_bytes()
    with pytest.warns(UserWarning, match=rf"{NAME}: .* the run goes on from {PREVIOUS}"):
        train(config(two_checkpoints))
    assert (two_checkpoints / DAMAGED).read_bytes() == damaged
    assert_same_bytes(whole, two_checkpoints)


def test_killed_between_two_names_the_one_before_is_used(whole, two_checkpoints):
    (two_checkpoints / NAME).unlink()
    train(config(two_checkpoints))
    assert_same_bytes(whole, two_checkpoints)


@pytest.mark.filterwarnings("ignore:.*the run goes on from")
def test_two_damaged_checkpoints_are_one_error(two_checkpoints):
    for name in (NAME, PREVIOUS):
        cut(two_checkpoints / name)
    with pytest.raises(FileError, match=rf"{PREVIOUS}: not a readable checkpoint"):
        train(config(two_checkpoints))
    assert (two_checkpoints / PREVIOUS).exists()


def test_changed_configuration_is_refused_and_the_checkpoint_kept(two_checkpoints):
    before = (two_checkpoints / NAME).read_bytes()
    with pytest.raises(FileError, match=r"another configuration.*lr: 0.002 there, 0.01 now"):
        train(config(two_checkpoints, lr=0.01))
    assert (two_checkpoints / NAME).read_bytes() == before


def test_state_that_does_not_fit_is_refused(two_checkpoints):
    state = torch.load(two_checkpoints / NAME, weights_only=True)
    state["net"] = {}
    torch.save(state, two_checkpoints / NAME)
    with pytest.raises(FileError, match=r"does not fit the run.*Choose another run_dir"):
        train(config(two_checkpoints))


# repeated, and killed


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
from deepchest_utils.sweep import make_cells, run_sweep
from deepchest_utils.training import TrainConfig
sizes = {"num_train": 96, "num_val": 48, "num_test": 48}
base = TrainConfig(image_size=32, epochs=2, batch_size=16, device="cpu", data_options=sizes)
run_sweep(make_cells(base, {"method": ["equal", "deepchest"], "seed": [0, 1, 2]}), sys.argv[1] + "/out.csv", 2, folder=sys.argv[1] + "/runs")
"""


@pytest.mark.slow
def test_sweep_survives_being_killed_at_any_moment(tmp_path, tally):
    rng, kills = random.Random(1), 0
    with start([sys.executable, "-c", SWEEP, str(tmp_path / "whole")]) as process:
        begun = time.monotonic()
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    seconds, out = time.monotonic() - begun, tmp_path / "killed"
    while kills < 6:
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
