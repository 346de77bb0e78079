"""Figures of notebook 05: heat maps beside their films, their scores beside those of guesses, and a viewer."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure

from deepchest_utils.datasets import ChestXrays
from deepchest_utils.explain import CAM_METHODS, heat_maps
from deepchest_utils.explain.regions import Regions
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.notebook.figures import show_heat_map, show_radiograph, zero_line
from deepchest_utils.results.labels import BLACK, BLUE, GREY, VERMILION, method_color, method_label, pretty
from deepchest_utils.studies.localization import SCORES

Films = UInt8[np.ndarray, "n h w"]
IMAGES = ("with it", "without it", "without any")  # that the viewer goes through
FILM = 1.64  # inches of a film: 180 px at 110 dpi, five of them beside each other in a notebook
SOURCE_STYLE = {  # source of a map -> colour, marker: told apart without colour, too
    "network": (VERMILION, "o"),
    "usual place": (BLUE, "s"),
    "centre": (BLACK, "^"),
    "the region itself": (BLUE, "D"),
    "random": (GREY, "v"),
}


def draw_films(
    images: Films,
    heats: Float[np.ndarray, "n h w"],
    masks: Bool[np.ndarray, "n h w"],
    titles: Sequence[str],
    columns: int = 5,
) -> Figure:
    """N films in grey, and below each its heat map with the outline of the truth; `columns` of them in a row."""
    rows = -(-max(len(images), 1) // columns)
    fig, axes = plt.subplots(2 * rows, columns, figsize=(FILM * columns, (2 * FILM + 0.35) * rows))
    for ax in axes.flat:
        ax.axis("off")
    for i, title in enumerate(titles):
        row, column = divmod(i, columns)
        show_radiograph(axes[2 * row, column], images[i], title=title)
        show_heat_map(axes[2 * row + 1, column], images[i], heats[i], masks[i])
    return fig


def draw_layers(
    image: UInt8[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], heats: Mapping[str, np.ndarray], title: str
) -> Figure:
    """One film with the outline of the truth, and a heat map of it for each source."""
    fig, axes = plt.subplots(2, -(-(len(heats) + 1) // 2), figsize=(FILM * -(-(len(heats) + 1) // 2), 2 * FILM + 0.5))
    for ax in axes.flat:
        ax.axis("off")
    show_radiograph(axes.flat[0], image, mask, title)
    for ax, (name, heat) in zip(axes.flat[1:], heats.items(), strict=False):
        show_heat_map(ax, image, heat, mask, name)
    return fig


def draw_choice(scores: Mapping[str, pd.DataFrame]) -> Figure:
    """Each score of each method (rows) at each layer (columns), a panel a score."""
    fig, axes = plt.subplots(1, len(scores), figsize=(9.5, 3.2), sharey=True, squeeze=False)
    for ax, (score, table) in zip(axes.flat, scores.items(), strict=True):
        values = table.to_numpy(float)
        ax.imshow(values, cmap="cividis", aspect="auto", vmin=0)
        ax.set_xticks(range(len(table.columns)), list(table.columns))
        ax.set_yticks(range(len(table)), [CAM_METHODS[name] for name in table.index])
        ax.set(xlabel="layer", title=f"{SCORES[score]}, validation")
        ax.grid(visible=False)
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < 0.6 * values.max() else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    return fig


def draw_pointing(table: pd.DataFrame, sources: Sequence[str]) -> Figure:
    """Share of hits with its 95% interval, a striped row a finding, a colour and marker a source of maps.

    `table` is `scores_with_intervals` without "macro", in the order of the rows.
    """
    fig, ax = plt.subplots(figsize=(8, 5.4))
    y = np.arange(len(table))[::-1]
    for stripe in y[::2]:
        ax.axhspan(stripe - 0.5, stripe + 0.5, color="#F2F2F2", linewidth=0)
    for i, name in enumerate(sources):
        color, marker = SOURCE_STYLE[name]
        place = y + 0.24 * ((len(sources) - 1) / 2 - i)
        ax.hlines(place, table[f"{name}_low"], table[f"{name}_high"], color=color, linewidth=1.8, alpha=0.75)
        ax.plot(table[name], place, linestyle="none", marker=marker, color=color, markersize=5, label=name)
    ax.set_yticks(y, [pretty(name) for name in table.index])
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.5, len(table) - 0.5))
    ax.set_xlabel("pointing game: share of test images whose maximum lies in the region")
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside upper center", ncols=len(sources))
    return fig


def draw_sanity(scores: Mapping[str, Mapping[str, pd.DataFrame]], chance: Mapping[str, float]) -> Figure:
    """Scores as more and more of the network is shuffled, and at the right those of a network of shuffled labels.

    `scores` has for each score and each map method a table with columns mean, low, high and a row a step, "labels" last;
    `chance` the score of random maps.
    """
    fig, axes = plt.subplots(1, len(scores), figsize=(10, 3.7), sharex=True, squeeze=False)
    markers = {0: (VERMILION, "o"), 1: (BLUE, "s"), 2: (BLACK, "^")}
    for ax, (score, tables) in zip(axes.flat, scores.items(), strict=True):
        for i, (name, table) in enumerate(tables.items()):
            color, marker = markers[i]
            x = np.arange(len(table)) + 0.14 * (i - 1) + 0.4 * (np.arange(len(table)) == len(table) - 1)
            ax.vlines(x, table.low, table.high, color=color, linewidth=1.8, alpha=0.75)
            ax.plot(x[:-1], table["mean"].iloc[:-1], marker=marker, color=color, markersize=5, linewidth=1, label=name)
            ax.plot(x[-1:], table["mean"].iloc[-1:], linestyle="none", marker=marker, color=color, markersize=5)
        ax.axhline(chance[score], color=GREY, linewidth=1.4, linestyle=":", label="random maps")
        ax.axvline(len(table) - 1.3, color=GREY, linewidth=0.8)
        ticks = [*range(len(table) - 1), len(table) - 0.6]
        ax.set_xticks(ticks, list(table.index), rotation=35, ha="right")
        ax.set(title=f"{SCORES[score]}, mean over findings", ylim=(0, None))
    axes[0, 0].set_ylabel("score (95% over patients)")
    axes[0, 0].legend(fontsize=8)
    fig.supxlabel("shuffled so far, from the head down; at the right, trained on shuffled labels", fontsize=9)
    return fig


def draw_perturbation(
    curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    shares: Float[np.ndarray, " s"],
    ends: tuple[float, float],
    prevalence: float,
) -> Figure:
    """Deletion and insertion as a share of the way from the normal chest (0) to the whole image (1).

    Args:
        curves: "deletion" and "insertion", and in each for every order of the pixels the mean curve (S,) and its bootstrap
            replicates (R, S).
        ends: Mean probability of the finding for the normal chest and for the whole image; the scale at the right.
        prevalence: Drawn as a line: below the normal chest, if that looks like a finding.
    """
    normal, whole = ends
    span = whole - normal or 1.0
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.7), sharey=True)
    for ax, (what, orders) in zip(axes, curves.items(), strict=True):
        for name, (mean, samples) in orders.items():
            color, marker = SOURCE_STYLE.get(name, SOURCE_STYLE["network"])
            ax.fill_between(shares, *np.quantile(samples, [0.025, 0.975], axis=0), color=color, alpha=0.2, linewidth=0)
            ax.plot(shares, mean, marker=marker, markersize=4, linewidth=1.3, color=color, label=name)
        ax.axhline((prevalence - normal) / span, color=BLACK, linewidth=1, linestyle=":")
        ax.annotate(
            "prevalence of the findings", (0.99, (prevalence - normal) / span), (0, -11), textcoords="offset points",
            fontsize=8, ha="right",
        )  # fmt: skip
        early = "fall" if what == "deletion" else "rise"
        moved = "replaced" if what == "deletion" else "brought back"
        ax.set(title=f"{what.capitalize()} (an early {early} is good)", xlabel=f"share of the pixels {moved}")
    axes[0].set_ylabel("0: normal chest, 1: whole image")
    axes[0].set_ylim(bottom=min(axes[0].get_ylim()[0], (prevalence - normal) / span - 0.15))  # room for the words
    right = axes[1].secondary_yaxis("right", functions=(lambda v: normal + span * v, lambda p: (p - normal) / span))
    right.set_ylabel("mean probability of the finding")
    axes[0].legend(fontsize=8, loc="upper right")
    return fig


def draw_weighting(macro: pd.DataFrame) -> Figure:
    """Differences of the mean scores to Equal with 95% intervals, a row a score, a colour and marker a method."""
    methods = list(dict.fromkeys(macro.method))
    fig, ax = plt.subplots(figsize=(8, 2.7))
    y = np.arange(len(SCORES))[::-1]
    for i, (method, marker) in enumerate(zip(methods, ("D", "o", "^", "s", "v", "P"), strict=False)):
        rows = macro[macro.method == method].set_index("score").loc[list(SCORES)]
        place = y + 0.24 * ((len(methods) - 1) / 2 - i)
        color = method_color(method)
        ax.hlines(place, rows.low, rows.high, color=color, linewidth=2, alpha=0.75)
        for height, mean, p in zip(place, rows["mean"], rows.p_holm, strict=True):
            face = color if p < 0.05 else "white"
            ax.plot(mean, height, marker=marker, color=color, markerfacecolor=face, markersize=6, linestyle="none")
        ax.plot([], [], marker=marker, color=color, linestyle="none", label=method_label(method))
    ax.plot([], [], marker="o", color=GREY, linestyle="none", label="filled: significant")
    ax.plot([], [], marker="o", color=GREY, markerfacecolor="white", linestyle="none", label="hollow: not significant")
    zero_line(ax)
    ax.set_yticks(y, list(SCORES.values()))
    ax.set(
        ylim=(-0.6, len(SCORES) - 0.4), xlabel="difference to Equal, mean over findings (95% over seeds and patients)"
    )
    ax.grid(axis="y", visible=False)
    fig.legend(loc="outside right center", fontsize=8)
    return fig


def draw_view(
    net: MultiTaskNet, data: ChestXrays, truth: Regions, logits: Float[np.ndarray, "n k"],
    finding: str, images: str, number: int, map_method: str,
) -> Figure:  # fmt: skip
    """The `number`-th image of one of IMAGES, as a film and with the map of a finding; images with a region come first.

    Args:
        data: N images of K findings, which `truth` numbers.
        logits: Of the network, for these images.
        number: From 1; after the last image comes the first.
    """
    task, labels = data.findings.index(finding), data.labels
    having = dict.fromkeys([*truth.rows[truth.tasks == task], *np.flatnonzero(labels[:, task] == 1)])
    lacking, normal = np.flatnonzero(labels[:, task] == 0), np.flatnonzero((labels == 0).all(1))
    chosen = {IMAGES[0]: [*having], IMAGES[1]: [*lacking], IMAGES[2]: [*normal]}[images]
    rows = chosen or [*range(len(labels))]  # all, if there is no such image
    row = int(rows[(number - 1) % len(rows)])
    heat = heat_maps(net, data.images[row : row + 1], [task], map_method).maps[0, 0]
    pairs = np.flatnonzero((truth.rows == row) & (truth.tasks == task))
    mask = truth.masks[pairs[0]] if len(pairs) else None
    there = [pretty(data.findings[k]) for k in np.flatnonzero(labels[row] == 1)]
    fig, axes = plt.subplots(1, 2, figsize=(5.6, 3.2))
    show_radiograph(axes[0], data.images[row], mask, f"has: {', '.join(there) or 'no finding'}")
    probability = 1 / (1 + np.exp(-float(logits[row, task])))
    show_heat_map(axes[1], data.images[row], heat, mask, f"{pretty(finding)}, p = {probability:.2f}")
    fig.supxlabel(
        f"image {(number - 1) % len(rows) + 1} of the {len(chosen):,} {images}; each map shows its own maximum",
        fontsize=9,
    )
    return fig
