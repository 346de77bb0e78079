"""Figures: where they go, that the same figure is the same bytes, and a place in the table for every
method."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from deepchest_utils import FINDINGS, METHODS
from deepchest_utils.notebook.figures import (
    family_legend,
    interval_plot,
    method_forest,
    pretty,
    save_figure,
    show_radiograph,
    use_style,
)
from deepchest_utils.paths import figure_folder
from deepchest_utils.results.labels import (
    FAMILY_STYLE,
    METHOD_LABELS,
    SIGNAL_STYLE,
    method_color,
    method_family,
    method_label,
    method_order,
)
from deepchest_utils.weighting import SIGNALS


@pytest.fixture(autouse=True)
def style():
    """The notebooks' style, for one test only."""
    with mpl.rc_context():
        use_style()
        yield


def draw() -> Figure:
    fig = Figure(figsize=(3, 2))
    ax = fig.subplots()
    rng = np.random.default_rng(0)
    ax.plot(rng.random(20), label="a line")
    ax.scatter(rng.random(5), rng.random(5))  # markers and clip paths get names in an SVG
    ax.set_xlabel("epoch")
    ax.legend()
    return fig


# files


def test_same_figure_is_the_same_bytes_in_both_formats(tmp_path):
    one = save_figure(draw(), "01_test", tmp_path / "one")
    two = save_figure(draw(), "01_test", tmp_path / "two")
    assert [p.name for p in one] == ["01_test.svg", "01_test.png"]
    assert b"<svg" in one[0].read_bytes()
    assert one[1].read_bytes().startswith(b"\x89PNG")
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_figure_names_no_day_and_no_program(tmp_path):
    svg, png = save_figure(draw(), "01_test", tmp_path)
    assert "<dc:date>" not in svg.read_text()
    assert b"Software" not in png.read_bytes()
    assert str(tmp_path) not in svg.read_text()


@pytest.mark.parametrize(
    ("dataset", "smoke", "parts"),
    [
        ("phantom", False, ("figures",)),
        ("phantom", True, ("runs", "figures", "phantom-smoke")),
        ("nih", False, ("runs", "figures", "nih")),
        ("nih", True, ("runs", "figures", "nih-smoke")),
        ("chestmnist", False, ("runs", "figures", "chestmnist")),
    ],
)
def test_only_full_runs_on_the_phantom_write_committed_figures(dataset, smoke, parts, monkeypatch, tmp_path):
    monkeypatch.delenv("DEEPCHEST_FIGURES", raising=False)
    monkeypatch.delenv("DEEPCHEST_RUNS", raising=False)
    monkeypatch.setattr("deepchest_utils.paths.PROJECT", tmp_path / "installed")
    monkeypatch.chdir(tmp_path)  # no checkout: below the working directory
    assert figure_folder(dataset, smoke) == tmp_path.joinpath(*parts)
    monkeypatch.setenv("DEEPCHEST_FIGURES", str(tmp_path / "elsewhere"))
    assert figure_folder(dataset, smoke) == tmp_path / "elsewhere"


def test_default_folder_is_that_of_the_committed_figures(monkeypatch, tmp_path):
    monkeypatch.setattr("deepchest_utils.notebook.figures.base_dir", lambda: tmp_path)
    assert save_figure(draw(), "01_test")[0] == tmp_path / "figures" / "01_test.svg"


# the table of methods


def test_every_method_has_a_label_and_a_family():
    assert set(METHODS) == set(METHOD_LABELS)
    assert len(set(METHOD_LABELS.values())) == len(METHODS)
    assert {method_family(name) for name in METHODS} == set(FAMILY_STYLE) - {"composed", "architecture"}
    _, colours, markers = zip(*FAMILY_STYLE.values(), strict=True)
    assert len(set(colours)) == len(colours)
    assert len(set(markers)) == len(markers)  # grey and green are one colour to a deuteranope
    for name in METHODS:
        assert method_label(name) == METHOD_LABELS[name]
        assert mpl.colors.is_color_like(method_color(name))


def test_deepchest_s_variants_have_colours_of_their_own():
    names = [name for name in METHODS if name.startswith("deepchest")]
    assert len({method_color(name) for name in [*names, "equal", "static"]}) == len(names) + 2


def test_fixed_weights_that_are_drawn_as_lines_have_two_colours():
    assert method_color("inverse_entropy") != method_color("inverse_sqrt_entropy")


def test_every_signal_has_the_colour_of_its_method():
    assert set(SIGNAL_STYLE) == set(SIGNALS)
    for signal, (_, colour) in SIGNAL_STYLE.items():
        assert colour == method_color("deepchest" if signal == "accuracy" else f"deepchest_{signal}")


def test_label_of_a_method_with_options():
    spec = 'deepchest(floor=0.25, normalize=True)+pcgrad(level="features")'
    assert method_label(spec) == "DeepChest (floor 0.25, normalised) + PCGrad (features)"
    assert method_label("static(values=[1, 2])") == "Static (values given)"
    assert method_label("hedge(eta=2.0, floor=0.0)") == "Hedge (L/H) (rate 2, floor 0)"
    assert method_label("anneal(relative=True, window=1)") == "Anneal (L/H, last loss)"
    assert method_label("anneal(relative=False, window=10)") == "Anneal (relative False, window 10)"
    assert method_label("mine") == "mine"
    assert method_label("equal@single_task") == "Equal, single-task"
    assert method_family("equal@single_task") == "architecture"
    assert method_color("deepchest_auroc(floor=0.5)") == method_color("deepchest_auroc")
    assert method_family(spec) == "composed"
    assert method_color('pcgrad(level="features")') == method_color("pcgrad") == FAMILY_STYLE["gradient"][1]


def test_order_of_methods_is_the_table_s_with_compositions_last():
    given = ["deepchest+pcgrad", "upgrad", "dwa", "equal", "deepchest(floor=0.5)", "deepchest", "deepchest+cagrad"]
    wanted = ["equal", "deepchest", "deepchest(floor=0.5)", "dwa", "upgrad", "deepchest+pcgrad", "deepchest+cagrad"]
    assert method_order(given) == wanted


# drawing


def test_findings_are_written_with_spaces():
    assert [pretty(f) for f in FINDINGS if "_" in f] == ["Pleural Thickening"]


def test_mask_is_an_outline_and_an_empty_one_is_none():
    ax = Figure().subplots()
    image, mask = np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool)
    show_radiograph(ax, image, mask)
    assert len(ax.collections) == 0
    mask[2:5, 2:5] = True
    show_radiograph(ax, image, mask, title="Mass")
    assert len(ax.collections) == 1
    assert ax.images[0].get_clim() == (0, 255)  # the same grey for the same value in every panel


def test_intervals_are_drawn_where_the_table_says():
    table = pd.DataFrame(
        {"x": [0.6, 0.8], "x_low": [0.5, 0.7], "x_high": [0.7, 0.9]}, index=["Mass", "Pleural_Thickening"]
    )
    ax = Figure().subplots()
    interval_plot(ax, table, [("x", "Equal", "black")])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Mass", "Pleural Thickening"]
    spans = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert spans == [[0.5, 0.7], [0.7, 0.9]]
    assert ax.lines[0].get_xdata().tolist() == [0.6, 0.8]
    first, second = ax.lines[0].get_ydata()
    assert first > second  # the first row is on top


def test_a_full_marker_is_a_significant_difference_of_five_pairs_and_the_band_is_the_margin():
    methods = ["deepchest", "gls", "pcgrad", "hedge"]  # the last has no row
    columns = {"mean": [0.02, -0.03, 0.004], "low": [0.01, -0.04, -0.01], "high": [0.03, -0.02, 0.02]}
    table = pd.DataFrame({**columns, "p_holm": [0.01, 0.01, 0.6], "pairs": [5, 4, 20]}, index=methods[:3])
    ax = Figure().subplots()
    method_forest(ax, table, methods, "AUROC minus Equal's")
    points = {line.get_xdata()[0]: line for line in ax.lines if len(line.get_xdata()) == 1}
    assert {x: line.get_markerfacecolor() != "white" for x, line in points.items() if x == x} == {
        0.02: True,
        -0.03: False,
        0.004: False,
    }
    assert [line.get_marker() for line in points.values()] == [FAMILY_STYLE[method_family(m)][2] for m in methods]
    (band,) = ax.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-0.01, 0.01))
    family_legend(ax, {"loss", "gradient"}, dots=True, margin=0.01)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "loss weighting",
        "gradient balancing",
        "filled: significant",
        "hollow: not significant",
        "within ±0.01",
    ]
