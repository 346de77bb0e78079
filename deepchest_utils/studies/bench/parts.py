"""The parts of the benchmark. Each is a table with a row a measurement."""

import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import torch

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import DataWarning, Splits, load_dataset
from deepchest_utils.studies.bench.inputs import decoding_steps, input_epoch, metrics_of_test_split, write_pngs
from deepchest_utils.studies.bench.steps import (
    PLAIN_STEP,
    BenchmarkSetup,
    Step,
    loop_epoch,
    passes_through_trunk,
    peak_memory,
    plain_epoch,
)
from deepchest_utils.studies.bench.timing import Name, ratios, time_interleaved
from deepchest_utils.threads import INTERVAL, adapt_threads
from deepchest_utils.training.setup import epoch_shape, resolve_device


def phantom_splits(config: TrainConfig, **sizes: int) -> Splits:
    """The phantoms that parts train on. Nothing is tested on them, so the test split is small."""
    with warnings.catch_warnings():  # of splits too small to be scored
        warnings.simplefilter("ignore", DataWarning)
        options = cast("dict[str, Any]", sizes)  # a checker takes any name for any option
        return load_dataset("phantom", None, config.image_size, num_test=64, **options)


def _measure(
    steps: Mapping[Name, Callable[[], object]],
    rounds: int,
    rng: np.random.Generator,
    warmup: int = 1,
    budget: float = inf,
    prepare: Callable[[Name], object] | None = None,
) -> pd.DataFrame:
    """`ratios` to the first of the steps, which take turns."""
    return ratios(time_interleaved(steps, rounds, rng, warmup, budget, prepare), next(iter(steps))).reset_index()


def _describe(setup: BenchmarkSetup | TrainConfig) -> dict[str, object]:
    fields = ("backbone", "num_tasks", "image_size", "batch_size")
    described = {name: getattr(setup, name) for name in fields if hasattr(setup, name)}
    return {**described, "device": resolve_device(setup.device).type}


def bench_steps(
    setup: BenchmarkSetup, methods: Sequence[str], rounds: int, rng: np.random.Generator, budget: float = inf
) -> pd.DataFrame:
    """A training step of each method against the plain step, and its backward passes through the trunk."""
    steps = {name: Step(setup, name) for name in (PLAIN_STEP, *methods)}
    table = _measure(steps, rounds, rng, budget=budget)
    small = dataclasses.replace(setup, image_size=32, batch_size=2)
    table["passes"] = [passes_through_trunk(small, name) for name in steps]
    return table.assign(part="step", **_describe(setup))


def bench_flat(
    setup: BenchmarkSetup, tasks: Sequence[int], method: str, rounds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The step of one method for several numbers of tasks, against the first number."""
    steps = {k: Step(dataclasses.replace(setup, num_tasks=k), method) for k in tasks}
    table = _measure(steps, rounds, rng, warmup=2).rename(columns={"method": "num_tasks"})
    return table.assign(part="flat", method=method, **{**_describe(setup), "num_tasks": table.num_tasks})


def bench_memory(setup: BenchmarkSetup, methods: Sequence[str], repeats: int = 1) -> pd.DataFrame:
    """The peak memory of each method in MiB, a median over processes, and its ratio to the plain step's."""
    peaks = {name: np.median([peak_memory(setup, name) for _ in range(repeats)]) for name in (PLAIN_STEP, *methods)}
    rows = [{"method": name, "mib": mib, "ratio": mib / peaks[PLAIN_STEP]} for name, mib in peaks.items()]
    return pd.DataFrame(rows).assign(part="memory", rounds=repeats, **_describe(setup))


def bench_loop(config: TrainConfig, data: Splits, rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """An epoch of `train`'s loop, with and without augmentation, against as many plain steps."""
    steps = {
        PLAIN_STEP: plain_epoch(config, data),
        "whole loop": loop_epoch(config, data),
        "whole loop, not augmented": loop_epoch(dataclasses.replace(config, augment=False), data),
    }
    return _per_epoch(_measure(steps, rounds, rng), config, data).assign(part="loop")


def _per_epoch(table: pd.DataFrame, config: TrainConfig, data: Splits) -> pd.DataFrame:
    images = np.prod(epoch_shape(len(data.train), config.batch_size))
    return table.assign(images_per_second=images / table.seconds, **_describe(config))


CONDITIONS = {  # what threads do, and whether another process is busy
    "fixed threads, idle": (False, False),
    "adapted threads, idle": (True, False),
    "fixed threads, beside": (False, True),
    "adapted threads, beside": (True, True),
}
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this process


def bench_beside(
    config: TrainConfig, data: Splits, rounds: int, rng: np.random.Generator, settle: float = INTERVAL
) -> pd.DataFrame:
    """An epoch of `train`'s loop on an idle machine and beside one busy process, with as many threads as torch starts with
    and with `adapt_threads`.

    Args:
        settle: seconds between three looks that `adapt_threads` takes before each epoch, untimed.
    """
    threads, epoch = torch.get_num_threads(), loop_epoch(config, data)
    busy_process = psutil.Popen([sys.executable, "-c", _BUSY])

    def prepare(condition: str) -> None:
        adapted, beside = CONDITIONS[condition]
        (busy_process.resume if beside else busy_process.suspend)()
        torch.set_num_threads(threads)
        if adapted:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:  # with a number of the user's own, nothing is adapted
            os.environ["OMP_NUM_THREADS"] = str(threads)
        for _ in range(3):
            time.sleep(settle)
            adapt_threads()

    try:
        with patch.dict(os.environ):
            table = _measure(dict.fromkeys(CONDITIONS, epoch), rounds, rng, prepare=prepare)
    finally:
        busy_process.kill()
        busy_process.wait()
        torch.set_num_threads(threads)
    return _per_epoch(table, config, data).assign(part="beside")


def bench_inputs(rounds: int, rng: np.random.Generator, num_pngs: int) -> pd.DataFrame:
    """Rates of what surrounds the network: augmentation; a memory map against an array in memory; decoding PNGs of
    1024 px on all cores against one thread; the metrics of a test split."""
    images, num_test = rng.integers(0, 256, (4096, 64, 64), dtype=np.uint8), 22_000
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        memory_map = np.load(f"{folder}/images.npy", mmap_mode="r")
        paths = write_pngs(Path(folder), num_pngs, 1024, rng)
        groups: list[tuple[int, int, Mapping[str, Callable[[], object]]]] = [
            (len(images), rounds, {"augmented": input_epoch(images, augmented=True)}),
            (len(images), rounds, {"in memory": input_epoch(images), "memory map": input_epoch(memory_map)}),
            (num_pngs, max(3, rounds // 5), decoding_steps(paths, 64)),
            (num_test, rounds, {"metrics of a test split": metrics_of_test_split(rng, num_test)}),
        ]
        tables = []
        for count, group_rounds, steps in groups:
            table = _measure(steps, group_rounds, rng)
            tables.append(table.assign(part="input", images_per_second=count / table.seconds))
    return pd.concat(tables, ignore_index=True)


STARTS = {
    "import torch": ("-c", "import torch"),
    "from deepchest_utils import DeepChest": ("-c", "from deepchest_utils import DeepChest"),
    "python -m deepchest_utils --help": ("-m", "deepchest_utils", "--help"),
}


def bench_starts(rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """A new Python until it has imported the method, or printed the help, against importing torch alone."""

    def start(arguments: tuple[str, ...]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    steps = {name: partial(start, arguments) for name, arguments in STARTS.items()}
    return _measure(steps, rounds, rng).assign(part="start")


SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"channels_last": False},
    "fp32, channels last": {},
    "bf16": {"channels_last": False, "amp": "bf16"},
    "bf16, channels last": {"amp": "bf16"},
    "fp32, compiled": {"channels_last": False, "compiled": True},
    "fp32, channels last, compiled": {"compiled": True},
}


def bench_settings(setup: BenchmarkSetup, rounds: int, rng: np.random.Generator, budget: float = inf) -> pd.DataFrame:
    """The plain step in other number formats and memory layouts, and compiled. Column `first_step` has the seconds of the
    first one, which waits for the compiler."""
    steps = {name: Step(dataclasses.replace(setup, **options)) for name, options in SETTINGS.items()}
    first_steps = []
    # without the cache, where a second benchmark would find what the first has compiled
    with cast(Any, torch.compiler.config).patch(force_disable_caches=True):
        for step in steps.values():
            start = time.perf_counter()
            step()
            first_steps.append(time.perf_counter() - start)
    table = _measure(steps, rounds, rng, warmup=2, budget=budget)
    images_per_second = setup.batch_size / table.seconds
    return table.assign(part="setting", first_step=first_steps, images_per_second=images_per_second, **_describe(setup))


def bench_recipes(config: TrainConfig, data: Splits) -> pd.DataFrame:
    """Three ways to train take turns: a row an epoch with the macro AUROC on validation after it, and the seconds of
    training and validating until then."""
    from deepchest_utils.studies.bench.recipes import RECIPES  # TorchJD's solvers take a second to import

    rows, seconds = [], dict.fromkeys(RECIPES, 0.0)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(config.seed)
        recipes = {name: recipe(config, data, Path(folder)) for name, recipe in RECIPES.items()}
        for epoch, (name, recipe) in itertools.product(range(1, config.epochs + 1), recipes.items()):
            start = time.perf_counter()
            auroc = recipe.epoch()
            seconds[name] += time.perf_counter() - start
            rows.append({"method": name, "epoch": epoch, "seconds": seconds[name], "auroc": auroc})
    return pd.DataFrame(rows).assign(part="recipe", backbone=config.backbone)
