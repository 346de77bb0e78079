"""`python -m deepchest_utils bench`: what weighting costs, as one table."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from tqdm import tqdm

from deepchest_utils.config import TrainConfig
from deepchest_utils.files import read_results, write_file
from deepchest_utils.results.labels import METHOD_LABELS, method_family
from deepchest_utils.results.store import environment_report
from deepchest_utils.studies.bench.parts import (
    bench_flat,
    bench_inputs,
    bench_loop,
    bench_memory,
    bench_recipes,
    bench_settings,
    bench_starts,
    bench_steps,
    phantom_splits,
)
from deepchest_utils.studies.bench.steps import BenchmarkSetup
from deepchest_utils.training.setup import resolve_device
from deepchest_utils.weighting import METHODS
from deepchest_utils.weighting.torchjd_adapter import GradientBalancing

QUICK = ("equal", "deepchest", "gradnorm", 'pcgrad(level="features")', "pcgrad")
AT_FEATURES = tuple(f'{name}(level="features")' for name in ("pcgrad", "upgrad"))
CHEAP = ("equal", "deepchest", "uncertainty", "famo", "gradnorm", *AT_FEATURES)
COSTLY = ("pcgrad", "upgrad")
EVERY = tuple(m for m in METHOD_LABELS if method_family(m) in ("loss", "gradient") or m in ("equal", "deepchest"))
BALANCING = tuple(m for m in EVERY if issubclass(cast(type, METHODS[m]), GradientBalancing))
BACKBONES = ("resnet18_thin", "resnet18", "densenet121")
TASKS = (2, 4, 8, 14, 28, 56)


def with_machine(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what it was measured on."""
    report = environment_report()
    names = ("torch", "commit", "processor", "cores", "threads", "gpu")
    return table.assign(**{name: report[name] for name in names})


def quick_bench(device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """The default network in under a minute."""
    rng, problem, config = np.random.default_rng(seed), BenchmarkSetup(device=device), TrainConfig(device=device)
    parts = [
        bench_steps(problem, QUICK, 20, rng, budget=10.0),
        bench_memory(problem, ("deepchest", "pcgrad")),
        bench_loop(config, phantom_splits(config, num_train=512, num_val=64), 6, rng),
        bench_inputs(3, rng, 32),
    ]
    return with_machine(pd.concat(parts, ignore_index=True))


def on_phantom(part: Callable[..., pd.DataFrame], config: TrainConfig, num_train: int, *rest: Any) -> pd.DataFrame:
    """A part that trains, on so many phantoms, which are drawn when its turn comes."""
    return part(config, phantom_splits(config, num_train=num_train), *rest)


def all_parts(device: str, rng: np.random.Generator) -> dict[str, Callable[[], pd.DataFrame]]:
    """Everything that notebook 06 reads, by name."""
    config = TrainConfig(device=device)
    parts: dict[str, Callable[[], pd.DataFrame]] = {}
    problems = {(b, k): BenchmarkSetup(b, k, device=device) for b, k in itertools.product(BACKBONES, TASKS)}
    for backbone, rounds, images in (("resnet18_thin", 800, 1024), ("resnet18", 250, 512)):
        problem, trained = problems[backbone, 14], dataclasses.replace(config, backbone=backbone)
        parts[f"close {backbone}"] = partial(bench_steps, problem, ("equal", "deepchest"), rounds, rng)
        parts[f"loop {backbone}"] = partial(on_phantom, bench_loop, trained, images, rounds // 10, rng)
        parts[f"setting {backbone}"] = partial(bench_settings, problem, 100, rng, 45.0)
        parts[f"close memory {backbone}"] = partial(bench_memory, problem, ("equal", "deepchest"), 5)
    default = problems["resnet18_thin", 14]
    parts["close candidates"] = partial(bench_steps, default, ("equal", "deepchest", "hedge"), 800, rng)
    parts["flat"] = partial(bench_flat, default, (2, 56), "deepchest", 800, rng)
    parts["start"] = partial(bench_starts, 30, rng)
    parts["input"] = partial(bench_inputs, 25, rng, 256)
    cheap = [m for m in EVERY if m not in BALANCING] + [f'{m}(level="features")' for m in BALANCING]
    parts["every"] = partial(bench_steps, default, cheap, 60, rng, 60.0)
    parts["every, parameters"] = partial(bench_steps, default, BALANCING, 15, rng, 60.0)
    parts["every memory"] = partial(bench_memory, default, [*cheap, *BALANCING])
    for (backbone, tasks), problem in problems.items():
        name = f"{backbone} {tasks}"
        parts[f"step {name}"] = partial(bench_steps, problem, CHEAP, 40, rng, 15.0)
        parts[f"step {name}, parameters"] = partial(bench_steps, problem, COSTLY, 15, rng, 15.0)
    for tasks in TASKS:
        methods = ("deepchest", *AT_FEATURES, *COSTLY)
        parts[f"memory resnet18 {tasks}"] = partial(bench_memory, problems["resnet18", tasks], methods)
    trained = dataclasses.replace(config, method="deepchest")
    parts["recipe"] = partial(on_phantom, bench_recipes, trained, 4000)
    if resolve_device(device).type == "cuda":
        for backbone in ("resnet18", "densenet121"):
            trained = dataclasses.replace(config, backbone=backbone, image_size=224, amp="bf16")
            parts[f"loop {backbone} 224"] = partial(on_phantom, bench_loop, trained, 2048, 25, rng)
    return parts


def full_bench(out: str | Path, device: str = "auto", seed: int = 0, only: Sequence[str] | None = None) -> pd.DataFrame:
    """All parts, or only those named, in the table `out`, which grows with each; a part that it has is not measured again.
    Raises ValueError for a part that there is not."""
    out, parts = Path(out), all_parts(device, np.random.default_rng(seed))
    if only is not None:
        if unknown := set(only) - set(parts):
            raise ValueError(f"part should be among {', '.join(parts)}. Found {min(unknown)!r}.")
        parts = {name: parts[name] for name in only}
    table = read_results(out, ["measured"], "benchmark")
    for name, measure in tqdm(parts.items(), desc="bench", disable=None):
        if name not in set(table.measured):
            found = with_machine(measure().assign(measured=name))
            table = pd.concat([table, found], ignore_index=True) if len(table) else found
            write_file(out, table.to_csv(index=False, float_format="%.5g"))
    return table
