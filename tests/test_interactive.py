"""Sliders for a person, one static figure for a machine, and figures in few bytes."""

import base64
import io
from collections.abc import Callable
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from ipywidgets.widgets import widget
from PIL import Image

from deepchest_utils.notebook import controls, figures
from deepchest_utils.notebook.controls import explore

pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture
def shown(monkeypatch) -> list:
    """What would be displayed in the notebook."""
    items = []
    monkeypatch.setattr("IPython.display.display", lambda item, raw=False: items.append(item))
    return items


@pytest.fixture
def person(monkeypatch) -> Callable[[bool], None]:
    """Whether somebody is there to move sliders."""
    return lambda there: monkeypatch.setattr(controls, "is_interactive", lambda: there)


def draw_into(calls: list):
    def draw(step=9.0, cap=9.0):
        calls.append((step, cap))
        return plt.figure()

    return draw


SLIDERS = {"step": (1.0, 2.0, 0.1, 1.1), "cap": (1.0, 5.0, 0.5, 1.5)}


def test_headless_draws_once_at_the_defaults_of_the_sliders(person, shown):
    person(False)
    calls = []
    fig = explore(draw_into(calls), **SLIDERS)
    assert fig in map(plt.figure, plt.get_fignums())
    assert calls == [(1.1, 1.5)]
    assert shown == []  # no widget, and so no widget state in a saved notebook


def test_a_figure_is_saved_but_not_where_controls_are_shown(person, shown, tmp_path):
    for there, names in ((True, []), (False, ["a.svg", "a.png"])):
        person(there)
        written = figures.save_figure(explore(draw_into([]), **SLIDERS), "a", tmp_path)
        assert [path.name for path in written] == names
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def controls_of(shown: list) -> list:
    """The controls of the box that was displayed last, in rows above the figure."""
    return [control for row in box_of(shown).children[:-1] for control in row.children]


def box_of(shown: list):
    return widget._instances[shown[-1]["application/vnd.jupyter.widget-view+json"]["model_id"]]


def test_for_a_person_sliders_redraw(person, shown):
    person(True)
    calls = []
    assert explore(draw_into(calls), {"step": "factor"}, **SLIDERS) is None
    sliders = controls_of(shown)
    assert [(s.description, s.min, s.max, s.value) for s in sliders] == [
        ("step", 1.0, 2.0, 1.1),
        ("cap", 1.0, 5.0, 1.5),
    ]
    assert [s.tooltip for s in sliders] == ["factor", "1 to 5; also by the arrow keys"]
    assert Image.open(io.BytesIO(base64.b64decode(shown[-1]["image/png"]))).width > 100  # for whoever has no kernel
    sliders[0].value = 1.4
    assert calls == [(1.1, 1.5), (1.4, 1.5)]
    assert plt.get_fignums() == []  # a figure a move would be thousands


def test_choices_are_drop_downs_and_whole_numbers_stay_whole(person, shown):
    calls = []

    def draw(image, finding):
        calls.append((image, finding))
        return plt.figure()

    controls = {"image": (0, 9, 1, 4), "finding": ["Mass", "Nodule"]}
    person(False)
    explore(draw, **controls)
    person(True)
    explore(draw, **controls)
    image, finding = controls_of(shown)
    assert finding.options == ("Mass", "Nodule")
    finding.value, image.value = "Nodule", 7
    assert calls == [(4, "Mass"), (4, "Mass"), (4, "Nodule"), (7, "Nodule")]
    assert isinstance(calls[-1][0], int)


def test_lists_of_several_have_their_own_row(person, shown):
    person(True)
    explore(lambda **_: plt.figure(), several={"Mass": True}, **SLIDERS, one=["Mass"])
    first, second, _ = box_of(shown).children
    assert [control.description for control in first.children] == ["step", "cap", "one"]
    assert [control.description for control in second.children] == ["several"]


def test_several_are_chosen_from_a_list_and_none_draws_nothing(person, shown, capsys):
    calls = []

    def draw(findings):
        calls.append(findings)
        return plt.figure()

    choice = {"Mass": False, "Nodule": True, "Hernia": True}
    person(False)
    explore(draw, findings=choice)
    person(True)
    explore(draw, findings=choice)
    (findings,) = controls_of(shown)
    assert findings.options == ("Mass", "Nodule", "Hernia")
    findings.value = ("Mass",)
    findings.value = ()
    assert calls == [["Nodule", "Hernia"], ["Nodule", "Hernia"], ["Mass"]]
    assert "Choose at least one of the findings." in capsys.readouterr().out


def png(fig) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi)
    return buffer.getvalue()


def noisy_figure():
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.imshow(np.random.default_rng(0).random((128, 128)))
    return fig


def test_small_png_is_smaller_and_looks_the_same():
    fig, ax = plt.subplots(figsize=(5, 3))
    ax.plot(np.arange(10), label="a line")
    ax.legend()
    small, plain = figures.small_png(fig), png(fig)
    assert len(small) < len(plain) / 2
    a, b = (np.asarray(Image.open(io.BytesIO(d)).convert("RGB"), float) for d in (small, plain))
    assert np.abs(a - b).mean() < 1.0  # of 255


def test_a_figure_of_radiographs_is_shown_as_jpeg_and_closed(shown):
    fig = noisy_figure()
    figures.show_as_jpeg(fig, dpi=80)
    (image,) = shown
    assert image.data[:3] == b"\xff\xd8\xff"
    assert len(image.data) < len(png(fig))
    assert not plt.fignum_exists(fig.number)


def test_outside_a_notebook_the_backend_stays():
    backend = plt.get_backend()
    with plt.rc_context():
        figures.use_style()
    assert plt.get_backend() == backend


def test_in_a_kernel_figures_are_small_and_free_cores_are_looked_for_before_each_cell(monkeypatch):
    formats, before_cells, looked = {}, [], []
    shell = SimpleNamespace(
        kernel=None,
        events=SimpleNamespace(register=lambda event, function: before_cells.append((event, function))),
        display_formatter=SimpleNamespace(formatters={"image/png": SimpleNamespace(for_type=formats.__setitem__)}),
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(plt, "switch_backend", lambda name: None)
    monkeypatch.setattr(figures, "adapt_threads", lambda: looked.append(1))
    with plt.rc_context():
        figures.use_style()
    assert formats == {plt.Figure: figures.small_png}
    ((event, look),) = before_cells
    assert event == "pre_execute"
    look()
    assert looked == [1]
