"""Figures with controls where a person can move them, and the same figures, static, where nobody can."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import show_figure, small_png
from deepchest_utils.paths import is_interactive

Number = float | int
Control = tuple[Number, Number, Number, Number] | list[str] | dict[str, bool]


def explore(draw: Callable[..., Figure], about: Mapping[str, str] | None = None, **controls: Control) -> Figure | None:
    """Show `draw(name=value, ...)` with a control for each name to a person, and with the default values elsewhere.

    As a control, (lowest, highest, step, default) makes a slider. A list of texts makes a choice of one, by default the
    first. A dict from texts to whether each is chosen by default makes a choice of several, as a list.
    `about` has a text for a control, which is shown when the mouse rests on it.
    Returns the static figure. None where controls are shown: the output then holds the static figure as well, for
    readers of the saved notebook without its kernel, as on GitHub.
    """
    first = draw(**{name: _default(control) for name, control in controls.items()})
    if not is_interactive():
        return first
    import ipywidgets
    from IPython.display import display

    picture, ready = base64.b64encode(small_png(first)).decode(), [first]

    def redraw(**values: Number | str | tuple[str, ...]) -> None:
        if empty := [name for name, value in values.items() if value == ()]:
            print(f"Choose at least one of the {' and of the '.join(empty)}.")
            return
        chosen = {name: [*value] if isinstance(value, tuple) else value for name, value in values.items()}
        show_figure(ready.pop() if ready else draw(**chosen))

    widgets = {name: _widget(name.replace("_", " "), control) for name, control in controls.items()}
    for name, widget in widgets.items():
        widget.tooltip = (about or {}).get(name) or _how_to_use(controls[name])
    tall = [widgets[name] for name, control in controls.items() if isinstance(control, dict)]
    rows = [[widget for widget in widgets.values() if widget not in tall], tall]
    boxes = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap", "grid_gap": "4px 12px"}) for row in rows if row]
    whole = ipywidgets.VBox([*boxes, ipywidgets.interactive_output(redraw, widgets)])
    # by hand, as Colab's ipywidgets 7 has no _repr_mimebundle_
    view = {"version_major": 2, "version_minor": 0, "model_id": whole.model_id}
    bundle = {"application/vnd.jupyter.widget-view+json": view, "image/png": picture}
    display(bundle | {"text/plain": "a figure with controls"}, raw=True)
    return None


def _default(control: Control) -> Number | str | list[str]:
    if isinstance(control, dict):
        return [text for text, chosen in control.items() if chosen]
    return control[0] if isinstance(control, list) else control[-1]


def _how_to_use(control: Control) -> str:
    if isinstance(control, dict):
        return "Ctrl or Shift and a click choose several"
    return "choose one" if isinstance(control, list) else f"{control[0]:g} to {control[1]:g}; also by the arrow keys"


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
