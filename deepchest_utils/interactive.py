"""How a notebook shows figures: in few bytes, and with sliders where there is somebody to move them."""

import io
import os
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image


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
    lists = [
        shown[name] for name, what in controls.items() if isinstance(what, dict)
    ]  # tall ones have their own row
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
        return widgets.SelectMultiple(
            options=[*what], rows=min(len(what), 8), layout={"width": "max-content"}, **given
        )
    if isinstance(what, list):
        return widgets.Dropdown(options=what, **given)
    low, high, step, _ = what
    kind = widgets.FloatSlider if isinstance(step, float) else widgets.IntSlider
    return kind(min=low, max=high, step=step, continuous_update=False, **given)


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
    fig.savefig(
        buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": quality, "optimize": True, "progressive": True}
    )
    plt.close(fig)
    display.display(display.Image(buffer.getvalue(), format="jpeg"))
