"""The figures of notebooks 04, 07, 08 and 09 and of both studies: what is drawn is what synthetic tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from deepchest_utils.results.statistics import judge_differences
from deepchest_utils.studies import judgement, replication, sharing
from deepchest_utils.studies.figures import real, results, rule, study

METHODS = ["hedge", "gls", "deepchest", 'mgda(level="features")']


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def table(means, methods=METHODS, pairs=5, **columns):
    """Judged differences with these means."""
    rows = pd.DataFrame({"method": methods, "pairs": pairs, "mean": means, "seed_sd": 0.005, "patient_sd": np.nan})
    rows = rows.assign(low=0.0, high=0.0, p=0.0, p_holm=0.0, **{"metric": "auroc"} | columns)
    return judge_differences(rows, ["metric"])


def points(ax) -> list[float]:
    return [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]


def rows_of(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_methods_near_equal_have_a_scale_of_their_own_in_every_column():
    columns = {"A": table([0.01, -0.2, -0.005, -0.3]), "B": table([0.0, -0.1, 0.02, -0.4])}
    fig = results.main_forest(columns)
    near, _, far, _ = fig.axes
    assert rows_of(near) == ["Hedge (L/H)", "DeepChest"]  # by the first column
    assert rows_of(far) == ["GLS", "MGDA (features)"]
    assert points(fig.axes[1]) == [0.0, 0.02]
    assert near.get_title() + near.get_title(loc="left") == "first column above -0.03"
    assert near.get_xlim()[0] > -0.1 > far.get_xlim()[0]
    assert far.get_xlabel() == "A minus Equal's"
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts[-3:] == ["filled: significant", "hollow: not significant", "within ±0.01"]


def test_a_study_of_two_phantoms_has_a_column_a_phantom_and_metric():
    parts = [table([0.0] * 4, metric=m, baseline="equal", task=replication.ENDPOINT) for m in judgement.HEADLINE]
    columns = judgement.headline({f"{p} phantom": pd.concat(parts) for p in ("default", "NIH")})
    assert list(columns) == [f"{w}, {p} phantom" for p in ("default", "NIH") for w in judgement.HEADLINE.values()]
    assert list(judgement.headline({"phantom": pd.concat(parts)})) == list(judgement.HEADLINE.values())
    assert {title: len(part) for title, part in columns.items()} == dict.fromkeys(columns, 4)
    assert results.main_forest(columns).axes[-1].get_xlabel() == "macro average precision\nNIH phantom\nminus Equal's"


def test_two_halves_are_told_apart_by_shape_on_one_scale():
    rows = pd.DataFrame({"task": ["Mass", "Edema"], "mean": [0.1, -0.1], "low": [0.0, -0.2], "high": [0.2, 0.0]})
    rows = rows.assign(p_holm=[0.01, 0.2], pairs=8)
    pair = rows, rows.assign(mean=0.0)
    left, right = results.two_halves({"a": pair, "b": pair}, ("one", "two"), ["Edema", "Mass"], "AUROC").axes
    assert [line.get_marker() for line in left.lines if line.get_label() in ("one", "two")] == ["o", "s"]
    assert [line.get_markevery().tolist() for line in left.lines if line.get_mfc() == "white"] == 2 * [[True, False]]
    assert rows_of(left) == ["Edema", "Mass"]
    assert [ax.get_title() + ax.get_title(loc="left") for ax in (left, right)] == ["a", "b"]  # as the style has it
    assert left.get_xlim() == right.get_xlim()


@pytest.mark.parametrize("p", [0.2, 0.05, 0.01])
def test_the_expected_loss_of_a_constant_is_its_cross_entropy_and_its_logarithm_that_of_simulated_batches(p):
    log_q = np.log(np.array([0.3, 0.05, 1e-3]))
    mean, log = results.expected_losses(p, 64, log_q)
    q = np.exp(log_q)
    np.testing.assert_allclose(mean, -p * np.log(q) - (1 - p) * np.log1p(-q))
    positives = np.random.default_rng(0).binomial(64, p, 200_000)[:, None]
    losses = -(positives * np.log(q) + (64 - positives) * np.log1p(-q)) / 64
    np.testing.assert_allclose(log, np.log(losses).mean(0), atol=0.02)


def test_the_logarithm_falls_without_bound_beyond_what_64_bits_hold():
    log = results.expected_losses(0.05, 64, np.array([-1e3, -1e4, -1e5]))[1]
    assert (np.diff(log) < 0).all()
    assert np.isfinite(log).all()
    with plt.rc_context({"axes.titlelocation": "center"}):
        assert results.log_loss([0.2, 0.01]).axes[1].get_title() == "Mean of $\\log L$: a cliff on the left"


def test_cells_beyond_the_colours_have_their_number():
    cells = [
        {"method": method, "task": task, "mean": mean, "seeds": 5, "seed_sd": 0.001, "patient_sd": np.nan, "p": 0.0}
        for method, mean in (("hedge", 0.01), ("deepchest", -0.02), ("gls", -0.3))
        for task in ("Mass", "Hernia")
    ]
    judged = judge_differences(pd.DataFrame(cells).assign(low=0.0, high=0.0, p_holm=0.0, metric="auroc"), ["metric"])
    judged.loc[(judged.method == "hedge") & (judged.task == "Hernia"), "mean"] = 0.15
    fig = results.finding_heatmaps(judged, ["hedge", "deepchest", "gls"], ["Mass", "Hernia"])
    near = fig.axes[0]
    assert [text.get_text() for text in near.texts] == ["+0.15", "−0.02", "−0.02"]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes[:2]] == [
        "mean above -0.03",
        "mean below -0.03, in other colours",
    ]


def test_settings_are_a_line_a_method_and_names_stand_apart():
    curves = pd.DataFrame({1: [0.7, 0.6, 0.65], 16: [0.80, 0.801, 0.7]}, index=["equal", "hedge", "gls"])
    (ax,) = study.expected_best(curves, ["equal", "hedge"]).axes
    assert len(ax.lines) == 3
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert [text.get_text() for text in ax.texts] == ["Equal", "Hedge (L/H)"]
    assert heights[1] - heights[0] > 0.005
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "16"]


def test_regimes_are_columns_on_one_scale_and_f1_has_no_margin():
    parts = [
        table([0.01, -0.02], METHODS[:2], metric=metric, regime=regime)
        for regime in ("batch 64, 12 epochs", "batch 256, 12 epochs")
        for metric in ("auroc", "f1_at_half")
    ]
    fig = study.regimes(pd.concat(parts), METHODS[:2])
    auroc, other, f1, _ = fig.axes
    assert (len(auroc.patches), len(f1.patches)) == (1, 0)
    assert auroc.get_xlim() == other.get_xlim()
    assert points(auroc) == [0.01, -0.02]


def test_longer_training_has_a_line_a_length_and_a_dot_a_difference():
    curves = pd.DataFrame({"method": "equal", "epochs": [48, 48, 96, 96], "epoch": [24, 48, 48, 96], "value": 0.8})
    differences = pd.concat([table([0.02, 0.0], METHODS[:2], epochs=epochs) for epochs in (48, 96)])
    left, right = study.lengths(curves, differences).axes
    assert len([line for line in left.lines if len(line.get_xdata()) == 2]) == 2
    dots = [line for line in right.lines if line.get_marker() not in ("None", None)]
    assert [line.get_ydata()[0] for line in dots] == [0.02, 0.02, 0.0, 0.0]
    assert [line.get_markerfacecolor() != "white" for line in dots] == [True, True, False, False]


def test_the_bar_says_where_the_questions_end():
    items = pd.DataFrame({"measured": ["+0.01 [+0.00, +0.02]", "Edema"], "mean": [0.01, np.nan], "low": [0.0, np.nan]})
    items = items.assign(high=[0.02, np.nan], met=[True, False]).set_axis(["1. above", "4. none lower"])
    (ax,) = rule.bar(items).axes
    words = [text.get_text() for text in ax.texts]
    assert words[0].startswith("yes")
    assert words[2] == "no: the questions end here\nEdema"
    assert points(ax) == [0.01]


def test_the_line_of_proportion_goes_through_points_in_proportion():
    x = np.array([0.001, 0.01, 0.1])
    fig, fits = rule.noise({"start": (x, 7 * x)}, ["Mass", "Edema", "Hernia"])
    assert fits["start"] == pytest.approx(1)
    line = next(line for line in fig.axes[0].lines if line.get_linestyle() == ":")
    np.testing.assert_allclose(line.get_ydata() / line.get_xdata(), 7)


def test_only_methods_far_below_are_named_beside_their_weights():
    spread = pd.Series({"hedge": 5.0, "gls": 1e6, "deepchest": 4.0})
    fig = study.weight_spread(spread, pd.Series({"gls": -0.15, "deepchest": -0.014, "hedge": 0.0, "dwa": 0.1}))
    (ax,) = fig.axes
    assert {tuple(line.get_xydata()[0]) for line in ax.lines[1:]} == {(5.0, 0.0), (1e6, -0.15), (4.0, -0.014)}
    assert [text.get_text() for text in ax.texts] == ["GLS"]


def test_one_finding_has_no_ratio_of_weights_and_an_empty_picture():
    fig = study.weight_spread(pd.Series(dtype=float), pd.Series({"hedge": 0.0}))
    assert len(fig.axes[0].lines) == 1  # the line at zero


def test_what_sees_no_anatomy_stands_above_the_methods_in_black_squares():
    levels = pd.DataFrame(
        {"method": ["frozen", "border", "of mine"], "mean": [0.73, 0.61, 0.7], "low": 0.6, "high": 0.8}
    )
    columns = {"A": table([0.01, -0.2, -0.005, -0.3]), "B": table([0.0, -0.1, 0.02, -0.4])}
    above, near, *_, far, _ = real.frozen(levels, columns).axes
    assert points(above)[:3] == [0.73, 0.61, 0.7]
    assert [line.get_marker() for line in above.lines[:3]] == ["o", "s", "o"]
    assert rows_of(above)[::-1] == ["of mine", "border of 3 px alone", "encoder frozen, 224 px"]
    assert (rows_of(near)[0], rows_of(far)[0]) == ("Hedge (L/H)", "GLS")
    (alone,) = real.networks(levels).axes
    assert points(alone) == points(above)


def test_only_the_border_of_an_image_is_shown_beside_it():
    image = np.random.default_rng(0).integers(0, 250, (64, 64), np.uint8)
    whole, border, grey = real.what_is_seen(image).axes
    np.testing.assert_array_equal(whole.images[0].get_array(), image)
    shown = border.images[0].get_array()
    assert (shown[3:-3, 3:-3] == 255).all()
    assert (shown != 255).sum() == 64 * 64 - 58 * 58
    assert sum(bar.get_height() for bar in grey.patches) == 64 * 64


def test_a_ladder_has_a_row_a_rung_and_equals_own_steps():
    rungs = {"rung": ["a", "b"], "words": ["as published", "64 px"], "pairs": [5, 8], "equal": [0.6, 0.65]}
    steps = {"step": [np.nan, 0.05], "step_low": [np.nan, 0.0], "step_high": [np.nan, 0.1], "low": -0.1, "high": 0.1}
    parts = [
        pd.DataFrame({**rungs, **steps, "metric": metric, "mean": means, "p_holm": [0.9, 0.01]})
        for metric, means in (("auroc", [-0.01, 0.02]), ("accuracy", [0.03, 0.04]))
    ]
    accuracy, auroc, own = real.ladder(pd.concat(parts)).axes
    assert points(accuracy) == [0.03, 0.04]
    assert points(auroc) == [-0.01, 0.02]
    assert [line.get_markerfacecolor() == "white" for line in auroc.lines[:2]] == [True, False]
    assert (len(accuracy.patches), len(auroc.patches)) == (0, 1)  # a margin is named for AUROC alone
    assert rows_of(accuracy) == ["as published", "64 px"]
    assert points(own)[1] == 0.05
    assert [text.get_text() for text in own.texts] == ["0.600", "0.650"]


LEVERS = {"tuning": 0.02, "data_quarter": -0.03, "ema": 0.001, "deepchest": -0.002, "uncertainty": 0.0, "hedge": 0.001}


def of_levers(study: str, means: dict[str, float]) -> pd.DataFrame:
    """`lever_table` of one study, AP twice as far from 0."""
    parts = [
        table([factor * mean for mean in means.values()], list(means), metric=metric)
        for metric, factor in (("auroc", 1), ("average_precision", 2))
    ]
    return pd.concat(parts).rename(columns={"method": "lever"}).assign(study=study, cost=1.0)


def test_levers_stand_in_blocks_the_largest_change_on_top_and_have_their_cost():
    found = pd.concat([of_levers("embeddings", LEVERS), of_levers("phantom", {"data_4": 0.1, "ema": 0.003})])
    auroc, precision, phantom, _ = real.lever_forest(found).axes
    assert rows_of(auroc) == [
        "Data", "four times the images", "a quarter of the images", "Tuning (against the default)", "rate and decay, four pairs",
        "Training", "moving average of weights", "Task weights", "Hedge", "Uncertainty", "DeepChest",
    ]  # fmt: skip
    assert [label.get_fontweight() for label in auroc.get_yticklabels()].count("bold") == 4
    means = [-0.03, 0.02, 0.001, 0.001, 0.0, -0.002]
    assert [value for value in points(auroc) if np.isfinite(value)] == means
    assert [value for value in points(precision) if np.isfinite(value)] == [2 * mean for mean in means]
    assert [value for value in points(phantom) if np.isfinite(value)] == [0.1, 0.003]
    costs = [text.get_text() for text in precision.texts]
    assert costs == ["", "", "1.0 ×", "", "1.0 ×", "", "1.0 ×", "", *["1.0 ×"] * 3, "training\ntime"]
    drawn = [line for line in auroc.lines if np.isfinite(line.get_xdata()).all() and len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in drawn] == [*"ooo", *"DDD"]  # task weights last
    assert [line.get_markerfacecolor() != "white" for line in drawn] == [True, True, *[False] * 4]


def test_data_stand_beside_weights_and_what_is_lost_without_tuning():
    left, right = real.data_and_weights(of_levers("embeddings", LEVERS)).axes

    def dots(ax):
        return [(x, y) for x, y in (line.get_xydata()[0] for line in ax.lines if len(line.get_xdata()) == 1)]

    assert set(dots(left)) == {(-2.0, -0.03), (0.0, 0.0)}  # powers of two
    assert dots(right) == [(0, -0.02), (1, -0.002), (2, 0.0), (3, 0.001)]
    names = [[label.get_text() for label in ax.get_xticklabels()] for ax in (left, right)]
    assert names == [["0.25 ×", "1 ×"], ["not tuned", "DeepChest", "Uncertainty", "Hedge (L/H)"]]
    assert left.get_ylim() == right.get_ylim()


def test_losses_and_weights_have_a_number_a_cell_and_the_level_in_the_first():
    part = table([0.01, -0.1, 0.0001], ["focal", "ldam", "deepchest"]).assign(
        loss=["focal", "ldam", "bce"], weight=["equal", "equal", "deepchest"], value=[0.71, 0.6, 0.7001]
    )
    (ax,) = real.losses_and_weights({"A": part}).axes
    words = {text.get_position(): text.get_text().split("\n")[0] for text in ax.texts}
    assert words == {(0, 0): "0.700", (0, 2): "+0.0100", (0, 5): "−0.1000", (1, 0): "+0.0001"}
    assert [text.get_fontweight() for text in ax.texts] == ["normal", "bold", "bold", "normal"]
    assert rows_of(ax)[0] == "cross-entropy"


def test_shared_and_single_have_a_line_each_and_their_difference_a_row_a_comparison():
    parts = [
        table([0.03], ["shared"], kind=kind, num_train=n, metric=metric)
        for kind, n in ((sharing.EQUAL_SIZE, 250), (sharing.EQUAL_SIZE, 1000), (sharing.FULL_SIZE, 4000), (sharing.PAIRS, 4000))
        for metric in judgement.HEADLINE
    ]  # fmt: skip
    judged = pd.concat(parts)
    levels = pd.concat([judged.assign(method=arm) for arm in ("shared", "single")])
    left, auroc, precision = study.shared_and_single(levels, judged).axes
    assert [list(line.get_xdata()) for line in left.lines] == [[250, 1000]] * 2  # not those of the other comparisons
    assert rows_of(auroc) == ["250", "1,000", "4,000\nfull width", "4,000\nin pairs"]
    assert points(auroc) == points(precision) == [0.03] * 4


def test_a_matrix_has_a_dot_a_row_and_partners_stand_in_the_order_of_the_predictor():
    gain = np.array([[np.nan, 0.01, 0.03], [0.0, np.nan, 0.02], [0.04, 0.0, np.nan]])
    blind = np.where(np.arange(3) == 2, np.nan, gain)  # of the third finding nothing is known
    blind[2] = np.nan
    names = ["Mass", "Nodule", "Edema"]
    first = study.transfer_matrices(dict.fromkeys("abcd", gain), names).axes[0]
    assert sorted(zip(*first.lines[0].get_data(), strict=True)) == [(0.5, 2.5), (2.5, 0.5), (2.5, 1.5)]
    judged = pd.DataFrame({"predictor": ["same", "blind"], "agreement": [1.0, np.nan], "p_holm": 0.01})
    same, other = study.partners(gain, {"same": gain, "blind": blind}, judged).axes
    np.testing.assert_allclose(same.lines[1].get_ydata(), [-0.04 / 3, 0.04 / 3])  # 0.01, 0.01 and 0.02 to either side
    assert len(other.lines[0].get_xdata()) == 2 * 3
    assert np.isfinite(other.lines[0].get_ydata()).sum() == 2
    assert same.get_title(loc="left") + same.get_title() == "same\nagreement +1.00, p 0.01"
