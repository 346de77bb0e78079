"""Figures with controls where a person can move them, and the same figures, static, where nobody can."""

import os
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import show_figure

Number = float | int
Control = tuple[Number, Number, Number, Number] | list[str] | dict[str, bool]


def explore(draw: Callable[..., Figure], **controls: Control) -> Figure | None:
    """Show `draw(name=value, ...)` with a control for each name in JupyterLab, and with the default values elsewhere.

    As a control, (lowest, highest, step, default) makes a slider. A list of texts makes a choice of one, by default the
    first. A dict from texts to whether each is chosen by default makes a choice of several, as a list.
    Returns the static figure. None where controls are shown, so that a headless run saves no state of widgets.
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
