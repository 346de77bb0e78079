"""The figures of notebooks 02 and 03, on small made data: what they say, not how they look."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from deepchest_utils.results.labels import BLACK
from deepchest_utils.studies.figures import weights as draw

pytestmark = pytest.mark.usefixtures("close_figures")
NAMES = ("Effusion", "Pleural_Thickening", "Hernia")
SHARES = np.array([0.12, 0.03, 0.002])


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def title(ax) -> str:
    return ax.get_title(loc="left") or ax.get_title()


def differences(low, high) -> pd.DataFrame:
    index = [f"F{i}" for i in range(len(low))]
    middle = (np.array(low) + high) / 2
    columns = {"difference": middle, "difference_low": low, "difference_high": high}
    for name in ("baseline", "other"):
        columns |= {name: middle, f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame(columns, index)


def history(method: str) -> pd.DataFrame:
    rows = [
        {"method": method, "metric": metric, "split": split, "task": task, "epoch": epoch, "value": epoch / 10}
        for metric in ("auroc", "loss") for split in ("train", "val") for task in (*NAMES, "macro") for epoch in (1, 2, 3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_compromise_marks_the_best_angle():
    angles = np.arange(0.0, 91.0, 10.0)
    auroc = np.stack([1 - angles / 200, 1 - abs(angles - 40) / 100, 1 - abs(angles - 80) / 200], axis=1)
    left, right = draw.draw_compromise(angles, auroc, (1, 3, 10), np.array([[0.0, 2], [20, 30], [50, 60]])).axes
    assert "best: 40.0°" in texts(left)
    assert [label.get_text() for label in right.get_xticklabels()] == ["1", "3", "10"]
    fig = draw.draw_toy_signals(angles, auroc.mean(1), auroc, {"equal": [1, 2], "relative_loss": [30, 35]}, 36.0)
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert labels == ["L/H", "equal weights"]  # the farthest first
    assert "36°" in title(fig.axes[1])


def test_gradients_stand_by_falling_prevalence_beside_what_noise_leaves():
    (ax,) = draw.draw_gradient_sizes(NAMES, SHARES[::-1], np.array([1.0, 2, 3]), np.array([0.3, 0.5, 0.7]), 16).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Hernia", "Pleural Thickening", "Effusion"]
    assert [bar.get_height() for bar in ax.patches] == [3, 2, 1]
    assert "what pure noise leaves of it: 1/4" in [text.get_text() for text in ax.get_legend().texts]


def test_a_switch_without_a_balance_has_no_line_for_it():
    shares, walks = np.linspace(0, 1, 41), np.ones((101, 5, 41))
    for balance, count in ((0.34, 4), (np.nan, 3)):
        right = draw.draw_switch(shares, walks, balance, 1.5).axes[1]
        assert len(right.get_legend().texts) == count


def test_small_figures_name_what_they_show():
    scaled = draw.draw_scales({(name, c): np.ones(5) for name in ("SGD", "Adam") for c in (0.3, 1, 3)})
    assert [title(ax) for ax in scaled.axes] == ["SGD", "Adam"]
    assert "cap" in texts(draw.draw_cycle(np.ones((4, 2)), 1.5).axes[0])
    names = ("Effusion", "Atelectasis")
    values = {"cnnmodel1": np.array([1.06, 1.05]), "resnet": np.array([1.01, 1.02])}
    (ax,) = draw.draw_published(names, SHARES[:2], values, {"cnnmodel1": 0.9991, "resnet": 0.7872}).axes
    assert {"Effusion", "Atelectasis", "1 + p/2"} <= set(texts(ax))
    behind = draw.draw_behind(pd.DataFrame([[0.0, 0.5, 1.0]], ["accuracy"], NAMES))
    assert [label.get_text() for label in behind.axes[0].get_xticklabels()][1] == "Pleural Thickening"


def test_amtl_s_exponents_are_in_its_panel_alone():
    values = {name: np.ones(3) for name in ("DeepChest", "DTP", "AMTL")}
    axes = draw.draw_beside(SHARES, values, values, np.ones(3)).axes
    assert [len(ax.get_legend().texts) for ax in axes] == [2, 2, 3]


def test_a_replay_has_a_panel_for_each_thing_that_weights_may_follow():
    against = {"prevalence (%)": 100 * SHARES, "difficulty (1 − AUROC)": np.array([0.1, 0.2, 0.3])}
    fig = draw.draw_replay(np.ones((4, 3)), NAMES, against, [0.5, -0.25], "Signal: accuracy")
    assert [title(ax) for ax in fig.axes[1:]] == ["rank correlation 0.50", "rank correlation −0.25"]
    assert texts(fig.axes[0]) == ["Effusion, Pleural Thickening,\nHernia"]


def test_the_lines_of_a_replay_have_names_and_the_colours_of_its_dots():
    path = np.array([[1.0, 1, 1], [1.1, 0.95, 0.95]])
    against = {"prevalence (%)": 100 * SHARES[::-1], "difficulty (1 − AUROC)": np.array([0.1, 0.2, 0.3])}
    left, right, _ = draw.draw_replay(path, NAMES, against, [0.5, -0.25], "Signal: accuracy").axes
    assert texts(left) == ["Hernia, Pleural Thickening", "Effusion"]  # the lowest first, the common first in a label
    rare, common = (to_rgba(line.get_color()) for line in left.lines[1::-1])
    assert rare != common
    assert [tuple(color) for color in right.collections[0].get_facecolor()] == [rare, common, common]


def test_weights_that_lie_on_one_another_share_a_label():
    paths = pd.DataFrame({"Effusion": [1.0, 1.1], "Pleural_Thickening": [1.0, 0.95], "Hernia": [1.0, 0.95]}, [1, 2])
    (ax,) = draw.draw_weight_paths(paths, "weights").axes
    assert sorted(texts(ax)) == ["Effusion", "Pleural Thickening, Hernia"]
    assert [line.get_linewidth() for line in ax.lines[:2]] == [6.5, 1.5]  # common under rare: both are seen
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    one_epoch = draw.draw_weight_paths(paths[:1], "weights").axes[0]
    assert texts(one_epoch) == ["Effusion, Pleural Thickening,\nHernia"]


def test_curves_of_each_method_and_finding():
    histories = {name: history(name) for name in ("equal", "deepchest")}
    left, right = draw.draw_curves(histories).axes
    assert [text.get_text() for text in left.get_legend().texts] == [
        f"{name}, {part}" for name in ("Equal", "DeepChest") for part in ("training", "validation")
    ]
    assert len(right.lines) == 4
    panels = draw.draw_finding_curves(histories, pd.Series(SHARES, NAMES)).axes
    assert [ax.axison for ax in panels] == [True, True, True, False]
    assert title(panels[1]) == "Pleural Thickening\n3.0%"


def test_full_dots_are_intervals_without_zero():
    first, second = differences([0.1, -0.1], [0.2, 0.1]), differences([-0.3, -0.2], [-0.1, 0.2])
    fig = draw.draw_two_differences(first, second, ["one", "two"])
    for ax in fig.axes:
        full = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == BLACK]
        assert [len(line.get_xdata()) for line in full] == [1]
    assert [text.get_text() for text in fig.legends[0].texts] == ["interval excludes zero", "interval contains zero"]
    pair = draw.draw_pair(first, "deepchest", "patients")
    assert [text.get_text() for text in pair.legends[0].texts] == ["interval excludes zero", "interval contains zero"]
    assert title(pair.axes[1]) == "Paired difference, 95% over patients"
    assert [text.get_text() for text in pair.axes[0].get_legend().texts] == ["Equal", "DeepChest"]
