"""Figures of the study's tables: what tuning is worth, regimes, longer training; and of the study of sharing."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats
from scipy.optimize import isotonic_regression

from deepchest_utils.notebook.figures import difference_heatmap, family_legend, forest_plot, method_forest, zero_line
from deepchest_utils.results.labels import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    family_color,
    family_marker,
    method_family,
    method_label,
    pretty,
)
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import MARGIN, is_significant
from deepchest_utils.studies.sharing import EQUAL_SIZE, FULL_SIZE


def expected_best(
    curves: pd.DataFrame, named: Sequence[str], ylabel: str = "expected best macro AUROC on validation"
) -> Figure:
    """`tuning_curves`: a line a method over the number of settings; those of `named` have colours and names, the first on top."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for method in curves.index.difference(list(named), sort=False):
        ax.plot(curves.columns, curves.loc[method], color=GREY, linewidth=0.8, alpha=0.5)
    ends = curves.loc[list(named)].iloc[:, -1].sort_values()
    steps = 0.04 * np.ptp(curves.to_numpy()) * np.arange(len(ends))  # names stand apart, near their ends
    places = isotonic_regression(ends.to_numpy() - steps).x + steps
    for (method, end), place in zip(ends.items(), places, strict=True):
        color = BLACK if method == "equal" else family_color(str(method))
        line, order = family_marker(str(method)) + "-", 3 - 0.1 * list(named).index(str(method))
        ax.plot(curves.columns, curves.loc[method], line, color=color, markersize=5, zorder=order)
        text: dict[str, Any] = {"color": color, "fontsize": 8, "va": "center", "annotation_clip": False}
        ax.annotate(method_label(str(method)), (curves.columns[-1], end), (curves.columns[-1] * 1.08, place), **text)
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(curves.columns), [str(count) for count in curves.columns])
    ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    ax.set(xlabel="settings tried", ylabel=ylabel)
    return fig


def regimes(table: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """`regime_table`: a column a regime, a row a metric, each method minus Equal; one scale a metric. A metric that a regime
    lacks leaves a gap."""
    titles, metrics = list(table.regime.unique()), list(table.metric.unique())
    size = (9, 1.6 + len(metrics) * (0.6 + 0.22 * len(methods)))
    fig, axes = plt.subplots(len(metrics), len(titles), figsize=size, sharex="row", sharey=True, squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        name = "F1 at 0.5" if metric == "f1_at_half" else METRICS[metric][0]
        for ax, title in zip(row, titles, strict=True):
            part = table[(table.metric == metric) & (table.regime == title)].set_index("method")
            if part.empty:
                ax.set_visible(False)
                continue
            margin = None if metric == "f1_at_half" else MARGIN  # named for AUROC and AP alone
            label = f"{name} minus Equal's" if title == titles[len(titles) // 2] else ""
            method_forest(
                ax, part, methods, label, title.replace(", ", ",\n") if metric == metrics[0] else "", 8.0, margin
            )
            ax.locator_params(axis="x", nbins=3)
            ax.title.set_size(8.5)
    families = {method_family(method) for method in methods}
    family_legend(fig, families, dots=True, margin=MARGIN, loc="outside lower center", ncols=4)
    return fig


def lengths(curves: pd.DataFrame, differences: pd.DataFrame) -> Figure:
    """Longer training: validation by epoch for each length (left), each method minus Equal by length (right).

    Args:
        curves: Columns method, epochs (the length), epoch and value.
        differences: Judged, with columns method and epochs.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    for (method, _), part in curves.groupby(["method", "epochs"], sort=False):
        color = BLACK if method == "equal" else family_color(method)
        width = 1.8 if method in ("equal", "deepchest") else 0.7
        left.plot(part.epoch, part.value, color=color, linewidth=width, alpha=0.8)
        left.plot(part.epoch.iloc[-1], part.value.iloc[-1], family_marker(method), color=color, markersize=5)
    methods, sizes = list(differences.method.unique()), sorted(differences.epochs.unique())
    left.set(xlabel="epoch", ylabel="macro AUROC on validation", title="A line for each length", xscale="log")
    left.set_xticks([3, 6, 12, *sizes], [str(epoch) for epoch in (3, 6, 12, *sizes)])
    left.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    zero_line(right, MARGIN, of_y=True)
    for i, method in enumerate(methods):
        part = differences[differences.method == method].sort_values("epochs")
        x = [sizes.index(epochs) + 0.12 * (i - (len(methods) - 1) / 2) for epochs in part.epochs]
        right.vlines(x, part.low, part.high, color=family_color(method), linewidth=2, alpha=0.75)
        for place, row in zip(x, part.itertuples(), strict=True):
            full = row.verdict.startswith(("higher", "lower"))
            face = family_color(method) if full else "white"
            right.plot(place, row.mean, family_marker(method), color=family_color(method), markerfacecolor=face)
    right.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    title = f"At the end (filled: significant, grey: ±{MARGIN:g})"
    right.set(xlabel="length of training, epochs", ylabel="macro AUROC minus Equal's", title=title)
    right.grid(axis="x", visible=False)
    handles = []
    for method in ["equal", *methods]:
        color = BLACK if method == "equal" else family_color(method)
        handles.append(mpl.lines.Line2D([], [], label=method_label(method), color=color, marker=family_marker(method)))
    fig.legend(handles=handles, fontsize=8, ncols=5, loc="outside lower center")
    return fig


def weight_spread(spread: pd.Series, differences: pd.Series) -> Figure:
    """Each method's difference to Equal over the ratio of its largest to its smallest weight; both indexed by method.

    Methods below -0.05 have their name; those above it lie too close together.
    """
    fig, ax = plt.subplots(figsize=(9, 4.4))
    zero_line(ax, MARGIN, of_y=True)
    methods = [method for method in spread.sort_values().index if method in differences.index]
    for method, after in zip_longest(methods, methods[1:]):
        place = spread[method], differences[method]
        ax.plot(*place, family_marker(method), color=family_color(method), markersize=6)
        if place[1] < -0.05:
            crowded = after and spread[after] < 3 * place[0] and abs(differences[after] - place[1]) < 0.02
            style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "va": "center"}
            style |= {"xytext": (-6, 0), "ha": "right"} if crowded else {"xytext": (6, 0)}
            ax.annotate(method_label(method), place, **style)
    ax.set(xscale="log", xlabel="largest / smallest weight in the last epoch", ylabel="macro AUROC minus Equal's")
    ax.margins(x=0.12)
    family_legend(
        fig, {method_family(method) for method in methods}, margin=MARGIN, loc="outside lower center", ncols=4
    )
    return fig


def shared_and_single(levels: pd.DataFrame, judged: pd.DataFrame) -> Figure:
    """Left the AUROC of both arms of equal size over training images, right `compare_sharing` in AUROC and AP.

    Args:
        levels: Of `paired_differences` without a baseline, from the same rows as `judged`.
    """
    fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.3), width_ratios=[1.1, 1, 1])
    part = levels[(levels.kind == EQUAL_SIZE) & (levels.metric == "auroc")]
    for method, color, marker in (("shared", BLUE, "o"), ("single", VERMILION, "D")):
        line = part[part.method == method].sort_values("num_train")
        axes[0].plot(line.num_train, line["mean"], color=color, marker=marker, label=method)
        axes[0].vlines(line.num_train, line.low, line.high, color=color, linewidth=2, alpha=0.75)
    axes[0].set_xscale("log")
    sizes = sorted(part.num_train.unique())
    axes[0].set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes[0].xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes[0].set(xlabel="training images", ylabel="macro AUROC", title="together as large")
    axes[0].legend(fontsize=8)
    for ax, metric in zip(axes[1:], ("auroc", "average_precision"), strict=True):
        rows = judged[judged.metric == metric]
        words = {EQUAL_SIZE: "", FULL_SIZE: "\nfull width"}
        names = [f"{row.num_train:,}{words.get(row.kind, chr(10) + row.kind)}" for row in rows.itertuples()]
        zero_line(ax, MARGIN)
        forest_plot(ax, rows, names, [BLUE] * len(rows), [*is_significant(rows.p_holm, rows.pairs)])
        ax.set(xlabel=f"macro {METRICS[metric][0]}", title="shared minus single")
        ax.locator_params(axis="x", nbins=4)
    axes[2].set_yticklabels([])
    family_legend(fig, [], dots=True, margin=MARGIN, loc="outside lower center", ncols=3)
    return fig


def transfer_matrices(matrices: Mapping[str, Float[np.ndarray, "k k"]], findings: Sequence[str]) -> Figure:
    """Four matrices of a finding (row) and its partner (column), each in colours of its own, which end at the largest of
    nine tenths of the entries; a dot is the largest entry of a row."""
    fig, axes = plt.subplots(2, 2, figsize=(9.5, 8.4), sharex=True, sharey=True)
    for ax, (title, matrix) in zip(axes.flat, matrices.items(), strict=True):
        values = pd.DataFrame(matrix, findings, findings)
        dots = values.eq(values.max(axis=1), axis=0)
        difference_heatmap(ax, values, dots, float(np.nanquantile(np.abs(matrix), 0.9)), [pretty(f) for f in findings])
        ax.set_title(title)
    axes[0, 0].set_ylabel("finding")
    axes[1, 0].set_ylabel("finding")
    return fig


def partners(
    transfer: Float[np.ndarray, "k k"], predictors: Mapping[str, Float[np.ndarray, "k k"]], judged: pd.DataFrame
) -> Figure:
    """What each finding gains from each partner, beside its mean over partners, in the order in which a predictor puts them;
    in blue the mean over findings. A panel a row of `judge_predictors`."""
    fig, axes = plt.subplots(1, len(judged), figsize=(9.5, 3.2), sharey=True)
    for ax, row in zip(axes, judged.itertuples(), strict=True):
        values = predictors[row.predictor]
        known = np.flatnonzero(~np.isnan(values).all(1))  # a finding whose gradient has no signal has no cosine
        order, gain = stats.rankdata(values[known], axis=1, nan_policy="omit"), transfer[known]
        gain = np.where(np.isnan(order), np.nan, gain)
        points = pd.DataFrame({"x": order.ravel(), "y": (gain - np.nanmean(gain, axis=1, keepdims=True)).ravel()})
        ax.plot(points.x, points.y, "o", color=GREY, markersize=3, alpha=0.6)
        ax.plot(points.groupby("x").y.mean(), color=BLUE, marker="o", markersize=4)
        zero_line(ax, of_y=True)
        words = f"agreement {row.agreement:+.2f}, p {row.p_holm:.2g}".replace("-", "−")
        ax.set(
            title=f"{row.predictor}\n{words}",
            xlabel="partners of a finding, lowest first",
            xticks=range(2, len(transfer), 2),
        )
    axes[0].set_ylabel("AUROC gained, minus the finding's mean")
    return fig
