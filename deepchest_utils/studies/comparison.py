"""What notebook 04 and the appendix need: ranks, an explorer of differences, what weights follow."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

from deepchest_utils.notebook.controls import explore
from deepchest_utils.notebook.figures import method_forest
from deepchest_utils.results.labels import method_label, method_order, pretty
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, ITSELF, MIN_PAIRS, judge_differences
from deepchest_utils.studies.replication import ENDPOINT

METRIC_NAMES = {METRICS[name][0]: name for name in BOOTSTRAP_METRICS}
MEANS = {
    "mean of all findings": "macro",
    "mean of all findings but Hernia": ENDPOINT,
    "mean of the common half": "common",
    "mean of the rare half": "rare",
}


def friedman(scores: Float[np.ndarray, "k m"], alpha: float = 0.05) -> tuple[Float[np.ndarray, " m"], float, float]:
    """Are M methods alike over K tasks? Friedman's test with Nemenyi's (Demsar 2006).

    Args:
        scores: (K, M) without NaN, of at least two tasks and three methods; higher is better.

    Returns:
        Average ranks (1 is best, ties share), p that all are alike, and the critical difference: ranks further apart than
        that differ at `alpha`.
    """
    tasks, methods = scores.shape
    if methods < 3 or tasks < 2 or np.isnan(scores).any():
        raise ValueError(f"scores should be at least 2 tasks by 3 methods without NaN. Found {scores.shape}.")
    ranks = stats.rankdata(-scores, axis=1).mean(0)
    # scipy divides 0 by 0 where every task is a tie of all methods: nothing speaks against their being alike
    p = stats.friedmanchisquare(*scores.T).pvalue if np.ptp(scores, axis=1).any() else 1.0
    critical = stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
    return ranks, float(p), float(critical * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def difference_panels(
    summary: pd.DataFrame, metric: str, against: str, tasks: Sequence[str], methods: Sequence[str]
) -> Figure:
    """Differences to the baseline `against`, a panel for each task and a row for each method, on one scale.

    A full marker is significant over all methods of the summary of `compare_methods` (and all its findings), so a smaller
    choice fills no more of them. A method without a difference keeps an empty row.
    """
    rows = summary[(summary.metric == metric) & (summary.baseline == against)]
    rows = rows.assign(family=rows.task.where(rows.task.isin(MEANS.values()), "finding"))
    rows = judge_differences(rows, ["family"])
    seeds = rows.groupby("method").seeds.max().reindex(list(methods))
    few_seeds = {method: f" ({n:.0f} seeds)" for method, n in seeds.items() if n < MIN_PAIRS}
    labels = [method_label(method) + few_seeds.get(method, "") for method in methods]
    across = min(len(tasks), 3)
    down = -(-len(tasks) // across)
    size = 10, 0.5 + down * (0.6 + 0.22 * len(methods))
    fig, axes = plt.subplots(down, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    titles = {name: text.capitalize() for text, name in MEANS.items()}
    for ax, task in zip(axes.flat, tasks, strict=False):
        method_forest(ax, rows[rows.task == task].set_index("method"), methods, "", titles.get(task, pretty(task)))
        ax.set_yticklabels(labels)
    plt.setp(axes.flat[len(tasks) :], visible=False)
    for ax in axes.flat[len(tasks) - across : len(tasks)]:
        ax.tick_params(labelbottom=True)  # the lowest panel of each column, even where the figure goes on below
    # an interval of two seeds is ten times as wide as others, and is cut off
    drawn = rows[rows.task.isin(tasks) & rows.method.isin(methods)]
    enough = drawn.seeds >= MIN_PAIRS
    low = min(drawn.low.where(enough, drawn["mean"]).min(), 0.0)
    high = max(drawn.high.where(enough, drawn["mean"]).max(), 0.0)
    if np.isfinite(high - low) and low < high:
        axes[0, 0].set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    name = METRICS[metric][0] if metric in METRICS else metric
    fig.supxlabel(f"{name} minus that of {method_label(against)}, 95% interval", fontsize=10)
    return fig


def explore_differences(
    summaries: Mapping[str, pd.DataFrame], findings: Sequence[str], chosen: Sequence[str], methods: Sequence[str] = ()
) -> Figure | None:
    """`difference_panels` with controls for the data, the metric, the baseline, tasks and methods.

    Args:
        summaries: Name of the data -> summary as `compare_methods` makes it. The first is shown first; its baselines,
            metrics and tasks are those that can be chosen.
        findings: Those to choose from, beside the means.
        chosen: Tasks that are shown first; the means if the data have none of these.
        methods: Methods that are shown first; all if the data have none of these.
    """
    summary = next(iter(summaries.values()))
    baselines = {method_label(name): name for name in summary.baseline.unique() if name != ITSELF}
    names = {method_label(name): name for name in method_order(summary.method.unique())}
    metrics = [text for text, name in METRIC_NAMES.items() if name in set(summary.metric)]
    tasks = MEANS | {pretty(finding): finding for finding in findings}
    tasks = {text: task for text, task in tasks.items() if task in set(summary.task)}
    default = set(methods) & set(names.values()) or set(names.values())

    def draw(metric: str, baseline: str, findings: list[str], methods: list[str], data: str = "") -> Figure:
        columns, lines = [tasks[text] for text in findings], [names[text] for text in methods]
        return difference_panels(
            summaries[data] if data else summary, METRIC_NAMES[metric], baselines[baseline], columns, lines
        )

    shown = set(chosen) & set(tasks.values()) or set(MEANS.values()) & set(tasks.values())
    is_chosen = {text: task in shown for text, task in tasks.items()}
    is_default = {text: name in default for text, name in names.items()}
    data: dict[str, Any] = {"data": [*summaries]} if len(summaries) > 1 else {}
    return explore(draw, **data, metric=metrics, baseline=[*baselines], findings=is_chosen, methods=is_default)


def rank_correlations(rows: pd.DataFrame, prevalence: pd.Series) -> pd.DataFrame:
    """What weights follow: their rank correlation over findings with prevalence and with difficulty.

    Args:
        rows: The long table of a sweep, with each epoch's weights and AUROC on validation.
        prevalence: In the training split, indexed by finding.

    Returns:
        Columns prevalence and difficulty (1 - AUROC on validation at the end of the epoch), indexed by method and epoch;
        means over seeds, without epochs in which all weights are the same.
    """
    keys = ["cell", "method", "seed", "epoch", "task"]
    weights = rows[(rows.metric == "weight") & rows.task.isin(prevalence.index)].set_index(keys).value
    auroc = rows[(rows.metric == "auroc") & (rows.split == "val")].set_index(keys).value
    joined = pd.DataFrame({"weight": weights, "difficulty": 1 - auroc.reindex(weights.index)}).reset_index()
    joined["prevalence"] = joined.task.map(prevalence)
    found = []
    for (_, method, _, epoch), run in joined.groupby(keys[:-1]):
        if run.weight.std() > 1e-9:
            with_both = [stats.spearmanr(run.weight, run[x], nan_policy="omit").statistic for x in _FOLLOWED]
            found.append((method, epoch, *with_both))
    return pd.DataFrame(found, columns=["method", "epoch", *_FOLLOWED]).groupby(["method", "epoch"]).mean()


_FOLLOWED = ["prevalence", "difficulty"]


def decisions(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    """Whether each weight of a method rose from one epoch to the next: a row a seed and epoch, a column a finding."""
    chosen = rows[(rows.metric == "weight") & (rows.method == method)]
    weights = chosen.pivot(index=["seed", "epoch"], columns="task", values="value")
    return weights.groupby("seed").diff().dropna() > 0


def weight_range(rows: pd.DataFrame) -> pd.Series:
    """Largest over smallest weight in the last epoch, the median over runs, by method; without weights that never move."""
    chosen = rows[rows.metric == "weight"]
    last = chosen[chosen.epoch == chosen.groupby("cell").epoch.transform("max")].groupby(["method", "cell"]).value
    ratio: pd.Series = (last.max() / last.min()).groupby("method").median()
    return ratio[ratio > 1 + 1e-9]
