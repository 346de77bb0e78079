"""One image file of the user's own: the run's own probabilities, calibrated, with maps, or one clear error."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from deepchest_utils import FINDINGS, TrainConfig, train
from deepchest_utils.__main__ import main
from deepchest_utils.datasets.cache import decode
from deepchest_utils.explain.predict import NOTE, load_trained, predict_image
from deepchest_utils.results.metrics import calibrate, fit_calibration


@pytest.fixture(scope="module")
def trained_run(splits, tmp_path_factory):
    """A finished run, its folder, and the first test image as a file."""
    folder = tmp_path_factory.mktemp("run")
    run = train(TrainConfig(epochs=2, seed=3, run_dir=str(folder)), splits)
    Image.fromarray(np.asarray(splits.test.images[0])).save(folder / "first.png")
    return run, folder


def test_probabilities_are_those_of_the_run_calibrated(trained_run, splits):
    run, folder = trained_run
    trained = load_trained(folder)
    found = predict_image(trained, decode(folder / "first.png", 64))
    expected = fit_calibration(splits.val.labels, run.logits["val"])
    np.testing.assert_allclose(trained.calibration, expected, rtol=1e-9)
    probabilities = calibrate(run.logits["test"][:1], expected)[0]
    np.testing.assert_allclose(found[list(FINDINGS)], probabilities, rtol=1e-4)
    assert found.is_monotonic_decreasing
    assert sorted(found.index) == sorted(FINDINGS)


def test_a_run_without_calibration_says_so(trained_run, tmp_path, capsys):
    run, folder = trained_run
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes((folder / "checkpoint.pt").read_bytes())
    assert load_trained(checkpoint).calibration is None
    found = predict_image(load_trained(checkpoint), decode(folder / "first.png", 64))
    expected = 1 / (1 + np.exp(-run.logits["test"][0].astype(float)))
    np.testing.assert_allclose(found[list(FINDINGS)], expected, rtol=1e-4)
    assert main(["predict", "--checkpoint", str(checkpoint), str(folder / "first.png")]) == 0
    assert "not calibrated" in capsys.readouterr().out


def test_from_the_command_line_with_maps(trained_run, tmp_path, capsys):
    _, folder = trained_run
    out = tmp_path / "map.png"
    arguments = ["predict", "--checkpoint", str(folder / "checkpoint.pt"), str(folder / "first.png")]
    assert main([*arguments, "--out", str(out), "--findings", "Mass", "Pleural_Thickening"]) == 0
    shown = capsys.readouterr().out
    assert NOTE in shown
    assert ", calibrated" in shown
    assert all(name in shown for name in FINDINGS)
    with Image.open(out) as picture:
        assert picture.width > 2.5 * picture.height / 1.3  # the image and two maps, side by side
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert (colours[..., 0] - colours[..., 2]).max() > 60  # orange somewhere


def wrong_checkpoint(folder, tmp_path):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**state, "version": 1}, tmp_path / "old.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    (tmp_path / "other" / "calibration.json").write_text(json.dumps({"Mass": [1, 0]}))


@pytest.mark.parametrize(
    ("checkpoint", "image", "more", "named"),
    [
        ("nowhere.pt", "first.png", [], "nowhere.pt: no such checkpoint"),
        ("text.pt", "first.png", [], "text.pt: not a readable checkpoint"),
        ("old.pt", "first.png", [], "old.pt: not a checkpoint of this version"),
        ("other", "first.png", [], "calibration.json: should have a slope and an offset for each of Atelectasis"),
        (None, "absent.png", [], "absent.png: no such image"),
        (None, "checkpoint.pt", [], "checkpoint.pt: not a readable image"),
        (None, "first.png", ["--findings", "Flu"], "findings should be among Atelectasis, .* Found 'Flu'"),
        (None, "first.png", ["--out", "m.png", "--cam", "saliency"], "method should be one of gradcam.*'saliency'"),
        (None, "first.png", ["--out", "m.docx"], r"out should end in .*\.png.*m\.docx"),
    ],
)  # fmt: skip
def test_wrong_requests_are_one_clear_line(trained_run, tmp_path, monkeypatch, capsys, checkpoint, image, more, named):
    _, folder = trained_run
    wrong_checkpoint(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / checkpoint) if checkpoint else str(folder)
    assert main(["predict", "--checkpoint", path, str(folder / image), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(named, error)


@pytest.mark.slow
def test_maps_need_hard_sharing_and_probabilities_do_not(splits, tmp_path, capsys):
    train(TrainConfig(epochs=1, architecture="mtan", run_dir=str(tmp_path)), splits)
    Image.fromarray(np.asarray(splits.test.images[0])).save(tmp_path / "x.png")
    arguments = ["predict", "--checkpoint", str(tmp_path), str(tmp_path / "x.png")]
    assert main(arguments) == 0
    assert main([*arguments, "--out", str(tmp_path / "map.png")]) == 2
    assert "net should be a MultiTaskNet" in capsys.readouterr().err
