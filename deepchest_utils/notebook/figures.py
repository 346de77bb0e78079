"""Figures: one style, one `save_figure`."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from deepchest_utils.paths import PROJECT
from deepchest_utils.paths import figure_folder as figure_folder  # with all else that notebooks draw with
from deepchest_utils.results.labels import FAMILY_STYLE, ORANGE, SKY, family_color, method_label, pretty
from deepchest_utils.results.statistics import holm


def use_style() -> None:
    """Set matplotlib up for all figures of the notebooks, and pandas to print a table in one piece."""
    pd.set_option("display.width", 140)
    keep_notebooks_small()
    mpl.rcParams.update(
        {
            "figure.dpi": 84,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "svg.hashsalt": "deepchest",  # the same figure, the same bytes
            "svg.fonttype": "none",
            "image.cmap": "gray",
        }
    )


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    return buffer.getvalue()


def _small_png(fig: Figure) -> bytes:
    """The figure as PNG with a palette of 128 colours: a third of the bytes, and no difference to the eye, unless the
    figure is of radiographs."""
    small = io.BytesIO()
    image = Image.open(io.BytesIO(_png(fig))).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def keep_notebooks_small() -> None:
    """In a notebook, show figures through `_small_png`."""
    from IPython import get_ipython

    if (shell := get_ipython()) is not None and hasattr(shell, "kernel"):
        plt.switch_backend(mpl.get_backend())  # Jupyter's backend sets its own formatter when it is loaded
        shell.display_formatter.formatters["image/png"].for_type(Figure, _small_png)


def show_as_jpeg(fig: Figure, dpi: int = 100, quality: int = 82) -> None:
    """Show a figure of radiographs in the notebook, in a tenth of the bytes: their grain does not compress as
    PNG."""
    from IPython import display

    buffer = io.BytesIO()
    fig.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": quality, "optimize": True, "progressive": True})
    plt.close(fig)
    display.display(display.Image(buffer.getvalue(), format="jpeg"))


def save_figure(fig: Figure, name: str, folder: str | Path | None = None) -> list[Path]:
    """Write `<folder>/<name>.svg` and `.png`, e.g. `save_figure(fig, "01_montage", folder)`; default folder
    `figures/`."""
    folder = Path(folder) if folder is not None else PROJECT / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    fig.savefig(paths[0], metadata={"Date": None, "Creator": None})
    fig.savefig(paths[1], metadata={"Software": None})
    return paths


def show_radiograph(
    ax: Axes, image: UInt8[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"] | None = None, title: str = ""
) -> None:
    """One image with the outline of a mask, 0 black and 255 white, no axes."""
    ax.imshow(image, vmin=0, vmax=255, interpolation="bilinear")
    if mask is not None and mask.any() and not mask.all():
        ax.contour(mask, [0.5], colors=ORANGE, linewidths=1.3)
    ax.set_title(title, fontsize=9, fontweight="normal", loc="center", pad=3)
    ax.axis("off")


def label_ends(ax: Axes, x: float, ends: dict[str, float], colors: dict[str, str]) -> None:
    """Write each finding's name at its line's end, pushed apart by at least 5.5% of the axis; of several that end at
    one value (to three digits), how many they are."""
    low, high = ax.get_ylim()
    gap = 0.055 * (high - low)
    together: dict[float, list[str]] = {}
    for name in sorted((n for n in ends if np.isfinite(ends[n])), key=lambda n: ends[n]):
        together.setdefault(round(ends[name], 3), []).append(name)
    places: list[float] = []
    for end in together:
        places.append(max(end, places[-1] + gap) if places else end)
    if places:  # pushed up as little as can be: the group keeps its centre
        shift = float(np.mean(places) - np.mean([*together]))
        places = [p - min(shift, places[0] - low) for p in places]
    for (end, names), place in zip(together.items(), places, strict=True):
        one = len(names) == 1
        label, color = (pretty(names[0]), colors[names[0]]) if one else (f"{len(names)} findings", "black")
        ax.annotate(label, (x, end), (x, place), color=color, fontsize=8, va="center", annotation_clip=False)


def interval_plot(ax: Axes, table: pd.DataFrame, columns: Sequence[tuple[str, str, str]], offset: float = 0.16) -> None:
    """Points with 95% intervals, a row a task (first row on top). columns: (column of `table`, label,
    colour); `<column>_low` and `_high` beside it."""
    y = np.arange(len(table))[::-1].astype(float)
    for i, (column, label, color) in enumerate(columns):
        shifted = y + offset * ((len(columns) - 1) / 2 - i) * 2
        value = table[column].to_numpy(float)
        low, high = table[f"{column}_low"].to_numpy(float), table[f"{column}_high"].to_numpy(float)
        ax.hlines(shifted, low, high, color=color, linewidth=2, alpha=0.75)
        ax.plot(value, shifted, "o", color=color, markersize=4.5, label=label)
    ax.set_yticks(y, [pretty(str(t)) for t in table.index])
    ax.set_ylim(-0.7, len(table) - 0.3)
    ax.grid(axis="y", visible=False)


def annotated_heatmap(
    ax: Axes, values: Float[np.ndarray, "r c"], labels: Sequence[str], text: Sequence[Sequence[str]], **options: Any
) -> None:
    """A square heat map through seaborn, findings on both axes, the given text in its cells."""
    import seaborn as sns

    names = [pretty(name) for name in labels]
    sns.heatmap(
        values, ax=ax, xticklabels=names, yticklabels=names, annot=np.asarray(text), fmt="",
        annot_kws={"fontsize": 6.5}, linewidths=0.5, square=True, **options,
    )  # fmt: skip
    ax.tick_params(axis="both", labelsize=8, length=0)
    ax.grid(visible=False)


def forest_plot(
    ax: Axes, table: pd.DataFrame, labels: Sequence[str], colors: Sequence[str], filled: Sequence[bool] | None = None
) -> None:
    """A mean with its interval a row, first row on top. table: columns mean, low and high. filled: rows whose dot is
    full, by default all."""
    y = np.arange(len(table))[::-1]
    filled = [True] * len(table) if filled is None else filled
    for place, row, color, full in zip(y, table.itertuples(), colors, filled, strict=True):
        ax.hlines(place, row.low, row.high, color=color, linewidth=2, alpha=0.75)
        ax.plot(row.mean, place, "o", color=color, markersize=5, markerfacecolor=color if full else "white")
    ax.set_yticks(y, labels, fontsize=8)
    ax.set_ylim(-0.7, len(table) - 0.3)
    ax.grid(axis="y", visible=False)


def method_forest(
    ax: Axes, table: pd.DataFrame, methods: Sequence[str], xlabel: str, title: str = "", fontsize: float | None = None
) -> None:
    """`forest_plot` of differences to a baseline, a row a method in its family's colour; a full dot is one that Holm's correction
    over these rows leaves. table: indexed by method, columns mean, low, high and p; a method that it lacks stays empty. fontsize:
    of the x axis, in points, default that of the style."""
    shown = table.reindex(list(methods))
    names, colors = [method_label(m) for m in methods], [family_color(m) for m in methods]
    forest_plot(ax, shown, names, colors, [*(holm(shown.p.to_numpy()) < 0.05)])
    ax.axvline(0, color="black", linewidth=1, linestyle=":")
    ax.set_title(title)
    ax.set_xlabel(xlabel, fontsize=fontsize)
    if fontsize is not None:
        ax.tick_params(axis="x", labelsize=fontsize)


def difference_heatmap(
    ax: Axes, values: pd.DataFrame, marked: pd.DataFrame, limit: float, labels: Sequence[str]
) -> None:
    """Differences, a row a method and a column a finding, orange above zero and blue below; a dot in the cells that
    are marked. limit: where the colours end."""
    import seaborn as sns

    sns.heatmap(
        values, ax=ax, cmap="PuOr_r", vmin=-limit, vmax=limit, linewidths=0.5, yticklabels=labels,
        xticklabels=[pretty(name) for name in values.columns],
        cbar_kws={"shrink": 0.6, "pad": 0.02, "extend": "both"},
    )  # fmt: skip
    rows, columns = np.nonzero(marked.to_numpy(bool))
    # seen on light and on dark
    dots: dict[str, Any] = {"color": "black", "markeredgecolor": "white", "markeredgewidth": 0.6}
    ax.plot(columns + 0.5, rows + 0.5, "o", markersize=4, **dots)
    ax.tick_params(axis="both", labelsize=8, length=0)
    ax.tick_params(axis="x", rotation=45)
    for label in ax.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    ax.grid(visible=False)
    ax.set(xlabel="", ylabel="")


def family_legend(ax: Axes, families: Sequence[str], **options: Any) -> None:
    """What the colours of methods mean."""
    handles = [
        mpl.lines.Line2D([], [], color=color, marker="o", linewidth=2, markersize=4.5, label=label)
        for name, (label, color) in FAMILY_STYLE.items()
        if name in families
    ]
    ax.legend(handles=handles, fontsize=8, **options)


# from nothing to orange: what is not hot shows the radiograph as it is; blue is left for the truth
HEAT = mpl.colors.LinearSegmentedColormap.from_list(
    "heat", [(0.84, 0.37, 0.0, 0.0), (0.90, 0.50, 0.0, 0.35), (1.0, 0.78, 0.1, 0.8)]
)


def show_heat_map(
    ax: Axes,
    image: UInt8[np.ndarray, "h w"],
    heat: Float[np.ndarray, "a b"],
    mask: Bool[np.ndarray, "c d"] | None = None,
    title: str = "",
) -> None:
    """A map over its radiograph, whatever the size of either, its maximum marked, with the outline of the truth. Says so
    where it is blank, for want of positive evidence, which would look like a mistake."""
    show_radiograph(ax, image, title=title)
    height, width = image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if heat.max() > 0:
        ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear", extent=extent)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        at = (column + 0.5) * width / heat.shape[1] - 0.5, (row + 0.5) * height / heat.shape[0] - 0.5
        ax.plot(*at, "+", color="white", markersize=7, markeredgewidth=1.4)
    else:
        ax.text(
            0.5, 0.04, "no positive evidence", color="white", fontsize=8, ha="center", transform=ax.transAxes
        )  # fmt: skip
    if mask is not None and mask.any() and not mask.all():
        ax.contour(mask, [0.5], colors=SKY, linewidths=1.4, extent=extent[:2] + extent[:1:-1])
