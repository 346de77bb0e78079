"""What a sweep says: each method's score, and its difference to a baseline, with intervals over seeds and patients."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deepchest_utils.statistics import BOOTSTRAP_METRICS, holm, mean_interval
from deepchest_utils.sweep.run import Tables

ITSELF = "itself"
GROUPS = ("macro", "common", "rare")  # means over all findings, and over the more and the less common half


def compare_methods(tables: Tables, baselines: Sequence[str] = ("equal",)) -> pd.DataFrame:
    """A row a method, baseline, metric and task: mean, low, high, p, seed_sd, patient_sd of `mean_interval`, the number
    of seeds, and p_holm. Tasks are the findings and GROUPS, means over the findings where the metric is defined.

    Baseline "itself" is the score (without p); for the others it is the difference, paired by seed and by patient. p_holm
    corrects each group over the methods, and the findings over methods and findings. Raises ValueError for a baseline
    that no finished run has, or a method that ran twice with one seed (with two learning rates, say).
    """
    done = tables.cells[tables.cells.status == "done"]
    twice = done[done.duplicated(["method", "seed"])]
    if len(twice):
        raise ValueError(
            f"{tables.out}: {twice.method.iloc[0]} ran more than once with seed {twice.seed.iloc[0]}."
        )
    if missing := set(baselines) - set(done.method):
        failed = tables.cells[tables.cells.method.isin(missing)]
        why = f" It failed: {failed.error.iloc[0]}" if len(failed) else ""
        raise ValueError(f"{tables.out}: no finished run of baseline {min(missing)!r}.{why}")
    scores = {
        cell: _scores(tables, cell, rows)
        for cell, rows in tables.rows.groupby("cell")
        if cell in set(done.cell)
    }
    cells = {method: group.set_index("seed").cell for method, group in done.groupby("method", sort=False)}
    rows = []
    for baseline in (ITSELF, *baselines):
        for method in (name for name in cells if name != baseline):
            own, other = cells[method], cells.get(baseline)
            seeds = own.index if other is None else own.index.intersection(other.index)
            for metric in BOOTSTRAP_METRICS if len(seeds) else ():
                each = [scores[own[s]][metric] for s in seeds]
                if other is not None:
                    each = [mine - scores[other[s]][metric] for mine, s in zip(each, seeds, strict=True)]
                named = {"method": method, "baseline": baseline, "metric": metric, "seeds": len(seeds)}
                rows += [{**named, "task": task, **_interval([e[task] for e in each])} for task in each[0]]
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    family = table.task.where(table.task.isin(GROUPS), "finding")
    for _, group in table[table.baseline != ITSELF].groupby(["baseline", "metric", family]):
        table.loc[group.index, "p_holm"] = holm(group.p.to_numpy())
    table.loc[table.baseline == ITSELF, "p"] = np.nan  # that a score is 0 is nobody's question
    return table


def _scores(tables: Tables, cell: str, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of each metric, a column a task: the value on all test images, then its bootstrap replicates, if the table has
    them."""
    test = rows[(rows.split == "test") & ~rows.task.isin([*GROUPS, "worst"])]
    prevalence = rows[rows.metric == "prevalence"].set_index("task").value
    replicates, out = tables.replicates.get(cell), {}
    for m, metric in enumerate(BOOTSTRAP_METRICS):
        value = test[test.metric == metric].set_index("task").value
        table = value.to_frame().T.reset_index(drop=True)
        if replicates is not None:
            table = pd.concat(
                [table, pd.DataFrame(replicates[m].astype(float), columns=value.index)], ignore_index=True
            )
        ranked = prevalence[value.index[value.notna()]].sort_values(ascending=False, kind="stable").index
        half = (len(ranked) + 1) // 2
        groups = dict(zip(GROUPS, (ranked, ranked[:half], ranked[half:]), strict=True))
        # a replicate without a positive of some finding has no mean: it would be one over other findings
        means = {name: table[members].mean(axis=1, skipna=False) for name, members in groups.items()}
        out[metric] = table.assign(**means)
    return out


def _interval(each: list[pd.Series]) -> dict[str, float]:
    """`mean_interval` of one task; each: a seed's value and, below it, its replicates. NaN if a seed has no value."""
    values = np.array([series.iloc[0] for series in each])
    if np.isnan(values).any():
        return dict.fromkeys(("mean", "low", "high", "p", "seed_sd", "patient_sd"), np.nan)
    length = min(len(series) for series in each)  # 1 if a seed has no replicates: patients are left out
    sample = np.mean([series.iloc[1:length] for series in each], axis=0)
    return mean_interval(values, sample[~np.isnan(sample)])
