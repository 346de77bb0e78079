"""What a sweep says: each method's score, and its difference to a baseline, with intervals over seeds and patients."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepchest_utils.statistics import BOOTSTRAP_METRICS, holm, mean_interval
from deepchest_utils.sweep.run import Tables

ITSELF = "itself"


def compare_methods(tables: Tables, baselines: Sequence[str] = ("equal",)) -> pd.DataFrame:
    """A row a method, baseline, metric and task (findings, then "macro"): mean, low, high, p, seed_sd, patient_sd of
    `mean_interval`, the number of seeds, and p_holm.

    Baseline "itself" is the score (without p); for the others it is the difference, paired by seed and by patient. p_holm
    corrects over the methods for "macro", and over methods and findings for the findings. Raises ValueError for a
    baseline that no finished run has, or a method that ran twice with one seed (with two learning rates, say).
    """
    done = tables.cells[tables.cells.status == "done"]
    twice = done[done.duplicated(["method", "seed"])]
    if len(twice):
        raise ValueError(
            f"{tables.out}: {twice.method.iloc[0]} ran more than once with seed {twice.seed.iloc[0]}."
        )
    if missing := set(baselines) - set(done.method):
        raise ValueError(f"{tables.out}: no finished run of baseline {min(missing)!r}.")
    test = tables.rows[tables.rows.split == "test"]
    test = test[test.metric.isin(BOOTSTRAP_METRICS) & (test.task != "worst")]
    tasks = [*test.task[test.task != "macro"].unique(), "macro"]
    values = test.pivot(index="cell", columns=["metric", "task"], values="value")
    replicates = {cell: _replicates(tables, cell, values.loc[cell], tasks) for cell in done.cell}
    cells = {method: group.set_index("seed").cell for method, group in done.groupby("method", sort=False)}
    rows = []
    for baseline in (ITSELF, *baselines):
        for method, own in cells.items():
            if method == baseline:
                continue
            other = cells.get(baseline)
            seeds = own.index if other is None else own.index.intersection(other.index)
            if len(seeds) == 0:
                continue
            for m, metric in enumerate(BOOTSTRAP_METRICS):
                value = np.stack([values.loc[own[s], metric][tasks] for s in seeds])
                sample = np.mean([replicates[own[s]][m] for s in seeds], axis=0)
                if other is not None:
                    value = value - np.stack([values.loc[other[s], metric][tasks] for s in seeds])
                    sample = sample - np.mean([replicates[other[s]][m] for s in seeds], axis=0)
                named = {"method": method, "baseline": baseline, "metric": metric, "seeds": len(seeds)}
                rows += [
                    {**named, "task": task, **_one(value[:, k], sample[:, k])} for k, task in enumerate(tasks)
                ]
    table = pd.DataFrame(rows)
    table.loc[table.baseline == ITSELF, "p"] = np.nan  # that a score is 0 is nobody's question
    table["p_holm"] = np.nan
    family = [table.baseline, table.metric, table.task == "macro"]
    for _, group in table[table.baseline != ITSELF].groupby(family):
        table.loc[group.index, "p_holm"] = holm(group.p.to_numpy())
    return table


def _one(values: np.ndarray, sample: np.ndarray) -> dict[str, float]:
    """NaN where a seed has no value; replicates in which the metric is undefined are left out."""
    if np.isnan(values).any():
        return dict.fromkeys(("mean", "low", "high", "p", "seed_sd", "patient_sd"), np.nan)
    return mean_interval(values, sample[~np.isnan(sample)])


def _replicates(tables: Tables, cell: str, values: pd.Series, tasks: list[str]) -> np.ndarray:
    """(M, R, K + 1): the bootstrap replicates of the cell, and their macro mean over the defined findings; without any
    (R = 0) if the file is on another machine."""
    path = tables.replicates(cell)
    if not path.exists():
        return np.empty((len(BOOTSTRAP_METRICS), 0, len(tasks)))
    found = np.load(path, allow_pickle=False).astype(float)
    out = []
    for m, metric in enumerate(BOOTSTRAP_METRICS):
        defined = ~np.isnan(values[metric][tasks[:-1]].to_numpy())
        out.append(np.column_stack([found[m], found[m][:, defined].mean(1)]))
    return np.stack(out)
