"""How a notebook shows figures: in few bytes, and with sliders where there is somebody to move them."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import _png, forest_plot
from deepchest_utils.results.labels import family_color, method_label, method_order, pretty
from deepchest_utils.results.statistics import ITSELF


def in_jupyterlab() -> bool:
    """Whether the kernel was started by a Jupyter server for a person; papermill and nbclient do not set this
    variable."""
    return "JPY_SESSION_NAME" in os.environ


Number = float | int
Slider = tuple[Number, Number, Number, Number]
Control = Slider | list[str] | dict[str, bool]


def explore(draw: Callable[..., Figure], **controls: Control) -> Figure | None:
    """Show `draw(name=value, ...)`, with a control a name in JupyterLab, at the default values elsewhere.

    controls: name -> (lowest, highest, step, default), a slider; or a list of texts, a choice whose default is the
    first; or texts with whether each is chosen at first, a list to choose several from, of which `draw` gets those that
    are. Returns the static figure, or None where controls are shown (so that no widget state is saved by a headless run).
    """
    if not in_jupyterlab():
        return draw(**{name: _default(what) for name, what in controls.items()})
    import ipywidgets as widgets
    from IPython import display

    shown = {name: _widget(name.replace("_", " "), what) for name, what in controls.items()}

    def redraw(**values: Number | str | tuple[str, ...]) -> None:
        if empty := [name for name, value in values.items() if value == ()]:
            print(f"Choose at least one of the {' and of the '.join(empty)}.")
            return
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        fig = draw(**given)
        display.display(display.Image(_png(fig), format="png"))
        plt.close(fig)

    layout = {"flex_flow": "row wrap", "grid_gap": "4px 12px"}
    lists = [shown[name] for name, what in controls.items() if isinstance(what, dict)]  # tall ones have their own row
    rows = [[w for w in shown.values() if w not in lists], lists]
    boxes = [widgets.HBox(row, layout=layout) for row in rows if row]
    display.display(widgets.VBox([*boxes, widgets.interactive_output(redraw, shown)]))
    return None


def _default(what: Control) -> Number | str | list[str]:
    if isinstance(what, dict):
        return [text for text, chosen in what.items() if chosen]
    return what[0] if isinstance(what, list) else what[-1]


def _widget(title: str, what: Control) -> Any:  # ipywidgets has no types
    import ipywidgets as widgets

    given = {"description": title, "value": _default(what), "style": {"description_width": "initial"}}
    if isinstance(what, dict):
        return widgets.SelectMultiple(options=[*what], rows=min(len(what), 8), layout={"width": "max-content"}, **given)
    if isinstance(what, list):
        return widgets.Dropdown(options=what, **given)
    low, high, step, _ = what
    kind = widgets.FloatSlider if isinstance(step, float) else widgets.IntSlider
    return kind(min=low, max=high, step=step, continuous_update=False, **given)


METRICS = {"AUROC": "auroc", "average precision": "average_precision"}
MEANS = {"mean of all findings": "macro", "mean of the common half": "common", "mean of the rare half": "rare"}


def difference_panels(
    summary: pd.DataFrame, metric: str, against: str, tasks: Sequence[str], methods: Sequence[str]
) -> Figure:
    """A panel a task, a row a method: the method's metric minus the baseline's with its interval, zero dotted, one scale
    for all panels.

    summary: as `compare_methods` makes it. A full dot is a difference that stands in the summary's own Holm correction,
    over all its methods (and findings, if the task is one), so that a smaller choice makes no dot fuller. Methods that
    the summary does not have against the baseline keep an empty row.
    """
    rows = summary[(summary.metric == metric) & (summary.baseline == against)]
    seeds = rows.groupby("method").seeds.max().reindex(list(methods))
    few = {m: f" ({n:.0f} seeds)" for m, n in seeds.items() if n < rows.seeds.max()}
    labels = [method_label(m) + few.get(m, "") for m in methods]
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    fig, axes = plt.subplots(
        lines, columns, figsize=(10, 0.5 + lines * (0.6 + 0.22 * len(methods))), sharex=True, sharey=True, squeeze=False
    )  # fmt: skip
    for ax, task in zip(axes.flat, tasks, strict=False):
        shown = rows[rows.task == task].set_index("method").reindex(list(methods))
        forest_plot(ax, shown, labels, [family_color(m) for m in methods], [*(shown.p_holm < 0.05)])
        ax.axvline(0, color="black", linewidth=1, linestyle=":")
        ax.set_title(_title(task))
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    for ax in axes.flat[len(tasks) - columns : len(tasks)]:
        ax.tick_params(labelbottom=True)  # the lowest panel of its column, if not of the figure
    _limit(axes[0, 0], rows[rows.task.isin(tasks) & rows.method.isin(methods)])
    words = {name: text for text, name in METRICS.items()}.get(metric, metric)
    fig.supxlabel(f"{words} minus that of {method_label(against)}, 95% interval", fontsize=10)
    return fig


def explore_differences(
    summary: pd.DataFrame, findings: Sequence[str], chosen: Sequence[str], methods: Sequence[str] = ()
) -> Figure | None:
    """`difference_panels` with controls for metric, baseline, tasks and methods in JupyterLab; elsewhere AUROC against the
    summary's first baseline, of the tasks `chosen` and of those of `methods` that the summary has (or of all).

    findings: in the order of the list to choose from, below the means.
    """
    against = {method_label(m): m for m in summary.baseline.unique() if m != ITSELF}
    names = {method_label(m): m for m in method_order(summary.method.unique())}
    tasks = MEANS | {pretty(task): task for task in findings}
    first = set(methods) & set(names.values()) or set(names.values())

    def draw(metric: str, baseline: str, findings: list[str], methods: list[str]) -> Figure:
        return difference_panels(
            summary, METRICS[metric], against[baseline], [tasks[t] for t in findings], [names[m] for m in methods]
        )  # fmt: skip

    return explore(
        draw,
        metric=[*METRICS],
        baseline=[*against],
        findings={text: task in chosen for text, task in tasks.items()},
        methods={text: method in first for text, method in names.items()},
    )


def _limit(ax: Axes, rows: pd.DataFrame) -> None:
    """The scale that the intervals need: not those of fewer seeds than others have, which are cut off. Two seeds leave one
    degree of freedom, and an interval ten times as wide as the rest."""
    wide = rows.seeds < rows.seeds.max()
    low, high = (rows[side].mask(wide, rows["mean"]) for side in ("low", "high"))
    ends = np.array([min(low.min(), 0.0), max(high.max(), 0.0)])
    if np.isfinite(ends).all() and ends[0] < ends[1]:
        ax.set_xlim(*(ends + np.array([-0.05, 0.05]) * (ends[1] - ends[0])))


def _title(task: str) -> str:
    return {name: text.capitalize() for text, name in MEANS.items()}.get(task, pretty(task))
