"""Figures of notebook 07 and its appendix: noise of gradients, the bar, memory, one factor at a time, when weights move."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from deepchest_utils.notebook.figures import zero_line
from deepchest_utils.results.labels import BLUE, GREY, VERMILION, WINE, method_color, method_label, pretty
from deepchest_utils.results.statistics import MARGIN

Points = tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]


def noise(points: Mapping[str, Points], names: Sequence[str]) -> tuple[Figure, dict[str, float]]:
    """Noise of each finding's gradient against what it should be in proportion to, (foretold, measured) by panel.

    Returns:
        The figure, and the correlation of the logarithms in each panel.
    """
    fig, axes = plt.subplots(1, len(points), figsize=(9, 4), squeeze=False)
    fits, halo = {}, [withStroke(linewidth=2, foreground="white")]  # names stay readable over line and grid
    for ax, (title, (x, y)) in zip(axes[0], points.items(), strict=True):
        ax.loglog(x, y, "o", color=WINE, markersize=5)
        fits[title] = float(np.corrcoef(np.log(x), np.log(y))[0, 1])
        ends = np.array([x.min() / 1.6, x.max() * 1.6])
        ax.plot(ends, ends * np.exp(np.log(y / x).mean()), ":", color="black", linewidth=1)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(mpl.ticker.NullFormatter())
        ax.tick_params(labelsize=8)
        ax.set(xmargin=0.25, title=title, xlabel="variance of the residual x squared length of the head")
    axes[0, 0].set_ylabel("noise of the gradient on the trunk")
    fig.draw_without_rendering()  # now the axes have their places
    for ax, (x, y) in zip(axes[0], points.values(), strict=True):
        taken = [Bbox(np.add(at, [[-4], [4]])) for at in ax.transData.transform(np.column_stack([x, y]))]  # the points
        for k in np.argsort(y):
            for right, up in ((-6, 0), (6, 0), (0, 8), (0, -8), (6, -8), (-6, 9)):
                side = "left" if right > 0 else "right" if right else "center"
                where = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 7.5}
                name = ax.annotate(pretty(names[k]), (x[k], y[k]), (right, up), path_effects=halo, **where)
                if up == 9 or not name.get_window_extent().count_overlaps(taken):
                    break  # the first place that covers no point and no other name
                name.remove()
            taken.append(name.get_window_extent())
    return fig, fits


def bar(items: pd.DataFrame, title: str = "") -> Figure:
    """The items of `better_rule_bar`: what was measured, whether it was met, and where the questions end."""
    fig, ax = plt.subplots(figsize=(9, 1.3 + 0.45 * len(items)))
    zero_line(ax, MARGIN)
    for y, (item, row) in zip(range(len(items))[::-1], items.iterrows(), strict=True):
        color = BLUE if row.met else VERMILION
        if np.isfinite(row.get("mean", np.nan)):
            ax.hlines(y, row.low, row.high, color=color, linewidth=2)
            ax.plot(row["mean"], y, "o" if row.met else "X", color=color, markersize=7)
        words = f"{'yes' if row.met else 'no: the questions end here'}\n{row.measured}".replace("-0", "−0")
        ax.text(1.02, y, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8, color=color)
        ax.text(-0.02, y, str(item), transform=ax.get_yaxis_transform(), va="center", ha="right", fontsize=9)
    ax.set(yticks=[], ylim=(-0.6, len(items) - 0.4), xlim=(-0.03, 0.03))
    ax.set_xlabel(f"minus Equal's (95% interval; grey: within ±{MARGIN:g})")
    ax.set_title(title)
    return fig


def memory(left: pd.DataFrame) -> Figure:
    """Loss over that of the constant on the same split, by epoch; columns half, split, epoch and left (a median)."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for ax, half in zip(axes, ("common", "rare"), strict=True):
        for split, line, words in (("train", "-", "training images"), ("val", "--", "validation images")):
            curve = left[(left.half == half) & (left.split == split)]
            ax.plot(curve.epoch, curve.left, line, color=WINE, label=words)
        ax.axhline(1, color="black", linewidth=1, linestyle=":")
        ax.set(title=f"the {half} half of the findings", xlabel="epoch", ylim=(0, 1.6))
    axes[0].set_ylabel("median loss over the constant's\n(on the same split)")
    axes[0].legend(fontsize=8, loc="lower left")
    return fig


def factors(effects: pd.DataFrame, ratios: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """One factor at a time: how weights moved (left), and AUROC minus Equal's on the changed findings and the others.

    Args:
        effects: Judged, with columns factor, changed (bool) and method.
        ratios: A row a method, a column a factor: last weight of the changed findings over that of the others.
        names: Factor -> its name.
    """
    rules = list(ratios.index)
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.6), width_ratios=(1, 1.2, 1.2))
    labels = [f"{word}: {method_label(rule)}" for word in names.values() for rule in rules]
    y = np.arange(len(labels))[::-1]
    moved = [ratios.loc[rule, factor] for factor in names for rule in rules]
    axes[0].plot(moved, y, "D", color=WINE, markersize=5)
    axes[0].axvline(1, color="black", linewidth=1, linestyle=":")
    axes[0].set(xscale="log", title="weights moved", xlabel="weight, changed over others")
    axes[0].xaxis.set_major_locator(mpl.ticker.FixedLocator([0.5, 1, 2]))
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes[0].set_yticks(y, labels, fontsize=8)
    for ax, changed in zip(axes[1:], (True, False), strict=True):
        part = effects[effects.changed == changed].assign(place=lambda rows: rows.factor + rows.method)
        table = part.set_index("place").loc[[factor + rule for factor in names for rule in rules]]
        zero_line(ax, MARGIN)
        ax.set_xlabel("AUROC minus Equal's")
        for row, height in zip(table.itertuples(), y, strict=True):
            ax.hlines(height, row.low, row.high, color=GREY, linewidth=2, alpha=0.75)
            ax.plot(row.mean, height, "o", color=GREY, markersize=5, markerfacecolor="white")
        ax.set(title="the changed findings" if changed else "the others", yticks=[], ylim=axes[0].get_ylim())
    return fig


def when(curves: pd.DataFrame, spread: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Validation AUROC minus Equal's by epoch, for the common and the rare half, and the range of the moving weights.

    `curves` is indexed by (half, epoch), a column a method; `spread` by epoch.
    """
    lines = dict(zip(methods, ("--", ":", "-", "-."), strict=False))
    fig, axes = plt.subplots(1, 3, figsize=(9, 3.2))
    for method, line in lines.items():
        style = {"linestyle": line, "color": method_color(method), "label": method_label(method), "linewidth": 2}
        for ax, half in zip(axes, ("common", "rare"), strict=False):
            ax.plot(curves.loc[half, method] - curves.loc[half, "equal"], **style)
            ax.set(title=f"the {half} half", xlabel="epoch", ylim=(-0.12, 0.08))
            zero_line(ax, of_y=True)
        if method in spread:
            axes[2].plot(spread[method], **style)
    axes[0].set_ylabel("validation AUROC\nminus Equal's")
    axes[2].set(title="largest weight / smallest", xlabel="epoch")
    fig.legend(*axes[0].get_legend_handles_labels(), ncols=2, fontsize=8, handlelength=4, loc="outside lower center")
    return fig
