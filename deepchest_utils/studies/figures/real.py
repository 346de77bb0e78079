"""Figures of notebooks 08 and 09: what an AUROC is worth on these radiographs, methods against Equal, the ladder from the
recipe; what moves the needle, data beside weights, losses with weights."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepchest_utils.config import LOSSES
from deepchest_utils.notebook.figures import BAND, family_legend, forest_plot, show_radiograph, zero_line
from deepchest_utils.results.labels import BLACK, BLUE, GREY, VERMILION, family_color, family_marker, method_label
from deepchest_utils.results.statistics import MARGIN, is_significant
from deepchest_utils.studies.figures.results import draw_forest, forest_height
from deepchest_utils.studies.judgement import HEADLINE
from deepchest_utils.studies.levers import KINDS, WEIGHTS, WORDS
from deepchest_utils.studies.real import BLIND, BORDER, NETWORKS

PLACES = {"real radiographs": ("embeddings", "finetuned"), "NIH phantom": ("phantom",)}  # title -> studies of levers
SHARES = {"data_quarter": 1 / 4, "data_half": 1 / 2, "equal": 1.0, "data_4": 4.0}  # of the training images


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
    """AUROC of Equal on each of `NETWORKS`: black squares see no shape in the lungs.

    Args:
        levels: Columns method (a name of `NETWORKS`, or words), mean, low and high.
    """
    blind = [name in BLIND for name in levels.method]
    colors, markers = [BLACK if b else BLUE for b in blind], ["s" if b else "o" for b in blind]
    forest_plot(ax, levels, [NETWORKS.get(name, name) for name in levels.method], colors, None, markers)
    ax.axvline(0.5, color="black", linewidth=1, linestyle=":")
    ax.set(xlabel="macro AUROC of Equal (dotted: chance; black: no shape in the lungs seen)")


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
    auroc, style = parts["auroc"], {"va": "center", "fontsize": 8, "color": BLUE}
    steps = auroc[["step", "step_low", "step_high"]].set_axis(["mean", "low", "high"], axis=1)
    forest_plot(axes[2], steps, words, [BLUE] * len(words), None, ["x"] * len(words))
    where: Any = axes[2].get_yaxis_transform()
    for y, level in zip(reversed(range(len(words))), auroc.equal, strict=True):
        axes[2].text(1.03, y, f"{level:.3f}", transform=where, **style)
    axes[2].set(title="Equal minus the rung above", xlabel="macro AUROC (right: its level)")
    for ax, margin in zip(axes, (None, MARGIN, None), strict=True):  # named for AUROC, not for accuracy
        zero_line(ax, margin)
        ax.locator_params(axis="x", nbins=4)
        ax.title.set_size(9)
    family_legend(fig, ["deepchest"], dots=True, margin=MARGIN, loc="outside lower center", ncols=4)
    return fig


def lever_forest(found: pd.DataFrame) -> Figure:
    """`lever_table` kind by kind, that with the largest change of AUROC on top: AUROC and AP in each of `PLACES` that it has;
    at the right, training time over that of what the lever is compared with."""
    means = found[found.metric == "auroc"].groupby("lever")["mean"].agg(["mean", "min", "max"])
    size = means[["min", "max"]].abs().max(axis=1)
    kinds = {kind: means["mean"].reindex(names).dropna().sort_values(ascending=False) for kind, names in KINDS.items()}
    order = sorted((kind for kind in kinds if len(kinds[kind])), key=lambda kind: -size[kinds[kind].index].max())
    lines = [line for kind in order for line in (kind, *kinds[kind].index)]
    colors = [VERMILION if line in KINDS["Task weights"] else BLUE for line in lines]
    markers = ["D" if line in KINDS["Task weights"] else "o" for line in lines]
    places = [place for place, studies in PLACES.items() if found.study.isin(studies).any()]
    fig, axes = plt.subplots(1, 2 * len(places), figsize=(9.5, 1.6 + 0.19 * len(lines)), sharey=True)
    for ax, (place, metric) in zip(axes, ((p, m) for p in places for m in HEADLINE), strict=True):
        part = found[found.study.isin(PLACES[place]) & (found.metric == metric)].set_index("lever").reindex(lines)
        zero_line(ax, MARGIN)
        full = [*is_significant(part.p_holm, part.pairs)]
        forest_plot(ax, part, [WORDS.get(line, line) for line in lines], colors, full, markers)
        for kind in order:
            ax.axhline(len(lines) - 0.5 - lines.index(kind), color=BAND, linewidth=0.8, zorder=0)
        ax.set_xlabel(HEADLINE[metric])
        ax.locator_params(axis="x", nbins=6 // len(places))
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        if metric == "auroc":
            ax.set_title(place)
            continue
        ax.sharex(axes[[*axes].index(ax) - 1])
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
        for y, cost in zip(reversed(range(len(lines))), part.cost, strict=True):
            ax.text(1.03, y, "" if np.isnan(cost) else f"{cost:.1f} ×" if cost > 0.1 else f"{cost:.1g} ×", **where)
        ax.text(1.03, len(lines), "training\ntime", **where)
    for label, line in zip(axes[0].get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if line in KINDS else "normal")
    fig.suptitle("What moves the needle? One change at a time, minus the same training without it", fontsize=11)
    family_legend(fig, [], dots=True, margin=MARGIN, loc="outside lower center", ncols=3)
    return fig


def data_and_weights(found: pd.DataFrame) -> Figure:
    """Of `lever_table`, each minus Equal as tuned on all training images: fewer or more images, no tuning, and task weights."""
    places = {place: studies[0] for place, studies in PLACES.items() if studies[0] in set(found.study)}
    fig, axes = plt.subplots(1, 2 * len(places), figsize=(9, 3.4), width_ratios=[3, 2] * len(places))
    for left, right, (place, study) in zip(axes[::2], axes[1::2], places.items(), strict=True):
        part = found[(found.study == study) & (found.metric == "auroc")].set_index("lever")[["mean", "low", "high"]]
        beside = {"tuning": (GREY, "s"), **{m: (family_color(m), family_marker(m)) for m in KINDS["Task weights"]}}
        part = part.reindex([*part.index, *(name for name in beside if name not in part.index)])  # one that has not run
        part.loc["equal"] = 0.0
        part.loc["tuning"] = -part.loc["tuning", ["mean", "high", "low"]].to_numpy()  # what there is without it
        shares = {name: np.log2(share) for name, share in SHARES.items() if name in part.index}
        left.plot([*shares.values()], part["mean"][[*shares]], color=BLACK)
        for ax, spots in ((left, shares), (right, {name: x for x, name in enumerate(beside)})):
            zero_line(ax, MARGIN, of_y=True)
            for name, x in spots.items():
                color, marker = beside.get(name, (BLACK, "o"))
                ax.vlines(x, part.low[name], part.high[name], color=color, linewidth=2, alpha=0.75)
                ax.plot(x, part["mean"][name], marker, color=color)
        left.set_xticks([*shares.values()], [f"{SHARES[name]:g} ×" for name in shares])
        words = ["not tuned" if m == "tuning" else method_label(m) for m in beside]
        right.set_xticks(range(len(beside)), words, rotation=30, fontsize=8, ha="right")
        left.set(title=place, xlabel="training images", ylabel="macro AUROC minus tuned Equal's")
        right.set(title="all images", xlim=(-0.5, len(beside) - 0.5))
        right.sharey(left)
    return fig


def losses_and_weights(columns: Mapping[str, pd.DataFrame]) -> Figure:
    """Each loss (rows) with each task weighting (columns), minus cross-entropy with Equal, whose level stands in its cell.

    Args:
        columns: Title -> rows of one metric of `loss_weight_table`. Bold is significant; colours end at twice `MARGIN`.
    """
    fig, axes = plt.subplots(1, len(columns), figsize=(9, 3.6), sharey=True, squeeze=False)
    fig.suptitle(
        "Top left: the level of cross-entropy with Equal. Other cells: minus it; bold is significant.", fontsize=9
    )
    for ax, (title, part) in zip(axes[0], columns.items(), strict=True):
        values = part.pivot(index="loss", columns="weight", values="mean").reindex(index=LOSSES, columns=WEIGHTS)
        ax.imshow(values.fillna(0.0), cmap="PuOr_r", vmin=-2 * MARGIN, vmax=2 * MARGIN, aspect="auto")
        ax.text(0, 0, f"{(part.value - part['mean']).iloc[0]:.3f}", ha="center", va="center", fontsize=8)
        for row in part.itertuples():
            bold = "bold" if is_significant(row.p_holm, row.pairs) else "normal"
            color = "white" if abs(row.mean) > 1.4 * MARGIN else "black"
            words = f"{row.mean:+.4f}\n[{row.low:+.4f}, {row.high:+.4f}]".replace("-", "−")
            place = WEIGHTS.index(row.weight), LOSSES.index(row.loss)
            ax.text(*place, words, ha="center", va="center", fontsize=7, fontweight=bold, color=color)
        ax.set_xticks(range(len(WEIGHTS)), [method_label(name) for name in WEIGHTS])
        ax.set_yticks(range(len(LOSSES)), ["cross-entropy", *(WORDS[name] for name in LOSSES[1:])], fontsize=8)
        ax.set_title(title)
        ax.grid(visible=False)
        ax.tick_params(length=0)
    return fig
