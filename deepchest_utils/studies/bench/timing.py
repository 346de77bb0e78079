"""Steps that take turns: the seconds of each, and its ratio to a baseline with an interval."""

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test

from deepchest_utils.progress import progress
from deepchest_utils.training.setup import resolve_device

Name = TypeVar("Name", str, int)
MIN_ROUNDS = 5  # a median that one disturbed round cannot move far


def time_interleaved(
    steps: Mapping[Name, Callable[[], object]],
    rounds: int,
    rng: np.random.Generator,
    warmup: int = 2,
    budget: float = inf,
    prepare: Callable[[Name], object] = lambda name: None,
) -> pd.DataFrame:
    """The seconds of each step (a column) in each round (a row). In a round every step runs once, in an order drawn anew,
    so that all share whatever else the machine is doing.

    Args:
        budget: seconds after which no further round begins once MIN_ROUNDS are timed; warm-up does not count.
        prepare: called with a step's name before each of its turns, untimed.
    """
    if not steps or rounds < 1:
        raise ValueError(f"steps and rounds should be at least one each. Found {len(steps)} and {rounds}.")
    wait_for_gpu = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    names, timed, first_start = list(steps), [], 0.0
    for round_number in progress(range(-warmup, rounds), "rounds", leave=False):
        if round_number == 0:
            first_start = time.perf_counter()
        if round_number >= MIN_ROUNDS and time.perf_counter() - first_start > budget:
            break
        seconds = np.empty(len(names))
        for column in rng.permutation(len(names)):
            prepare(names[column])
            wait_for_gpu()
            start = time.perf_counter()
            steps[names[column]]()
            wait_for_gpu()
            seconds[column] = time.perf_counter() - start
        timed.append(seconds)
    return pd.DataFrame(timed[warmup:], columns=names)


def ratios(seconds: pd.DataFrame, baseline: str | int) -> pd.DataFrame:
    """Compare each column of `time_interleaved` with one of them, paired by round.

    Returns:
        A row a step: `seconds`, its median; `ratio`, the median of its ratio to the baseline in the same round; `low` and
        `high`, a 95% interval of that median from order statistics, which supposes nothing of the noise (NaN with too few
        rounds); `spread`, the distance between the quartiles of the ratio; and `rounds`.
    """
    if baseline not in seconds:
        raise ValueError(f"baseline should be one of {', '.join(seconds)}. Found {baseline!r}.")
    ratio = seconds.div(seconds[baseline], axis=0)
    intervals = [quantile_test(ratio[name], q=1, p=0.5).confidence_interval(0.95) for name in ratio]
    table = pd.DataFrame({"seconds": seconds.median(), "ratio": ratio.median()})
    table["low"], table["high"] = np.transpose(intervals)
    return table.assign(spread=ratio.quantile(0.75) - ratio.quantile(0.25), rounds=len(ratio)).rename_axis("method")


def measure(
    part: str,
    steps: Mapping[Name, Callable[[], object]],
    rounds: int,
    rng: np.random.Generator,
    setup: object = None,
    images: int | None = None,
    warmup: int = 1,
    **timing: Any,
) -> pd.DataFrame:
    """`ratios` to the first of the steps, described; images: how many a step takes."""
    table = ratios(time_interleaved(steps, rounds, rng, warmup, **timing), next(iter(steps))).reset_index()
    if images:
        table["images_per_second"] = images / table.seconds
    return table.assign(part=part, **describe(setup))


def describe(setup: object) -> dict[str, object]:
    """Columns of a table that tell what was trained: of a `BenchmarkSetup` or a `TrainConfig`."""
    names = ("backbone", "num_tasks", "image_size", "batch_size", "device")
    columns = {name: getattr(setup, name) for name in names if hasattr(setup, name)}
    return {k: resolve_device(v).type if k == "device" else v for k, v in columns.items()}
