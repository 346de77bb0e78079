"""How sure we are: bootstrap over patients, intervals over training seeds, differences of many methods at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import special, stats

from deepchest_utils.config import check_choice
from deepchest_utils.results.metrics import rank_tasks
from deepchest_utils.results.store import RunTable

BOOTSTRAP_METRICS = ("auroc", "average_precision")
ALPHA = 0.05  # of every test, after Holm's correction where there are several
MIN_PAIRS = 5  # fewer are called nothing
MARGIN = 0.01  # of AUROC or AP: what is smaller matters to nobody; chosen before the study
NUMBERS = ["mean", "low", "high", "p", "seed_sd", "patient_sd"]  # of `mean_interval`


def patient_weights(
    patients: Int[np.ndarray, " n"], replicates: int, rng: np.random.Generator
) -> Float[np.ndarray, "r n"]:
    """How often each image counts in each replicate: patients are drawn with replacement, with all their images."""
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
    """The metric of M networks in R resamplings of the patients, the same for each network: differences are paired.

    Args:
        labels: 1, 0 or NaN.
        metric: One of BOOTSTRAP_METRICS; NaN where a replicate has no positive or no negative.
    """
    check_choice("metric", metric, BOOTSTRAP_METRICS)
    rankings = [rank_tasks(labels, array) for array in scores]
    out = np.empty((len(scores), replicates, labels.shape[1]))
    for start in range(0, replicates, 100):  # at a time, to bound memory
        stop = min(start + 100, replicates)
        weights = patient_weights(patients, stop - start, rng)
        for m, tasks in enumerate(rankings):
            for k, ranking in enumerate(tasks):
                out[m, start:stop, k] = getattr(ranking, metric)(weights)
    return out


def interval(replicates: Float[np.ndarray, "r *k"]) -> tuple[Float[np.ndarray, "*k"], Float[np.ndarray, "*k"]]:
    """95% percentile interval over the first axis, undefined replicates left out; NaN where all are undefined."""
    defined = ~np.isnan(replicates).all(axis=0)
    ends = np.full((2, *defined.shape), np.nan)
    ends[:, defined] = np.nanpercentile(replicates[:, defined], [2.5, 97.5], axis=0)
    return ends[0, ...], ends[1, ...]


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
    """Two networks on the same test images. The intervals hold for these two, and say nothing of another seed.

    A row a task, and "macro": positives, and for each of baseline, other and difference (other - baseline, paired) the
    value on all images with _low and _high, the 95% interval over patients.
    """
    check_choice("metric", metric, BOOTSTRAP_METRICS)
    rankings = [rank_tasks(labels, scores) for scores in (baseline, other)]
    point = np.array([[getattr(ranking, metric)() for ranking in tasks_of_one] for tasks_of_one in rankings])
    samples = bootstrap_metric(labels, [baseline, other], patients, rng, metric, replicates)
    # (2, 1 + R, K): the value on all images, then the replicates
    values = np.concatenate([point.transpose(0, 2, 1), samples], axis=1)
    defined = ~np.isnan(point).any((0, 2))
    rows: dict[str, object] = {"positives": [*np.nansum(labels, axis=0).astype(int), int(np.nansum(labels))]}
    for name, table in (("baseline", values[0]), ("other", values[1]), ("difference", values[1] - values[0])):
        # NaN in a replicate where one of these tasks is not defined
        macro = table[:, defined].mean(1) if defined.any() else np.full(len(table), np.nan)
        table = np.column_stack([table, macro])
        low, high = interval(table[1:])
        rows |= {name: table[0], f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(rows, index=pd.Index([*tasks, "macro"], name="task"))


def mean_interval(values: Float[np.ndarray, " s"], replicates: Float[np.ndarray, " r"]) -> dict[str, float]:
    """The mean over training seeds of a score or a paired difference, with a 95% interval for other seeds and patients.

    The squared standard error is var(values) / S + var(replicates), and the interval Student's with the degrees of
    freedom of Welch and Satterthwaite, S - 1 without replicates. With S = 1 it holds for that one network. Both
    variances contain what a seed makes of single patients, so the interval is rather too wide than too narrow.

    Args:
        values: One a seed, all on the same test patients.
        replicates: The mean of `values` in each resampling of the patients; empty leaves patients out.

    Returns:
        mean, low, high, p (two-sided, that the mean is 0), seed_sd (of one value), patient_sd (of the mean). A NaN
        among values or replicates makes the interval NaN.
    """
    count = len(values)
    if count == 0:
        raise ValueError("values should hold at least one seed. Found none.")
    seed_sd = values.std(ddof=1) if count > 1 else np.nan
    patient_variance = replicates.var(ddof=1) if len(replicates) > 1 else np.nan
    terms = (seed_sd**2 / count if count > 1 else 0.0, patient_variance if len(replicates) > 1 else 0.0)
    error = np.sqrt(sum(terms)) if count > 1 or len(replicates) > 1 else np.nan
    df = sum(terms) ** 2 / (terms[0] ** 2 / (count - 1)) if terms[0] > 0 else np.inf
    mean, reach = values.mean(), stats.t.ppf(1 - ALPHA / 2, df) * error
    # without an error, in every seed and every replicate the same: certain if it is a difference of 0
    p = 2 * stats.t.sf(abs(mean) / error, df) if error != 0 else float(mean == 0)
    numbers = (mean, mean - reach, mean + reach, p, seed_sd, np.sqrt(patient_variance))
    return dict(zip(NUMBERS, map(float, numbers), strict=True))


def format_interval(row: Mapping[str, Any] | pd.Series, digits: int = 4, sign: str = "+") -> str:
    """A row with mean, low and high as "+0.0041 [-0.0068, +0.0151]"; "-" if the mean is NaN, the mean alone if low is.
    sign: "+" for a difference, "" for a score.
    """
    mean, low, high = (f"{row[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return "-" if np.isnan(row["mean"]) else mean if np.isnan(row["low"]) else f"{mean} [{low}, {high}]"


def is_significant(p_holm: Any, pairs: Any) -> Any:
    """The one definition: p below 0.05 after Holm's correction, of at least five pairs (of seeds, or of replicates).

    The p is that of `judge_differences`; for arrays and columns, element by element.
    """
    return (pairs >= MIN_PAIRS) & (p_holm < ALPHA)


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Holm's correction (1979) of the p-values of a family of M tests. NaN is no test. For a table: `adjust_p`."""
    out, tested = np.full(len(p), np.nan), np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested])]
    raised = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return out


def adjust_p(table: pd.DataFrame, family: Sequence[str] = ()) -> pd.DataFrame:
    """The table with its column p corrected by `holm` as p_holm, anew: for the rows that a figure or sentence is about.
    Rows that are alike in all columns of `family` are one family; without columns all rows are one."""
    families = table.groupby([*family] if family else np.zeros(len(table)))
    return table.assign(p_holm=families.p.transform(lambda p: holm(p.to_numpy(float))))


def paired_differences(
    values: pd.DataFrame,
    baseline: str | None = "equal",
    by: Sequence[str] = ("metric", "task"),
    pair: Sequence[str] = ("seed",),
    average: Sequence[str] = (),
    family: Sequence[str] | None = None,
    replicates: Float[np.ndarray, "n r"] | None = None,
) -> pd.DataFrame:
    """Each method minus a baseline, paired, with interval and p-value: every such difference of this project.

    To compare fewer methods or tasks, pass fewer rows; to compare tables, pass one below the other, their methods
    named apart.

    Args:
        values: Long table of N rows: method, value and the columns below, as the test rows of a `RunTable`. A pair
            counts if both methods have a row. A value that is NaN makes the mean NaN.
        baseline: A method of the table. None gives the means of the values themselves, without p.
        by: Columns that say what is compared: the result has a row for each method and combination.
        pair: Columns that name the pairs, over which mean and interval are taken.
        average: Columns over which a pair is a mean, such as data sets or findings. What has no value at all is left
            out; then a pair that lacks one of them is.
        family: Columns within whose groups p is corrected, see `adjust_p`; default `by`: over the methods.
        replicates: Each value in R resamplings of the patients, the same in all rows; NaN where undefined. An interval
            leaves patients out if one of its rows is all NaN, and is NaN if fewer than half of R are defined.

    Returns:
        Columns method, `by`, pairs (how many), those of `mean_interval` and p_holm; methods in order of appearance.
    """
    keys = [*by, *pair, *average]
    table = values[["method", *keys, "value"]].reset_index(drop=True)
    table = table.assign(place=table.index, difference=table.value.astype(float))
    if (twice := table.duplicated(["method", *keys])).any():
        row = table[twice].iloc[0]
        raise ValueError(f"values should have one row a pair. Found two of {row.method}: {row[keys].to_dict()}.")
    samples = np.empty((len(table), 0)) if replicates is None else replicates
    if baseline is not None:
        check_choice("baseline", baseline, list(dict.fromkeys(table.method)))
        other = table.loc[table.method == baseline, [*keys, "value", "place"]]
        table = table[table.method != baseline].merge(other, on=keys, suffixes=("", "_baseline"))
        table["difference"] = table.value - table.value_baseline
        samples = samples[table.place.to_numpy()] - samples[table.place_baseline.to_numpy()]
    rows = []
    for group, members in table.groupby(["method", *by], sort=False):
        if average:
            members = members[members.groupby([*average]).difference.transform("count") > 0]
            full = len(members[[*average]].drop_duplicates())
            members = members[members.groupby([*pair]).difference.transform("size") == full]
            differences = members.groupby([*pair]).difference.mean(skipna=False)
        else:
            differences = members.difference
        if len(differences):
            means = samples[members.index].mean(axis=0)
            defined = ~np.isnan(means)
            few = 0 < defined.sum() < len(means) / 2
            numbers = mean_interval(differences.to_numpy(), means if few else means[defined])
            rows.append({**dict(zip(("method", *by), group, strict=True)), "pairs": len(differences), **numbers})
    result = pd.DataFrame(rows, columns=["method", *by, "pairs", *NUMBERS]).astype(dict.fromkeys(NUMBERS, float))
    if baseline is None:
        return result.assign(p=np.nan, p_holm=np.nan)  # nobody asks whether a score is 0
    return adjust_p(result, by if family is None else family)


VERDICT = ["df", "p_equivalent", "chance", "smallest", "verdict"]  # what `judge_differences` adds


def judge_differences(
    differences: pd.DataFrame, family: Sequence[str], margin: float = MARGIN, overlap: float = 0.0
) -> pd.DataFrame:
    """Intervals, p and a verdict for differences: the one definition of "significant", and of "equivalent".

    The unit is the pair. Where each pair has data and patients of its own, as in the study's replicates, the interval
    is that of the paired t-test, and its rate of false positives is the nominal one. Where all pairs share their
    patients, patient_sd is added to the error and the degrees of freedom stay those of the pairs. This errs on the safe
    side: with those of `mean_interval` a difference of two lucky seeds would have the p of a normal. Variances are not
    moderated over methods (limma's empirical Bayes): the spreads of methods differ by ten times, so the widest would be
    called significant up to four times too often.

    Args:
        differences: Of `paired_differences`, or a summary of `compare_methods` (its rows against a baseline).
        family: Columns within whose groups p is corrected over methods, see `adjust_p`.
        margin: Differences in between -margin and margin are equivalent.
        overlap: Where the pairs are folds of a repeated cross-validation, test images over training images of a fold.
            Folds share training images, so the squared error is seed_sd^2 (1 / pairs + overlap), as in the corrected
            resampled t-test of Nadeau and Bengio (2003, Machine Learning 52).

    Returns:
        The table with low and high (95%), p and p_holm anew, and with the columns of `VERDICT`. df: the degrees of
        freedom. p_equivalent: the larger p of two one-sided tests against the margin, for this row alone. chance: that
        the method is above the baseline in another pair. smallest: the true difference that one test at level 0.05
        finds with 80% power. verdict: "higher" or "lower" (significant: p_holm below 0.05 and at least 5
        pairs), "equivalent" (p_equivalent below 0.05, 5 pairs), "higher, equivalent" or "lower, equivalent" (both), or
        "open" (neither).
    """
    pairs = differences["pairs" if "pairs" in differences else "seeds"].to_numpy(float)
    mean, sd = differences["mean"].to_numpy(), differences.seed_sd.to_numpy()
    df = np.where(pairs > 1, pairs - 1, np.nan)
    error = np.sqrt(sd**2 * (1 / pairs + overlap) + differences.patient_sd.fillna(0.0).to_numpy() ** 2)
    reach = stats.t.ppf(1 - ALPHA / 2, df) * error
    with np.errstate(divide="ignore", invalid="ignore"):  # the same in every pair: certain, unless both are 0
        p = np.where((mean == 0) & (error == 0), 1.0, 2 * stats.t.sf(np.abs(mean) / error, df))
        p_equivalent = stats.t.sf((margin - np.abs(mean)) / error, df)
        chance = stats.t.cdf(mean / np.sqrt(sd**2 + error**2), df)
    table = adjust_p(differences.assign(low=mean - reach, high=mean + reach, p=p), family)
    enough = pairs >= MIN_PAIRS
    significant, equivalent = is_significant(table.p_holm.to_numpy(), pairs), enough & (p_equivalent < ALPHA)
    words = np.select([significant & (mean > 0), significant, equivalent], ["higher", "lower", "equivalent"], "open")
    words = np.where(significant & equivalent, np.char.add(words.astype(str), ", equivalent"), words)
    smallest = smallest_difference(error, df)
    verdict = dict(zip(VERDICT, (df, p_equivalent, chance, smallest, words), strict=True))
    return table.assign(**verdict)


def smallest_difference(
    error: Float[np.ndarray, " n"], df: Float[np.ndarray, " n"], alpha: float = ALPHA, power: float = 0.8
) -> Float[np.ndarray, " n"]:
    """The true difference that a two-sided t-test with this standard error finds with the given power."""
    return np.asarray(special.nctdtrinc(df, 1 - power, stats.t.ppf(1 - alpha / 2, df)) * error)


ITSELF = "itself"
GROUPS = ("macro", "common", "rare")  # means over all findings, and over the more and the less common half


def compare_methods(tables: RunTable, baselines: Sequence[str] = ("equal",)) -> pd.DataFrame:
    """The summary of a sweep: `paired_differences` to each baseline over seeds and patients.

    Returns:
        Columns method, baseline ("itself" for the scores, without p), metric, seeds (how many), task, NUMBERS and
        p_holm. Tasks are the findings and GROUPS, means over the findings where the metric is defined. p_holm corrects
        each of GROUPS over the methods, and the findings over methods and findings.

    Raises:
        ValueError: A baseline has no finished run, a method ran twice with one seed (with two learning rates, say), or
            runs of one seed are on different data.
    """
    done = tables.cells[tables.cells.status == "done"]
    twice = done[done.duplicated(["method", "seed"])]
    if len(twice):
        raise ValueError(f"{tables.out}: {twice.method.iloc[0]} ran more than once with seed {twice.seed.iloc[0]}.")
    for seed, runs in done.groupby("seed"):
        if runs.get("data", default=runs.seed).nunique() > 1:
            names = ", ".join(dict.fromkeys(runs.method))
            raise ValueError(f"{tables.out}: runs with seed {seed} are on different data: {names}.")
    if missing := set(baselines) - set(done.method):
        failed = tables.cells[tables.cells.method.isin(missing)]
        why = f" It failed: {failed.error.iloc[0]}" if len(failed) else ""
        raise ValueError(f"{tables.out}: no finished run of baseline {min(missing)!r}.{why}")
    values, replicates = _patient_scores(tables, done)
    parts = [
        paired_differences(values, baseline, replicates=replicates).assign(baseline=baseline or ITSELF)
        for baseline in (None, *baselines)
    ]
    table = pd.concat(parts, ignore_index=True).rename(columns={"pairs": "seeds"})
    table["family"] = table.task.where(table.task.isin(GROUPS), "finding")
    table = adjust_p(table, ["baseline", "metric", "family"])
    return table[["method", "baseline", "metric", "seeds", "task", *NUMBERS, "p_holm"]]


def _patient_scores(tables: RunTable, done: pd.DataFrame) -> tuple[pd.DataFrame, Float[np.ndarray, "n r"]]:
    """The values of `paired_differences`, GROUPS among the tasks, and their replicates."""
    by_cell = dict(list(tables.rows.groupby("cell")))
    tables_of_runs = []
    for trial in done.itertuples():
        rows = by_cell.get(trial.cell, tables.rows[:0])
        test = rows[(rows.split == "test") & ~rows.task.isin([*GROUPS, "worst"])]
        prevalence = rows[rows.metric == "prevalence"].set_index("task").value
        for m, metric in enumerate(BOOTSTRAP_METRICS):
            scores = test[test.metric == metric].set_index("task").value
            if scores.empty or not scores.index.isin(prevalence.index).all():
                why = "they were lost, or it ran with --tune. Choose another out."
                raise ValueError(f"{tables.out} lacks test rows of {trial.method} seed {trial.seed}: {why}")
            sample = tables.replicates[trial.cell][m] if trial.cell in tables.replicates else np.empty((0, len(scores)))
            ranked = prevalence[scores.index[scores.notna()]].sort_values(ascending=False, kind="stable").index
            half = (len(ranked) + 1) // 2
            stacked = np.column_stack([scores.to_numpy(), sample.T.astype(float)])  # (K, 1 + R)
            members = [stacked[scores.index.get_indexer(tasks)] for tasks in (ranked, ranked[:half], ranked[half:])]
            # a replicate without a positive of some finding has no mean: it would be one over other findings
            means = [rows.mean(axis=0) if len(rows) else np.full(stacked.shape[1], np.nan) for rows in members]
            table = pd.DataFrame(np.vstack([stacked, *means]))
            named = {"method": trial.method, "seed": trial.seed, "metric": metric}
            tables_of_runs.append(table.assign(**named, task=[*scores.index, *GROUPS]))
    table = pd.concat(tables_of_runs, ignore_index=True)  # NaN for the replicates that a run lacks
    keys = ["method", "seed", "metric", "task"]
    replicates = np.ascontiguousarray(table.drop(columns=[*keys, 0]).to_numpy(float))
    return table[[*keys, 0]].rename(columns={0: "value"}), replicates
