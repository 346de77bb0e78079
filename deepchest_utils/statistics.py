"""How sure we are: bootstrap over patients, on images that one network or two have scored. Randomness is an
argument."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.metrics import rank_tasks

BOOTSTRAP_METRICS = ("auroc", "average_precision")
_BLOCK = 100  # replicates at a time, to bound memory


def patient_weights(
    patients: Int[np.ndarray, " n"], replicates: int, rng: np.random.Generator
) -> Float[np.ndarray, "r n"]:
    """How often each image counts in each replicate (R, N): patients are drawn with replacement, with all
    their images."""
    names, index = np.unique(patients, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return drawn[:, index].astype(np.float64)


def bootstrap_metric(
    labels: Float[np.ndarray, "n k"],
    scores: Sequence[Float[np.ndarray, "n k"]],
    patients: Int[np.ndarray, " n"],
    rng: np.random.Generator,
    metric: str = "auroc",
    replicates: int = 1000,
) -> Float[np.ndarray, "m r k"]:
    """The metric of each of M networks in each replicate, (M, R, K); the networks see the same patients, so
    differences are paired.

    labels: 1, 0, NaN. scores: M arrays of logits or probabilities. metric: "auroc" or "average_precision".
    NaN where a replicate has no positive or no negative.
    """
    if metric not in BOOTSTRAP_METRICS:
        raise ValueError(f"metric should be one of {', '.join(BOOTSTRAP_METRICS)}. Found {metric!r}.")
    rankings = [rank_tasks(labels, array) for array in scores]
    out = np.empty((len(scores), replicates, labels.shape[1]))
    for start in range(0, replicates, _BLOCK):
        stop = min(start + _BLOCK, replicates)
        weights = patient_weights(patients, stop - start, rng)
        for m, tasks in enumerate(rankings):
            for k, ranking in enumerate(tasks):
                out[m, start:stop, k] = getattr(ranking, metric)(weights)
    return out


def interval(
    replicates: Float[np.ndarray, "r *k"], level: float = 0.95
) -> tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]:
    """Percentile interval over the first axis, undefined replicates left out; NaN where all are undefined."""
    if not 0 < level < 1:
        raise ValueError(f"level should be between 0 and 1. Found {level}.")
    tail = 100 * (1 - level) / 2
    defined = ~np.isnan(replicates).all(axis=0)
    low, high = np.full(defined.shape, np.nan), np.full(defined.shape, np.nan)
    low[defined], high[defined] = np.nanpercentile(replicates[:, defined], [tail, 100 - tail], axis=0)
    return low, high


def _mean_over_tasks(values: Float[np.ndarray, "r k"], tasks: np.ndarray) -> Float[np.ndarray, " r"]:
    """Macro mean of each replicate over the tasks that are defined on all images; NaN if one of them is not
    in the replicate."""
    return values[:, tasks].mean(1) if tasks.any() else np.full(len(values), np.nan)


def compare_runs(
    labels: Float[np.ndarray, "n k"],
    baseline: Float[np.ndarray, "n k"],
    other: Float[np.ndarray, "n k"],
    patients: Int[np.ndarray, " n"],
    tasks: Sequence[str],
    rng: np.random.Generator,
    metric: str = "auroc",
    replicates: int = 1000,
) -> pd.DataFrame:
    """Two networks on the same test images, a row a task and one for the macro mean.

    Columns: positives, then for "baseline", "other" and "difference" (other - baseline, paired): the value on
    all images, low and high of the 95% patient-bootstrap interval. The interval holds for these two trained
    networks: it says nothing about another seed.
    """
    values = bootstrap_metric(labels, [baseline, other], patients, rng, metric, replicates)
    point = np.array(
        [
            [getattr(ranking, metric)()[0] for ranking in rank_tasks(labels, scores)]
            for scores in (baseline, other)
        ]
    )
    defined = ~np.isnan(point).any(0)
    rows = {"positives": [*np.nansum(labels, axis=0).astype(int), int(np.nansum(labels))]}
    columns = {"baseline": (point[0], values[0]), "other": (point[1], values[1])}
    columns["difference"] = (point[1] - point[0], values[1] - values[0])
    for name, (value, sample) in columns.items():
        everywhere = np.column_stack([sample, _mean_over_tasks(sample, defined)])
        low, high = interval(everywhere)
        mean = value[defined].mean() if defined.any() else np.nan
        rows |= {name: [*value, mean], f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(rows, index=pd.Index([*tasks, "macro"], name="task"))
