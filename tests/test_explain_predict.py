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
from deepchest_utils.notebook.figures import draw_maps
from deepchest_utils.results.checkpoint import read_checkpoint, save_checkpoint
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
    assert (
        "first.png, trained on the phantom, drawn chests: on any other image, as a radiograph, these numbers mean"
        in shown
    )
    assert "calibrated" not in shown  # it has not seen the kind of image that people have
    assert all(name in shown for name in FINDINGS)
    with Image.open(out) as picture:
        assert picture.width > 2.5 * picture.height / 1.3  # the image and two maps, side by side
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert (colours[..., 0] - colours[..., 2]).max() > 60  # orange somewhere


def wrong_checkpoint(folder, tmp_path):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**state, "version": 4}, tmp_path / "old.pt")  # without a checksum
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes())
    (tmp_path / "other" / "calibration.json").write_text(json.dumps({"Mass": [1, 0]}))


@pytest.mark.parametrize(
    ("checkpoint", "image", "more", "named"),
    [
        ("nowhere.pt", "first.png", [], r"nowhere\.pt: no such checkpoint\. Name checkpoint\.pt of a run, or its folder\.$"),
        ("text.pt", "first.png", [], r"text\.pt: not a readable checkpoint \(.*\)\. Name checkpoint\.pt of a run, or its f"),
        ("old.pt", "first.png", [], r"old\.pt: not a .*checkpoint .* version"),
        ("other", "first.png", [], "calibration.json: should have a slope and an offset for each of Atelectasis"),
        (None, "absent.png", [], "absent.png: no such image"),
        (None, "checkpoint.pt", [], "checkpoint.pt: not a readable image"),
        (None, "first.png", ["--findings", "Flu"], "findings should be among Atelectasis, .* Found 'Flu'"),
        (None, "first.png", ["--cam", "layer_cam"], "cam should be one of gradcam.*'layer_cam'. Did you mean 'layercam'"),
        (None, "first.png", ["--out", "m.docx"], r"out should end in .*\.png.*m\.docx"),
        ("nowhere.pt", "first.png", ["--out", "m.docx"], r"out should end in .*\.png.*m\.docx"),
        (None, "first.png", ["--out", "text.pt/m.png"], r"text\.pt/m\.png: cannot be written"),
        (None, "first.png", ["--out", "link.png"], r"out should be another file than the image\. Found link\.png"),
    ],
)  # fmt: skip
def test_wrong_requests_are_one_clear_line(trained_run, tmp_path, monkeypatch, capsys, checkpoint, image, more, named):
    _, folder = trained_run
    wrong_checkpoint(folder, tmp_path)
    (tmp_path / "link.png").symlink_to(folder / "first.png")
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / checkpoint) if checkpoint else str(folder)
    assert main(["predict", "--checkpoint", path, str(folder / image), *more]) == 2
    shown, error = capsys.readouterr()
    assert shown == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(named, error)


def altered(folder, out, change):
    """A copy of the run whose checkpoint is another."""
    out.mkdir()
    (out / "calibration.json").write_bytes((folder / "calibration.json").read_bytes())
    state, _ = read_checkpoint(folder)
    change(state)
    save_checkpoint(out, state)
    return str(out)


@pytest.mark.parametrize("damaged", [True, False])
def test_the_checkpoint_before_serves_when_the_last_is_lost(trained_run, tmp_path, capsys, damaged):
    _, folder = trained_run
    altered(folder, tmp_path / "run", lambda state: None)
    last = tmp_path / "run" / "checkpoint.pt"
    content = bytearray(last.read_bytes())
    last.rename(last.with_name("checkpoint.previous.pt"))
    if damaged:
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint\.pt: .*checkpoint\.previous\.pt"):
        assert main(["predict", "--checkpoint", str(tmp_path / "run"), str(folder / "first.png")]) == 0
    assert main(["predict", "--checkpoint", str(folder), str(folder / "first.png")]) == 0
    first, second = capsys.readouterr().out.split(NOTE)[:2]
    assert first.strip() == second.strip()


def weights_of(state):
    return {name: values for name, values in state["best"]["model"].items() if values.is_floating_point()}


@pytest.mark.parametrize(("value", "named"), [(np.nan, "weights"), (np.inf, "weights"), (1e38, "network's output")])
def test_numbers_that_are_none_are_refused(trained_run, tmp_path, capsys, value, named):
    _, folder = trained_run
    checkpoint = altered(folder, tmp_path / "run", lambda state: list(weights_of(state).values())[-2].fill_(value))
    assert main(["predict", "--checkpoint", checkpoint, str(folder / "first.png")]) == 2
    shown, error = capsys.readouterr()
    assert shown == ""
    assert re.fullmatch(f"error: .*{named} should be finite. Found NaN or infinity .*: train it again.\n", error)


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_network_of_radiographs_says_what_it_has_seen(trained_run, tmp_path, capsys, calibrated):
    _, folder = trained_run
    checkpoint = altered(folder, tmp_path / "run", lambda state: state["identity"].update(dataset="nih"))
    if not calibrated:
        (tmp_path / "run" / "calibration.json").unlink()
    assert main(["predict", "--checkpoint", checkpoint, str(folder / "first.png")]) == 0
    expected = (
        "calibrated on its validation images" if calibrated else "not calibrated: the run has no calibration.json"
    )
    assert capsys.readouterr().out.startswith(f"first.png, trained on nih, {expected}\n")


def test_a_blank_picture_is_said_and_capitals_are_a_suffix(trained_run, tmp_path, capsys):
    _, folder = trained_run
    Image.new("L", (64, 64), 9).save(tmp_path / "blank.png")
    out = tmp_path / "new" / "map.PNG"
    assert main(["predict", "--checkpoint", str(folder), str(tmp_path / "blank.png"), "--out", str(out)]) == 0
    assert "The picture has fewer than 32 grey levels" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert main(["predict", "--checkpoint", str(folder), str(folder / "first.png")]) == 0
    assert "grey levels" not in capsys.readouterr().out


def test_the_picture_of_the_maps_is_what_the_network_sees(trained_run, tmp_path):
    """A photograph that says it lies is drawn upright, one of 12 bits is not black."""
    _, folder = trained_run
    trained = load_trained(folder)
    with Image.open(folder / "first.png") as image:
        image = image.copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(np.asarray(image).astype(np.uint16) << 4).save(tmp_path / "deep.png")
    pictures = []
    for path in (folder / "first.png", tmp_path / "lying.png", tmp_path / "deep.png"):
        path = path.rename(path.with_name("film.png")) if path.parent == tmp_path else path
        draw_maps(trained, path, tmp_path / "map.png", ["Mass"])
        with Image.open(tmp_path / "map.png") as picture:
            pictures.append(np.asarray(picture.convert("L")).astype(int)[60:])  # below the name of the file
    assert pictures[0].std() > 20
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() <= 8


@pytest.mark.slow
def test_maps_need_hard_sharing_and_probabilities_do_not(splits, tmp_path, capsys):
    train(TrainConfig(epochs=1, architecture="mtan", run_dir=str(tmp_path)), splits)
    Image.fromarray(np.asarray(splits.test.images[0])).save(tmp_path / "x.png")
    arguments = ["predict", "--checkpoint", str(tmp_path), str(tmp_path / "x.png")]
    assert main(arguments) == 0
    assert main([*arguments, "--out", str(tmp_path / "map.png")]) == 2
    assert "net should be a MultiTaskNet" in capsys.readouterr().err
