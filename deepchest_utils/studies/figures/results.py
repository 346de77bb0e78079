"""Figures of notebook 04 and its appendix: methods against Equal, single findings, what weights follow, failing logarithms."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure, FigureBase
from scipy.stats import binom

from deepchest_utils.notebook.figures import (
    BAND,
    difference_heatmap,
    family_legend,
    interval_plot,
    method_forest,
    zero_line,
)
from deepchest_utils.results.labels import (
    BLACK,
    GREY,
    family_color,
    family_marker,
    method_color,
    method_family,
    method_label,
)
from deepchest_utils.results.statistics import MARGIN, is_significant

NEAR = 0.03  # in the first column: methods this near Equal have a scale of their own


def main_forest(columns: Mapping[str, pd.DataFrame]) -> Figure:
    """Each method minus Equal: those near it, and under them those far below, on a scale of their own.

    Args:
        columns: Title -> table of `judge_differences`, a row a method. The first decides on order and blocks.
    """
    fig: Figure = plt.figure(figsize=(9, forest_height(columns)))
    draw_forest(fig, columns)
    return fig


def forest_height(columns: Mapping[str, pd.DataFrame]) -> float:
    """Of `main_forest`, in inches."""
    first = next(iter(columns.values()))["mean"]
    return 1.3 + 0.21 * len(first) + (0.7 if len(columns) < 3 else 0.95) * len(set(first > -NEAR))


def draw_forest(fig: FigureBase, columns: Mapping[str, pd.DataFrame]) -> None:
    """Draw `main_forest` into a figure, or into a part of one."""
    tables = {title: table.set_index("method") for title, table in columns.items()}
    first = next(iter(tables.values())).sort_values("mean", ascending=False)["mean"]
    blocks = [list(first.index[near]) for near in (first > -NEAR, first <= -NEAR) if near.any()]
    options: dict[str, Any] = {"sharex": "row", "sharey": "row", "height_ratios": [len(b) + 1 for b in blocks]}
    axes = fig.subplots(len(blocks), len(tables), squeeze=False, **options)
    for row, methods in zip(axes, blocks, strict=True):
        for ax, (title, table) in zip(row, tables.items(), strict=True):
            label = f"{title} minus Equal's" if len(tables) < 3 else title.replace(", ", "\n") + "\nminus Equal's"
            method_forest(ax, table, methods, label, fontsize=None if len(tables) < 3 else 8.0)
            ax.locator_params(axis="x", nbins=5 if len(tables) < 3 else 3)
        near = first[methods[0]] > -NEAR
        row[0].set_title(f"first column above -{NEAR:g}" if near else f"first column below -{NEAR:g}, on another scale")
    family_legend(
        fig, {*map(method_family, first.index)}, dots=True, margin=MARGIN, loc="outside lower center", ncols=4
    )


def two_halves(
    tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], names: Sequence[str], findings: Sequence[str], xlabel: str
) -> Figure:
    """A method minus Equal by finding, in two studies or halves of one; a column each title -> two judged tables."""
    size = (9, 1.3 + 0.3 * len(findings))
    fig, axes = plt.subplots(1, len(tables), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, (title, pair) in zip(axes[0], tables.items(), strict=True):
        parts = [table.set_index("task").loc[list(findings)] for table in pair]
        values = [part[["mean", "low", "high"]] for part in parts]
        table = pd.concat(values, axis=1).set_axis(["a", "a_low", "a_high", "b", "b_low", "b_high"], axis=1)
        zero_line(ax, MARGIN)
        interval_plot(ax, table, [("a", names[0], BLACK), ("b", names[1], GREY)])
        for line, part, marker in zip(ax.lines[-2:], parts, "os", strict=True):
            line.set_marker(marker)
            style = {"mec": line.get_color(), "mfc": "white", "markersize": line.get_markersize()}
            ax.plot(*line.get_data(), marker, markevery=~is_significant(part.p_holm, part.pairs), **style)
        ax.set_title(title)
    fig.supxlabel(f"{xlabel} (95% interval; grey band: within ±{MARGIN:g})", fontsize=9)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside upper center")
    return fig


def weights_follow(correlations: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Rank correlation of the weights with prevalence and with difficulty by epoch; indexed by (method, epoch)."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for ax, name in zip(axes, ("prevalence", "difficulty"), strict=True):
        for i, method in enumerate(methods):
            line = "--" if method_family(method) == "control" else ("-", "-.", (0, (6, 1)), ":")[i % 4]
            style = {"linestyle": line, "color": method_color(method), "label": method_label(method), "linewidth": 2}
            ax.plot(correlations.loc[method, name], **style)
        zero_line(ax, of_y=True)
        ax.set(xlabel="epoch", title=f"Weights and {name}", ylim=(-1.05, 1.05))
    axes[0].set_ylabel("rank correlation over findings")
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, handlelength=4, loc="outside lower center")
    return fig


def expected_losses(p: float, batch: int, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a constant probability q for a finding of prevalence p: the mean over batches of the loss and of its logarithm.

    Args:
        log_q: (Q,) natural logarithms of q, below 0.
    """
    count = np.arange(batch + 1)
    absent = np.where(log_q < -30, np.exp(log_q), -np.log1p(-np.exp(log_q)))  # loss of an image without the finding
    loss = (np.outer(-log_q, count) + np.outer(absent, batch - count)) / batch
    log = np.log(np.maximum(loss, 1e-300))
    log[:, 0] = np.where(log_q < -30, log_q, np.log(np.maximum(absent, 1e-300)))  # where exp(log_q) is 0 in 64 bits
    chance = binom.pmf(count, batch, p)
    return loss @ chance, log @ chance


def log_loss(prevalences: Sequence[float], batch: int = 64) -> Figure:
    """What a loss and its logarithm make of a constant probability: q = p (dots), minima and cliffs."""
    log_q = np.linspace(-110, np.log(0.5), 4000)
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    colors = plt.get_cmap("viridis_r")(np.linspace(0.2, 1, len(prevalences)))
    for p, color in zip(prevalences, colors, strict=True):
        for ax, curve in zip(axes, expected_losses(p, batch, log_q), strict=True):
            ax.plot(log_q / np.log(10), curve, color=color, label=f"p = {p:g}")
            ax.plot(np.log10(p), np.interp(np.log(p), log_q, curve), "o", color=color, markersize=5)
    axes[0].set(yscale="log", title="Mean of $L$: one minimum, at $q = p$", ylabel="expected over batches")
    axes[1].set(title="Mean of $\\log L$: a cliff on the left", ylim=(-14, 2.5))
    for ax in axes:
        ax.set_xlabel("$\\log_{10} q$ (dot: $q = p$)")
    axes[0].legend(fontsize=8)
    return fig


def finding_heatmaps(table: pd.DataFrame, methods: Sequence[str], findings: Sequence[str]) -> Figure:
    """AUROC minus Equal's by method and finding, methods near Equal and those far below in colours of their own.

    `table` is of `judge_differences`; a dot marks a significant cell.
    """
    values = table.pivot(index="method", columns="task", values="mean").loc[list(methods), list(findings)]
    dots = table.assign(dot=is_significant(table.p_holm, table.seeds)).pivot(
        index="method", columns="task", values="dot"
    )
    near = values.mean(axis=1) > -NEAR
    blocks = [values.index[part] for part in (near, ~near) if part.any()]
    fig: Figure
    options: dict[str, Any] = {"height_ratios": [len(b) + 1 for b in blocks], "squeeze": False, "sharex": True}
    fig, axes = plt.subplots(len(blocks), 1, figsize=(9, 1.8 + 0.27 * len(values)), **options)
    for ax, names in zip(axes[:, 0], blocks, strict=True):
        limit = 0.1 if near[names[0]] else float(np.nanquantile(values.loc[names].abs(), 0.95))
        labels = [method_label(name) for name in names]
        difference_heatmap(ax, values.loc[names], dots.loc[names, list(findings)], limit, labels)
        words = f"mean above -{NEAR:g}" if near[names[0]] else f"mean below -{NEAR:g}, in other colours"
        ax.set_title(words if len(blocks) > 1 else "")
        ax.figure.axes[-1].set_ylabel("AUROC minus Equal's", fontsize=8)
        full = dots.loc[names, list(findings)].to_numpy()
        for y, name in enumerate(names):
            for x, value in enumerate(values.loc[name]):
                if name in ("deepchest", "prevalence_oracle") or abs(value) > limit:  # as far as the colours go
                    dark = value > 0.75 * limit or value < -0.5 * limit  # blue darkens sooner than orange
                    style = {"color": "white" if dark else "black", "fontsize": 7}
                    place = (x + 0.5, y + (0.82 if full[y, x] else 0.5))  # below a dot
                    ax.text(*place, f"{value:+.2f}".replace("-", "−"), ha="center", va="center", **style)
    return fig


def rank_plot(ranks: pd.Series, critical: float, findings: int) -> Figure:
    """Average rank of each method over findings; the band holds those that do not differ from the first."""
    fig, ax = plt.subplots(figsize=(8, 1.1 + 0.22 * len(ranks)))
    ax.axvspan(ranks.iloc[0], ranks.iloc[0] + critical, color=BAND, linewidth=0)
    for y, (method, rank) in enumerate(ranks[::-1].items()):
        ax.plot(rank, y, family_marker(str(method)), color=family_color(str(method)))
    ax.set_yticks(range(len(ranks))[::-1], [method_label(str(m)) for m in ranks.index], fontsize=8)
    ax.set_xlabel(f"average rank over {findings} findings, 1 is best (grey: within the critical difference)")
    ax.grid(axis="y", visible=False)
    family_legend(ax, {method_family(str(method)) for method in ranks.index}, loc="lower left")
    return fig


def forests(tables: Mapping[str, pd.DataFrame], methods: Sequence[str], xlabel: str) -> Figure:
    """`method_forest` of several judged tables side by side, the same methods in each; title -> table."""
    size = (9, 1.7 + 0.23 * len(methods))
    fig, axes = plt.subplots(1, len(tables), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        method_forest(ax, table.set_index("method"), methods, "", title)
        ax.locator_params(axis="x", nbins=4)
    fig.supxlabel(xlabel, fontsize=9)
    families = {method_family(method) for method in methods}
    family_legend(fig, families, dots=True, margin=MARGIN, loc="outside upper center", ncols=4)
    return fig
