"""Figures of notebook 01: the network, the findings, how often they occur, which occur together, what accuracy says."""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import chi2, poisson

from deepchest_utils.datasets import Splits
from deepchest_utils.datasets.findings import FINDINGS, NIH_COOCCURRENCE, NIH_IMAGES, NIH_PREVALENCE
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.notebook.figures import show_radiograph
from deepchest_utils.results.labels import BLUE, GREY, VERMILION, pretty
from deepchest_utils.results.statistics import ALPHA, holm

Counts = Float[np.ndarray, "k k"]


def draw_network(findings: Sequence[str], image: UInt8[np.ndarray, "h w"] | None = None) -> Figure:
    """Image, shared trunk, a head and a loss for each of K findings, and where their weights act.

    Args:
        findings: All K names; the first two and the last are drawn.
        image: Shown at the left, 0 black and 255 white; None leaves a plain box.
    """
    fig, ax = plt.subplots(figsize=(10, 4.1))
    ax.set(xlim=(0, 10.4), ylim=(-1.0, 3.3), aspect="equal")
    ax.axis("off")
    if image is None:
        ax.add_patch(FancyBboxPatch((0.2, 0.95), 1.3, 1.3, "square,pad=0", facecolor="#333333"))
    else:
        ax.imshow(image, vmin=0, vmax=255, extent=(0.2, 1.5, 0.95, 2.25), zorder=1)
        ax.set(xlim=(0, 10.4), ylim=(-1.0, 3.3))
    ax.text(0.85, 0.78, "image", ha="center", va="top")
    ax.add_patch(Polygon([(1.95, 0.5), (1.95, 2.7), (3.55, 2.15), (3.55, 1.05)], facecolor="#DCE9F2", edgecolor=BLUE))
    ax.text(2.72, 1.6, "shared trunk", ha="center", va="center", color=BLUE)
    ax.add_patch(FancyBboxPatch((3.9, 1.0), 0.12, 1.2, "square,pad=0", facecolor=BLUE, edgecolor=BLUE))
    ax.text(3.96, 0.88, "features", ha="center", va="top", color=BLUE)
    for start, end in ((1.55, 1.9), (3.6, 3.85)):
        _arrow(ax, (start, 1.6), (end, 1.6))
    rows = [(2.75, "1", findings[0]), (1.85, "2", findings[min(1, len(findings) - 1)]), (0.45, "K", findings[-1])]
    for y, number, finding in rows:
        _arrow(ax, (4.07, 1.6), (4.75, y))
        _box(ax, 4.8, y, 1.75, f"head: {pretty(finding)}", "#F1F1F1", GREY)
        _arrow(ax, (6.6, y), (6.95, y))
        _box(ax, 7.0, y, 0.75, f"loss $L_{{{number}}}$", "#F1F1F1", GREY)
        _arrow(ax, (7.8, y), (8.12, y))
        ax.text(8.38, y, rf"$\times\,w_{{{number}}}$", ha="center", va="center", color=VERMILION, fontsize=13)
        _arrow(ax, (8.65, y), (9.2, 1.6 + 0.12 * (y - 1.6)))
    for x in (5.67, 7.37, 8.38):
        ax.text(x, 1.13, "⋮", ha="center", va="center", fontsize=14)
    ax.text(9.75, 1.6, r"$\sum_k w_k L_k$", ha="center", va="center", fontsize=13)
    ax.plot([9.75, 9.75, 2.75], [1.25, -0.35, -0.35], "--", color=VERMILION)
    back = {
        "arrowstyle": "-|>",
        "linestyle": "--",
        "color": VERMILION,
        "mutation_scale": 14,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", (2.75, 0.78), (2.75, -0.37), arrowprops=back)
    words = r"backwards: each task pulls the trunk by $w_k \nabla L_k$. Here a task weight acts."
    ax.text(6.25, -0.45, words, ha="center", va="top", color=VERMILION)
    return fig


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0})


def _box(ax: Axes, x: float, y: float, width: float, text: str, face: str, edge: str) -> None:
    ax.add_patch(FancyBboxPatch((x, y - 0.2), width, 0.4, "round,pad=0.03", facecolor=face, edgecolor=edge))
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=9)


def draw_montage(data: Splits, seed: int = 0) -> Figure:
    """Of each finding a test image with that finding alone, and two without any.

    Of a phantom split by patient, they have the strongest sign, and are drawn again at 128 px with the outline of the truth;
    of other data each is the first. Findings that never occur alone are left out. `seed` is that of the data.
    """
    labels = data.test.labels
    alone = (np.nansum(labels, axis=1) == 1)[:, None] & (labels == 1)
    rows = {name: np.flatnonzero(alone[:, k]) for k, name in enumerate(data.findings)}
    redrawn = data.name == "phantom" and data.split == "patient"  # else the images are of several populations
    truth = phantom_of(seed, "test", len(data.test), **data.population) if redrawn else None
    if truth is not None:
        rows = {name: r[np.argsort(-truth.strengths[r, k])] for k, (name, r) in enumerate(rows.items())}
    chosen = [(pretty(name), r[0]) for name, r in rows.items() if len(r)]
    chosen += [("no finding", row) for row in np.flatnonzero((labels == 0).all(1))[:2]]
    index = np.array([row for _, row in chosen], int)
    pictures = truth.render(128, index) if truth else data.test.images[index]
    masks = truth.masks(128, index) if truth else None
    fig, axes = plt.subplots(-(-max(len(chosen), 1) // 4), 4, figsize=(7.6, 2.1 * -(-max(len(chosen), 1) // 4)))
    for ax in axes.flat:
        ax.axis("off")
    for i, (ax, (name, _), picture) in enumerate(zip(axes.flat, chosen, pictures, strict=False)):
        show_radiograph(ax, picture, None if masks is None else masks[i].any(0), name)
    return fig


def draw_prevalence(prevalence: Float[np.ndarray, " k"], findings: Sequence[str], name: str) -> Figure:
    """The share of positives of each of K findings, rarest at the bottom, beside NIH's where NIH has the finding."""
    order = np.argsort(prevalence)
    nih = np.array([NIH_PREVALENCE.get(finding, np.nan) for finding in findings])
    fig, ax = plt.subplots(figsize=(7.6, 3.9))
    y = np.arange(len(order))
    ax.plot(100 * nih[order], y, "|", color="black", markersize=13, markeredgewidth=2, label="NIH, 112,120 images")
    ax.plot(100 * prevalence[order], y, "o", color=BLUE, markersize=6.5, label=f"{name}, train")
    ax.set_yticks(y, [pretty(findings[i]) for i in order])
    ax.set(xscale="log", xlabel="prevalence (% of the images, log scale)")
    ax.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.legend(loc="lower right")
    return fig


def pair_table(together: Counts, expected: Counts, findings: Sequence[str]) -> pd.DataFrame:
    """The lift of each pair of K findings, the most convincing first.

    Args:
        together: Images with both findings of a pair, (K, K).
        expected: The same if the two were independent.

    Returns:
        A row a pair, named "A, B": its two numbers (a, b), images, expected, lift with an exact 95% Poisson interval (low,
        high), and p_holm, two-sided, corrected over all pairs. With NIH's findings, "lift in NIH" as well.
    """
    a, b = np.triu_indices(len(findings), 1)
    images, mean = together[a, b], expected[a, b]
    table = pd.DataFrame({"a": a, "b": b, "images": images.astype(int), "expected": mean})
    with np.errstate(divide="ignore", invalid="ignore"):  # a finding that nobody has
        table["lift"] = images / mean
        table["low"] = np.nan_to_num(chi2.ppf(0.025, 2 * images)) / 2 / mean
        table["high"] = chi2.ppf(0.975, 2 * images + 2) / 2 / mean
    p = 2 * np.minimum(poisson.cdf(images, mean), poisson.sf(images - 1, mean))
    table["p_holm"] = holm(np.where(mean > 0, np.minimum(p, 1), np.nan))
    if set(findings) <= set(FINDINGS):
        places, alone = [FINDINGS.index(finding) for finding in findings], np.diag(NIH_COOCCURRENCE)
        nih = NIH_COOCCURRENCE * NIH_IMAGES / np.outer(alone, alone)
        table["lift in NIH"] = nih[np.ix_(places, places)][a, b]
    table.index = [f"{pretty(findings[i])}, {pretty(findings[j])}" for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    return table.sort_values("p_holm", kind="stable")


def is_vague(pairs: pd.DataFrame) -> pd.Series:
    """Pairs of `pair_table` whose counts say little: not significant, and an interval wider than a factor of four."""
    return ~((pairs.p_holm < ALPHA) | (pairs.high <= 4 * pairs.low))


def draw_cooccurrence(pairs: pd.DataFrame, findings: Sequence[str]) -> Figure:
    """The lift of each pair of `pair_table`, related findings side by side; pairs that are `is_vague` are hatched."""
    level = np.full((len(findings), len(findings)), np.nan)
    shown = pairs[~is_vague(pairs)]
    level[shown.a, shown.b] = level[shown.b, shown.a] = np.log2(shown.lift.clip(1 / 8, 16))
    distance = 4 - np.nan_to_num(level)
    np.fill_diagonal(distance, 0)
    order = np.arange(len(findings))
    if len(findings) > 2:
        tree = hierarchy.linkage(squareform(distance), "average", optimal_ordering=True)
        order = hierarchy.leaves_list(tree)
    fig, ax = plt.subplots(figsize=(8.2, 6.2))
    norm, colors = mpl.colors.Normalize(-3, 3, clip=True), mpl.colormaps["RdBu_r"]
    for row, i in enumerate(order):
        for column, j in enumerate(order[row + 1 :], row + 1):
            value, place = level[i, j], (column - 0.5, row - 0.5)
            if np.isnan(value):
                ax.add_patch(Rectangle(place, 1, 1, facecolor="#EEEEEE", hatch="////", edgecolor="#BBBBBB"))
                continue
            ax.add_patch(Rectangle(place, 1, 1, facecolor=colors(norm(value)), edgecolor="white"))
            ink = "white" if abs(value) > 2 else "black"
            ax.text(column, row, f"{2**value:.1f}", ha="center", va="center", fontsize=8, color=ink)
    names = [pretty(findings[i]) for i in order.tolist()]
    last = len(order) - 1
    ax.set(xlim=(0.5, max(last, 1) + 0.5), ylim=(max(last, 1) - 0.5, -0.5), aspect="equal")
    ax.set_xticks(range(1, last + 1), names[1:], rotation=40, ha="left", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(last), names[:-1], fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    bar = fig.colorbar(mpl.cm.ScalarMappable(norm, colors), ax=ax, shrink=0.6, pad=0.02, extend="both")
    bar.set_ticks([-2, -1, 0, 1, 2, 3], labels=["1/4", "1/2", "1", "2", "4", "8"])
    bar.set_label("lift: together more (red) or less (blue) often than by chance")
    ax.text(0.6, last - 0.6, "hatched: too few images to tell", fontsize=9, va="bottom", color="#555555")
    return fig


def draw_neighbours(
    images: UInt8[np.ndarray, "n h w"], nearest: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]
) -> Figure:
    """M of N images, each above the image that is most like it, whose number `nearest` holds."""
    fig, axes = plt.subplots(2, max(len(rows), 1), figsize=(1.9 * max(len(rows), 1), 4.2), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for column, row in enumerate(rows):
        show_radiograph(axes[0, column], images[row], title="an image")
        show_radiograph(axes[1, column], images[nearest[row]], title="most like it")
    return fig


def accuracy_table(
    prevalence: Float[np.ndarray, " k"],
    absent: dict[str, Float[np.ndarray, " k"]],
    network: dict[str, Float[np.ndarray, " k"]],
    findings: Sequence[str],
) -> pd.DataFrame:
    """Accuracy and AUROC of two predictors, as `score_tasks` has them, a row for each of K findings, commonest first."""
    columns = {"prevalence": prevalence}
    for metric, words in (("accuracy", "accuracy"), ("auroc", "AUROC")):
        columns |= {f"{words}, always absent": absent[metric], f"{words}, network": network[metric]}
    return pd.DataFrame(columns, index=list(findings)).sort_values("prevalence", ascending=False)


def draw_accuracy(table: pd.DataFrame) -> Figure:
    """`accuracy_table` on one scale: accuracy at the left, where the two predictors are alike, and AUROC at the right."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True)
    y = np.arange(len(table))[::-1]
    for ax, metric in zip(axes, ("accuracy", "AUROC"), strict=True):
        absent, network = (table[f"{metric}, {who}"] for who in ("always absent", "network"))
        ax.hlines(y, absent, network, color=GREY, linewidth=1)
        ax.plot(absent, y, "s", color="black", markerfacecolor="white", markersize=7, label="always “absent”")
        ax.plot(network, y, "o", color=VERMILION, markersize=5, label="trained network")
        ax.set(xlabel=f"test {metric}", title=metric if metric == "AUROC" else "Accuracy")
    axes[0].set_yticks(y, [f"{pretty(name)}, {p:.1%}" for name, p in table.prevalence.items()])
    axes[0].set_ylabel("finding, and its prevalence in test")
    axes[0].legend(loc="lower left", fontsize=9)
    axes[0].set_xlim(0.45, 1.02)
    return fig


def nearest_images(images: UInt8[np.ndarray, "n h w"], side: int = 16) -> Int[np.ndarray, " n"]:
    """For each of N images the number of the other one that is most like it.

    Images are compared by Euclidean distance, as `side` x `side` block means, each image standardised.
    """
    from sklearn.neighbors import NearestNeighbors

    small = shrink(images, side)
    nearest: np.ndarray = NearestNeighbors(n_neighbors=1).fit(small).kneighbors(return_distance=False)
    return nearest[:, 0]


def shrink(images: UInt8[np.ndarray, "n h w"], side: int) -> Float[np.ndarray, "n p"]:
    """`side` x `side` block means of each image, standardised, in a row."""
    edges = [np.linspace(0, size, side + 1).astype(int)[:-1] for size in images.shape[1:]]
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), edges[0], 1), edges[1], 2)
    flat: np.ndarray = (sums / sums.max()).reshape(len(images), -1)
    flat -= flat.mean(1, keepdims=True)
    flat /= flat.std(1, keepdims=True) + 1e-6
    return flat
