"""The parts of the benchmark, each a table with a row a measurement, and the whole: `python -m deepchest_utils bench`."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf, prod
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import pandas as pd
import psutil
import torch
from numpy.random import Generator

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import DataWarning, Splits, load_dataset
from deepchest_utils.files import csv_path, exclusive_lock, write_file
from deepchest_utils.progress import progress
from deepchest_utils.results.labels import METHOD_LABELS, method_family
from deepchest_utils.results.store import append_rows, environment_report, read_results
from deepchest_utils.studies.bench.inputs import bench_embed, bench_embeddings, bench_inputs
from deepchest_utils.studies.bench.steps import (
    PLAIN_STEP,
    BenchmarkSetup,
    Step,
    loop_epoch,
    passes_through_trunk,
    peak_memory,
    plain_epoch,
)
from deepchest_utils.studies.bench.timing import describe, measure, time_interleaved
from deepchest_utils.studies.better_rule import SEES_SCORES
from deepchest_utils.studies.replication import METHODS as STUDIED
from deepchest_utils.threads import INTERVAL, adapt_threads
from deepchest_utils.training.setup import epoch_shape, resolve_device
from deepchest_utils.weighting import METHODS
from deepchest_utils.weighting.torchjd_adapter import GradientBalancing

BACKBONES = ("resnet18_thin", "resnet18", "densenet121")
TASKS = (2, 4, 8, 14, 28, 56)
NEAREST = ("equal", "deepchest")  # cost nearly nothing, so they are measured in many rounds
QUICK = ("equal", "deepchest", "gradnorm", 'pcgrad(level="features")', "pcgrad")
AT_FEATURES = ('pcgrad(level="features")', 'upgrad(level="features")')
ONE_PASS = ("equal", "deepchest", "uncertainty", "famo", "gradnorm", *AT_FEATURES)
ON_PARAMETERS = ("pcgrad", "upgrad")
ALL_METHODS = tuple(m for m in METHOD_LABELS if method_family(m) in ("loss", "gradient") or m in ("equal", "deepchest"))
ALL_ON_PARAMETERS = tuple(m for m in ALL_METHODS if issubclass(cast(type, METHODS[m]), GradientBalancing))
ALL_ONE_PASS = tuple(f'{m}(level="features")' if m in ALL_ON_PARAMETERS else m for m in ALL_METHODS)
CONDITIONS = ("fixed threads, idle", "adapted threads, idle", "fixed threads, beside", "adapted threads, beside")
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this process
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"channels_last": False},
    "fp32, channels last": {},
    "bf16": {"channels_last": False, "amp": "bf16"},
    "bf16, channels last": {"amp": "bf16"},
    "fp32, compiled": {"channels_last": False, "compiled": True},
    "fp32, channels last, compiled": {"compiled": True},
}


def phantom_splits(config: TrainConfig, **sizes: Any) -> Splits:
    """The phantoms that parts train on. Nothing is tested on them, so the test split is small."""
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # of splits too small to be scored
        return load_dataset("phantom", None, config.image_size, num_test=64, **sizes)


def bench_steps(
    setup: BenchmarkSetup, methods: Sequence[str], rounds: int, rng: Generator, budget: float = inf
) -> pd.DataFrame:
    """A training step of each method against the plain step, and its backward passes through the trunk."""
    steps = {name: Step(setup, name) for name in (PLAIN_STEP, *methods)}
    small = replace(setup, image_size=32, batch_size=2)
    passes = [passes_through_trunk(small, name) for name in steps]
    return measure("step", steps, rounds, rng, setup, budget=budget).assign(passes=passes)


def bench_flat(setup: BenchmarkSetup, tasks: Sequence[int], method: str, rounds: int, rng: Generator) -> pd.DataFrame:
    """The step of one method for several numbers of tasks, against the first number."""
    steps = {k: Step(replace(setup, num_tasks=k), method) for k in tasks}
    table = measure("flat", steps, rounds, rng, setup, warmup=2)
    return table.assign(num_tasks=table.method, method=method)


def bench_memory(setup: BenchmarkSetup, methods: Sequence[str], repeats: int = 1) -> pd.DataFrame:
    """The peak memory of each method in MiB, a median over processes, and its ratio to the plain step's."""
    peaks = {name: np.median([peak_memory(setup, name) for _ in range(repeats)]) for name in (PLAIN_STEP, *methods)}
    table = pd.DataFrame({"method": [*peaks], "mib": [*peaks.values()]})
    return table.assign(ratio=table.mib / table.mib[0], part="memory", rounds=repeats, **describe(setup))


def bench_loop(config: TrainConfig, data: Splits, rounds: int, rng: Generator) -> pd.DataFrame:
    """An epoch of `train`'s loop, with and without augmentation, against as many plain steps."""
    steps = {
        PLAIN_STEP: plain_epoch(config, data),
        "whole loop": loop_epoch(config, data),
        "whole loop, not augmented": loop_epoch(replace(config, augment=False), data),
    }
    return measure("loop", steps, rounds, rng, config, prod(epoch_shape(len(data.train), config.batch_size)))


def bench_beside(
    config: TrainConfig, data: Splits, rounds: int, rng: Generator, settle: float = INTERVAL
) -> pd.DataFrame:
    """An epoch of `train`'s loop on an idle machine and beside one busy process, with as many threads as torch starts with
    and with `adapt_threads`, which looks three times before each epoch, `settle` seconds apart, untimed."""
    threads, epoch = torch.get_num_threads(), loop_epoch(config, data)
    busy_process = psutil.Popen([sys.executable, "-c", _BUSY])

    def prepare(condition: str) -> None:
        beside = condition.endswith("beside")
        (busy_process.resume if beside else busy_process.suspend)()
        while beside == (busy_process.status() == psutil.STATUS_STOPPED):
            time.sleep(0.001)  # a signal arrives when the child is scheduled next
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # with a number of the user's own, nothing is adapted
        if condition.startswith("adapted"):
            del os.environ["OMP_NUM_THREADS"]
        for _ in range(3):
            time.sleep(settle)
            adapt_threads()

    images = prod(epoch_shape(len(data.train), config.batch_size))
    try:
        with patch.dict(os.environ):
            return measure("beside", dict.fromkeys(CONDITIONS, epoch), rounds, rng, config, images, prepare=prepare)
    finally:
        busy_process.kill()
        busy_process.wait()
        torch.set_num_threads(threads)


def bench_starts(rounds: int, rng: Generator) -> pd.DataFrame:
    """A new Python until it has imported the method, or printed the help, against importing torch alone."""
    start = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    code = ("import torch", "from deepchest_utils import DeepChest")
    steps = {statement: partial(start, [sys.executable, "-c", statement]) for statement in code}
    steps["python -m deepchest_utils --help"] = partial(start, [sys.executable, "-m", "deepchest_utils", "--help"])
    return measure("start", steps, rounds, rng)


def bench_settings(setup: BenchmarkSetup, rounds: int, rng: Generator, budget: float = inf) -> pd.DataFrame:
    """The plain step in other number formats and layouts, and compiled; `first_step`, in seconds, waits for the compiler."""
    steps = {name: Step(replace(setup, **options)) for name, options in SETTINGS.items()}
    # without the cache, where a second benchmark would find what the first has compiled
    with cast(Any, torch.compiler.config).patch(force_disable_caches=True):
        first = [time_interleaved({name: step}, 1, rng, warmup=0).iloc[0, 0] for name, step in steps.items()]
    table = measure("setting", steps, rounds, rng, setup, setup.batch_size, warmup=2, budget=budget)
    return table.assign(first_step=first)


def bench_recipes(config: TrainConfig, data: Splits) -> pd.DataFrame:
    """Three ways to train take turns: macro AUROC on validation after each epoch, and seconds until then with validation."""
    from deepchest_utils.studies.bench.recipes import RECIPES  # TorchJD's solvers take a second to import

    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(config.seed)
        recipes = {name: make(config, data, Path(folder)) for name, make in RECIPES.items()}
        for epoch, (name, train_epoch) in itertools.product(range(1, config.epochs + 1), recipes.items()):
            start = time.perf_counter()
            auroc = train_epoch()
            rows.append({"method": name, "epoch": epoch, "seconds": time.perf_counter() - start, "auroc": auroc})
    table = pd.DataFrame(rows).assign(part="recipe", backbone=config.backbone)
    return table.assign(seconds=table.groupby("method").seconds.cumsum())


def with_machine(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what it was measured on."""
    names, report = ("torch", "commit", "processor", "cores", "threads", "gpu"), environment_report()
    return table.assign(**{name: report[name] for name in names})


def quick_bench(device: str = "auto") -> pd.DataFrame:
    """The default network in under a minute."""
    rng, setup, config = np.random.default_rng(0), BenchmarkSetup(device=device), TrainConfig(device=device)
    parts = [
        bench_steps(setup, QUICK, rounds=20, rng=rng, budget=10.0),
        bench_memory(setup, ("deepchest", "pcgrad")),
        bench_loop(config, phantom_splits(config, num_train=512, num_val=64), rounds=6, rng=rng),
        bench_inputs(rounds=3, rng=rng, num_pngs=32),
    ]
    return with_machine(pd.concat(parts, ignore_index=True))


def on_phantom(part: Callable[..., pd.DataFrame], config: TrainConfig, num_train: int, **options: Any) -> pd.DataFrame:
    """A part that trains. Its phantoms are drawn when its turn comes."""
    return part(config, phantom_splits(config, num_train=num_train), **options)


def all_parts(device: str, rng: Generator) -> dict[str, Callable[[], pd.DataFrame]]:
    """Everything that notebook 06 reads, by the name that stands in the table's column `measured`."""
    config, default = TrainConfig(device=device), BenchmarkSetup(device=device)
    steps, loop = partial(bench_steps, rng=rng), partial(on_phantom, bench_loop, rng=rng)
    parts: dict[str, Callable[[], pd.DataFrame]] = {}
    for backbone, rounds, num_train in (("resnet18_thin", 800, 1024), ("resnet18", 250, 512)):
        setup, of_backbone = replace(default, backbone=backbone), replace(config, backbone=backbone)
        parts[f"close {backbone}"] = partial(steps, setup, NEAREST, rounds=rounds)
        parts[f"loop {backbone}"] = partial(loop, of_backbone, num_train=num_train, rounds=rounds // 10)
        parts[f"setting {backbone}"] = partial(bench_settings, setup, rounds=100, rng=rng, budget=45.0)
        parts[f"close memory {backbone}"] = partial(bench_memory, setup, NEAREST, repeats=5)
    cheap = [method for method in STUDIED if method_family(method) in SEES_SCORES]
    parts["close candidates"] = partial(steps, default, ("equal", *cheap), rounds=300)
    parts["flat"] = partial(bench_flat, default, tasks=(2, 56), method="deepchest", rounds=800, rng=rng)
    parts["start"] = partial(bench_starts, rounds=30, rng=rng)
    parts["input"] = partial(bench_inputs, rounds=25, rng=rng, num_pngs=256)
    parts["embed"] = partial(bench_embed, device, rounds=25, rng=rng)
    parts["embeddings"] = partial(bench_embeddings, rng)
    on_cpu = replace(config, device="cpu")
    parts["beside"] = partial(on_phantom, bench_beside, on_cpu, num_train=2000, rounds=25, rng=rng)
    parts["every"] = partial(steps, default, ALL_ONE_PASS, rounds=60, budget=60.0)
    parts["every, parameters"] = partial(steps, default, ALL_ON_PARAMETERS, rounds=15, budget=60.0)
    parts["every memory"] = partial(bench_memory, default, (*ALL_ONE_PASS, *ALL_ON_PARAMETERS))
    for backbone, num_tasks in itertools.product(BACKBONES, TASKS):
        name, setup = f"step {backbone} {num_tasks}", replace(default, backbone=backbone, num_tasks=num_tasks)
        parts[name] = partial(steps, setup, ONE_PASS, rounds=40, budget=15.0)
        parts[f"{name}, parameters"] = partial(steps, setup, ON_PARAMETERS, rounds=15, budget=15.0)
    for num_tasks in TASKS:
        setup = replace(default, backbone="resnet18", num_tasks=num_tasks)
        methods = ("deepchest", *AT_FEATURES, *ON_PARAMETERS)
        parts[f"memory resnet18 {num_tasks}"] = partial(bench_memory, setup, methods)
    parts["recipe"] = partial(on_phantom, bench_recipes, replace(config, method="deepchest"), num_train=4000)
    if resolve_device(device).type == "cuda":
        for backbone in ("resnet18", "densenet121"):
            large = replace(config, backbone=backbone, image_size=224, amp="bf16")
            parts[f"loop {backbone} 224"] = partial(loop, large, num_train=2048, rounds=25)
    return parts


def full_bench(out: str | Path, device: str = "auto", only: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure all parts, or only those named, into the table `out`, which grows with each. One that it has stays."""
    out, parts = csv_path(out), all_parts(device, np.random.default_rng(0))
    if only is not None:
        if unknown := set(only) - set(parts):
            raise ValueError(f"part should be among {', '.join(parts)}. Found {min(unknown)!r}.")
        parts = {name: parts[name] for name in only}
    with exclusive_lock(out.with_suffix(".lock"), "benchmark"):
        table = read_results(out, ["measured"], "benchmark")
        for name, measure_part in progress(parts.items(), "bench", logged=True):
            if name not in set(table.measured):
                table = append_rows(table, with_machine(measure_part().assign(measured=name)))
                write_file(out, table.to_csv(index=False, float_format="%.5g"))
    return table


SHOWN = (
    "backbone", "num_tasks", "method", "seconds", "ratio", "low", "high", "spread", "rounds", "passes", "first_step", "mib",
    "images_per_second", "epoch", "auroc",
)  # fmt: skip


def format_bench(table: pd.DataFrame) -> str:
    """The table for a terminal, part by part."""
    columns = [name for name in SHOWN if name in table]
    parts = {name: part[columns].dropna(axis=1, how="all") for name, part in table.groupby("part", sort=False)}
    return "\n".join(f"\n{name}\n{part.to_string(index=False, float_format='%.4g')}" for name, part in parts.items())
