"""Notebook 05: its text holds for its committed output; its drawings and viewer show what they say."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from claims import Committed, row

from deepchest_utils.datasets import ChestXrays
from deepchest_utils.explain.regions import Regions
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import SKY
from deepchest_utils.studies.figures import maps as drawn
from deepchest_utils.studies.localization import SCORES, compare_localization, read_localization

pytestmark = pytest.mark.usefixtures("close_figures")
NOTEBOOK = Committed("05_grad_cam")
SAID = NOTEBOOK.text


def test_the_map_hits_less_than_the_usual_place_as_the_first_cell_says():
    scores = {
        name: row(NOTEBOOK.shown("usual_place(known, truth)"), name)
        for name in ("network", "usual place", "centre", "random")
    }
    network, place, centre, random = (values[0] for values in scores.values())
    assert f"maps hit the finding in {network:.0%} of its images" in NOTEBOOK.cells[0].source
    assert f"On average over findings in {network:.0%} of a finding's images" in SAID
    assert f"without seeing the image, hits {place:.0%}" in NOTEBOOK.cells[0].source
    assert all(a < b for a, b in zip(scores["network"], scores["usual place"], strict=True))  # by every score
    assert random < centre < network
    assert f"is {scores['network'][1]:.3f} for the network and {scores['centre'][1]:.3f} for the centre" in SAID
    assert scores["network"][2] < scores["centre"][2]
    assert "By IoU the centre is even better" in SAID


def test_findings_above_each_guess_are_those_that_the_text_names():
    shown = NOTEBOOK.shown("intervals apart")
    above = {
        name: re.search(rf"^{name} +(\S.*)$", shown, re.MULTILINE)[1].split(", ")
        for name in ("usual place", "centre", "random")
    }
    assert set(above["usual place"]) == {"Consolidation", "Mass", "Nodule"}
    assert "above those of the usual place for Mass, Consolidation and Nodule" in SAID
    assert len(set(above["centre"]) & set(above["random"])) == 9
    assert "It beats both the centre and random maps for nine of fourteen findings" in SAID
    assert len(above["centre"]) == 10
    assert len(above["random"]) == 12
    assert "beat the centre for ten of the fourteen findings, and random maps for twelve" in SAID
    assert not {"Emphysema", "Edema", "Cardiomegaly", "Hernia"} & set(above["centre"])
    assert not {"Hernia", "Pleural Thickening"} & set(above["random"])


def test_the_table_of_the_papers_is_told_as_printed():
    shown = NOTEBOOK.shown("box_table(found)")
    network, centre, place = (row(shown, name) for name in ("network", "centre", "usual place"))
    low = f"The network has {network[0]:.0%} of the images at T = 0.1, about as many as the centre ({centre[0]:.0%})"
    assert low in SAID
    assert f"at 0.5 it has {network[4]:.0%}, the usual place {place[4]:.0%}" in SAID
    assert abs(network[0] - centre[0]) < 0.02
    assert len(network) == 8  # seven levels, and the mean IoU


def test_the_regions_are_as_the_text_has_them():
    shown = NOTEBOOK.shown("truth = load_regions")
    count, share, _ = row(shown, "Nodule")
    assert 1 / 450 < share < 1 / 380
    assert "Nodule, a four-hundredth of the image" in SAID
    assert row(shown, "Hernia")[0] == 15
    assert f"with an AUROC of {row(shown, 'Pleural_Thickening')[2]:.2f} the network hardly knows it" in SAID
    assert count == 400


def test_the_network_gains_by_looking_and_a_guess_does_not():
    shown = NOTEBOOK.shown("swap_partners(checked")
    mean, low, high = row(shown, "network")
    assert f"The network gains {mean:.3f} [{low:.3f}, {high:.3f}]" in SAID
    assert low > 0
    assert row(shown, "usual place") == row(shown, "centre") == [0, 0, 0]
    most = row(shown, "the region itself")[0]
    assert f"would gain {most:.2f}" in SAID
    assert round(most / mean) == 13
    assert "win a thirteenth of that" in SAID
    low, high = row(shown, "random")[1:]
    assert low < 0 < high


def test_shuffling_takes_the_hits_away():
    shown = NOTEBOOK.shown("sanity = {score")
    (layercam, _, eigencam), head = row(shown, "as trained"), row(shown, "head")
    assert f"keeps over a third of its hits ({head[0]:.2f} of {layercam:.2f})" in SAID
    assert 1 / 3 < head[0] / layercam < 0.4
    random = row(NOTEBOOK.shown("usual_place(known, truth)"), "random")[0]
    for part in ("layer2", "layer1", "bn1", "conv1"):
        assert row(shown, part)[0] < random / 2
    assert row(shown, "layer3")[0] < random
    assert f"`layer4` shuffled it keeps {row(shown, 'layer4')[0]:.2f} of {layercam:.2f}" in SAID
    labels = row(shown, "labels")
    assert abs(labels[0] - random) < 0.03  # "about as often as random maps"
    assert f"its maps hit {labels[0]:.2f} where random maps hit {random:.2f}" in SAID
    assert head[2] == eigencam
    assert f"with shuffled labels it still hits {labels[2]:.2f}" in SAID
    (auroc,) = re.findall(r"test macro AUROC ([\d.]+)", NOTEBOOK.shown("shuffle_labels(data"))
    assert f"The network of the shuffled labels has an AUROC of {float(auroc):.2f}" in SAID


def test_deletion_and_insertion_are_told_as_drawn():
    whole, normal, prevalence = re.search(
        r"whole image ([\d.]+), normal chest ([\d.]+); prevalence ([\d.]+)", NOTEBOOK.shown("normalised_curves(")
    ).groups()
    assert f"a mean probability of {whole}, the normal chest {normal}" in SAID
    assert f"near the mean prevalence of these findings, {prevalence}" in SAID
    assert float(normal) - float(prevalence) < 0.1 * (float(whole) - float(prevalence))
    deletion, insertion = NOTEBOOK.shown("draw.draw_perturbation").split("insertion ")
    area, fall, low, high = row(deletion.replace("deletion ", ""), "network")
    assert f"smaller by {-fall:.3f} [{-high:.3f}, {-low:.3f}]" in SAID
    assert high < 0
    _, rise, low, high = row(insertion, "network")
    assert f"larger by {rise:.3f} [{low:.3f}, {high:.3f}]" in SAID
    assert low > 0
    of_region, _, low, high = row(deletion, "the region itself")
    assert high < 0
    assert abs(of_region - area) < 0.05  # "as good an order as the map"


def test_weighting_changes_the_maps_by_nothing_that_one_sees():
    assert NOTEBOOK.shown("read_localization(").strip() == "significant: 1 of 12 means, 1 of 168 single findings"
    measured = read_localization(PROJECT / "data" / "results" / "localization_phantom.csv")
    found = {s: compare_localization(measured, "equal", s, np.random.default_rng(0)) for s in ("iou", "pointing")}
    iou, pointing = (t[t.finding == "macro"].set_index("method") for t in found.values())
    assert f"by {-iou.loc['deepchest', 'mean']:.3f} of IoU" in SAID
    widths = (pointing.high - pointing.low).round(1)
    assert f"are {widths.min():g} to {max(widths.max(), 0.3):g} wide" in SAID
    assert measured.seed.nunique() == 5
    ours = measured[measured.method == "deepchest"].groupby(["seed", "finding"]).pointing.mean().groupby("seed").mean()
    assert f"five networks of section 8 range from {ours.min():.2f} to {ours.max():.2f} in the pointing game" in SAID
    every = [compare_localization(measured, "equal", s, np.random.default_rng(0)) for s in SCORES]
    assert all((t[t.finding == "macro"]["mean"] < 0).all() for t in every)  # "All twelve lie below"


def test_a_high_probability_does_not_vouch_for_a_map():
    sure, rest = re.search(
        r"elsewhere: (\d+)% of the surest, (\d+)% of the rest", NOTEBOOK.shown("np.quantile(probability")
    ).groups()
    assert f"Of the surest maps {sure}% point elsewhere, of the rest {rest}%" in SAID
    assert abs(int(sure) - int(rest)) < 8


@pytest.fixture
def viewed():
    """A network, three images of three findings, and the region of one pair."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8)
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], np.float32)
    data = ChestXrays(images, labels, np.arange(4), ("Mass", "Nodule", "Hernia"), np.arange(4))
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 20:30, 20:30] = True
    truth = Regions(np.array([1]), np.array([0]), np.array([1]), mask)
    return MultiTaskNet("resnet18_thin", 3).eval(), data, truth, np.zeros((4, 3))


def outlines(ax) -> list:
    return [c for c in ax.collections if np.allclose(c.get_edgecolor(), plt.matplotlib.colors.to_rgba(SKY))]


@pytest.mark.parametrize(
    ("finding", "images", "number", "rows"),
    [
        ("Mass", "with it", 1, [1]),  # the one with a region comes first
        ("Mass", "with it", 2, [0]),
        ("Mass", "with it", 3, [1]),  # after the last the first
        ("Nodule", "with it", 2, [3]),
        ("Nodule", "without it", 2, [2]),
        ("Nodule", "without any", 1, [2]),
        ("Hernia", "with it", 1, [0]),  # no image has it: all are shown
    ],
)
def test_the_viewer_steps_through_the_images_that_have_a_finding(viewed, finding, images, number, rows):
    fig = drawn.draw_view(*viewed, finding, images, number, "layercam")
    for ax in fig.axes:
        np.testing.assert_array_equal(ax.images[0].get_array(), viewed[1].images[rows[0]])
    assert fig.axes[1].get_title() == f"{finding}, p = 0.50"
    has_region = finding == "Mass" and rows == [1]
    assert [len(outlines(ax)) for ax in fig.axes] == [has_region] * 2
    count = {
        "Mass": {"with it": 2},
        "Nodule": {"with it": 2, "without it": 2, "without any": 1},
        "Hernia": {"with it": 0},
    }
    assert f"of the {count[finding][images]} {images}" in fig.get_supxlabel()


def test_every_film_stands_above_its_map_and_the_truth_is_dashed_in_one_colour(viewed):
    _, data, truth, _ = viewed
    heats, masks = np.random.default_rng(1).random((3, 64, 64)), np.repeat(truth.masks, 3, axis=0)
    fig = drawn.draw_films(data.images[:3], heats, masks, ["a", "b", "c"], columns=2)
    axes = np.array(fig.axes).reshape(4, 2)
    for i, title in enumerate("abc"):
        film, heat = axes[2 * (i // 2), i % 2], axes[2 * (i // 2) + 1, i % 2]
        assert film.get_title() == title
        assert len(film.images) == 1
        assert len(heat.images) == 2
        np.testing.assert_array_equal(film.images[0].get_array(), heat.images[0].get_array())
        (line,) = outlines(heat)
        assert line.get_linestyle()[0][1] is not None  # dashes
    layers = drawn.draw_layers(data.images[0], truth.masks[0], {"x": heats[0], "y": heats[1]}, "Mass")
    assert [len(outlines(ax)) for ax in layers.axes[:3]] == [1, 1, 1]


def test_a_curve_lies_where_its_mean_is_and_the_prevalence_below_the_normal_chest():
    shares = np.array([0, 0.5, 1])
    curves = {
        what: {"network": (mean, np.repeat(mean[None], 9, axis=0))}
        for what, mean in (("deletion", np.array([1, 0.3, 0])), ("insertion", np.array([0, 0.7, 1])))
    }
    fig = drawn.draw_perturbation(curves, shares, (0.2, 0.45), 0.05)
    for ax, mean in zip(fig.axes, ([1, 0.3, 0], [0, 0.7, 1]), strict=False):
        curve, line = ax.lines
        assert curve.get_ydata().tolist() == mean
        assert line.get_ydata()[0] == pytest.approx((0.05 - 0.2) / 0.25)


def test_sources_of_maps_differ_by_marker_and_rows_are_striped():
    columns = {f"{name}{end}": [0.5, 0.4] for name in ("network", "usual place") for end in ("", "_low", "_high")}
    fig = drawn.draw_pointing(pd.DataFrame(columns, index=["Mass", "Nodule"]), ["network", "usual place"])
    (ax,) = fig.axes
    assert len({line.get_marker() for line in ax.lines}) == 2
    assert len({marker for _, marker in drawn.SOURCE_STYLE.values()}) == len(drawn.SOURCE_STYLE)
    assert len(ax.patches) == 1


def test_significant_differences_are_full_markers():
    p_holm = [0.01, 0.5, 1.0, 0.049]
    macro = pd.DataFrame(
        {"score": list(SCORES), "method": "deepchest", "mean": 0.1, "low": 0, "high": 0.2, "p_holm": p_holm}
    )
    (ax,) = drawn.draw_weighting(macro).axes
    faces = [
        line.get_markerfacecolor() for line in ax.lines if len(line.get_xdata()) == 1 and line.get_xdata()[0] == 0.1
    ]
    assert [face != "white" for face in faces] == [p < 0.05 for p in p_holm]
