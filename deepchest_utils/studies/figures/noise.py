"""Notebook 10: scores of seeds out of a sweep's tables, and the pictures of what noise does to a comparison."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from deepchest_utils.notebook.figures import BAND, family_legend, forest_plot, zero_line
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import BLUE, GREY, VERMILION, pretty
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, MARGIN, MIN_PAIRS
from deepchest_utils.results.store import RunTable


def results_table(name: str) -> RunTable:
    """The sweep of this name in data/results, or of this path of a .csv, from the repository's root."""
    return RunTable(PROJECT / (name if name.endswith(".csv") else f"data/results/{name}.csv"))


def run_scores(name: str) -> pd.DataFrame:
    """The macro AUROC of a sweep's runs on test, as `paired_differences` takes them: a row a run."""
    rows = results_table(name).rows
    return rows[(rows.split == "test") & (rows.metric == "auroc") & (rows.task == "macro")]


def seed_scores(name: str) -> pd.DataFrame:
    """`run_scores` with a row a seed and a column a method."""
    return run_scores(name).pivot_table("value", "seed", "method")


def resampled_scores(name: str, method: str) -> tuple[list[str], Float[np.ndarray, "s k"], Float[np.ndarray, "s r k"]]:
    """The findings, and the test AUROC of a method's S networks on all patients and in R resamplings of them.

    Raises:
        ValueError: The sweep has fewer than two such networks, or one without resamplings.
    """
    sweep = results_table(name)
    cells = sweep.cells[(sweep.cells.method == method) & sweep.cells.cell.isin(list(sweep.replicates))].sort_values(
        "seed"
    )
    if len(cells) < 2:
        text = f"two runs or more of {method} with replicates. Found {len(cells)} in {name}: give the table of another sweep"
        raise ValueError(f"table should have {text}.")
    rows = sweep.rows[(sweep.rows.split == "test") & (sweep.rows.metric == "auroc")]
    values = rows.pivot_table("value", "cell", "task", sort=False)
    findings = [task for task in values.columns if task not in ("macro", "worst")]
    samples = np.stack([sweep.replicates[cell][BOOTSTRAP_METRICS.index("auroc")] for cell in cells.cell])
    return findings, values.loc[cells.cell, findings].to_numpy(), samples.astype(float)


def draw_pairs(pairs: pd.DataFrame, xlabel: str) -> Figure:
    """Differences of pairs of networks with their intervals (columns difference, low, high), the smallest at the bottom."""
    pairs = pairs.sort_values("difference")
    fig, ax = plt.subplots(figsize=(7.5, 3.8))
    without_zero = (pairs.low > 0) | (pairs.high < 0)
    height = np.arange(len(pairs))
    for chosen, color, marker, words in (
        (~without_zero, GREY, "o", "interval contains zero"),
        (without_zero, VERMILION, "D", "interval excludes zero"),
    ):
        part = pairs[chosen]
        ax.hlines(height[chosen], part.low, part.high, color=color, linewidth=1.2, alpha=0.8)
        label = f"{words}: {len(part)} of {len(pairs)} pairs"
        ax.plot(part.difference, height[chosen], marker, color=color, markersize=2.5, label=label)
    zero_line(ax)
    ax.set(xlabel=xlabel, ylabel="pairs of networks, sorted", yticks=[])
    ax.legend(fontsize=9, loc="upper left")
    return fig


def draw_seeds(gains: Mapping[str, Float[np.ndarray, " s"]], averages: Mapping[str, Float[np.ndarray, " n"]]) -> Figure:
    """A row a data set: the gain of each seed, the middle 95% of the averages of three seeds, and the mean of all."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.55 * len(gains)))
    for y, (title, gain) in zip(range(len(gains))[::-1], gains.items(), strict=True):
        ends = np.percentile(averages[title], [2.5, 97.5])
        ones = ax.plot(gain, np.full(len(gain), y + 0.14), "|", color=GREY, markersize=9, label="one seed")
        threes = ax.hlines(y - 0.1, *ends, color=BLUE, linewidth=5, alpha=0.6, label="three seeds, 95% of averages")
        mean = ax.plot(gain.mean(), y - 0.1, "D", color=VERMILION, markersize=6, label="all seeds, mean")
    zero_line(ax)
    ax.set_yticks(range(len(gains))[::-1], [*gains])
    ax.set(ylim=(-0.5, len(gains) - 0.2), xlabel="macro AUROC, Hedge minus Equal")
    ax.grid(axis="y", visible=False)
    fig.legend(handles=[*ones, threes, *mean], loc="outside upper center", ncols=3, fontsize=9)
    return fig


def draw_winners(winners: pd.DataFrame) -> Figure:
    """The best method of each seed (columns best, here, elsewhere): by how much it stands out there and in the others."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.45 * len(winners)))
    y = np.arange(len(winners))[::-1]
    ax.hlines(y, winners.elsewhere, winners.here, color=GREY, linewidth=1.5)
    ax.plot(winners.here, y, "D", color=VERMILION, markersize=7, label="on the seed that chose it")
    ax.plot(winners.elsewhere, y, "o", color=BLUE, markersize=7, label="on the other seeds")
    ax.set_yticks(y, [f"seed {seed}: {best}" for seed, best in winners.best.items()])
    ax.set(ylim=(-0.5, len(winners) - 0.5), xlabel="macro AUROC above the mean of all methods")
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=2, fontsize=9)
    return fig


def draw_intervals(table: pd.DataFrame, xlabel: str, verdicts: bool = False) -> Figure:
    """Differences with intervals, a row each under its name, over the band of the margin; full where significant.

    Args:
        table: Of `judge_differences`, with a column color and the names as its index.
        verdicts: Write each row's verdict beside it.
    """
    fig, ax = plt.subplots(figsize=(7.5, 0.8 + 0.29 * len(table)))
    zero_line(ax, MARGIN)
    significant = table.verdict.str.contains("higher|lower")
    forest_plot(ax, table, [*table.index], [*table.color], [*significant])
    ax.tick_params(axis="y", labelsize=9)
    if verdicts:
        for y, row in zip(range(len(table))[::-1], table.itertuples(), strict=True):
            words = f"{row.verdict}; finds {row.smallest:.3f}"
            ax.annotate(words, (1.02, y), xycoords=("axes fraction", "data"), fontsize=9, va="center")
    else:
        family_legend(fig, [], dots=True, margin=MARGIN, loc="outside upper center", ncols=3, fontsize=9)
    ax.set_xlabel(xlabel)
    return fig


def draw_false_alarms(rates: pd.DataFrame) -> Figure:
    """False alarms over those that the level allows, a column for each way to count degrees of freedom, over seeds."""
    fig, ax = plt.subplots(figsize=(6.2, 3))
    for (name, values), color, marker in zip(rates.items(), (VERMILION, BLUE), "Do", strict=True):
        ax.plot(rates.index, values, marker=marker, color=color, label=name)
    ax.axhline(1, color="black", linewidth=1, linestyle=":")
    ax.set(xscale="log", xlabel="seeds", ylabel="false alarms, times the level", ylim=0)
    ax.yaxis.set_major_locator(MultipleLocator(5))
    ax.set_xticks(rates.index, [f"{seeds}" for seeds in rates.index])
    ax.minorticks_off()
    ax.legend(fontsize=9)
    return fig


def draw_training_sets(table: pd.DataFrame, findings: Sequence[str], chosen: str) -> Figure:
    """A panel a finding: the difference with its interval (columns task, title, mean, low, high) in each study, one under
    the other; the study `chosen` in another colour and shape."""
    fig, axes = plt.subplots(1, len(findings), figsize=(9.5, 2.8), sharex=True, sharey=True)
    for ax, finding in zip(axes, findings, strict=True):
        rows = table[table.task == finding]
        first = [title == chosen for title in rows.title]
        colors, markers = [VERMILION if f else BLUE for f in first], ["D" if f else "o" for f in first]
        forest_plot(ax, rows, [*rows.title], colors, None, markers)
        zero_line(ax)
        ax.set_title(pretty(finding))
    axes[0].tick_params(axis="y", labelsize=9)
    fig.supxlabel("AUROC, DeepChest minus Equal, 95% interval", fontsize=10)
    return fig


def draw_published(
    gains: Float[np.ndarray, " n"], over_seeds: Mapping[int, float], seeds: int, real: Mapping[str, float]
) -> Figure:
    """What noise publishes. Left the gains of many studies without an effect, beside real gains; right their mean over
    the number of seeds."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), width_ratios=(3, 2))
    mean, top = gains.mean(), np.quantile(gains, 0.95)
    left.hist(gains, 60, density=True, color=BAND)
    left.axvline(mean, color=VERMILION, linewidth=2.5, label=f"noise, mean {_signed(mean)}")
    left.axvline(top, color=VERMILION, linestyle="--", label=f"noise, one study in 20 has more than {_signed(top)}")
    for (name, value), style in zip(real.items(), ("-", ":"), strict=True):
        left.axvline(value, color=BLUE, linestyle=style, linewidth=1.5, label=f"measured: {name} {_signed(value)}")
    left.set(title="Published by noise", xlabel="best method minus baseline, macro AUROC", yticks=[])
    fig.legend(fontsize=9, loc="outside upper center", ncols=2)
    right.plot([*over_seeds], [*over_seeds.values()], color=GREY)
    right.plot(seeds, mean, "D", color=VERMILION, markersize=7)
    right.axvspan(1, MIN_PAIRS - 1, color=BAND, zorder=0)
    right.annotate("too few", ((1 + MIN_PAIRS - 1) / 2, 0), (0, 4), textcoords="offset points", ha="center", fontsize=8)
    right.set(title="More seeds, less noise", xlabel="seeds a method", ylabel="mean published gain", ylim=0)
    right.set_xticks([1, 5, 10, 15, 20])
    return fig


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
