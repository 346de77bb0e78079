"""Scores of maps against the truth: worked by hand, at chance for chance, and against scikit-learn."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from deepchest_utils.explain.regions import Regions
from deepchest_utils.studies.localization import SCORES, localize, mean_scores, score_maps
from deepchest_utils.studies.map_checks import centre_prior, random_maps, score_baseline_maps, usual_place


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_worked_by_hand():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, :2, :2] = True
    values = np.zeros((1, 4, 4), np.float32)
    values[0, 0, 0], values[0, 3, 3] = 1.0, 0.5
    found = {name: array[0] for name, array in score_maps(values, mask).items()}
    assert found["pointing"] == 1
    assert found["energy"] == pytest.approx(1 / 1.5)
    # up to 0.5 both cells are above: overlap 1, union 5; from 0.6 on one: 1 and 4
    assert found["iou"] == pytest.approx((5 * 1 / 5 + 4 * 1 / 4) / 9)


def test_tolerance_is_a_distance_from_the_region():
    """The region ends in column 7; the maximum lies so many pixels to the right of it."""
    mask = np.zeros((1, 64, 64), bool)
    mask[0, 20:30, 0:8] = True
    for distance, hit in ((1, 1), (4, 1), (5, 0)):
        values = np.zeros((1, 64, 64), np.float32)
        values[0, 25, 7 + distance] = 1
        assert score_maps(values, mask)["pointing"][0] == hit
        assert score_maps(values, mask, tolerance=0.0)["pointing"][0] == 0
    assert score_maps(values, mask, tolerance=5 / 64)["pointing"][0] == 1


def test_perfect_map_and_opposite():
    mask = np.zeros((2, 8, 8), bool)
    mask[:, 2:5, 3:6] = True
    maps = np.stack([mask[0], ~mask[1]]).astype(np.float32)
    found = score_maps(maps, mask)
    for name in SCORES:
        assert found[name][0] == 1, name
    assert found["pointing"][1] == found["energy"][1] == found["iou"][1] == 0


def test_blank_map_is_worth_chance():
    mask = np.zeros((1, 10, 10), bool)
    mask[0, :5, :4] = True
    found = score_maps(np.zeros((1, 10, 10), np.float32), mask, tolerance=0.0)
    assert found["pointing"][0] == found["energy"][0] == 0.2
    assert found["iou"][0] == 0
    assert found["pixel_ap"][0] == pytest.approx(0.2)


def test_random_maps_are_worth_the_share_of_the_mask(rng):
    mask = np.zeros((4000, 8, 8), bool)
    mask[:, :4, :2] = True
    found = score_maps(rng.random((4000, 8, 8), dtype=np.float32), mask, tolerance=0.0)
    assert found["pointing"].mean() == pytest.approx(1 / 8, abs=0.02)
    assert found["energy"].mean() == pytest.approx(1 / 8, abs=0.005)


def test_pixels_against_scikit_learn(rng):
    mask = rng.random((3, 12, 12)) < 0.3
    maps = rng.random((3, 12, 12), dtype=np.float32).round(1)  # with ties
    found = score_maps(maps, mask)["pixel_ap"]
    expected = [average_precision_score(m.ravel(), v.ravel()) for m, v in zip(mask, maps, strict=True)]
    np.testing.assert_allclose(found, expected)


def test_image_without_the_finding_has_no_score(rng):
    found = score_maps(rng.random((1, 4, 4), dtype=np.float32), np.zeros((1, 4, 4), bool))
    assert all(np.isnan(values).all() for values in found.values())


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape.*\(1, 4, 4\).*\(1, 5, 5\)"):
        score_maps(np.zeros((1, 4, 4), np.float32), np.zeros((1, 5, 5), bool))


def test_centre_prior_is_highest_in_the_middle():
    prior = centre_prior(9)
    assert np.unravel_index(prior.argmax(), prior.shape) == (4, 4)
    np.testing.assert_allclose(prior, prior.T)
    np.testing.assert_allclose(prior, prior[::-1])


def table(values, patients, findings=None):
    findings = ["Mass"] * len(values) if findings is None else findings
    return pd.DataFrame({"image": np.arange(len(values)), "finding": findings, "patient": patients, "energy": values})


def test_intervals_are_over_patients(rng):
    """Ten images a patient, all alike: as wide as one image a patient."""
    one = rng.random(200)
    _, few = mean_scores([table(one, np.arange(200))], "energy", np.random.default_rng(1))
    means, many = mean_scores(
        [table(np.repeat(one, 10), np.repeat(np.arange(200), 10))], "energy", np.random.default_rng(1)
    )
    np.testing.assert_allclose(few, many)
    assert means.loc["Mass", 0] == pytest.approx(one.mean())
    assert few[0, :, 0].std() == pytest.approx(one.std() / np.sqrt(200), rel=0.1)


def test_macro_is_the_mean_over_findings_and_differences_are_paired(rng):
    findings = ["Mass"] * 30 + ["Nodule"] * 10
    values, patients = rng.random(40), np.arange(40)
    tables = [table(values, patients, findings), table(values + 0.25, patients, findings)]
    means, samples = mean_scores(tables, "energy", np.random.default_rng(1), replicates=200)
    assert means.loc["macro", 0] == pytest.approx((values[:30].mean() + values[30:].mean()) / 2)
    assert samples.shape == (2, 200, 3)
    np.testing.assert_allclose(samples[1] - samples[0], 0.25)
    np.testing.assert_allclose(samples[..., 2], samples[..., :2].mean(-1))


def test_tables_of_other_pairs_are_refused(rng):
    with pytest.raises(ValueError, match="same images and findings"):
        mean_scores([table([0.1, 0.2], [0, 1]), table([0.1], [0])], "energy", rng)


def test_usual_place_is_the_mean_region_of_known_patients(squares):
    truth, _ = squares
    moved = truth.masks.copy()
    moved[0] = np.roll(moved[0], 8, axis=1)
    known = Regions(truth.rows, truth.tasks, truth.patients, moved)
    found = usual_place(known, truth)
    np.testing.assert_allclose(found[:3], np.repeat(moved[:3].mean(0)[None], 3, axis=0))  # the same for each image
    np.testing.assert_array_equal(found[3:], truth.masks[3:])
    assert (usual_place(known.subset(known.tasks == 0), truth)[3:] == 0).all()  # nobody known has finding 1


def test_random_maps_are_smooth_and_by_seed():
    maps = random_maps(3, 64, np.random.default_rng(0))
    np.testing.assert_array_equal(maps, random_maps(3, 64, np.random.default_rng(0)))
    assert np.abs(np.diff(maps, axis=2)).max() < 0.2
    assert maps.std() > 0.1


def test_localize_has_a_row_a_pair_in_order(known_network, squares):
    truth, data = squares
    found = localize(known_network, data, truth, "gradcam", ["1"], batch_size=2)
    assert found.finding.tolist() == ["A"] * 3 + ["B"] * 3
    assert found.image.tolist() == list(range(6))
    assert found.patient.tolist() == truth.patients.tolist()
    assert found.evidence.all()
    assert (found[["pointing", "iou", "pixel_ap"]] == 1).all().all()
    wrong = score_baseline_maps(np.flip(truth.masks, axis=(1, 2)).astype(np.float32), data, truth)
    assert (wrong.pointing == 0).all()
    assert wrong.columns.tolist() == found.columns.tolist()


def test_memory_does_not_grow_with_the_data(known_network, squares):
    """500 images at the peak of 100: maps are scored and let go."""
    truth, data = squares
    peaks = []
    for count in (100, 100, 500):  # the first imports
        rows = np.resize(np.arange(6), count)
        many = truth.subset(rows)
        tracemalloc.start()
        localize(known_network, data, many, "gradcam", ["1"], batch_size=20)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # the table alone grows, by half a kilobyte a row; the 400 maps that are more would take one kilobyte each beside it
    assert peaks[2] - peaks[1] < 400 * 16 * 16 * 4
