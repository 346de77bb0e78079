"""Regions: the phantom's masks and NIH's boxes, of the right images, at every size, never of a training patient."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepchest_utils import FINDINGS, TrainConfig, load_dataset
from deepchest_utils.datasets import DataWarning
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.explain.regions import boxes_to_masks, load_regions

pytestmark = pytest.mark.filterwarnings("ignore:nih. findings without a positive")  # in so few
SIDES = ["x", "y", "width", "height"]


@pytest.mark.parametrize("part", ["val", "test"])
def test_masks_are_those_of_the_phantom_behind(splits, part):
    data = splits.parts[part]
    truth = load_regions(TrainConfig(), splits, part, per_finding=5)
    every = phantom_of(0, part, len(data)).masks(64)
    np.testing.assert_array_equal(truth.masks, every[truth.rows, truth.tasks])
    assert (data.labels[truth.rows, truth.tasks] == 1).all()
    np.testing.assert_array_equal(truth.patients, data.patients[truth.rows])
    expected = np.minimum((data.labels == 1).sum(0), 5)
    np.testing.assert_array_equal(np.bincount(truth.tasks, minlength=14), expected)
    assert truth.masks.any((1, 2)).all()


def test_faint_signs_have_the_masks_of_what_is_drawn():
    """A sign that changes the anatomy has another region where it is faint."""
    sizes = {"num_train": 40, "num_val": 40, "num_test": 80, "image_size": 32}
    options = {"difficulty": "nih"}
    with pytest.warns(DataWarning):
        data = load_dataset("phantom", **sizes, **options)
    truth = load_regions(TrainConfig(image_size=32, data_options=options), data)
    behind = phantom_of(0, "test", 80, **options)
    np.testing.assert_array_equal(behind.render(32), data.test.images)
    np.testing.assert_array_equal(truth.masks, behind.masks(32)[truth.rows, truth.tasks])
    usual = phantom_of(0, "test", 80).masks(32)[truth.rows, truth.tasks]
    assert (truth.masks != usual).any()


def test_unknown_and_noisy_labels_do_not_hide_a_region():
    """What is drawn is the truth, whatever the label says."""
    sizes = {"num_train": 40, "num_val": 60, "num_test": 60, "image_size": 28}
    with pytest.warns(DataWarning):
        clean, noisy = (load_dataset("phantom", **sizes, **o) for o in ({}, {"label_noise": 1.0, "unknown": 0.5}))
    for part in ("val", "test"):
        a, b = (load_regions(TrainConfig(image_size=28), data, part) for data in (clean, noisy))
        np.testing.assert_array_equal(a.masks, b.masks)


def test_masks_keep_their_place_at_another_size():
    drawn = phantom_of(0, "test", 40)
    small, large = drawn.masks(64), drawn.masks(256)
    compared = 0
    for row, task in np.argwhere(drawn.labels):
        if large[row, task].mean() > 0.01:
            centres = [np.argwhere(m[row, task]).mean(0) / m.shape[-1] for m in (small, large)]
            np.testing.assert_allclose(centres[0], centres[1], atol=0.03)
            compared += 1
    assert compared > 10


def test_boxes_become_masks():
    rows = [
        ["a.png", "Mass", 2.0, 1.0, 3.0, 2.0],
        ["a.png", "Mass", 6.0, 6.0, 2.0, 2.0],
        ["b.png", "Nodule", 0.0, 0.0, 8.0, 8.0],
    ]
    boxes = pd.DataFrame(rows, columns=["image", "finding", *SIDES])
    masks = boxes_to_masks(boxes, np.array(["b.png", "a.png"]), "Mass", 8)
    assert not masks[0].any()
    assert masks[1].sum() == 3 * 2 + 2 * 2
    assert masks[1, 1:3, 2:5].all()
    assert masks[1, 6:, 6:].all()


def test_boxes_keep_their_place_at_another_size():
    boxes = pd.DataFrame([["a.png", "Mass", 100.0, 300.0, 256.0, 128.0]], columns=["image", "finding", *SIDES])
    large = boxes_to_masks(boxes, np.array(["a.png"]), "Mass", 1024)
    small = boxes_to_masks(boxes.assign(**(boxes[SIDES] / 16)), np.array(["a.png"]), "Mass", 64)
    assert small.sum() / 64**2 == pytest.approx(large.sum() / 1024**2, rel=0.15)
    centres = [np.argwhere(mask[0]).mean(0) / mask.shape[1] for mask in (large, small)]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.012)


def test_boxes_lie_on_what_they_frame(tmp_path, nih_folder):
    """A bright square at the original size, its box beside it: after loading at 64 px, the mask is where it is bright."""
    root = nih_folder()
    names = (root / "test_list.txt").read_text().split()[:2]
    lines = (root / "BBox_List_2017.csv").read_text().splitlines()[:1]
    for name, (x, y, w, h) in zip(names, ((128, 640, 256, 128), (512, 64, 320, 320)), strict=True):
        pixels = np.zeros((1024, 1024), np.uint8)
        pixels[y : y + h, x : x + w] = 255
        Image.fromarray(pixels).save(root / "images" / name)
        lines.append(f"{name},Infiltrate,{x},{y},{w},{h},,,")
    (root / "BBox_List_2017.csv").write_text("\n".join(lines) + "\n")
    data = load_dataset("nih", root, 64, cache_dir=tmp_path / "cache")
    truth = load_regions(TrainConfig(dataset="nih", data_root=str(root)), data)
    assert data.test.ids[truth.rows].tolist() == names
    assert {FINDINGS[k] for k in truth.tasks} == {"Infiltration"}
    np.testing.assert_array_equal(truth.masks, data.test.images[truth.rows] > 127)


def test_boxes_of_training_patients_are_left_out(nih_sample, cache_dir):
    data = load_dataset("nih", nih_sample, 64, split="patient")
    config = TrainConfig(dataset="nih", data_root=str(nih_sample), split="patient")
    truth = load_regions(config, data, per_finding=1000)
    trained = {*data.train.patients, *data.val.patients}
    assert not trained & set(truth.patients)
    assert len(np.unique(truth.rows)) > 80
    assert len(np.unique(truth.tasks)) == 8  # the findings that have boxes


def test_data_without_regions_are_refused(splits, nih_folder, tmp_path):
    with pytest.raises(ValueError, match=r'"phantom".*"nih".*Found \'csv\''):
        load_regions(TrainConfig(dataset="csv"), splits)
    root = nih_folder()  # the only boxes are of its first and last image
    table = (root / "BBox_List_2017.csv").read_text().splitlines()
    (root / "BBox_List_2017.csv").write_text(table[0] + "\n00000000_000.png,Mass,0,0,10,10,,,\n")
    data = load_dataset("nih", root, 64, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"none of the \d+ images of test has a region"):
        load_regions(TrainConfig(dataset="nih", data_root=str(root)), data)
