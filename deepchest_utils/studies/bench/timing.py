"""Steps that take turns: what each takes, and its ratio to a baseline with an interval."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test
from tqdm import tqdm

Name = TypeVar("Name", str, int)
FEWEST = 5  # rounds: a median that one disturbed round cannot move far


def _wait() -> None:
    """Until the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_interleaved(
    steps: Mapping[Name, Callable[[], object]],
    rounds: int,
    rng: np.random.Generator,
    warmup: int = 2,
    budget: float = float("inf"),
) -> pd.DataFrame:
    """Seconds, a row a round and a column a step. In each round every step runs once, in an order drawn anew, so that
    all share whatever else the machine is doing.

    rounds: at most so many, at least 1. warmup: rounds that are not timed. budget: seconds after which no further round
    begins, FEWEST made; warm-up does not count. Raises ValueError for no step, or no round.
    """
    if not steps or rounds < 1:
        raise ValueError(f"steps and rounds should be at least one each. Found {len(steps)} and {rounds}.")
    names, begun = list(steps), 0.0
    seconds = np.empty((rounds, len(names)))
    for done in tqdm(range(-warmup, rounds), desc="rounds", leave=False, disable=None):
        if done == 0:
            begun = time.perf_counter()
        if done >= FEWEST and time.perf_counter() - begun > budget:
            seconds = seconds[:done]
            break
        for column in rng.permutation(len(names)):
            _wait()
            start = time.perf_counter()
            steps[names[column]]()
            _wait()
            if done >= 0:
                seconds[done, column] = time.perf_counter() - start
    return pd.DataFrame(seconds, columns=names)


def ratios(seconds: pd.DataFrame, baseline: str | int) -> pd.DataFrame:
    """A row a step: `seconds`, its median; `ratio`, the median over rounds of the ratio to the baseline in the same
    round; `low` and `high`, a 95% interval for that median from order statistics, which supposes nothing of the noise
    (NaN with too few rounds); `spread`, the distance between the quartiles of the ratio.
    """
    if baseline not in seconds:
        raise ValueError(f"baseline should be one of {', '.join(seconds)}. Found {baseline!r}.")
    paired = seconds.div(seconds[baseline], axis=0)
    rows = {}
    for name, values in paired.items():
        found = quantile_test(values, q=1, p=0.5).confidence_interval(0.95)
        quartiles = np.percentile(values, [25, 75])
        rows[name] = {
            "seconds": seconds[name].median(),
            "ratio": values.median(),
            "low": found.low,
            "high": found.high,
            "spread": quartiles[1] - quartiles[0],
            "rounds": len(values),
        }
    return pd.DataFrame(rows).T.astype({"rounds": int}).rename_axis("method")
