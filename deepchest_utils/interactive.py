"""Sliders in JupyterLab, the same figure once where nobody can move them."""

import os
from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def in_jupyterlab() -> bool:
    """Whether the kernel was started by a Jupyter server for a person; papermill and nbclient do not set this
    variable."""
    return "JPY_SESSION_NAME" in os.environ


def explore(draw: Callable[..., Figure], **sliders: tuple[float, float, float, float]) -> Figure | None:
    """Show `draw(name=value, ...)`, with a slider a name in JupyterLab, at the default values elsewhere.

    sliders: name -> (lowest, highest, step, default). Returns the static figure, or None where sliders are
    shown (so that no widget state is saved by a headless run).
    """
    defaults = {name: default for name, (*_, default) in sliders.items()}
    if not in_jupyterlab():
        return draw(**defaults)
    import ipywidgets as widgets

    controls = {
        name: widgets.FloatSlider(
            value=default,
            min=low,
            max=high,
            step=step,
            description=name.replace("_", " "),
            continuous_update=False,
        )
        for name, (low, high, step, default) in sliders.items()
    }

    def redraw(**values: float) -> None:
        draw(**values)
        plt.show()

    output = widgets.interactive_output(redraw, controls)
    from IPython.display import display

    display(
        widgets.VBox(
            [widgets.HBox(list(controls.values())[:2]), widgets.HBox(list(controls.values())[2:]), output]
        )
    )
    return None
