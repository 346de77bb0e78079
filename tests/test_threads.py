"""The number of threads: what the machine has free, and never against the user. Clock, counters and torch are made up."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from deepchest_utils import threads
from deepchest_utils.threads import INTERVAL, adapt_threads


class Machine:
    """A machine of `cores` cores of which others keep `busy` at work; this process uses or leaves idle the rest."""

    def __init__(self, cores: int):
        self.cores, self.busy, self.threads, self.time, self.counter, self.looks = cores, 0.0, cores, 100.0, 7.0, 0

    def set_num_threads(self, number: int) -> None:
        self.threads = number

    def free_core_seconds(self) -> float:
        self.looks += 1
        return self.counter

    def run(self, seconds: float, step: float = 0.05) -> list[int]:
        """The number of threads after each of the steps that fill so many seconds."""
        numbers = []
        for _ in range(round(seconds / step)):
            self.time += step
            self.counter += step * (self.cores - self.busy)
            numbers.append(adapt_threads())
            assert numbers[-1] == self.threads
        return numbers


@pytest.fixture
def machine(request, monkeypatch) -> Machine:
    made = Machine(getattr(request, "param", 4))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    fake = SimpleNamespace(get_num_threads=lambda: made.threads, set_num_threads=made.set_num_threads)
    monkeypatch.setattr(threads, "torch", fake)
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: made.time))
    monkeypatch.setattr(threads, "_free_core_seconds", made.free_core_seconds)
    monkeypatch.setattr(threads, "_DEFAULT", made.cores)
    first = {"time": made.time, "counter": made.counter, "fitting": made.cores, "threads": made.cores}
    monkeypatch.setattr(threads, "_last", SimpleNamespace(**first))
    return made


@pytest.mark.parametrize("machine", [1, 2, 4, 64], indirect=True)
def test_idle_machine_keeps_all_threads(machine):
    assert set(machine.run(60)) == {machine.cores}


@pytest.mark.parametrize(
    ("machine", "busy", "expected"),
    [(2, 1, 1), (2, 0.3, 2), (2, 2, 1), (4, 1, 3), (4, 3, 1), (4, 4, 1), (16, 2.7, 13), (1, 1, 1)],
    indirect=["machine"],
)
def test_as_many_threads_as_cores_are_free(machine, busy, expected):
    machine.busy = busy
    assert set(machine.run(10)[-20:]) == {expected}
    machine.busy = 0.0
    assert set(machine.run(10)[-20:]) == {machine.cores}


def test_follows_within_three_looks_either_way(machine):
    for busy, expected in ((3.0, 1), (1.0, 3), (0.0, 4)):
        machine.busy = busy
        assert machine.run(3 * INTERVAL + 0.1)[-1] == expected


def test_one_look_is_not_enough(machine):
    """A short burst of other work on all cores moves nothing."""
    for _ in range(20):
        machine.busy = 4.0
        assert set(machine.run(0.05)) == {4}
        machine.busy = 0.0
        assert set(machine.run(3 * INTERVAL)) == {4}


def test_two_processes_that_adapt_share_the_machine(machine):
    """Each sees the other's threads as other work."""
    machine.busy = 4.0
    machine.run(2)
    assert machine.threads == 1
    machine.busy = 1.0  # the other one has gone down to one thread too
    machine.run(2)
    assert machine.threads == 3


def test_between_two_looks_nothing_is_read(machine):
    machine.run(10, step=0.001)
    assert machine.looks <= 10 / INTERVAL


def test_a_step_longer_than_the_interval_is_judged_by_its_own_time(machine):
    machine.busy = 2.0
    assert machine.run(40, step=10.0) == [2, 2, 2, 2]


@pytest.mark.parametrize("number", [1, 3, 7])
def test_number_that_the_user_set_is_left_alone(machine, number):
    machine.busy = 2.0
    machine.run(10)
    machine.threads = number
    assert set(machine.run(10)) == {number}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_environment_is_left_alone(machine, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    machine.busy = 3.0
    assert set(machine.run(10)) == {4}
    assert machine.looks == 0


@pytest.mark.parametrize(("name", "value"), [("psutil", None), ("world_size", lambda: 2)])
def test_without_psutil_or_with_other_ranks_nothing_is_done(machine, monkeypatch, name, value):
    monkeypatch.setattr(threads, name, value)
    machine.busy = 3.0
    assert set(machine.run(10)) == {4}


def test_counter_is_of_the_cores_open_to_this_process(monkeypatch):
    cpu = SimpleNamespace
    times = [cpu(idle=10.0, iowait=1.0), cpu(idle=20.0), cpu(idle=40.0, iowait=2.0)]
    process = SimpleNamespace(cpu_affinity=lambda: [0, 2])
    psutil = SimpleNamespace(cpu_times=lambda percpu: times, Process=lambda: process)
    monkeypatch.setattr(threads, "psutil", psutil)
    # user, system, the same of children that have ended, and the time of day
    monkeypatch.setattr(threads, "os", SimpleNamespace(times=lambda: (0.5, 0.25, 3.0, 1.0, 1e6)))
    assert threads._free_core_seconds() == 57.75
    del process.cpu_affinity  # as on macOS
    assert threads._free_core_seconds() == 77.75
    monkeypatch.setattr(threads, "psutil", None)
    assert threads._free_core_seconds() == 0.0


def test_real_machine_is_read_and_torch_is_set():
    """With nothing made up: in a process of its own, whatever the machine does, the number stays in its bounds."""
    code = (
        "import os, time, torch; from deepchest_utils.threads import adapt_threads, INTERVAL, _free_core_seconds\n"
        "default, before = torch.get_num_threads(), _free_core_seconds()\n"
        "for _ in range(3):\n"
        "    time.sleep(INTERVAL); number = adapt_threads()\n"
        "    assert 1 <= number == torch.get_num_threads() <= default\n"
        "assert before - 1 < _free_core_seconds() < before + 60 * os.cpu_count()\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.get_num_threads() >= 1
