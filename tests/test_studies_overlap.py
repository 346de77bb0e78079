"""The table for NIH's boxes, against overlaps counted by hand."""

import numpy as np
import pandas as pd
import pytest

from deepchest_utils.explain.regions import Regions
from deepchest_utils.studies.localization import localize, overlap_columns
from deepchest_utils.studies.map_checks import score_baseline_maps
from deepchest_utils.studies.overlap import at_one_threshold, box_table, overlaps, write_box_tables


def field(*filled: tuple[slice, slice, float], side: int = 10) -> np.ndarray:
    values = np.zeros((side, side), np.float32)
    for rows, columns, value in filled:
        values[rows, columns] = value
    return values


def test_boxes_and_regions_worked_by_hand():
    """An L of 4 + 2 cells at 1.0 with a far cell at 0.5; the true box has 2 x 4 cells, its left half under the L."""
    heat = field((slice(0, 2), slice(0, 2), 1.0), (slice(2, 4), slice(0, 1), 1.0), (slice(9, 10), slice(9, 10), 0.5))
    mask = field((slice(0, 2), slice(0, 4), 1.0)) > 0
    box, region = overlaps(heat[None], mask[None])[0]
    # the box of the L is 4 x 2: 4 cells shared, 8 + 8 - 4 in all; the far cell is a part of its own and has no box
    np.testing.assert_allclose(box, 4 / 12)
    # the L itself: 4 shared; 6 + 8 - 4 in all from 0.6 on, and one more cell up to 0.5
    np.testing.assert_allclose(region, [4 / 11] * 5 + [4 / 10] * 4)


def test_the_best_of_the_true_boxes_counts():
    heat = field((slice(6, 9), slice(6, 9), 1.0))
    mask = field((slice(0, 2), slice(0, 2), 1.0), (slice(6, 9), slice(6, 8), 1.0)) > 0
    box, region = overlaps(heat[None], mask[None])[0]
    np.testing.assert_allclose(box, 6 / 9)
    np.testing.assert_allclose(region, 6 / 13)


def test_blank_maps_overlap_nothing_and_an_empty_region_has_no_overlap():
    mask = field((slice(0, 2), slice(0, 2), 1.0)) > 0
    assert (overlaps(np.zeros((1, 10, 10), np.float32), mask[None]) == 0).all()
    assert np.isnan(overlaps(np.ones((1, 10, 10), np.float32), np.zeros((1, 10, 10), bool))).all()
    assert (overlaps(mask[None].astype(np.float32), mask[None]) == 1).all()


def test_the_threshold_is_chosen_on_the_other_patients():
    """Patients 10 and 30 are best at 0.1, patients 20 and 40 at 0.9: each half is judged at the other's."""
    overlap = np.zeros((4, 9))
    overlap[[0, 2], 0], overlap[[1, 3], 8] = 0.8, 0.6
    overlap[[0, 2], 8], overlap[[1, 3], 0] = 0.3, 0.1
    found = at_one_threshold(overlap, np.zeros(4, int), np.array([10, 20, 30, 40]))
    np.testing.assert_allclose(found, [0.3, 0.1, 0.3, 0.1])


def test_every_finding_counts_alike_for_the_threshold():
    """On the other half finding 0 has nine images that are best at 0.1, finding 1 one that gains more at 0.5."""
    overlap, findings, patients = np.zeros((11, 9)), np.array([0] * 9 + [1, 0]), np.array([1] * 10 + [2])
    overlap[:9, 0], overlap[9, 4], overlap[10] = 0.2, 0.5, np.arange(9) / 10
    assert at_one_threshold(overlap, findings, patients)[10] == 0.4


def test_table_counts_what_lies_above_each_level():
    scores = pd.DataFrame(
        {"finding": ["Mass"] * 4 + ["Nodule"] * 2, "box_iou": [0.05, 0.1, 0.45, 0.9, 0.2, 0.25], "region_iou": 0.5}
    )
    table = box_table(scores)
    assert table.columns.tolist() == [f"T(IoU) 0.{i}" for i in range(1, 8)] + ["mean IoU"]
    assert table.loc["Mass"].tolist() == [0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5]  # 0.1 is not above 0.1
    assert table.loc["Nodule"].tolist() == [1, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert table.loc["macro"].tolist() == [0.75, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125, 0.5]


def test_a_network_that_sees_the_squares_has_every_box(known_network, squares):
    truth, data = squares
    found = localize(known_network, data, truth, "gradcam", ["1"], batch_size=2, boxes=True)
    assert (found[["box_iou", "region_iou"]] == 1).all(axis=None)
    assert "box_iou" not in localize(known_network, data, truth, "gradcam", ["1"])
    moved = score_baseline_maps(np.roll(truth.masks, 2, axis=2).astype(np.float32), data, truth, boxes=True)
    np.testing.assert_allclose(moved[["box_iou", "region_iou"]], 8 / 24)  # 4 x 4 squares, two columns apart


def test_tables_of_two_methods_are_written(tmp_path):
    rows = pd.DataFrame({"finding": "Mass", "box_iou": [0.3, 0.6, 0.0], "region_iou": 0.2, "method": ["a", "a", "b"]})
    old = pd.DataFrame({"finding": "Mass", "method": ["c"]})  # measured before there were boxes
    macro, path = write_box_tables(pd.concat([rows, old]), tmp_path / "x.csv")
    assert path == tmp_path / "x_boxes.csv"
    assert macro["T(IoU) 0.5"].to_dict() == {"a": 0.5, "b": 0.0}
    written = pd.read_csv(path)
    assert written.method.tolist() == ["a", "a", "b", "b"]
    assert written.finding.tolist() == ["Mass", "macro"] * 2
    none, _ = write_box_tables(old, tmp_path / "none.csv")
    assert none.isna().all(axis=None)


def test_a_pair_is_judged_by_the_other_patients_of_its_truth():
    truth = Regions(np.arange(2), np.zeros(2, int), np.array([5, 6]), np.ones((2, 4, 4), bool))
    found = np.zeros((2, 2, 9))
    found[0, 0, 3], found[1, 0, 3] = 0.7, 0.9
    assert overlap_columns(found, truth)["box_iou"] == pytest.approx([0.7, 0.9])
