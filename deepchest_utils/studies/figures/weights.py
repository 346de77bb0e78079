"""The figures of notebooks 02 and 03: what a weight does, what a rule follows, and what a pair of runs shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepchest_utils.notebook.figures import interval_plot, zero_line
from deepchest_utils.results.labels import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    SIGNAL_STYLE,
    SKY,
    VERMILION,
    WINE,
    method_color,
    method_label,
    pretty,
)

LINE_COLORS = (BLUE, ORANGE, BLACK, SKY, VERMILION, WINE, GREY)
TOY_STYLE = (("A, common", BLACK, "-"), ("B, rare", SKY, "--"), ("C, rarest", WINE, "-."))  # label, colour, line
Paths = Float[np.ndarray, "t *k"]
PerFinding = Float[np.ndarray, " k"]
Number = float | int


def _end(ax: Axes, x: Number, y: Number, text: str, color: str = BLACK, **options: Any) -> None:
    """Write a line's name behind its end."""
    ax.annotate(text, (x, y), (4, 0), textcoords="offset points", color=color, fontsize=8, va="center",
                annotation_clip=False, **options)  # fmt: skip


def _toy_lines(ax: Axes, angles: PerFinding, values: Float[np.ndarray, "k 3"], best: float) -> None:
    for k, (label, color, line) in enumerate(TOY_STYLE):
        ax.plot(angles, values[:, k], line, color=color, linewidth=1.4)
        _end(ax, angles[-1], values[-1, k], label, color)
    ax.axvline(best, color=GREY, linewidth=1)
    ax.set(xlabel="angle of the shared direction (degrees)", xlim=(angles[0], angles[-1]))


def draw_compromise(
    angles: PerFinding, auroc: Float[np.ndarray, "k 3"], weights: Sequence[Number], reached: Float[np.ndarray, "w d"]
) -> Figure:
    """The toy: AUROC of its tasks at every angle, and the angle that each weight of the rare tasks leads to."""
    mean, best = auroc.mean(1), angles[auroc.mean(1).argmax()]
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.1), width_ratios=(1.25, 1))
    _toy_lines(axes[0], angles, auroc, best)
    axes[0].plot(angles, mean, color=BLUE, linewidth=3)
    _end(axes[0], angles[-1], mean[-1], "mean", BLUE, weight="bold")
    axes[0].annotate(f"best: {best:.1f}°", (best, 0.51), (4, 0), textcoords="offset points", fontsize=8)
    axes[0].set(ylabel="AUROC", title="What the tasks want")
    axes[1].axhline(best, color=GREY, linewidth=1)
    axes[1].plot(weights, reached.mean(1), "o-", color=BLUE)
    axes[1].vlines(weights, reached.min(1), reached.max(1), color=BLUE, linewidth=2)
    axes[1].annotate("best", (weights[0], best), (0, 3), textcoords="offset points", fontsize=8)
    axes[1].set(xscale="log", xlabel="weight of B and of C (A has 1)", ylabel="angle reached (degrees)")
    axes[1].set_xticks(weights, [f"{w:g}" for w in weights])
    axes[1].minorticks_off()
    axes[1].set_title("What a weight does (bars: three draws)")
    return fig


def draw_gradient_sizes(
    findings: Sequence[str], prevalence: PerFinding, of_one: PerFinding, of_mean: PerFinding, batches: int
) -> Figure:
    """Length of one batch's gradient and of the mean over batches, by falling prevalence."""
    order, x = np.argsort(-prevalence), np.arange(len(findings))
    fig, ax = plt.subplots(figsize=(8.4, 3.2))
    ax.bar(x, of_one[order], color=SKY, label="gradient of one batch")
    ax.plot(x, of_mean[order], "o", color=VERMILION, markersize=6, label=f"mean gradient of {batches} batches")
    left = of_one[order] / np.sqrt(batches)
    label = f"what pure noise leaves of it: 1/{np.sqrt(batches):.2g}"
    ax.hlines(left, x - 0.4, x + 0.4, color=BLACK, linewidth=1.5, label=label)
    ax.set_xticks(x, [pretty(findings[i]) for i in order], rotation=40, ha="right", fontsize=8.5)
    ax.set_ylabel("length of the gradient\n(nats per unit of a parameter)")
    ax.set_title("Gradients on the trunk before training, findings by falling prevalence")
    ax.legend(fontsize=8.5)
    ax.grid(axis="x", visible=False)
    return fig


def draw_scales(losses: Mapping[tuple[str, Number], PerFinding]) -> Figure:
    """Loss over steps of each (optimiser, factor of all weights)."""
    names = list(dict.fromkeys(name for name, _ in losses))
    factors = list(dict.fromkeys(factor for _, factor in losses))
    fig, axes = plt.subplots(1, len(names), figsize=(8.4, 2.7), sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for factor, color, width in zip(factors, (SKY, BLACK, VERMILION), (6, 3, 1.2), strict=True):
            values = losses[name, factor]
            ax.plot(values, color=color, linewidth=width, label=f"all weights × {factor:g}")
        ax.set(yscale="log", xlabel="step", title=name)
    axes[0].set_ylabel("loss (not multiplied)")
    axes[0].legend(fontsize=8.5)
    return fig


def draw_switch(shares: PerFinding, walks: Float[np.ndarray, "t w s"], balance: float, cap: float) -> Figure:
    """Weights of tasks that are behind at random in a share of the epochs: some over time, all after the last epoch."""
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3.1), sharey=True)
    for i, color in zip((0, 8, 12, 16, 40), (BLACK, WINE, VERMILION, ORANGE, BLUE), strict=True):
        middle = np.median(walks[:, :, i], axis=1)
        axes[0].plot(middle, color=color)
        _end(axes[0], len(walks) - 1, middle[-1] * (1.18 if i == 40 else 1), f"q = {shares[i]:.1f}", color)
    low, middle, high = np.quantile(walks[-1], [0.05, 0.5, 0.95], axis=0)
    axes[1].fill_between(shares, low, high, color=SKY, alpha=0.4, linewidth=0, label="9 of 10 tasks")
    axes[1].plot(shares, middle, color=BLUE, linewidth=2, label="median")
    axes[1].axhline(cap, color=GREY, linestyle=":", label="cap")
    if np.isfinite(balance):
        axes[1].axvline(balance, color=VERMILION, linestyle="--", label=f"q* = {balance:.2f}")
    axes[0].set(yscale="log", xlabel="epoch", ylabel="weight", title="Median weight over time")
    axes[1].set(xlabel="share q of epochs behind", title=f"After {len(walks) - 1} epochs")
    axes[1].legend(fontsize=8.5, loc="lower right")
    return fig


def draw_cycle(path: Float[np.ndarray, "t 2"], cap: float) -> Figure:
    """The weights of a weaker and a stronger task whose scores rise with their weights."""
    fig, ax = plt.subplots(figsize=(7.6, 2.6))
    for k, (label, color, marker) in enumerate((("the weaker task", VERMILION, "o"), ("the stronger task", BLUE, "s"))):
        ax.plot(path[:, k], marker=marker, color=color, markersize=3.5, label=label)
    ax.axhline(cap, color=BLACK, linestyle=":", linewidth=1)
    ax.annotate("cap", (0, cap), (0, -11), textcoords="offset points", fontsize=8)
    ax.set(xlabel="epoch", ylabel="weight", title="Two tasks near the mean: a zigzag up to the cap")
    ax.legend(loc="lower right", fontsize=8.5)
    return fig


def draw_published(
    findings: Sequence[str], prevalence: PerFinding, weights: Mapping[str, PerFinding], r: Mapping[str, float]
) -> Figure:
    """The authors' initial weights over the prevalence of the findings in NIH ChestX-ray14."""
    fig, ax = plt.subplots(figsize=(6.2, 3.7))
    line = np.array([0, 0.19])
    ax.plot(100 * line, 1 + line / 2, color=BLACK, linestyle=":", linewidth=1)
    ax.annotate("1 + p/2", (19, 1.095), (2, 0), textcoords="offset points", fontsize=8.5, va="center",
                annotation_clip=False)  # fmt: skip
    for (net, values), color, marker in zip(weights.items(), (VERMILION, BLUE), "os", strict=True):
        ax.plot(100 * prevalence, values, marker, color=color, label=f"{net}: r = {r[net]:.4f}", alpha=0.85)
    for name, offset in (("Effusion", (6, 3)), ("Atelectasis", (6, -9))):
        point = 100 * prevalence[findings.index(name)], weights["resnet"][findings.index(name)]
        ax.annotate(name, point, offset, textcoords="offset points", fontsize=8)
    ax.set(xlabel="prevalence in NIH (%)", ylabel="published initial weight", title="The authors' initial weights")
    ax.legend(loc="upper left", fontsize=8.5)
    return fig


def draw_behind(share: pd.DataFrame) -> Figure:
    """How often each signal (a row) calls a finding (a column) behind, as a share of the epochs."""
    fig, ax = plt.subplots(figsize=(8.4, 2.7))
    image = ax.imshow(share.to_numpy(float), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    names = [pretty(name) for name in share.columns]
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8.5)
    ax.set_yticks(range(len(share)), share.index, fontsize=9)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.set_title("How often a finding is behind, by signal (findings by falling prevalence)")
    fig.colorbar(image, label="share of epochs", pad=0.02)
    return fig


def draw_beside(
    prevalence: PerFinding, answers: Mapping[str, PerFinding], network: Mapping[str, PerFinding], exponents: PerFinding
) -> Figure:
    """Weights of mean 1 over prevalence, a panel a rule: of a network that always says "absent" (a line), and of a
    trained one (dots); in the last panel the exponents of AMTL too, for the trained one."""
    order = np.argsort(prevalence)
    fig, axes = plt.subplots(1, len(answers), figsize=(9, 3.2), sharey=True)
    for ax, (name, line), color in zip(axes, answers.items(), (VERMILION, BLUE, BLACK), strict=True):
        ax.axhline(1, color=GREY, linewidth=1, linestyle=":")
        ax.plot(100 * prevalence[order], line[order], color=color, linewidth=2, label='always "absent"')
        ax.plot(100 * prevalence, network[name], "o", color=color, markerfacecolor="white", label="trained network")
        if ax is axes[-1]:
            ax.plot(100 * prevalence, exponents, "x", color=GREY, label="its exponents $w_k$")
        ax.set(xscale="log", yscale="log", xlabel="prevalence (%)", title=name)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.legend(fontsize=8, loc="lower right" if ax is not axes[-1] else "lower left")
    axes[0].set_ylabel("weight on the loss (mean 1)")
    return fig


def draw_toy_signals(
    angles: PerFinding,
    mean_auroc: PerFinding,
    relative_loss: Float[np.ndarray, "k 3"],
    reached: Mapping[str, Sequence[Number]],
    rest: float,
) -> Figure:
    """Where each signal takes the toy's direction, and L/H at every angle with the one where task A meets the mean."""
    fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.4), width_ratios=(1.15, 1))
    best = angles[mean_auroc.argmax()]
    names = sorted(reached, key=lambda name: -np.mean(reached[name]))
    styles = [SIGNAL_STYLE.get(name, ("equal weights", BLACK)) for name in names]
    for y, (name, (_, color)) in enumerate(zip(names, styles, strict=True)):
        axes[0].plot(reached[name], [y] * len(reached[name]), "o", color=color, markersize=5)
    axes[0].set_yticks(range(len(names)), [label for label, _ in styles])
    axes[0].set(ylim=(len(names) - 0.5, -0.8), xlim=(-6, angles[-1]), title="Where each signal leads")
    axes[0].set_xlabel("angle of the shared direction (degrees)")
    axes[0].axvline(best, color=GREY, linewidth=1)
    axes[0].annotate("known best", (best, -0.5), (4, 0), textcoords="offset points", fontsize=8.5, va="center")
    _toy_lines(axes[1], angles, relative_loss, best)
    axes[1].plot(angles, relative_loss.mean(1), color=BLUE, linewidth=3)
    _end(axes[1], angles[-1], relative_loss[-1].mean(), "mean", BLUE, weight="bold")
    axes[1].plot(rest, np.interp(rest, angles, relative_loss[:, 0]), "o", color=VERMILION, markersize=8)
    axes[1].set(ylabel="L/H", title=f"L/H: task A meets the mean at {rest:.0f}° (dot)")
    return fig


def _weight_lines(ax: Axes, weights: pd.DataFrame) -> dict[str, str]:
    """Draw weights over the epochs, the columns by falling prevalence: wide lines are common findings, thin ones rare.

    Lines that lie on one another share a colour and a label. Returns the colour of each finding.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    for task in weights.columns:
        groups.setdefault(tuple(weights[task].round(6)), []).append(task)
    colors = {path: LINE_COLORS[i % len(LINE_COLORS)] for i, path in enumerate(groups)}
    for path, width in zip(groups, np.linspace(6.5, 1.5, len(groups)), strict=True):
        ax.plot(weights.index, path, color=colors[path], linewidth=width)
    ax.axhline(1, color=BLACK, linewidth=1, linestyle=":")
    ax.set(xlabel="epoch", xlim=(weights.index[0], max(weights.index[-1], weights.index[0] + 1)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ends, (low, high) = sorted(groups, key=lambda path: path[-1]), ax.get_ylim()
    rows = np.array([-(-len(groups[path]) // 2) for path in ends])  # of two names, in each label
    for path, height in zip(ends, low + (high - low) * (rows.cumsum() - rows / 2) / rows.sum(), strict=True):
        names = [pretty(task) for task in groups[path]]
        label = ",\n".join(", ".join(names[i : i + 2]) for i in range(0, len(names), 2))
        leader = {"arrowstyle": "-", "color": colors[path], "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 0}
        ax.annotate(label, (weights.index[-1], path[-1]), (1.08, height), fontsize=8, va="center", arrowprops=leader,
                    textcoords=ax.get_yaxis_transform(), annotation_clip=False)  # fmt: skip
    return {task: colors[path] for path, tasks in groups.items() for task in tasks}


def draw_replay(
    path: Paths, findings: Sequence[str], against: Mapping[str, PerFinding], r: Sequence[float], title: str
) -> Figure:
    """Weights over the epochs, and the last ones over each of `against`, the first of which is the prevalence in %."""
    order = np.argsort(-next(iter(against.values())))
    fig, axes = plt.subplots(1, 1 + len(against), figsize=(10, 3.6), sharey=True)
    colors = _weight_lines(axes[0], pd.DataFrame(path[:, order], columns=[findings[k] for k in order]))
    axes[0].set(ylabel="weight", title=title)
    for ax, (words, values), value in zip(axes[1:], against.items(), r, strict=True):
        ax.scatter(values, path[-1], color=[colors[task] for task in findings], edgecolor=BLACK, linewidth=0.5)
        ax.axhline(1, color=BLACK, linewidth=1, linestyle=":")
        ax.set(xlabel=words, title=f"rank correlation {value:.2f}".replace("-", "−"))
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_formatter("{x:g}")
    return fig


def draw_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Macro AUROC and mean loss of each method over its epochs, on training and validation images."""
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3))
    for ax, metric, words in ((axes[0], "auroc", "macro AUROC"), (axes[1], "loss", "mean cross-entropy (nats)")):
        for method, history in histories.items():
            rows = history[(history.metric == metric) & (history.task == "macro")].set_index("epoch")
            for part, words_part, line in (("train", "training", ":"), ("val", "validation", "-")):
                label = f"{method_label(method)}, {words_part}"
                ax.plot(rows.value[rows.split == part], line, color=method_color(method), label=label)
        ax.set(xlabel="epoch", ylabel=words)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize=8.5)
    return fig


def draw_finding_curves(histories: Mapping[str, pd.DataFrame], prevalence: pd.Series) -> Figure:
    """Validation AUROC of each finding over the epochs, the most common finding first."""
    names = prevalence.sort_values(ascending=False).index
    columns = -(-len(names) // 2)
    fig, axes = plt.subplots(2, columns, figsize=(9.2, 3.7), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax, task in zip(axes.flat, names, strict=False):
        for method, history in histories.items():
            rows = history[(history.metric == "auroc") & (history.split == "val") & (history.task == task)]
            ax.plot(rows.epoch, rows.value, color=method_color(method), label=method_label(method))
        ax.set_title(f"{pretty(task)}\n{prevalence[task]:.1%}", fontsize=8.5, fontweight="normal")
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes[0, 0].legend(fontsize=8, loc="lower right")
    fig.supxlabel("epoch", fontsize=9)
    fig.supylabel("validation AUROC", fontsize=9)
    return fig


def draw_weight_paths(weights: pd.DataFrame, title: str) -> Figure:
    """Weights over the epochs, the columns by falling prevalence; lines that lie on one another share a label."""
    fig, ax = plt.subplots(figsize=(8.4, 3.6))
    _weight_lines(ax, weights)
    ax.set(ylabel="weight in force", title=title)
    return fig


def _differences(ax: Axes, table: pd.DataFrame, xlabel: str, title: str) -> None:
    """Paired differences; full dots exclude zero, as a legend below the figure says."""
    interval_plot(ax, table, [("difference", "difference", BLACK)])
    ax.lines[0].set(markerfacecolor="white", label="interval contains zero")
    excludes = (table.difference_low > 0) | (table.difference_high < 0)
    y = np.arange(len(table))[::-1][excludes]
    ax.plot(table.difference[excludes], y, "o", color=BLACK, markersize=5, label="interval excludes zero")
    zero_line(ax)
    ax.set(xlabel=xlabel, title=title)
    if not ax.figure.legends:
        handles, labels = ax.get_legend_handles_labels()
        ax.figure.legend(handles[::-1], labels[::-1], fontsize=8, loc="outside lower center", ncols=2)


def draw_pair(table: pd.DataFrame, method: str, unit: str) -> Figure:
    """The test AUROC of two networks with intervals, and their paired difference."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.8), sharey=True)
    both = [("baseline", "Equal", method_color("equal")), ("other", method_label(method), method_color(method))]
    interval_plot(axes[0], table, both)
    axes[0].set(xlabel="test AUROC", title="Each network")
    axes[0].legend(loc="upper left", fontsize=8.5)
    xlabel = f"difference in AUROC ({method_label(method)} − Equal)"
    _differences(axes[1], table, xlabel, f"Paired difference, 95% over {unit}")
    axes[1].locator_params(axis="x", nbins=6)
    return fig


def draw_two_differences(first: pd.DataFrame, second: pd.DataFrame, titles: Sequence[str]) -> Figure:
    """Two tables of paired differences side by side, on one scale."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, sharex=True)
    for ax, table, title in zip(axes, (first, second), titles, strict=True):
        _differences(ax, table, "difference in test AUROC", title)
    return fig
