"""Notebook 06 and its appendix: the committed benchmark, and the pictures of what a step costs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import forest_plot
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import BLACK, BLUE, GREEN, GREY, SKY, VERMILION, method_family, method_label
from deepchest_utils.results.store import read_results
from deepchest_utils.studies.bench import PLAIN_STEP
from deepchest_utils.studies.bench.parts import TASKS

COMMITTED = PROJECT / "data" / "results" / "bench.csv"
KINDS = {  # what a method touches -> colour and marker
    "losses: K numbers": (BLUE, "o"),
    "features or last layer: one pass": (GREEN, "^"),
    "parameters: a pass for each task": (BLACK, "s"),
}
LINES = {  # methods of the figures over the number of tasks -> colour, line, marker
    PLAIN_STEP: (BLACK, ":", ""),
    "deepchest": (VERMILION, "-", "D"),
    "gradnorm": (GREY, "-", "v"),
    'pcgrad(level="features")': (GREEN, "-", "^"),
    'upgrad(level="features")': (SKY, "-", "o"),
    "pcgrad": (GREEN, "--", "^"),
    "upgrad": (SKY, "--", "o"),
}


def read_bench(table: str | Path = "committed") -> pd.DataFrame:
    """The measurements of `python -m deepchest_utils bench`, with a label of each method.

    Args:
        table: "committed", or a .csv from the repository's root.
    """
    path = COMMITTED if table == "committed" else PROJECT / table
    bench = read_results(path, ["method", "part", "measured", "ratio"], "benchmark", missing_ok=False)
    methods = bench.part.isin(["step", "memory", "flat"]) & (bench.method != PLAIN_STEP)
    labels = [method_label(m) if is_method else m for m, is_method in zip(bench.method, methods, strict=True)]
    return bench.assign(label=labels, num_tasks=bench.num_tasks.astype("Int64"))


def bench_part(bench: pd.DataFrame, name: str, **where: object) -> pd.DataFrame:
    """The rows of one part of the benchmark where columns have these values, without the columns that it does not fill."""
    rows = bench[bench.part == name]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.dropna(axis=1, how="all")


def bench_of_steps(bench: pd.DataFrame) -> pd.DataFrame:
    """The steps of each network, method and number of tasks, without the many rounds of Equal and DeepChest."""
    steps = bench_part(bench, "step")
    return steps[~steps.measured.str.startswith("close")]


def kind_of(row: pd.Series) -> str:
    """What the method of a row of the benchmark touches: a key of KINDS."""
    losses, features, parameters = KINDS
    if row.passes > 1:
        return parameters
    return features if method_family(row.method) == "gradient" else losses


def draw_methods(every: pd.DataFrame) -> Figure:
    """The step of each method over the bare step (columns ratio, low, high, label, kind), sorted."""
    fig, ax = plt.subplots(figsize=(7.5, 1 + 0.2 * len(every)))
    styles = [KINDS[kind] for kind in every.kind]
    table = every.rename(columns={"ratio": "mean"})
    colors, markers = [color for color, _ in styles], [marker for _, marker in styles]
    forest_plot(ax, table, [*every.label], colors, None, markers)
    _ratio_axis(ax, [1, 1.5, 2, 3, 5, 10, 20])
    ax.axvline(1, color="black", linewidth=1, linestyle=":")
    ax.set_xlabel("a training step, times the bare step (median, 95%)")
    for kind, (color, marker) in KINDS.items():
        ax.plot([], [], marker, color=color, label=kind)
    ax.legend(fontsize=9, loc="upper right", title="The method works on the", title_fontsize=9)
    return fig


def draw_over_tasks(steps: pd.DataFrame) -> Figure:
    """A panel a network: the step of the methods of LINES over the bare step, for every number of tasks."""
    steps = steps[~steps.measured.str.startswith("every")]
    networks = ("resnet18_thin", "resnet18", "densenet121")
    fig, axes = plt.subplots(1, len(networks), figsize=(9.5, 3.9), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, networks, strict=True):
        _lines(ax, steps[(steps.backbone == name) & (steps.method != PLAIN_STEP)], "ratio")
        ax.axhline(1, color="black", linewidth=1, linestyle=":")
        ax.set_title(name)
        ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes[0, 0].set_ylabel("a step, times the bare step")
    _legend_of_levels(fig, axes[0, 0])
    return fig


def draw_memory(memory: pd.DataFrame) -> Figure:
    """The peak memory of two steps in MiB for every number of tasks, of one network."""
    fig, ax = plt.subplots(figsize=(6.5, 3.9))
    _lines(ax, memory, "mib")
    ax.set(ylabel="peak memory, MiB")
    ax.set_yticks([500, 1000, 2000, 3000], ["500", "1,000", "2,000", "3,000"])
    _legend_of_levels(fig, ax)
    return fig


def draw_near_the_limit(rows: pd.DataFrame, xlabel: str) -> Figure:
    """Ratios near 1, each with its interval (columns what, ratio, low, high)."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.28 * len(rows)))
    colors = [VERMILION if "DeepChest" in what else BLUE if "step" in what else GREY for what in rows.what]
    markers = ["D" if "DeepChest" in what else "o" if "step" in what else "s" for what in rows.what]
    forest_plot(ax, rows.rename(columns={"ratio": "mean"}), [*rows.what], colors, None, markers)
    ax.axvline(1, color="black", linewidth=1, linestyle=":")
    ax.set_xlabel(xlabel)
    return fig


def draw_frontier(recipes: pd.DataFrame) -> Figure:
    """Each recipe's best validation AUROC so far over the seconds that it took: what can be had by when."""
    fig, ax = plt.subplots(figsize=(7.5, 3.6))
    styles = zip((VERMILION, GREY, BLUE), "Dso", strict=True)
    for (method, rows), (color, marker) in zip(recipes.groupby("method", sort=False), styles, strict=False):
        ax.plot(rows.seconds, rows.auroc, marker, color=color, markersize=4, alpha=0.45)
        best = rows.auroc.cummax()
        ax.step(rows.seconds, best, where="post", color=color, label=method, marker=marker, markevery=[-1])
    _ratio_axis(ax, [5, 10, 20, 50, 100, 200, 500])
    ax.set(xlabel="seconds of training and validation", ylabel="macro AUROC on validation")
    ax.set_title("The best score so far, one run each")
    ax.legend(fontsize=9, loc="lower right")
    return fig


def _lines(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    for method, (color, line, marker) in LINES.items():
        one = rows[rows.method == method].sort_values("num_tasks")
        if len(one):
            label = "bare step" if method == PLAIN_STEP else f"{one.label.iloc[0]}"
            x, y = one.num_tasks.to_numpy(float), one[column].to_numpy(float)
            ax.plot(x, y, line, color=color, marker=marker, markersize=4.5, label=label)
    ax.set(xscale="log", yscale="log", xlabel="tasks K")
    ax.set_xticks(TASKS, [str(k) for k in TASKS])
    ax.minorticks_off()


def _legend_of_levels(fig: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    known = [method_label(m) for m in ("pcgrad", "upgrad")]
    labels = [f"{label} (parameters)" if label in known else label for label in labels]
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, handlelength=3)


def _ratio_axis(ax: Axes, ticks: Sequence[float | int]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
