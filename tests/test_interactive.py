"""Sliders for a person, one static figure for a machine, and figures in few bytes."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from deepchest_utils import interactive


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch) -> list:
    """What would be displayed in the notebook."""
    items = []
    monkeypatch.setattr("IPython.display.display", items.append)
    return items


def draw_into(calls: list):
    def draw(step=9.0, cap=9.0):
        calls.append((step, cap))
        return plt.figure()

    return draw


SLIDERS = {"step": (1.0, 2.0, 0.1, 1.1), "cap": (1.0, 5.0, 0.5, 1.5)}


def test_headless_draws_once_at_the_defaults_of_the_sliders(monkeypatch, shown):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    calls = []
    fig = interactive.explore(draw_into(calls), **SLIDERS)
    assert fig in map(plt.figure, plt.get_fignums())
    assert calls == [(1.1, 1.5)]
    assert shown == []  # no widget, and so no widget state in a saved notebook


def test_in_jupyterlab_sliders_redraw(monkeypatch, shown):
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    calls = []
    assert interactive.explore(draw_into(calls), **SLIDERS) is None
    (box,) = shown
    sliders = [slider for row in box.children[:2] for slider in row.children]
    assert [(s.description, s.min, s.max, s.value) for s in sliders] == [
        ("step", 1.0, 2.0, 1.1),
        ("cap", 1.0, 5.0, 1.5),
    ]
    sliders[0].value = 1.4
    assert calls == [(1.1, 1.5), (1.4, 1.5)]


def test_choices_are_drop_downs_and_whole_numbers_stay_whole(monkeypatch, shown):
    calls = []

    def draw(image, finding):
        calls.append((image, finding))
        return plt.figure()

    controls = {"image": (0, 9, 1, 4), "finding": ["Mass", "Nodule"]}
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    interactive.explore(draw, **controls)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    interactive.explore(draw, **controls)
    (box,) = shown
    image, finding = box.children[0].children
    assert finding.options == ("Mass", "Nodule")
    finding.value, image.value = "Nodule", 7
    assert calls == [(4, "Mass"), (4, "Mass"), (4, "Nodule"), (7, "Nodule")]
    assert isinstance(calls[-1][0], int)


def noisy_figure():
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.imshow(np.random.default_rng(0).random((128, 128)))
    return fig


def plain_png(fig) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    return buffer.getvalue()


def test_small_png_is_smaller_and_looks_the_same():
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.plot(np.arange(10), label="a line")
    ax.legend()
    small, plain = interactive._small_png(fig), plain_png(fig)
    assert len(small) < len(plain) / 2
    a, b = (np.asarray(Image.open(io.BytesIO(d)).convert("RGB"), float) for d in (small, plain))
    assert np.abs(a - b).mean() < 1.0  # of 255


def test_a_figure_of_radiographs_is_shown_as_jpeg_and_closed(shown):
    fig = noisy_figure()
    interactive.show_as_jpeg(fig, dpi=80)
    (image,) = shown
    assert image.data[:3] == b"\xff\xd8\xff"
    assert len(image.data) < len(plain_png(fig))
    assert not plt.fignum_exists(fig.number)


def test_outside_a_notebook_nothing_is_touched():
    backend = plt.get_backend()
    interactive.keep_notebooks_small()
    assert plt.get_backend() == backend
