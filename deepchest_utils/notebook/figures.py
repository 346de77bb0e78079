"""Figures of the notebooks, of `predict` and of `report` in one style, and notebooks that stay small."""

import io
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter

from deepchest_utils.datasets.decode import decode
from deepchest_utils.explain.cam import heat_maps
from deepchest_utils.explain.predict import NOTE, Trained
from deepchest_utils.files import atomic_write
from deepchest_utils.paths import base_dir
from deepchest_utils.results.labels import FAMILY_STYLE, GREY, SKY, family_color, family_marker, method_label, pretty
from deepchest_utils.results.statistics import MARGIN, is_significant
from deepchest_utils.threads import adapt_threads

Radiograph = UInt8[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "a b"]
STYLE: dict[Any, Any] = {
    "figure.dpi": 110, "savefig.dpi": 160, "savefig.bbox": "tight", "figure.constrained_layout.use": True,
    "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "image.cmap": "gray", "svg.fonttype": "none",
    "svg.hashsalt": "deepchest",  # the same figure gives the same bytes
}  # fmt: skip
BAND = "#E4E4E4"  # of differences within the margin
# from transparent to orange: cold places show the radiograph unchanged; blue and dashed is the true region, everywhere
HEAT = mpl.colors.LinearSegmentedColormap.from_list(
    "heat", [(0.84, 0.37, 0.0, 0.0), (0.90, 0.50, 0.0, 0.35), (1.0, 0.78, 0.1, 0.8)]
)


def use_style() -> None:
    """Set up matplotlib and pandas; in a kernel, show figures in few colours and adapt torch's threads to each cell."""
    from IPython import get_ipython

    pd.set_option("display.width", 140)
    if (shell := get_ipython()) is not None and hasattr(shell, "kernel"):
        plt.switch_backend(mpl.get_backend())  # Jupyter's backend sets its own formatter when it is loaded
        shell.display_formatter.formatters["image/png"].for_type(Figure, small_png)
        shell.events.register("pre_execute", adapt_threads)  # a second time changes nothing
    mpl.rcParams.update(STYLE)


def show_figure(fig: Figure, kind: str = "png", dpi: float | int | None = None, **options: Any) -> None:
    """Show the figure in the notebook as a picture of this kind, and close it."""
    from IPython import display

    buffer = io.BytesIO()
    fig.savefig(buffer, format=kind, dpi=dpi or fig.dpi, pil_kwargs=options)
    plt.close(fig)
    display.display(display.Image(buffer.getvalue(), format=kind))


def show_as_jpeg(fig: Figure, dpi: int = 100, quality: int = 82) -> None:
    """Show a figure of radiographs in a tenth of the bytes: PNG cannot compress their grain."""
    show_figure(fig, "jpeg", dpi, quality=quality, optimize=True, progressive=True)


def small_png(fig: Figure) -> bytes:
    """A PNG of 192 colours: a third of the bytes, and no visible difference unless the figure shows radiographs."""
    raw, small = io.BytesIO(), io.BytesIO()
    fig.savefig(raw, format="png", dpi=fig.dpi)
    Image.open(raw).convert("RGB").quantize(192, Image.Quantize.MAXCOVERAGE, kmeans=1).save(small, "png", optimize=True)
    return small.getvalue()


def save_figure(fig: Figure | None, name: str, folder: str | Path | None = None) -> list[Path]:
    """Write `<folder>/<name>.svg` and `.png`, by default into `figures/`; the same figure gives the same bytes."""
    if fig is None:  # of `explore`, where it shows controls
        return []
    folder = base_dir() / "figures" if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    fig.savefig(paths[0], metadata={"Date": None, "Creator": None})
    fig.savefig(paths[1], metadata={"Software": None})
    return paths


def show_radiograph(ax: Axes, image: Radiograph, mask: Mask | None = None, title: str = "") -> None:
    """One image, 0 black and 255 white, without axes, with the outline of a mask of its size."""
    ax.imshow(image, vmin=0, vmax=255, interpolation="bilinear")
    if mask is not None and mask.any() and not mask.all():
        _outline(ax, mask)
    ax.set_title(title, fontsize=9, fontweight="normal", loc="center", pad=3)
    ax.axis("off")


def _outline(ax: Axes, mask: Mask, extent: tuple[float, ...] | None = None) -> None:
    """The outline of the truth, without the steps of its pixels, and a little outside so that it hides nothing."""
    wide = maximum_filter(mask, 1 + 2 * max(1, mask.shape[0] // 64))
    smooth = gaussian_filter(wide.astype(float), 0.7)
    ax.contour(smooth, [0.5 * smooth.max()], colors=SKY, linewidths=1.5, linestyles="dashed", extent=extent)


def show_heat_map(
    ax: Axes, image: Radiograph, heat: Float[np.ndarray, "c d"], mask: Mask | None = None, title: str = ""
) -> None:
    """A heat map over its radiograph, with its maximum and the outline of the true region; the sizes may differ."""
    show_radiograph(ax, image, title=title)
    height, width = image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    if heat.max() > 0:
        ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, interpolation="bilinear", extent=extent)
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        peak = (column + 0.5) * width / heat.shape[1] - 0.5, (row + 0.5) * height / heat.shape[0] - 0.5
        ax.plot(*peak, "+", color="white", markersize=7, markeredgewidth=1.4)
    else:  # a blank map would look like a mistake
        ax.text(0.5, 0.04, "no positive evidence", color="white", fontsize=8, ha="center", transform=ax.transAxes)
    if mask is not None and mask.any() and not mask.all():
        _outline(ax, mask, extent[:2] + extent[:1:-1])


def draw_maps(trained: Trained, path: Path, out: Path, findings: Sequence[str], cam: str = "layercam") -> None:
    """Draw the image file `path` and the heat map of each finding over it into `out`, a .png, .svg or .pdf."""
    if out.exists() and out.samefile(path):
        raise ValueError(f"out should be another file than the image. Found {out}.")
    tasks = [trained.findings.index(name) for name in findings]
    heat = heat_maps(trained.net, decode(path, trained.image_size)[None], tasks, cam)
    image = decode(path, 1024)
    fig = Figure(figsize=(3.2 * (len(tasks) + 1), 3.6), layout="constrained")
    first, *others = fig.subplots(1, len(tasks) + 1)
    show_radiograph(first, image, title=path.name)
    for ax, name, map_ in zip(others, findings, heat.maps[0], strict=True):
        show_heat_map(ax, image, map_, title=pretty(name))
    fig.supxlabel(f"{cam} at {', '.join(heat.layers)}. {NOTE}", fontsize=8)
    with atomic_write(out) as temporary:
        fig.savefig(temporary, format=out.suffix[1:].lower(), dpi=160)


def interval_plot(ax: Axes, table: pd.DataFrame, columns: Sequence[tuple[str, str, str]]) -> None:
    """Points with 95% intervals, a row for each task, the first on top.

    `columns` holds (column, label, colour) of each series of points. `table` is indexed by task, with `<column>`,
    `<column>_low` and `<column>_high`.
    """
    y = np.arange(len(table))[::-1].astype(float)
    for i, (column, label, color) in enumerate(columns):
        shifted = y + 0.32 * ((len(columns) - 1) / 2 - i)
        low, high = table[f"{column}_low"].to_numpy(float), table[f"{column}_high"].to_numpy(float)
        ax.hlines(shifted, low, high, color=color, linewidth=2, alpha=0.75)
        ax.plot(table[column].to_numpy(float), shifted, "o", color=color, markersize=4.5, label=label)
    _name_rows(ax, [pretty(str(task)) for task in table.index])


def _name_rows(ax: Axes, labels: Sequence[str], **options: Any) -> None:
    ax.set_yticks(np.arange(len(labels))[::-1], labels, **options)
    ax.set_ylim(-0.7, len(labels) - 0.3)
    ax.grid(axis="y", visible=False)


def zero_line(ax: Axes, margin: float | None = None, of_y: bool = False) -> None:
    """A dotted line where x, or y, is 0, over the grey band of differences within `margin`, if one is given."""
    line, band = (ax.axhline, ax.axhspan) if of_y else (ax.axvline, ax.axvspan)
    if margin:
        band(-margin, margin, color=BAND, linewidth=0, zorder=0)
    line(0, color="black", linewidth=1, linestyle=":")


def forest_plot(
    ax: Axes,
    table: pd.DataFrame,
    labels: Sequence[str],
    colors: Sequence[str],
    filled: Sequence[bool] | None = None,
    markers: Sequence[str] | None = None,
) -> None:
    """A mean with its interval (columns mean, low, high) in each row, the first on top; full markers where `filled`."""
    count = len(table)
    styles = zip(colors, filled or [True] * count, markers or ["o"] * count, strict=True)
    for y, row, (color, full, marker) in zip(reversed(range(count)), table.itertuples(), styles, strict=True):
        ax.hlines(y, row.low, row.high, color=color, linewidth=2, alpha=0.75)
        face = color if full else "white"
        ax.plot(row.mean, y, linestyle="none", marker=marker, color=color, markersize=5.5, markerfacecolor=face)
    _name_rows(ax, labels, fontsize=8)


def method_forest(
    ax: Axes,
    table: pd.DataFrame,
    methods: Sequence[str],
    xlabel: str,
    title: str = "",
    fontsize: float | None = None,
    margin: float | None = MARGIN,
) -> None:
    """`forest_plot` of differences to a baseline, in the colour and the marker of each method's family.

    A full marker is a significant difference (see `is_significant`), the grey band holds differences within `margin`.

    Args:
        table: Of `judge_differences`, indexed by method; the row of a method that it lacks stays empty.
        fontsize: Of the x axis.
        margin: None draws no band, for a metric that has no margin.
    """
    table = table.reindex(list(methods))
    full = is_significant(table.p_holm, table["pairs" if "pairs" in table else "seeds"])
    labels, colors = [method_label(method) for method in methods], [family_color(method) for method in methods]
    zero_line(ax, margin)
    forest_plot(ax, table, labels, colors, [*full], [family_marker(method) for method in methods])
    ax.set_title(title)
    ax.set_xlabel(xlabel, fontsize=fontsize)
    ax.tick_params(axis="x", labelsize=fontsize or mpl.rcParams["xtick.labelsize"])


def draw_summary(summary: pd.DataFrame) -> Figure:
    """The summary of a report: macro AUROC of each method under its group's name, and the difference to Equal.

    A full marker is a mean over several seeds, or a difference that is significant in its group.
    """
    use_style()
    groups = summary.groupby("group", sort=False)
    lines = pd.concat([part for _, rows in groups for part in (rows[:1].assign(method=""), rows)], ignore_index=True)
    is_name = lines.method == ""  # a line without a method is for the name of the group
    panels = {"auroc": ("macro AUROC, test", lines.seeds > 1)}
    if summary.pairs.any():
        panels["difference"] = ("macro AUROC minus Equal", is_significant(lines.difference_p_holm, lines.pairs))
    size = 1.5 + 4.5 * len(panels), 1 + 0.24 * len(lines)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    labels = [method_label(method)[:80].replace("$", r"\$") if method else "" for method in lines.method]  # no formula
    colors = [family_color(method) if method else "none" for method in lines.method]
    markers = [family_marker(method) if method else "" for method in lines.method]
    for ax, (name, (title, filled)) in zip(axes[0], panels.items(), strict=True):
        columns = {"mean": lines[name], "low": lines[f"{name}_low"], "high": lines[f"{name}_high"]}
        forest_plot(ax, pd.DataFrame(columns).mask(is_name), labels, colors, list(filled), markers)
        ax.set_xlabel(f"{title}, 95% over seeds")
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=6)
        if name == "difference":
            zero_line(ax)
    for y, group in zip(len(lines) - 1 - np.flatnonzero(is_name), lines.group[is_name], strict=True):
        where = {"xy": (0.01, y), "xycoords": axes[0, 0].get_yaxis_transform()}
        axes[0, 0].annotate(
            group[:300].replace("$", r"\$"), **where, fontsize=8, fontweight="bold", va="center", annotation_clip=False
        )
    return fig


def save_summary(summary: pd.DataFrame, path: str | Path) -> None:
    """Write `draw_summary` as a PNG, the same bytes for the same summary."""
    fig = draw_summary(summary)
    with atomic_write(path) as temporary:
        fig.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(fig)


def difference_heatmap(ax: Axes, values: pd.DataFrame, dots: pd.DataFrame, limit: float, labels: Sequence[str]) -> None:
    """Differences, orange above zero and blue below, in colours that end at `limit`, with a dot where `dots` is True.

    Both tables have a row for each method, named in `labels`, and a column for each finding.
    """
    import seaborn as sns

    names = [pretty(name) for name in values.columns]
    options = {"cmap": "PuOr_r", "cbar_kws": {"shrink": 0.6, "pad": 0.02, "extend": "both"}, "linewidths": 0.5}
    sns.heatmap(values, ax=ax, vmin=-limit, vmax=limit, xticklabels=names, yticklabels=labels, **options)
    rows, columns = np.nonzero(dots.to_numpy(bool))
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}  # makes a dot visible on dark cells
    ax.plot(columns + 0.5, rows + 0.5, "o", markersize=4, color="black", **edge)
    ax.tick_params(axis="both", labelsize=8, length=0)
    plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    ax.grid(visible=False)
    ax.set(xlabel="", ylabel="")


def family_legend(
    ax: Axes | FigureBase, families: Iterable[str], dots: bool = False, margin: float | None = None, **options: Any
) -> None:
    """A legend of the colours and markers of these families of methods.

    Args:
        ax: A figure takes a legend outside of its axes, with loc="outside ...".
        dots: Explain filled and hollow markers.
        margin: Explain the band of `method_forest`.
    """
    line = partial(mpl.lines.Line2D, [], [], linewidth=2, markersize=5.5)
    styles = [style for name, style in FAMILY_STYLE.items() if name in families]
    handles: list[Any] = [line(label=label, color=color, marker=marker) for label, color, marker in styles]
    if dots:
        words = {"filled: significant": GREY, "hollow: not significant": "white"}
        dot = partial(line, marker="o", linestyle="none", color=GREY)
        handles += [dot(label=label, markerfacecolor=face) for label, face in words.items()]
    if margin:
        handles.append(mpl.patches.Patch(color=BAND, label=f"within ±{margin:g}"))
    ax.legend(handles=handles, **{"fontsize": 8, **options})
