"""How a notebook shows figures: in few bytes, and with sliders where there is somebody to move them."""

import io
import os
from collections.abc import Callable

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image


def in_jupyterlab() -> bool:
    """Whether the kernel was started by a Jupyter server for a person; papermill and nbclient do not set this
    variable."""
    return "JPY_SESSION_NAME" in os.environ


Number = float | int
Control = tuple[Number, Number, Number, Number] | list[str]


def explore(draw: Callable[..., Figure], **controls: Control) -> Figure | None:
    """Show `draw(name=value, ...)`, with a control a name in JupyterLab, at the default values elsewhere.

    controls: name -> (lowest, highest, step, default), a slider, or a list of texts, a choice whose default is the
    first. Returns the static figure, or None where controls are shown (so that no widget state is saved by a headless
    run).
    """
    if not in_jupyterlab():
        return draw(
            **{name: what[0] if isinstance(what, list) else what[-1] for name, what in controls.items()}
        )
    import ipywidgets as widgets

    def control(name: str, what: Control) -> widgets.Widget:
        title = name.replace("_", " ")
        if isinstance(what, list):
            return widgets.Dropdown(options=what, description=title)
        low, high, step, default = what
        kind = widgets.FloatSlider if isinstance(step, float) else widgets.IntSlider
        return kind(
            value=default, min=low, max=high, step=step, description=title, continuous_update=False
        )  # fmt: skip

    shown = {name: control(name, what) for name, what in controls.items()}

    def redraw(**values: Number | str) -> None:
        draw(**values)
        plt.show()

    output = widgets.interactive_output(redraw, shown)
    from IPython.display import display

    row = list(shown.values())
    display(widgets.VBox([widgets.HBox(row[:2]), widgets.HBox(row[2:]), output]))
    return None


def _small_png(fig: Figure) -> bytes:
    """The figure as PNG with a palette of 128 colours: a third of the bytes, and no difference to the eye."""
    buffer, small = io.BytesIO(), io.BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        small, "png", optimize=True
    )
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
