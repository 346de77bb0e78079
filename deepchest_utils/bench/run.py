"""`python -m deepchest_utils bench`: what weighting costs, part by part, as one table."""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from deepchest_utils.bench import inputs, loops
from deepchest_utils.bench.memory import peak_memory
from deepchest_utils.bench.recipes import RECIPES
from deepchest_utils.bench.steps import BARE, Problem, passes_through_trunk
from deepchest_utils.bench.timing import ratios, take_turns
from deepchest_utils.datasets import load_dataset
from deepchest_utils.records import environment_report, write_atomic
from deepchest_utils.training import TrainConfig
from deepchest_utils.training.setup import resolve_device

QUICK = ("equal", "deepchest", "gradnorm", 'pcgrad(level="features")', "pcgrad")
CHEAP = (
    "equal", "deepchest", "uncertainty", "rlw", "famo", "gradnorm",
    *(f'{name}(level="features")' for name in ("pcgrad", "imtl_g", "mgda", "upgrad")),
)  # fmt: skip
COSTLY = ("pcgrad", "imtl_g", "mgda", "upgrad")
BACKBONES = ("resnet18_thin", "resnet18", "densenet121")
TASKS = (2, 4, 8, 14, 28, 56)


def bench_steps(
    problem: Problem, methods: Sequence[str], rounds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """A row a method, and one of the bare loop: `ratios` of a training step, and backward passes through the trunk."""
    names = [BARE, *methods]
    table = ratios(take_turns({name: problem.step(name) for name in names}, rounds, rng), BARE)
    table["passes"] = [passes_through_trunk(problem, name) for name in names]
    return table.reset_index().assign(part="step", **_described(problem))


def bench_flat(
    problems: Sequence[Problem], method: str, rounds: int, rng: np.random.Generator
) -> pd.DataFrame:
    """The step of one method on problems that differ in their number of tasks; the ratio is to the first."""
    steps = {str(problem.num_tasks): problem.step(method) for problem in problems}
    table = ratios(take_turns(steps, rounds, rng), next(iter(steps))).reset_index(names="num_tasks")
    described = [_described(problem) for problem in problems]
    return pd.DataFrame(described).assign(part="flat", method=method, **table.drop(columns="num_tasks"))


def bench_memory(problem: Problem, methods: Sequence[str], repeats: int = 3) -> pd.DataFrame:
    """A row a method: the median peak in MiB over processes of its own, and its ratio to the bare loop's."""
    peaks = {
        name: np.median([peak_memory(problem, name) for _ in range(repeats)]) for name in [BARE, *methods]
    }
    rows = [{"method": name, "mib": mib, "ratio": mib / peaks[BARE]} for name, mib in peaks.items()]
    return pd.DataFrame(rows).assign(part="memory", rounds=repeats, **_described(problem))


def bench_loop(config: TrainConfig, num_train: int, rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """One epoch of the training loop, evaluation aside, against the bare step on batches ready in memory."""
    data = load_dataset("phantom", None, config.image_size, num_train=num_train, num_val=64, num_test=64)
    steps = {BARE: loops.bare_loop(config, data), "whole loop": loops.whole_loop(config, data)}
    table = ratios(take_turns(steps, rounds, rng, warmup=1), BARE).reset_index()
    images = num_train // config.batch_size * config.batch_size
    return table.assign(part="loop", backbone=config.backbone, images_per_second=images / table.seconds)


def bench_inputs(rounds: int, rng: np.random.Generator, large: int = 64) -> pd.DataFrame:
    """Rates of what surrounds the network; the memory map against an array in memory, files against one thread.

    large: how many PNGs of 1024 px to decode.
    """
    images = rng.integers(0, 256, (4096, 64, 64), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", images)
        mapped = np.load(f"{folder}/images.npy", mmap_mode="r")
        paths = inputs.write_pngs(Path(folder), large, 1024, rng)
        groups = [
            (len(images), {"augmented": inputs.augmented_epoch(images)}),
            (
                len(images),
                {"in memory": inputs.fetched_epoch(images), "memory map": inputs.fetched_epoch(mapped)},
            ),
            (large, inputs.decoding_steps(paths, 64)),
            (22_000, {"metrics of a test split": inputs.metrics_of_test_split(rng)}),
        ]
        tables = []
        for count, steps in groups:
            table = ratios(take_turns(steps, rounds, rng, warmup=1), next(iter(steps)))
            tables.append(
                table.reset_index().assign(part="input", images_per_second=count / table.seconds.to_numpy())
            )
    return pd.concat(tables, ignore_index=True)


SETTINGS = {
    "fp32": {"channels_last": False},
    "fp32, channels last": {},
    "bf16": {"channels_last": False, "amp": "bf16"},
    "bf16, channels last": {"amp": "bf16"},
    "fp32, channels last, compiled": {"compiled": True},
}


def bench_settings(problem: Problem, rounds: int, rng: np.random.Generator) -> pd.DataFrame:
    """The bare step in other number formats and memory layouts, and compiled."""
    steps = {name: dataclasses.replace(problem, **options).step() for name, options in SETTINGS.items()}
    table = ratios(take_turns(steps, rounds, rng), next(iter(SETTINGS)))
    return table.reset_index().assign(part="setting", **_described(problem))


def bench_recipes(config: TrainConfig, target: float, num_train: int) -> pd.DataFrame:
    """Each of RECIPES until its macro AUROC on validation reaches `target`, or for config.epochs: seconds an epoch, and
    until then (NaN if it does not get there)."""
    data = load_dataset("phantom", None, config.image_size, num_train=num_train, num_test=64)
    rows = []
    for name, recipe in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            torch.manual_seed(config.seed)
            start, scores, seconds = time.perf_counter(), [], []
            for score in recipe(config, data, Path(folder)):
                scores.append(score)
                seconds.append(time.perf_counter() - start)
                if score >= target:
                    break
        reached = seconds[-1] if scores[-1] >= target else np.nan
        rows.append({"method": name, "seconds": seconds[-1] / len(seconds), "rounds": len(seconds), "best_auroc": max(scores),
                     "target_auroc": target, "seconds_to_target": reached})  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(part="recipe", backbone=config.backbone, ratio=table.seconds / table.seconds.iloc[0])


def _described(problem: Problem) -> dict[str, object]:
    return {"backbone": problem.backbone, "num_tasks": problem.num_tasks, "image_size": problem.image_size,
            "batch_size": problem.batch_size, "device": resolve_device(problem.device).type}  # fmt: skip


def with_machine(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what it was measured on."""
    report = environment_report()
    names = ("torch", "commit", "processor", "cores", "gpu")
    return table.assign(threads=torch.get_num_threads(), **{name: report[name] for name in names})


def quick_bench(seed: int = 0) -> pd.DataFrame:
    """The default network in under a minute."""
    rng, problem = np.random.default_rng(seed), Problem()
    parts = [
        bench_steps(problem, QUICK, 15, rng),
        bench_memory(problem, ("deepchest", "pcgrad"), 1),
        bench_loop(TrainConfig(), 1024, 3, rng),
        bench_inputs(3, rng, 16),
    ]
    return with_machine(pd.concat(parts, ignore_index=True))


def full_bench(out: str | Path, seed: int = 0) -> pd.DataFrame:
    """Everything that notebook 06 reads, in the table `out`; parts that it has are not measured again."""
    rng = np.random.default_rng(seed)
    parts: dict[str, Callable[[], pd.DataFrame]] = {}
    for backbone, tasks in itertools.product(BACKBONES, TASKS):
        problem = Problem(backbone, tasks)
        parts[f"step {backbone} {tasks}"] = partial(bench_steps, problem, CHEAP, 40, rng)
        parts[f"step {backbone} {tasks}, parameters"] = partial(bench_steps, problem, COSTLY, 5, rng)
    for backbone, tasks in [("resnet18_thin", 14), *itertools.product(["resnet18"], TASKS)]:
        parts[f"memory {backbone} {tasks}"] = partial(
            bench_memory, Problem(backbone, tasks), (*CHEAP, *COSTLY)
        )
    for backbone in ("resnet18_thin", "resnet18"):
        close = (
            bench_steps,
            Problem(backbone),
            ("equal", "deepchest"),
            400 if backbone == "resnet18_thin" else 200,
        )
        parts[f"close {backbone}"] = partial(*close, rng)
        parts[f"loop {backbone}"] = partial(bench_loop, TrainConfig(backbone=backbone), 2048, 15, rng)
        parts[f"setting {backbone}"] = partial(bench_settings, Problem(backbone), 40, rng)
    ends = [dataclasses.replace(Problem(), num_tasks=k) for k in (2, 56)]
    parts["flat"] = lambda: bench_flat(ends, "deepchest", 400, rng)
    parts["input"] = partial(bench_inputs, 15, rng)
    parts["recipe"] = partial(bench_recipes, TrainConfig(method="deepchest"), 0.8, 4000)
    out = Path(out)
    table = pd.read_csv(out) if out.exists() else pd.DataFrame({"measured": []})
    for name, measure in tqdm(parts.items(), desc="bench", disable=None):
        if name not in set(table.measured):
            found = with_machine(measure().assign(measured=name))
            table = pd.concat([table, found], ignore_index=True) if len(table) else found
            write_atomic(out, table.to_csv(index=False, float_format="%.5g"))
    return table
