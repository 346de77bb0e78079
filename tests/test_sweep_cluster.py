"""A sweep on a Dask cluster of two processes, one of which is killed; and without Dask."""

import os
import signal
import socket
import sys
import warnings
from collections import Counter

import numpy as np
import pytest

from deepchest_utils import TrainConfig
from deepchest_utils.__main__ import main
from deepchest_utils.datasets import DataWarning
from deepchest_utils.results.store import RunTable
from deepchest_utils.sweep import make_trials, run_sweep

# images this few have too few positives of the rare findings: that is what the warning says
pytestmark = [
    pytest.mark.usefixtures("one_core"),
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
]

SIZES = {"num_train": 128, "num_val": 64, "num_test": 200}
BASE = TrainConfig(image_size=32, epochs=1, device="cpu", data_options=SIZES)
TRIALS = make_trials(BASE, {"method": ["equal", "deepchest"], "seed": [0, 1, 2]})


@pytest.fixture(scope="module")
def cluster(cache_dir, one_core):
    """The address of its scheduler."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache_dir, one_core):
    """The same trials one after the other in this process."""
    folder = tmp_path_factory.mktemp("alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return run_sweep(TRIALS, folder / "out.csv", jobs=1)


def lines(tables: RunTable) -> list[str]:
    """The long table's lines, in one order."""
    return sorted(tables.out.read_text().splitlines())


def kills_the_first_worker(marks: str, first: str, killer: str):
    """`run_trial` that notes each start in the folder `marks`; trial `killer`, once, ends the process that ran trial
    `first`, when its outcome and another one are in the tables. A function made here goes to other processes as it is:
    they cannot import the tests."""

    def run_trial(trial, threads, folder=None):
        import time
        from pathlib import Path

        from deepchest_utils import sweep

        Path(marks, f"{trial.id}.{time.time_ns()}").write_text(str(os.getpid()))
        if trial.id == killer and not Path(marks, "killed").exists():
            while not Path(marks, f"{first}.written").exists() or len(list(Path(marks).glob("*.written"))) < 2:
                time.sleep(0.01)
            time.sleep(0.5)  # for the cluster to hear that those outcomes have arrived
            Path(marks, "killed").touch()
            (start,) = Path(marks).glob(f"{first}.[0-9]*")
            os.kill(int(start.read_text()), signal.SIGKILL)
        return sweep.run_trial(trial, threads, folder)

    return run_trial


@pytest.mark.slow
def test_killed_worker_costs_only_what_it_was_at(cluster, alone, tmp_path, monkeypatch):
    """That trial goes to another worker; what was handed over before is not run again, though the worker had it."""
    marks = tmp_path / "marks"
    marks.mkdir()
    stand_in = kills_the_first_worker(str(marks), TRIALS[0].id, TRIALS[2].id)
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", stand_in)
    add, before = RunTable.add, []

    def noted(self, record, *others):
        add(self, record, *others)
        (marks / f"{record['cell']}.written").touch()
        if not (marks / "killed").exists():
            before.append(record["cell"])

    monkeypatch.setattr(RunTable, "add", noted)
    given = {"backend": "dask", "scheduler": cluster}
    tables = run_sweep(TRIALS, tmp_path / "out.csv", **given)
    assert (marks / "killed").exists()
    assert tables.finished() == {trial.id for trial in TRIALS}
    assert lines(tables) == lines(alone)
    assert set(tables.cells.threads) == {1}
    for trial in TRIALS:
        np.testing.assert_array_equal(tables.replicates[trial.id], alone.replicates[trial.id])
    starts = Counter(path.name.partition(".")[0] for path in marks.glob("*.[0-9]*"))
    assert TRIALS[0].id in before
    assert {starts[trial] for trial in before} == {1}
    assert sum(starts.values()) <= len(TRIALS) + 1


@pytest.mark.slow
def test_command_line_takes_the_address_of_a_cluster(cluster, alone, tmp_path, monkeypatch, capsys):
    command = ["sweep", "--backend", "dask", "--scheduler", cluster, "--out", str(tmp_path / "out.csv")]
    command += ["--image-size", "32", "--epochs", "1", "--device", "cpu", "--method", "equal", "--seed", "0"]
    command += [word for size in SIZES.items() for word in ("--data-options", *map(str, size))]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("1 run in ")
    found = lines(RunTable(tmp_path / "out.csv"))
    assert found == [line for line in lines(alone) if line.startswith((TRIALS[0].id, "cell"))]


@pytest.mark.slow
def test_trial_that_fails_or_kills_every_worker_is_noted(cluster, alone, tmp_path, monkeypatch):
    from distributed import Client

    def run_trial(trial, threads, run_dir=None):
        if trial.method == "equal":
            raise KeyError("no such file on this worker")
        os.kill(os.getpid(), signal.SIGKILL)

    with Client(cluster) as client:  # a worker takes seconds to come back: one death is enough
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", run_trial)
    given = {"backend": "dask", "scheduler": cluster}
    # one after the other: a trial that waits behind the killer may be counted as killed with it
    for trial in (TRIALS[0], TRIALS[-1]):
        tables = run_sweep([trial], tmp_path / "out.csv", **given)
    errors = tables.cells.set_index("cell").error
    assert tables.finished() == set()
    assert errors[TRIALS[0].id] == "KeyError: 'no such file on this worker'"
    assert errors[TRIALS[-1].id].startswith("KilledWorker: ")


# without


def test_without_dask_there_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)  # import says that there is none
    with pytest.raises(ValueError, match=r"pip install 'deepchest-utils\[cluster\]'"):
        run_sweep(TRIALS, tmp_path / "out.csv", backend="dask", scheduler="tcp://host:1")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{}", "nonsense"])
def test_scheduler_that_does_not_answer_is_one_clear_error(tmp_path, address):
    import dask
    import distributed  # noqa: F401  before the block, which would take its defaults along when it ends

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ValueError, match=f"scheduler '{address}' does not answer") as error,
    ):
        run_sweep(TRIALS, tmp_path / "out.csv", backend="dask", scheduler=address)
    assert "\n" not in str(error.value)
