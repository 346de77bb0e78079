"""How sure we are: bootstrap over patients, on images that one network or two have scored; intervals over training
seeds and patients; many methods compared at once. Randomness is an argument."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from deepchest_utils.results.metrics import rank_tasks
from deepchest_utils.results.store import Tables

BOOTSTRAP_METRICS = ("auroc", "average_precision")
_BLOCK = 100  # replicates at a time, to bound memory
_NO_REPLICATES = np.empty(0)


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
    if defined.any():  # NumPy's percentile of no columns cannot be unpacked
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
        [[getattr(ranking, metric)()[0] for ranking in rank_tasks(labels, scores)] for scores in (baseline, other)]
    )
    defined = ~np.isnan(point).any(0)
    rows: dict[str, object] = {"positives": [*np.nansum(labels, axis=0).astype(int), int(np.nansum(labels))]}
    columns = {"baseline": (point[0], values[0]), "other": (point[1], values[1])}
    columns["difference"] = (point[1] - point[0], values[1] - values[0])
    for name, (value, sample) in columns.items():
        everywhere = np.column_stack([sample, _mean_over_tasks(sample, defined)])
        low, high = interval(everywhere)
        mean = value[defined].mean() if defined.any() else np.nan
        rows |= {name: [*value, mean], f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(rows, index=pd.Index([*tasks, "macro"], name="task"))


def mean_interval(
    values: Float[np.ndarray, " s"], replicates: Float[np.ndarray, " r"] = _NO_REPLICATES, level: float = 0.95
) -> dict[str, float]:
    """The mean over S training seeds of a score, or of a paired difference, with an interval for other seeds and
    other patients.

    values: one a seed, all on the same test patients. replicates: of their mean, under a bootstrap over patients;
    empty, as by default: patients are left out. The squared standard error is var(values) / S + var(replicates), and the interval
    Student's with Welch and Satterthwaite's degrees of freedom, S - 1 if seeds are all there is. With S = 1 it holds
    for that one network. The two parts share what a seed makes of single patients, which errs on the wide side.
    Returns mean, low, high, p (two-sided, of a mean of 0), seed_sd (of one value), patient_sd (of the mean); a NaN
    among values or replicates makes the interval NaN.
    """
    if not 0 < level < 1:
        raise ValueError(f"level should be between 0 and 1. Found {level}.")
    count = len(values)
    if count == 0:
        raise ValueError("values should hold at least one seed. Found none.")
    seed_sd = values.std(ddof=1) if count > 1 else np.nan
    of_seeds = seed_sd**2 / count if count > 1 else 0.0
    of_patients = replicates.var(ddof=1) if len(replicates) > 1 else 0.0
    error = np.sqrt(of_seeds + of_patients)
    freedom = (of_seeds + of_patients) ** 2 / (of_seeds**2 / (count - 1)) if of_seeds > 0 else np.inf
    mean = values.mean()
    if error != 0:  # NaN goes on as NaN
        reach, p = stats.t.ppf(0.5 + level / 2, freedom) * error, 2 * stats.t.sf(abs(mean) / error, freedom)
    else:  # the same in every seed and every replicate, or one number alone: certain if it is a difference of 0
        reach, p = (0.0, 1.0 if mean == 0 else 0.0) if count > 1 or len(replicates) > 1 else (np.nan, np.nan)
    patient_sd = np.sqrt(of_patients) if len(replicates) > 1 else np.nan
    named = {"mean": mean, "low": mean - reach, "high": mean + reach, "p": p}
    return {k: float(v) for k, v in {**named, "seed_sd": seed_sd, "patient_sd": patient_sd}.items()}


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p-values of M tests, each raised so that rejecting those below alpha errs once in 1 / alpha families at most
    (Holm 1979). NaN stays NaN and does not count."""
    out, tested = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    raised = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return out


def friedman(scores: Float[np.ndarray, "k m"], alpha: float = 0.05) -> tuple[Float[np.ndarray, " m"], float, float]:
    """Average ranks (M,) of M methods over K tasks (1 is best, ties share), Friedman's p that all are alike, and
    Nemenyi's critical difference: ranks further apart than that differ at `alpha` (Demsar 2006).

    scores: higher is better. Raises ValueError for fewer than three methods or two tasks, or a NaN.
    """
    tasks, methods = scores.shape
    if methods < 3 or tasks < 2 or np.isnan(scores).any():
        raise ValueError(f"scores should be at least 2 tasks by 3 methods without NaN. Found {scores.shape}.")
    ranks = stats.rankdata(-scores, axis=1).mean(0)
    # scipy divides 0 by 0 where every task is a tie of all methods: nothing speaks against their being alike
    p = stats.friedmanchisquare(*scores.T).pvalue if np.ptp(scores, axis=1).any() else 1.0
    critical = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return ranks, float(p), float(critical * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def delta_m(values: Float[np.ndarray, " k"], single: Float[np.ndarray, " k"], higher: bool = True) -> float:
    """Delta-m: the mean over tasks of the relative gain over single-task networks, in per cent (Maninis et al. 2019,
    arXiv 1904.08918); tasks undefined in either are left out, NaN if none is left."""
    gain = (values - single) / single
    gain = (gain if higher else -gain)[~np.isnan(gain)]
    return float(100 * gain.mean()) if len(gain) else np.nan


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
        raise ValueError(f"{tables.out}: {twice.method.iloc[0]} ran more than once with seed {twice.seed.iloc[0]}.")
    if missing := set(baselines) - set(done.method):
        failed = tables.cells[tables.cells.method.isin(missing)]
        why = f" It failed: {failed.error.iloc[0]}" if len(failed) else ""
        raise ValueError(f"{tables.out}: no finished run of baseline {min(missing)!r}.{why}")
    scores = {cell: _scores(tables, cell, rows) for cell, rows in tables.rows.groupby("cell") if cell in set(done.cell)}
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
