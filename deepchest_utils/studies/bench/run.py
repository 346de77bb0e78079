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
from deepchest_utils.files import write_file
from deepchest_utils.results.labels import METHOD_LABELS, method_family
from deepchest_utils.results.store import append_rows, environment_report, read_results
from deepchest_utils.studies.bench.parts import (
    bench_beside,
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

BACKBONES = ("resnet18_thin", "resnet18", "densenet121")
TASKS = (2, 4, 8, 14, 28, 56)
NEAREST = ("equal", "deepchest")  # cost nearly nothing, so they are measured in many rounds
QUICK = ("equal", "deepchest", "gradnorm", 'pcgrad(level="features")', "pcgrad")
AT_FEATURES = ('pcgrad(level="features")', 'upgrad(level="features")')
ONE_PASS = ("equal", "deepchest", "uncertainty", "famo", "gradnorm", *AT_FEATURES)
ON_PARAMETERS = ("pcgrad", "upgrad")
ALL_METHODS = tuple(m for m in METHOD_LABELS if method_family(m) in ("loss", "gradient") or m in ("equal", "deepchest"))
ALL_ON_PARAMETERS = tuple(m for m in ALL_METHODS if issubclass(cast(type, METHODS[m]), GradientBalancing))
ALL_ONE_PASS = (
    *(m for m in ALL_METHODS if m not in ALL_ON_PARAMETERS),
    *(f'{m}(level="features")' for m in ALL_ON_PARAMETERS),
)


def with_machine(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what it was measured on."""
    report = environment_report()
    names = ("torch", "commit", "processor", "cores", "threads", "gpu")
    return table.assign(**{name: report[name] for name in names})


def quick_bench(device: str = "auto", seed: int = 0) -> pd.DataFrame:
    """The default network in under a minute."""
    rng, setup, config = np.random.default_rng(seed), BenchmarkSetup(device=device), TrainConfig(device=device)
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


def all_parts(device: str, rng: np.random.Generator) -> dict[str, Callable[[], pd.DataFrame]]:
    """Everything that notebook 06 reads, by the name that stands in the table's column `measured`."""
    config = TrainConfig(device=device)
    setups = {(b, k): BenchmarkSetup(b, k, device=device) for b, k in itertools.product(BACKBONES, TASKS)}
    default = setups["resnet18_thin", 14]
    steps, loop = partial(bench_steps, rng=rng), partial(on_phantom, bench_loop, rng=rng)
    parts: dict[str, Callable[[], pd.DataFrame]] = {}
    for backbone, rounds, num_train in (("resnet18_thin", 800, 1024), ("resnet18", 250, 512)):
        setup, of_backbone = setups[backbone, 14], dataclasses.replace(config, backbone=backbone)
        parts[f"close {backbone}"] = partial(steps, setup, NEAREST, rounds=rounds)
        parts[f"loop {backbone}"] = partial(loop, of_backbone, num_train=num_train, rounds=rounds // 10)
        parts[f"setting {backbone}"] = partial(bench_settings, setup, rounds=100, rng=rng, budget=45.0)
        parts[f"close memory {backbone}"] = partial(bench_memory, setup, NEAREST, repeats=5)
    parts["close candidates"] = partial(steps, default, (*NEAREST, "hedge"), rounds=800)
    parts["flat"] = partial(bench_flat, default, tasks=(2, 56), method="deepchest", rounds=800, rng=rng)
    parts["start"] = partial(bench_starts, rounds=30, rng=rng)
    parts["input"] = partial(bench_inputs, rounds=25, rng=rng, num_pngs=256)
    on_cpu = dataclasses.replace(config, device="cpu")
    parts["beside"] = partial(on_phantom, bench_beside, on_cpu, num_train=6000, rounds=12, rng=rng)  # as `train` has
    parts["every"] = partial(steps, default, ALL_ONE_PASS, rounds=60, budget=60.0)
    parts["every, parameters"] = partial(steps, default, ALL_ON_PARAMETERS, rounds=15, budget=60.0)
    parts["every memory"] = partial(bench_memory, default, (*ALL_ONE_PASS, *ALL_ON_PARAMETERS))
    for (backbone, num_tasks), setup in setups.items():
        name = f"step {backbone} {num_tasks}"
        parts[name] = partial(steps, setup, ONE_PASS, rounds=40, budget=15.0)
        parts[f"{name}, parameters"] = partial(steps, setup, ON_PARAMETERS, rounds=15, budget=15.0)
    for num_tasks in TASKS:
        methods = ("deepchest", *AT_FEATURES, *ON_PARAMETERS)
        parts[f"memory resnet18 {num_tasks}"] = partial(bench_memory, setups["resnet18", num_tasks], methods)
    with_method = dataclasses.replace(config, method="deepchest")
    parts["recipe"] = partial(on_phantom, bench_recipes, with_method, num_train=4000)
    if resolve_device(device).type == "cuda":
        for backbone in ("resnet18", "densenet121"):
            large = dataclasses.replace(config, backbone=backbone, image_size=224, amp="bf16")
            parts[f"loop {backbone} 224"] = partial(loop, large, num_train=2048, rounds=25)
    return parts


def full_bench(out: str | Path, device: str = "auto", seed: int = 0, only: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure all parts, or only those named, into the table `out`, which grows with each part. A part that the table has
    is not measured again.

    Raises:
        ValueError: for a part that there is not.
    """
    out, parts = Path(out), all_parts(device, np.random.default_rng(seed))
    if only is not None:
        if unknown := set(only) - set(parts):
            raise ValueError(f"part should be among {', '.join(parts)}. Found {min(unknown)!r}.")
        parts = {name: parts[name] for name in only}
    table = read_results(out, ["measured"], "benchmark")
    for name, measure in tqdm(parts.items(), desc="bench", disable=None):
        if name not in set(table.measured):
            measured = with_machine(measure().assign(measured=name))
            table = append_rows(table, measured)
            write_file(out, table.to_csv(index=False, float_format="%.5g"))
    return table


SHOWN = (
    "backbone", "num_tasks", "method", "seconds", "ratio", "low", "high", "spread", "rounds", "passes", "first_step", "mib",
    "images_per_second", "epoch", "auroc",
)  # fmt: skip


def format_bench(table: pd.DataFrame) -> str:
    """The table for a terminal, part by part."""
    columns = [name for name in SHOWN if name in table]
    parts = [
        f"\n{name}\n{part[columns].dropna(axis=1, how='all').to_string(index=False, float_format='%.4g')}"
        for name, part in table.groupby("part", sort=False)
    ]
    return "\n".join(parts)
