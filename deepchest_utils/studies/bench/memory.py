"""Peak memory of a training step, in a process of its own."""

import gc
import multiprocessing
import re
from pathlib import Path
from typing import cast

import torch

from deepchest_utils.studies.bench.steps import BenchmarkSetup, Step
from deepchest_utils.training.setup import resolve_device

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(problem: BenchmarkSetup, method: str) -> float:
    """MiB at the peak of two training steps (the first makes the optimiser's moments), over what the process had
    before the network was there: weights, gradients, moments, activations, and what the method holds.

    On the CPU it is the resident memory that the kernel counts (Linux only: raises OSError elsewhere), on a GPU what
    torch allocated.
    """
    context = multiprocessing.get_context("spawn")  # a fork would start with the parent's memory
    with context.Pool(1) as pool:
        return pool.apply(_peak, (problem, method))


def _peak(problem: BenchmarkSetup, method: str) -> float:
    on_gpu = resolve_device(problem.device).type == "cuda"
    torch.set_num_threads(1)  # a thread more is an arena more
    small = BenchmarkSetup(num_tasks=2, image_size=32, batch_size=2, device=problem.device)
    Step(small, method)()  # imports, kernels
    gc.collect()
    before = 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        _CLEAR.write_text("5")  # the kernel forgets the peak so far
        before = _resident("VmRSS")
    step = Step(problem, method)
    for _ in range(2):
        step()
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else _resident("VmHWM") - before


def _resident(name: str) -> float:
    found = cast("re.Match[str]", re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text()))
    return int(found[1]) / 1024
