"""Figures of the study's tables: what tuning is worth, regimes, and longer training."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from deepchest_utils.notebook.figures import BAND, family_legend, method_forest
from deepchest_utils.results.labels import BLACK, GREY, family_color, family_marker, method_family, method_label
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import MARGIN


def expected_best(
    curves: pd.DataFrame, named: Sequence[str], ylabel: str = "expected best macro AUROC on validation"
) -> Figure:
    """`tuning_curves`: a line a method over the number of settings; those of `named` in colour, with names at their ends."""
    fig, ax = plt.subplots(figsize=(8, 4.2))
    for method in curves.index.difference(list(named), sort=False):
        ax.plot(curves.columns, curves.loc[method], color=GREY, linewidth=0.8, alpha=0.5)
    ends = curves.loc[list(named)].iloc[:, -1].sort_values()
    steps = 0.04 * np.ptp(curves.to_numpy()) * np.arange(len(ends))  # names stand apart, near their ends
    places = isotonic_regression(ends.to_numpy() - steps).x + steps
    for (method, end), place in zip(ends.items(), places, strict=True):
        color = BLACK if method == "equal" else family_color(str(method))
        ax.plot(
            curves.columns, curves.loc[method], family_marker(str(method)), color=color, linestyle="-", markersize=5
        )
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
    right.axhspan(-MARGIN, MARGIN, color=BAND, linewidth=0, zorder=0)
    right.axhline(0, color="black", linewidth=1, linestyle=":")
    for i, method in enumerate(methods):
        part = differences[differences.method == method].sort_values("epochs")
        x = [sizes.index(epochs) + 0.12 * (i - (len(methods) - 1) / 2) for epochs in part.epochs]
        right.vlines(x, part.low, part.high, color=family_color(method), linewidth=2, alpha=0.75)
        for place, row in zip(x, part.itertuples(), strict=True):
            full = row.verdict.startswith(("higher", "lower"))
            face = family_color(method) if full else "white"
            right.plot(place, row.mean, family_marker(method), color=family_color(method), markerfacecolor=face)
    right.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    title = f"At the end (full: significant, grey: ±{MARGIN:g})"
    right.set(xlabel="length of training, epochs", ylabel="macro AUROC minus Equal's", title=title)
    right.grid(axis="x", visible=False)
    handles = []
    for method in ["equal", *methods]:
        color = BLACK if method == "equal" else family_color(method)
        handles.append(mpl.lines.Line2D([], [], label=method_label(method), color=color, marker=family_marker(method)))
    fig.legend(handles=handles, fontsize=8, ncols=5, loc="outside lower center")
    return fig


def weight_spread(spread: pd.Series, differences: pd.Series, named: float = -0.05) -> Figure:
    """Each method's difference to Equal over the ratio of its largest to its smallest weight; both indexed by method.

    Methods below `named` have their name; those above it lie too close together.
    """
    fig, ax = plt.subplots(figsize=(9, 4.4))
    ax.axhspan(-MARGIN, MARGIN, color=BAND, linewidth=0, zorder=0)
    ax.axhline(0, color="black", linewidth=1, linestyle=":")
    methods = [method for method in spread.sort_values().index if method in differences.index]
    for method, after in zip_longest(methods, methods[1:]):
        place = spread[method], differences[method]
        ax.plot(*place, family_marker(method), color=family_color(method), markersize=6)
        if place[1] < named:
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
