"""The parts of the benchmark: each a table, a row a measurement."""

import dataclasses
import itertools
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import DataWarning, Splits, load_dataset
from deepchest_utils.studies.bench import loops
from deepchest_utils.studies.bench.inputs import decoding_steps, input_epoch, metrics_of_test_split, write_pngs
from deepchest_utils.studies.bench.memory import peak_memory
from deepchest_utils.studies.bench.steps import PLAIN_STEP, BenchmarkSetup, Step, passes_through_trunk
from deepchest_utils.studies.bench.timing import ratios, time_interleaved
from deepchest_utils.training.setup import epoch_shape, resolve_device


def phantom_splits(config: TrainConfig, **sizes: int) -> Splits:
    """What the parts are measured on; nothing is tested here, so the test split is small."""
    with warnings.catch_warnings():  # of splits too small to be scored
        warnings.simplefilter("ignore", DataWarning)
        options = cast("dict[str, Any]", sizes)  # a checker takes any name for any option
        return load_dataset("phantom", None, config.image_size, num_test=64, **options)


def bench_steps(
    problem: BenchmarkSetup, methods: Sequence[str], rounds: int, rng: np.random.Generator, budget: float = float("inf")
) -> pd.DataFrame:
    """A row a method, and one of the bare loop: `ratios` of a training step, and backward passes through the trunk."""
    steps = {name: Step(problem, name) for name in (PLAIN_STEP, *methods)}
    table = ratios(time_interleaved(steps, rounds, rng, 1, budget), PLAIN_STEP)
    small = dataclasses.replace(problem, image_size=32, batch_size=2)
    table["passes"] = [passes_through_trunk(small, name) for name in steps]
    return table.reset_index().assign(part="step", **_described(problem))


def bench_flat(
    problem: BenchmarkSetup, tasks: Sequence[int], method: str, rounds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The step of one method for several numbers of tasks; the ratio is to the first of them."""
    problems = {k: dataclasses.replace(problem, num_tasks=k) for k in tasks}
    steps = {k: Step(p, method) for k, p in problems.items()}
    table = ratios(time_interleaved(steps, rounds, rng), tasks[0]).reset_index(names="num_tasks")
    return table.assign(part="flat", method=method, **{**_described(problem), "num_tasks": table.num_tasks})


def bench_memory(problem: BenchmarkSetup, methods: Sequence[str], repeats: int = 1) -> pd.DataFrame:
    """A row a method: the median peak in MiB over processes of its own, and its ratio to the bare loop's."""
    peaks = {name: np.median([peak_memory(problem, name) for _ in range(repeats)]) for name in (PLAIN_STEP, *methods)}
    rows = [{"method": name, "mib": mib, "ratio": mib / peaks[PLAIN_STEP]} for name, mib in peaks.items()]
    return pd.DataFrame(rows).assign(part="memory", rounds=repeats, **_described(problem))


def bench_loop(config: TrainConfig, data: Splits, rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """One epoch of the training loop, evaluation aside, with and without augmentation, against the bare step on batches
    ready in memory."""
    plain = dataclasses.replace(config, augment=False)
    steps = {
        PLAIN_STEP: loops.bare_loop(config, data),
        "whole loop": loops.whole_loop(config, data),
        "whole loop, not augmented": loops.whole_loop(plain, data),
    }
    table = ratios(time_interleaved(steps, rounds, rng, warmup=1), PLAIN_STEP).reset_index()
    images = np.prod(epoch_shape(len(data.train), config.batch_size))
    described = {name: getattr(config, name) for name in ("backbone", "image_size", "batch_size")}
    device = resolve_device(config.device).type
    return table.assign(part="loop", device=device, images_per_second=images / table.seconds, **described)


def bench_inputs(rounds: int, rng: np.random.Generator, large: int) -> pd.DataFrame:
    """Rates of what surrounds the network; the memory map against an array in memory, all cores against one thread.

    large: how many PNGs of 1024 px to decode.
    """
    images = rng.integers(0, 256, (4096, 64, 64), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        mapped = np.load(f"{folder}/images.npy", mmap_mode="r")
        paths = write_pngs(Path(folder), large, 1024, rng)
        kept = {"in memory": input_epoch(images), "memory map": input_epoch(mapped)}
        groups: list[tuple[int, int, Mapping[str, Callable[[], object]]]] = [
            (len(images), rounds, {"augmented": input_epoch(images, augmented=True)}),
            (len(images), rounds, kept),
            (large, max(3, rounds // 5), decoding_steps(paths, 64)),
            (22_000, rounds, {"metrics of a test split": metrics_of_test_split(rng, 22_000)}),
        ]
        tables = []
        for count, times, steps in groups:
            table = ratios(time_interleaved(steps, times, rng, warmup=1), next(iter(steps))).reset_index()
            tables.append(table.assign(part="input", images_per_second=count / table.seconds))
    return pd.concat(tables, ignore_index=True)


STARTS = {
    "import torch": ("-c", "import torch"),
    "from deepchest_utils import DeepChest": ("-c", "from deepchest_utils import DeepChest"),
    "python -m deepchest_utils --help": ("-m", "deepchest_utils", "--help"),
}


def bench_starts(rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """A new Python until it has imported the method, or printed the help; the ratio is to torch alone."""

    def start(arguments: tuple[str, ...]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    steps = {name: partial(start, arguments) for name, arguments in STARTS.items()}
    table = ratios(time_interleaved(steps, rounds, rng, warmup=1), next(iter(STARTS))).reset_index()
    return table.assign(part="start")


SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"channels_last": False},
    "fp32, channels last": {},
    "bf16": {"channels_last": False, "amp": "bf16"},
    "bf16, channels last": {"amp": "bf16"},
    "fp32, compiled": {"channels_last": False, "compiled": True},
    "fp32, channels last, compiled": {"compiled": True},
}


def bench_settings(
    problem: BenchmarkSetup, rounds: int, rng: np.random.Generator, budget: float = float("inf")
) -> pd.DataFrame:
    """The bare step in other number formats and memory layouts, and compiled; `first_step`: seconds of the first one,
    which has to wait for the compiler."""
    steps = {name: Step(dataclasses.replace(problem, **options)) for name, options in SETTINGS.items()}
    first = []
    # without the cache, where the second benchmark would find what the first has compiled
    with cast(Any, torch.compiler.config).patch(force_disable_caches=True):
        for step in steps.values():
            start = time.perf_counter()
            step()
            first.append(time.perf_counter() - start)
    table = ratios(time_interleaved(steps, rounds, rng, 2, budget), next(iter(SETTINGS))).reset_index()
    images_per_second = problem.batch_size / table.seconds
    return table.assign(part="setting", first_step=first, images_per_second=images_per_second, **_described(problem))


def bench_recipes(config: TrainConfig, data: Splits) -> pd.DataFrame:
    """Epochs of three ways to train, in turns: a row an epoch with the macro AUROC on validation after it, and the
    seconds of training and validating until then."""
    from deepchest_utils.studies.bench.recipes import RECIPES  # TorchJD's solvers take a second to import

    rows, spent = [], dict.fromkeys(RECIPES, 0.0)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(config.seed)
        made = {name: recipe(config, data, Path(folder)) for name, recipe in RECIPES.items()}
        for epoch, (name, recipe) in itertools.product(range(1, config.epochs + 1), made.items()):
            start = time.perf_counter()
            auroc = recipe.epoch()
            spent[name] += time.perf_counter() - start
            rows.append({"method": name, "epoch": epoch, "seconds": spent[name], "auroc": auroc})
    return pd.DataFrame(rows).assign(part="recipe", backbone=config.backbone)


def _described(problem: BenchmarkSetup) -> dict[str, object]:
    fields = {name: getattr(problem, name) for name in ("backbone", "num_tasks", "image_size", "batch_size")}
    return {**fields, "device": resolve_device(problem.device).type}
