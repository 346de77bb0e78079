"""As many threads as the machine has free cores.

Torch's threads meet at a barrier after each operation and spin while they wait. Beside another busy process one of them
is off its core at any moment, the others burn theirs, and a step takes several times as long as with one thread.
"""

import os
import time
from types import SimpleNamespace

import torch

from deepchest_utils.distributed import world_size

try:
    import psutil  # comes with the extra `train`
except ImportError:
    psutil = None

INTERVAL = 0.2  # seconds between two looks; the system counts processor time in hundredths of a second
DECISIVE = 1.0  # seconds after which one look is enough


def adapt_threads() -> int:
    """Set torch's number of threads, of the calling thread, to the number of free cores: from 1 to its default.

    It costs microseconds and looks at the machine now and then: call it between two steps, batches or cells. It leaves
    alone a number that the user has set (OMP_NUM_THREADS, MKL_NUM_THREADS, torch.set_num_threads), and that of processes
    of torchrun, whose arithmetic must agree. Without psutil it does nothing. Returns the number of threads now.
    """
    threads, now = torch.get_num_threads(), time.monotonic()
    if _is_fixed(threads) or now < _last.time + INTERVAL:
        return threads
    counter, seconds = _free_core_seconds(), now - _last.time
    fitting = min(max(round((counter - _last.counter) / seconds), 1), _DEFAULT)
    # the median: the number changes if two looks in a row agree that it should, so that it does not waver
    median: int = sorted((threads, fitting, _last.fitting if seconds < DECISIVE else fitting))[1]
    _last.time, _last.counter, _last.fitting, _last.threads = now, counter, fitting, median
    if median != threads:
        torch.set_num_threads(median)
    return median


def _is_fixed(threads: int) -> bool:
    by_user = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys() or threads not in (_DEFAULT, _last.threads)
    return bool(by_user) or psutil is None or world_size() > 1


def _free_core_seconds() -> float:
    """A counter over the cores open to this process: seconds in which they were idle, or ran it or what it has started."""
    if psutil is None:
        return 0.0
    times, process = psutil.cpu_times(percpu=True), psutil.Process()
    cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(times))  # not on macOS
    idle = sum(times[core].idle + getattr(times[core], "iowait", 0.0) for core in cores)
    return float(idle) + sum(os.times()[:4])  # with the children that have ended


_DEFAULT = torch.get_num_threads()
# the last look: when, the counter, the threads that would fit, and those that were set
_last = SimpleNamespace(time=time.monotonic(), counter=_free_core_seconds(), fitting=_DEFAULT, threads=_DEFAULT)
