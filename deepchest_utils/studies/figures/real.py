"""Figures of notebook 08: what an AUROC is worth on these radiographs, methods against Equal, the ladder from the recipe."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import BAND, family_legend, forest_plot, show_radiograph
from deepchest_utils.results.labels import BLACK, BLUE, GREY, VERMILION
from deepchest_utils.results.statistics import MARGIN, is_significant
from deepchest_utils.studies.figures.results import draw_forest, forest_height
from deepchest_utils.studies.real import BLIND, BORDER, NETWORKS


def what_is_seen(image: UInt8[np.ndarray, "h w"]) -> Figure:
    """A radiograph as the encoder, the border and the statistics of grey see it."""
    fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.6))
    show_radiograph(axes[0], image, title="the encoder: all of it")
    border = np.full_like(image, 255)
    for side in (np.s_[:BORDER], np.s_[-BORDER:], np.s_[:, :BORDER], np.s_[:, -BORDER:]):
        border[side] = image[side]
    show_radiograph(axes[1], border, title=f"the border: {BORDER} px on each side")
    axes[2].hist(image.ravel(), bins=32, range=(0, 256), color=GREY)
    axes[2].set(yticks=[], xlabel="grey value")
    axes[2].set_title("the statistics: how bright", fontsize=9, fontweight="normal", loc="center")
    return fig


def draw_networks(ax: Axes, levels: pd.DataFrame) -> None:
    """AUROC of Equal on each of `NETWORKS`: black squares see no anatomy.

    Args:
        levels: Columns method (a name of `NETWORKS`, or words), mean, low and high.
    """
    blind = [name in BLIND for name in levels.method]
    colors, markers = [BLACK if b else BLUE for b in blind], ["s" if b else "o" for b in blind]
    forest_plot(ax, levels, [NETWORKS.get(name, name) for name in levels.method], colors, None, markers)
    ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="macro AUROC of Equal (dotted: chance; black: no anatomy seen)")


def networks(levels: pd.DataFrame) -> Figure:
    """`draw_networks` alone."""
    fig, ax = plt.subplots(figsize=(7.5, 0.9 + 0.3 * len(levels)))
    draw_networks(ax, levels)
    return fig


def frozen(levels: pd.DataFrame, columns: Mapping[str, pd.DataFrame]) -> Figure:
    """Above, `draw_networks`; below, `main_forest` of the methods on the frozen encoder, which has the columns."""
    heights = 0.9 + 0.3 * len(levels), forest_height(columns)
    fig: Figure = plt.figure(figsize=(9, sum(heights)))
    above, below = fig.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_networks(above.subplots(), levels)
    draw_forest(below, columns)
    return fig


def ladder(found: pd.DataFrame) -> Figure:
    """`ladder_table`, a row a rung, the published recipe on top: DeepChest minus Equal in the published measure and in AUROC,
    and what the step from the rung above is worth to Equal, with its AUROC at the right."""
    parts = {metric: found[found.metric == metric] for metric in ("accuracy", "auroc")}
    words = list(parts["auroc"].words)
    fig, axes = plt.subplots(1, 3, figsize=(9, 1.7 + 0.3 * len(words)), sharey=True)
    for ax, (metric, part) in zip(axes, parts.items(), strict=False):
        full = [*is_significant(part.p_holm, part.pairs)]
        forest_plot(ax, part, words, [VERMILION] * len(part), full, ["D"] * len(part))
        ax.set(title="DeepChest minus Equal", xlabel="accuracy at 0.5" if metric == "accuracy" else "macro AUROC")
    axes[1].axvspan(-MARGIN, MARGIN, color=BAND, linewidth=0, zorder=0)  # named for AUROC, not for accuracy
    auroc, style = parts["auroc"], {"va": "center", "fontsize": 8, "color": BLUE}
    steps = auroc[["step", "step_low", "step_high"]].set_axis(["mean", "low", "high"], axis=1)
    forest_plot(axes[2], steps, words, [BLUE] * len(words), None, ["x"] * len(words))
    where: Any = axes[2].get_yaxis_transform()
    for y, level in zip(reversed(range(len(words))), auroc.equal, strict=True):
        axes[2].text(1.03, y, f"{level:.3f}", transform=where, **style)
    axes[2].set(title="Equal minus the rung above", xlabel="macro AUROC (right: its level)")
    for ax in axes:
        ax.axvline(0, color="black", linewidth=1, linestyle=":")
        ax.locator_params(axis="x", nbins=5)
        ax.title.set_size(9)
    family_legend(fig, ["deepchest"], dots=True, margin=MARGIN, loc="outside lower center", ncols=4)
    return fig
