"""Steps that take turns: the seconds of each, and its ratio to a baseline with an interval."""

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test
from tqdm import tqdm

Name = TypeVar("Name", str, int)
MIN_ROUNDS = 5  # a median that one disturbed round cannot move far


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_interleaved(
    steps: Mapping[Name, Callable[[], object]],
    rounds: int,
    rng: np.random.Generator,
    warmup: int = 2,
    budget: float = inf,
    prepare: Callable[[Name], object] | None = None,
) -> pd.DataFrame:
    """Time steps that take turns. In each round every step runs once, in an order drawn anew, so that all share whatever
    else the machine is doing.

    Args:
        rounds: how many at most, at least 1.
        warmup: rounds before the first that is timed.
        budget: seconds after which no further round begins once MIN_ROUNDS are timed; warm-up does not count.
        prepare: called with a step's name before each of its turns, untimed.

    Returns:
        Seconds, a row a round and a column a step.

    Raises:
        ValueError: for no step or no round.
    """
    if not steps or rounds < 1:
        raise ValueError(f"steps and rounds should be at least one each. Found {len(steps)} and {rounds}.")
    names, first_start = list(steps), 0.0
    seconds = np.empty((rounds, len(names)))
    for round_number in tqdm(range(-warmup, rounds), desc="rounds", leave=False, disable=None):
        if round_number == 0:
            first_start = time.perf_counter()
        if round_number >= MIN_ROUNDS and time.perf_counter() - first_start > budget:
            seconds = seconds[:round_number]
            break
        for column in rng.permutation(len(names)):
            if prepare:
                prepare(names[column])
            _wait_for_gpu()
            start = time.perf_counter()
            steps[names[column]]()
            _wait_for_gpu()
            if round_number >= 0:
                seconds[round_number, column] = time.perf_counter() - start
    return pd.DataFrame(seconds, columns=names)


def ratios(seconds: pd.DataFrame, baseline: str | int) -> pd.DataFrame:
    """Compare each step with a baseline, paired by round.

    Args:
        seconds: of `time_interleaved`.
        baseline: one of its columns.

    Returns:
        A row a step: `seconds`, its median; `ratio`, the median over rounds of the ratio to the baseline in the same
        round; `low` and `high`, a 95% interval of that median from order statistics, which supposes nothing of the noise
        (NaN with too few rounds); `spread`, the distance between the quartiles of the ratio; and `rounds`.
    """
    if baseline not in seconds:
        raise ValueError(f"baseline should be one of {', '.join(seconds)}. Found {baseline!r}.")
    rows = {}
    for name, ratio in seconds.div(seconds[baseline], axis=0).items():
        interval = quantile_test(ratio, q=1, p=0.5).confidence_interval(0.95)
        quartiles = np.percentile(ratio, [25, 75])
        rows[name] = {
            "seconds": seconds[name].median(),
            "ratio": ratio.median(),
            "low": interval.low,
            "high": interval.high,
            "spread": quartiles[1] - quartiles[0],
            "rounds": len(ratio),
        }
    return pd.DataFrame(rows).T.astype({"rounds": int}).rename_axis("method")
