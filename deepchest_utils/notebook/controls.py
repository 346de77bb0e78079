"""Figures with controls where a person can move them, and the same figures, static, where nobody can."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import method_forest, show_figure
from deepchest_utils.results.labels import method_label, method_order, pretty
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, ITSELF

Number = float | int
Control = tuple[Number, Number, Number, Number] | list[str] | dict[str, bool]
METRIC_NAMES = {METRICS[name][0]: name for name in BOOTSTRAP_METRICS}
MEANS = {"mean of all findings": "macro", "mean of the common half": "common", "mean of the rare half": "rare"}


def explore(draw: Callable[..., Figure], **controls: Control) -> Figure | None:
    """Show `draw(name=value, ...)` with a control for each name in JupyterLab, and with the default values elsewhere.

    As a control, (lowest, highest, step, default) makes a slider. A list of texts makes a choice of one, by default the
    first. A dict from texts to whether each is chosen by default makes a choice of several, as a list.

    Returns:
        The static figure. None where controls are shown, so that a headless run saves no state of widgets.
    """
    if "JPY_SESSION_NAME" not in os.environ:  # a Jupyter server sets it for a person; papermill and nbclient do not
        return draw(**{name: _default(control) for name, control in controls.items()})
    import ipywidgets
    from IPython.display import display

    def redraw(**values: Number | str | tuple[str, ...]) -> None:
        if empty := [name for name, value in values.items() if value == ()]:
            print(f"Choose at least one of the {' and of the '.join(empty)}.")
            return
        show_figure(draw(**{name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}))

    widgets = {name: _widget(name.replace("_", " "), control) for name, control in controls.items()}
    tall = [widgets[name] for name, control in controls.items() if isinstance(control, dict)]
    rows = [[widget for widget in widgets.values() if widget not in tall], tall]
    boxes = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap", "grid_gap": "4px 12px"}) for row in rows if row]
    display(ipywidgets.VBox([*boxes, ipywidgets.interactive_output(redraw, widgets)]))
    return None


def _default(control: Control) -> Number | str | list[str]:
    if isinstance(control, dict):
        return [text for text, chosen in control.items() if chosen]
    return control[0] if isinstance(control, list) else control[-1]


def _widget(title: str, control: Control) -> Any:  # ipywidgets has no types
    from ipywidgets import SelectMultiple, interactive

    if isinstance(control, dict):
        shape = {"rows": min(len(control), 8), "layout": {"width": "max-content"}}
        widget = SelectMultiple(options=[*control], value=_default(control), **shape)
    elif isinstance(control, list):
        widget = interactive.widget_from_abbrev(control)
    else:
        widget = interactive.widget_from_abbrev(control[:3], control[3])
        widget.continuous_update = False
    widget.description, widget.style.description_width = title, "initial"
    return widget


def difference_panels(
    summary: pd.DataFrame, metric: str, against: str, tasks: Sequence[str], methods: Sequence[str]
) -> Figure:
    """Differences to the baseline `against`, a panel for each task and a row for each method, on one scale.

    A full dot has p_holm below 0.05 in the summary of `compare_methods`. That is the correction over all its methods
    (and findings), so a smaller choice fills no more dots. A method without a difference keeps an empty row.
    """
    rows = summary[(summary.metric == metric) & (summary.baseline == against)]
    seeds = rows.groupby("method").seeds.max().reindex(list(methods))
    few_seeds = {method: f" ({n:.0f} seeds)" for method, n in seeds.items() if n < rows.seeds.max()}
    labels = [method_label(method) + few_seeds.get(method, "") for method in methods]
    across = min(len(tasks), 3)
    down = -(-len(tasks) // across)
    size = 10, 0.5 + down * (0.6 + 0.22 * len(methods))
    fig, axes = plt.subplots(down, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    titles = {name: text.capitalize() for text, name in MEANS.items()}
    for ax, task in zip(axes.flat, tasks, strict=False):
        method_forest(ax, rows[rows.task == task].set_index("method"), methods, "", titles.get(task, pretty(task)))
        ax.set_yticklabels(labels)
    plt.setp(axes.flat[len(tasks) :], visible=False)
    for ax in axes.flat[len(tasks) - across : len(tasks)]:
        ax.tick_params(labelbottom=True)  # the lowest panel of each column, even where the figure goes on below
    # the scale is that of the methods with all seeds: an interval of two seeds is ten times as wide, and is cut off
    drawn = rows[rows.task.isin(tasks) & rows.method.isin(methods)]
    all_seeds = drawn.seeds == drawn.seeds.max()
    low = min(drawn.low.where(all_seeds, drawn["mean"]).min(), 0.0)
    high = max(drawn.high.where(all_seeds, drawn["mean"]).max(), 0.0)
    if np.isfinite(high - low) and low < high:
        axes[0, 0].set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    name = METRICS[metric][0] if metric in METRICS else metric
    fig.supxlabel(f"{name} minus that of {method_label(against)}, 95% interval", fontsize=10)
    return fig


def explore_differences(
    summary: pd.DataFrame, findings: Sequence[str], chosen: Sequence[str], methods: Sequence[str] = ()
) -> Figure | None:
    """`difference_panels` of the summary of `compare_methods`, with controls for metric, baseline, tasks and methods.

    The tasks are the means and the `findings`; those in `chosen` are chosen by default. So are AUROC, the first
    baseline and `methods` (all methods if the summary has none of these).
    """
    baselines = {method_label(name): name for name in summary.baseline.unique() if name != ITSELF}
    names = {method_label(name): name for name in method_order(summary.method.unique())}
    tasks = MEANS | {pretty(finding): finding for finding in findings}
    default = set(methods) & set(names.values()) or set(names.values())

    def draw(metric: str, baseline: str, findings: list[str], methods: list[str]) -> Figure:
        columns, lines = [tasks[text] for text in findings], [names[text] for text in methods]
        return difference_panels(summary, METRIC_NAMES[metric], baselines[baseline], columns, lines)

    is_chosen = {text: task in chosen for text, task in tasks.items()}
    is_default = {text: name in default for text, name in names.items()}
    return explore(draw, metric=[*METRIC_NAMES], baseline=[*baselines], findings=is_chosen, methods=is_default)
