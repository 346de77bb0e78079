"""Features in place of images: `embed` writes them, `dataset="embeddings"` reads them, whoever made the file."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from deepchest_utils import FINDINGS, TrainConfig, load_dataset, train
from deepchest_utils.__main__ import main
from deepchest_utils.datasets import DataError, DataWarning
from deepchest_utils.explain.cam import heat_maps
from deepchest_utils.files import FileError
from deepchest_utils.models.augment import to_input
from deepchest_utils.models.network import MultiTaskNet
from deepchest_utils.models.trunks import BACKBONES, build_trunk
from deepchest_utils.training import embed as module
from deepchest_utils.training.embed import embed
from deepchest_utils.training.loop import Loop

TINY = TrainConfig(backbone="resnet18_thin", device="cpu", augment=False, data_options={"num_train": 300})


def made(path, n=600, width=24, dtype=np.float16, seed=0, **other):
    """A file as `embed` writes it; every finding can be read off its own feature, patients have two images each."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, len(FINDINGS))) < 0.2).astype(np.float32)
    features = rng.normal(size=(n, width)).astype(dtype)
    features[:, : labels.shape[1]] += (2 * labels).astype(dtype)
    patients, ids = np.arange(n) // 2, np.array([f"{i:05d}.png" for i in range(n)])
    split = np.digitize(np.arange(n) / n, [0.6, 0.8]).astype(np.int8)
    arrays = {"features": features, "labels": labels, "patients": patients, "ids": ids, "split": split}
    np.savez(path, **{**arrays, "findings": np.array(FINDINGS), **other})
    return arrays


def table_of(path, arrays, **columns):
    frame = pd.DataFrame({"image": arrays["ids"], "patient": arrays["patients"]})
    for k, name in enumerate(FINDINGS[:3]):
        frame[name] = arrays["labels"][:, k].astype(int)
    frame.assign(**columns).to_csv(path, index=False)
    return frame


# embed


@pytest.mark.filterwarnings("ignore:embeddings. findings without a positive image")
def test_features_are_those_of_the_trunk_in_the_order_of_the_splits(tmp_path, splits):
    out = embed(TINY, tmp_path / "f.npz", splits, batch_size=7)
    trunk = torch.manual_seed(0) and build_trunk("resnet18_thin", 64)[0].eval()
    data = load_dataset("embeddings", out)
    for name, part in data.parts.items():
        images = splits.parts[name]
        with torch.no_grad():
            expected = trunk(to_input(torch.tensor(images.images)))
        assert part.images.dtype == np.float16
        torch.testing.assert_close(torch.tensor(part.images).float(), expected, rtol=2e-3, atol=2e-3)
        for field in ("labels", "patients", "ids"):
            np.testing.assert_array_equal(getattr(part, field), getattr(images, field))
    assert data.findings == FINDINGS
    assert data.source == f"{out} (resnet18_thin from random weights, 64 px, of phantom)"


def test_the_file_says_what_it_was_made_with(tmp_path, splits):
    out = embed(TINY, tmp_path / "f[1].npz", splits)
    with np.load(out) as arrays:
        about = json.loads(str(arrays["about"]))
    assert about["backbone"] == "resnet18_thin"
    assert about["image_size"] == 64
    assert about["data"] == splits.fingerprint()
    assert about["torch"] == torch.__version__.partition("+")[0] or about["torch"] == torch.__version__
    assert sorted(os.listdir(tmp_path)) == ["f[1].npz", "f[1].npz.lock"]  # nothing else is left behind


@pytest.mark.parametrize("batches", [1, 17, 28])
def test_a_stopped_call_goes_on_where_it_was(tmp_path, splits, monkeypatch, batches):
    """In train, in val or in test; what was done is not done again, and the file has the same bytes."""
    whole = embed(TINY, tmp_path / "whole.npz", splits, batch_size=20)
    seen, inner = [], module.embed_images

    def stops(trunk, xrays, *arguments):
        for rows, values in inner(trunk, xrays, *arguments):
            if len(seen) == batches:
                raise KeyboardInterrupt
            seen.append(len(values))
            yield rows, values

    monkeypatch.setattr(module, "embed_images", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(TINY, tmp_path / "f.npz", splits, batch_size=20)
    assert not (tmp_path / "f.npz").exists()
    done, batches = sum(seen), 10**6
    seen.clear()
    embed(TINY, tmp_path / "f.npz", splits, batch_size=20)
    assert done + sum(seen) == 620
    with np.load(whole) as first, np.load(tmp_path / "f.npz") as second:
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert sorted(os.listdir(tmp_path)) == ["f.npz", "f.npz.lock", "whole.npz", "whole.npz.lock"]


@pytest.mark.filterwarnings("ignore:phantom. findings without a positive image")
def test_a_finished_file_is_not_made_again_and_another_is_kept(tmp_path, splits, monkeypatch):
    out = embed(TINY, tmp_path / "f.npz", splits)
    monkeypatch.setattr(module, "build_trunk", None)
    before = out.read_bytes()
    assert embed(TINY, out, splits) == out
    for other in (replace(TINY, backbone="resnet18"), replace(TINY, seed=1), replace(TINY, data_options={"a": 1})):
        with pytest.raises(FileError, match=r"f\.npz holds other features\. Choose another out"):
            embed(other, out, splits)
    renamed = replace(splits, test=replace(splits.test, ids=np.char.add("new-", splits.test.ids)))
    assert renamed.fingerprint() == splits.fingerprint()
    with pytest.raises(FileError, match=r"f\.npz holds other features\. Choose another out"):
        embed(TINY, out, renamed)
    assert out.read_bytes() == before
    out.write_text("my notes")
    with pytest.raises(FileError, match=r"f\.npz is damaged, or no file of embed\. Choose another out"):
        embed(TINY, out, splits)


@pytest.mark.filterwarnings("ignore:phantom. findings without a positive image")
def test_a_registered_encoder_is_known_by_its_weights(tmp_path, splits, monkeypatch):
    """Its name stays when another network is put in its place."""

    def encoder(scale: float) -> torch.nn.Module:
        net = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(64, 4))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(scale)
        return net

    config, out = replace(TINY, backbone="mine"), tmp_path / "f.npz"
    monkeypatch.setitem(BACKBONES, "mine", lambda size, pretrained: encoder(1.0))
    first = np.load(embed(config, out, splits))["features"]
    assert np.array_equal(np.load(embed(config, out, splits))["features"], first)
    monkeypatch.setitem(BACKBONES, "mine", lambda size, pretrained: encoder(2.0))
    with pytest.raises(FileError, match="holds other features"):
        embed(config, out, splits)


@pytest.mark.filterwarnings("ignore:phantom. findings without a positive image")
@pytest.mark.filterwarnings("ignore:embeddings. findings without a positive image")
def test_whole_numbers_as_ids_become_texts(tmp_path, splits):
    parts = {
        name: replace(xrays, ids=np.arange(len(xrays)) + 1000 * i)
        for i, (name, xrays) in enumerate(splits.parts.items())
    }
    file = embed(TINY, tmp_path / "f.npz", replace(splits, **parts))
    assert load_dataset("embeddings", file).train.ids[0] == "0"


def test_features_too_large_for_half_precision_are_refused(tmp_path, splits, monkeypatch):
    def large(*_):
        trunk, width = build_trunk("resnet18_thin", 64)
        return trunk.append(torch.nn.Threshold(1e9, 1e5)), width

    monkeypatch.setattr(module, "build_trunk", large)
    for _ in range(2):  # a second call does not go on behind them
        with pytest.raises(ValueError, match=r"features should be finite in half precision.*train/0"):
            embed(TINY, tmp_path / "f.npz", splits)
    with pytest.raises(ValueError, match=r"out should be the name of an \.npz.*f\.csv"):
        embed(TINY, tmp_path / "f.csv", splits)


@pytest.mark.filterwarnings("ignore:.*findings without a positive image")  # few images are enough here
def test_command_with_true_weights_then_training_on_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = ["--data-options", "num_train", "120", "num_val", "60", "num_test", "60"]
    command = ["embed", "--image-size", "64", "--device", "cpu", "--out", "f.npz", *sizes]
    assert main(command) == 0
    assert "240 images with 1,280 features each in f.npz (lite0, 64 px, of phantom)" in capsys.readouterr().out
    options = ["--dataset", "embeddings", "--data-root", "f.npz", "--epochs", "2", "--lr", "3e-4", "--device", "cpu"]
    assert main(["data", "embeddings", "--data-root", "f.npz"]) == 0
    assert "embeddings, 1,280 features, split=official, read from f.npz (lite0" in capsys.readouterr().out
    assert main(["train", *options, "--run-dir", "run"]) == 0
    assert main(["predict", "f.npz", "--checkpoint", "run"]) == 2
    error = capsys.readouterr().err
    assert "trained on embeddings, and an image needs a network of images" in error


# reading


def test_a_file_of_embed_keeps_its_split_and_can_be_split_anew(tmp_path):
    arrays = made(tmp_path / "f.npz")
    kept = load_dataset("embeddings", tmp_path / "f.npz")
    assert kept.split == "official"
    np.testing.assert_array_equal(kept.test.images, arrays["features"][arrays["split"] == 2])
    by_patient, other = (load_dataset("embeddings", tmp_path, split="patient", seed=seed) for seed in (0, 1))
    for data in (by_patient, other):
        for part in data.parts.values():
            rows = np.array([int(name[:5]) for name in part.ids])
            np.testing.assert_array_equal(part.images, arrays["features"][rows])
            np.testing.assert_array_equal(part.labels, arrays["labels"][rows])
            np.testing.assert_array_equal(part.patients, arrays["patients"][rows])
    assert set(by_patient.test.ids) != set(other.test.ids)
    assert by_patient.fingerprint() != other.fingerprint()
    fold = load_dataset("embeddings", tmp_path, split="2/5")
    assert len(fold.test) == pytest.approx(120, abs=4)
    few = load_dataset("embeddings", tmp_path, split="patient", max_images=50)
    assert len(few.train) == 50
    fewer = load_dataset("embeddings", tmp_path, split="patient", max_train=30)
    assert [len(part) for part in fewer.parts.values()] == [30, len(by_patient.val), len(by_patient.test)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_an_npy_and_a_table_in_its_order(tmp_path, dtype):
    arrays = made(tmp_path / "x.npz", dtype=np.dtype(dtype))
    (tmp_path / "x.npz").unlink()
    np.save(tmp_path / "rad_dino.npy", arrays["features"])
    table_of(tmp_path / "labels.csv", arrays)
    data = load_dataset("embeddings", tmp_path)
    assert data.findings == FINDINGS[:3]
    assert data.train.images.dtype == (np.float16 if dtype == np.float16 else np.float32)
    rows = np.array([int(name[:5]) for name in data.val.ids])
    np.testing.assert_array_equal(data.val.images, arrays["features"][rows].astype(data.val.images.dtype))
    np.testing.assert_array_equal(data.val.labels, arrays["labels"][rows, :3])


def test_a_table_in_another_order_is_matched_by_name(tmp_path):
    """Of a file of `embed`, with other labels; rows that the table lacks are left out."""
    arrays = made(tmp_path / "f.npz")
    frame = table_of(tmp_path / "other.csv", arrays).sample(300, random_state=0)
    frame.to_csv(tmp_path / "other.csv", index=False)
    data = load_dataset("embeddings", tmp_path / "f.npz", table="other.csv")
    assert sum(map(len, data.parts.values())) == 300
    for part in data.parts.values():
        rows = np.array([int(name[:5]) for name in part.ids])
        np.testing.assert_array_equal(part.images, arrays["features"][rows])
        np.testing.assert_array_equal(part.labels, arrays["labels"][rows, :3])


def test_split_and_patients_of_a_file_count_with_a_table_too(tmp_path):
    arrays = made(tmp_path / "f.npz", labels=np.full((600, 2), "none"))  # labels are the table's
    frame = table_of(tmp_path / "films.csv", arrays, part=np.repeat(["test", "train", "val"], 200))
    with pytest.warns(DataWarning, match="column 'part' says train, val or test and is not used"):
        data = load_dataset("embeddings", tmp_path / "f.npz", table="films.csv")
    assert data.split == "official"
    assert set(data.test.ids) == set(arrays["ids"][arrays["split"] == 2])
    data = load_dataset("embeddings", tmp_path / "f.npz", table="films.csv", split_column="part")
    assert set(data.test.ids) == set(arrays["ids"][:200])
    table_of(tmp_path / "films.csv", arrays, patient=arrays["patients"] // 10)  # families are no harm
    assert len(load_dataset("embeddings", tmp_path / "f.npz", table="films.csv", split="patient").test)
    table_of(tmp_path / "films.csv", arrays, patient=[*range(4), *frame.patient[4:] + 9])
    message = (
        r"films\.csv: images of one patient in f\.npz should be of one here\. Found several for 00000\.png, 00001\.png"
    )
    with pytest.raises(DataError, match=message):
        load_dataset("embeddings", tmp_path / "f.npz", table="films.csv")


def test_patients_may_be_texts(tmp_path):
    arrays = made(tmp_path / "f.npz")
    made(tmp_path / "texts.npz", patients=np.array([f"p{patient}" for patient in arrays["patients"]]))
    usual, texts = (load_dataset("embeddings", tmp_path / name) for name in ("f.npz", "texts.npz"))
    assert texts.fingerprint() == usual.fingerprint()


def test_a_blank_makes_no_second_patient_and_minus_one_is_none(tmp_path):
    file, number = tmp_path / "f.npz", np.arange(600) // 2
    made(file, patients=np.array([f"P{i}{' ' * (row % 2)}" for row, i in enumerate(number)]))
    parts = load_dataset("embeddings", file, split="patient").parts.values()
    train_, val, test = (set(xrays.patients) for xrays in parts)
    assert len(train_) + len(val) + len(test) == len(train_ | val | test) == 300
    made(file, patients=np.where(np.arange(600) < 300, -1, number))
    with pytest.raises(DataError, match=r"patients should be 0 or more\. Found -1, which names no patient"):
        load_dataset("embeddings", file, split="patient")


def test_features_names_a_file_of_the_folder(tmp_path):
    made(tmp_path / "f.npz")
    assert len(load_dataset("embeddings", tmp_path / "f.npz", features="f.npz").train)
    with pytest.raises(DataError, match=r"root names a file already, and features another\. Found 'g\.npz'"):
        load_dataset("embeddings", tmp_path / "f.npz", features="g.npz")
    with pytest.raises(DataError, match=r"g\.npz: no such file\. features should name an \.npz or \.npy in"):
        load_dataset("embeddings", tmp_path, features="g.npz")


def test_empty_cells_and_official_splits_of_a_table_mean_what_they_do_for_images(tmp_path):
    arrays = made(tmp_path / "f.npz")
    np.save(tmp_path / "f.npy", arrays["features"])
    (tmp_path / "f.npz").unlink()
    part = np.where(arrays["patients"] % 5 == 0, "test", np.where(arrays["patients"] % 5 == 1, "val", "train"))
    empty = pd.Series(arrays["labels"][:, 0]).replace(0.0, np.nan)
    empty[3] = -1
    table_of(tmp_path / "labels.csv", arrays, Atelectasis=empty, part=part)
    with pytest.raises(DataError, match='Say blank="absent" or "unknown", and uncertain='):
        load_dataset("embeddings", tmp_path)
    data = load_dataset("embeddings", tmp_path, blank="absent", uncertain="present", split_column="part")
    assert data.split == "official"
    assert set(data.test.patients % 5) == {0}
    known = arrays["labels"][:, 0].copy()
    known[3] = 1
    for xrays in data.parts.values():
        np.testing.assert_array_equal(xrays.labels[:, 0], known[[int(name[:5]) for name in xrays.ids]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros((600, 14), "U1")}, r"labels is not as `embed` writes it.*<U1 of shape \(600, 14\)"),
        (
            {"labels": np.full((600, 14), 2.0)},
            r"f\.npz: labels should be 0, 1 or NaN\. Found 2\.0 for Atelectasis of image",
        ),
        ({"labels": np.zeros((600, 14), int)}, r"labels is not as.* Found int64 of shape .*\. It should be floats"),
        ({"ids": np.arange(600)}, r"ids is not as.*It should be texts: np\.array\(ids, str\)"),
        ({"patients": np.ones(600)}, "patients is not as.*It should be whole numbers or texts"),
        (
            {"patients": np.array(["nan"] * 600)},
            r"f\.npz: column 'patients' says 'nan' in row 0, which names no patient",
        ),
        ({"split": np.array(["train"] * 600)}, "split is not as.*It should be whole numbers"),
        ({"patients": np.zeros(3, int)}, r"patients should have one row for each of the 600 features\. Found 3"),
        ({"patients": np.zeros(600, int)}, "patients should be in one split only"),
        ({"split": np.arange(600) % 2 * 3 - 1}, r"split should be 0, 1 or 2.*Found -1, 2\."),
        ({"ids": np.array(["a"] * 600)}, "ids should name each image once. Found a twice"),
        ({"ids": np.array(["a"] * 600, object)}, r"Object arrays.*Save texts as np\.array\(texts, str\)"),
        ({"findings": np.array(["a"] * 14)}, "findings should be named once each. Found a, a"),
        ({"features": np.zeros((600, 4, 4))}, r"features should be an array of floats.*\(600, 4, 4\)"),
        ({"features": np.zeros((600, 4), int)}, r"features should be an array of floats.*int64"),
        ({"features": np.zeros((4, 600)).T}, "column by column"),
        ({"features": np.full((600, 4), np.nan)}, r"features should be finite.*00000\.png"),
        ({"findings": np.array(["a", "b"])}, "one column a finding"),
        ({"about": np.array("[" * 100_000)}, None),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, change, message):
    made(tmp_path / "f.npz", **change)
    if message is None:
        assert len(load_dataset("embeddings", tmp_path / "f.npz").train)
        return
    with pytest.raises(DataError, match=message) as error:
        load_dataset("embeddings", tmp_path / "f.npz")
    assert "\n" not in str(error.value)


def test_names_beside_features_count_or_are_refused(tmp_path):
    """Matched by place, thirty of thirty vectors would lie on wrong images."""
    arrays = made(tmp_path / "f.npz")
    table_of(tmp_path / "films.csv", arrays)
    np.savez(tmp_path / "own.npz", features=arrays["features"][::-1], filenames=arrays["ids"][::-1])
    with pytest.raises(DataError, match=r"arrays are not read: filenames\. If one names the images, call it 'ids'"):
        load_dataset("embeddings", tmp_path / "own.npz", table=str(tmp_path / "films.csv"))


def test_features_of_one_value_are_counted(tmp_path):
    arrays = made(tmp_path / "f.npz")
    arrays["features"][[3, 70]] = 0
    np.savez(tmp_path / "g.npz", **arrays, findings=np.array(FINDINGS))
    with pytest.warns(DataWarning, match="2 of 600 images have features of one value"):
        load_dataset("embeddings", tmp_path / "g.npz")


def test_one_vector_of_two_patients_is_said(tmp_path):
    arrays = made(tmp_path / "f.npz")
    arrays["features"][300:] = arrays["features"][:300]
    np.savez(tmp_path / "g.npz", **arrays, findings=np.array(FINDINGS))
    with pytest.warns(DataWarning, match=r"\d+ images are the same, bit by bit, as one in another split"):
        load_dataset("embeddings", tmp_path / "g.npz")


def test_what_is_wrong_with_a_folder_or_a_table_is_said(tmp_path):
    def refuses(message, **options):
        with pytest.raises(DataError, match=message):
            load_dataset("embeddings", options.pop("root", tmp_path), **options)

    refuses(r"root \(data_root of a run\) should name a file of features", root=None)
    refuses(r"one \.npz or \.npy of features\. Found none")
    arrays = made(tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", arrays["features"])
    refuses(r"Found f\.npz, g\.npy\. Save them so, or name one of several with features=")
    (tmp_path / "p").mkdir()
    frame = pd.DataFrame({"a": [1.0]})
    frame.to_csv(tmp_path / "p" / "features.parquet")
    refuses(r"Found features\.parquet\. Save them so", root=tmp_path / "p", features="features.parquet")
    refuses(r"g\.npy has no labels, and there is no table .*labels\.csv\. Name it with table=", features="g.npy")
    frame = table_of(tmp_path / "labels.csv", arrays)
    frame[:-1].to_csv(tmp_path / "labels.csv", index=False)
    refuses(r"should have a row for each of the 600 features of g\.npy.*Found 599", features="g.npy")
    frame.assign(image=frame.image.replace("00007.png", "seven")).to_csv(tmp_path / "labels.csv", index=False)
    refuses(r"1 images have no features in f\.npz, e\.g\. seven in row 9", features="f.npz", table="labels.csv")
    frame.assign(image="same").to_csv(tmp_path / "labels.csv", index=False)
    refuses("image same is there twice", features="f.npz", table="labels.csv")
    refuses(r"f\.npz has labels of its own: options of a table need one", features="f.npz", finding_columns=["Mass"])
    np.savez(tmp_path / "h.npz", features=arrays["features"], labels=arrays["labels"], ids=arrays["ids"])
    refuses(r"h\.npz has labels, but no patients, split, findings\. Name a table with table=", features="h.npz")
    refuses("'min_size' is no option of dataset 'embeddings'", features="f.npz", min_size=4)
    np.save(tmp_path / "o.npy", np.array([[None]]), allow_pickle=True)
    refuses("features should be an array of floats", features="o.npy")


@pytest.mark.parametrize("keep", [0, 3, 50, 200, 20_000])
def test_a_file_that_breaks_off_is_named(tmp_path, keep):
    arrays = made(tmp_path / "f.npz")
    np.save(tmp_path / "g.npy", arrays["features"])
    table_of(tmp_path / "labels.csv", arrays)
    for name in ("f.npz", "g.npy"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=name):
            load_dataset("embeddings", tmp_path, features=name)


def test_a_changed_byte_is_found(tmp_path):
    """By the checksum that a zip archive has of each of its files."""
    made(tmp_path / "f.npz")
    content = bytearray((tmp_path / "f.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "f.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        assert archive.testzip() == "features.npy"
    with pytest.raises(DataError, match=r"f\.npz.*CRC"):
        load_dataset("embeddings", tmp_path / "f.npz")


# training

CONFIG = TrainConfig(dataset="embeddings", epochs=3, lr=3e-3, device="cpu")
METHODS = ("equal", "deepchest", 'pcgrad(level="features")', "gradnorm", "famo", "uncertainty", "deepchest@single_task")


def test_the_network_is_the_papers_head(tmp_path):
    made(tmp_path / "f.npz")
    assert CONFIG.backbone == "mlp"
    run = train(CONFIG, load_dataset("embeddings", tmp_path / "f.npz"))
    shapes = {name: tuple(value.shape) for name, value in run.model.state_dict().items()}
    assert shapes == {
        "trunk.linear.weight": (512, 24),
        "trunk.linear.bias": (512,),
        "head.weight": (14, 512),
        "head.bias": (14,),
    }
    auroc = run.test.query("task == 'macro' and metric == 'auroc'").value.item()
    assert auroc > 0.85  # each finding shows in its own feature, by two standard deviations
    with pytest.raises(ValueError, match="trained on embeddings, and heat maps need images"):
        heat_maps(run.model, np.zeros((1, 64, 64), np.uint8), [0])


def test_all_kinds_of_methods_sweep_and_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "f.npz")
    options = ["--dataset", "embeddings", "--data-root", "f.npz", "--split", "patient", "--epochs", "2"]
    command = ["sweep", *options, "--method", *METHODS, "--out", "runs/s.csv", "--baseline", "equal"]
    assert main(command) == 0
    assert "failed" not in capsys.readouterr().err
    assert main(["report", "runs"]) == 0
    assert f"{len(METHODS)} tested runs below runs" in capsys.readouterr().out


def test_a_stopped_run_goes_on(tmp_path):
    made(tmp_path / "f.npz")
    data = load_dataset("embeddings", tmp_path / "f.npz")
    whole = train(CONFIG, data)
    config = replace(CONFIG, run_dir=str(tmp_path / "run"))
    ends = iter([None, KeyboardInterrupt])
    run_epoch = Loop.run_epoch

    def stops(self):
        if (stop := next(ends, None)) is not None:
            raise stop
        run_epoch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            train(config, data)
    again = train(config, data)
    np.testing.assert_array_equal(again.logits["test"], whole.logits["test"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment_test": True}, "augment_test should be False for dataset 'embeddings'"),
        ({"backbone": "resnet18"}, "backbone 'mlp' and dataset 'embeddings' go together. Found 'resnet18'"),
        ({"dataset": "nih"}, "backbone 'mlp' and dataset 'embeddings' go together. Found 'mlp' and 'nih'"),
    ],
)
def test_what_makes_no_sense_of_vectors_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


def test_network_and_augmentation_follow_the_data():
    assert (CONFIG.backbone, CONFIG.augment) == ("mlp", False)
    assert not replace(CONFIG, augment=True).augment


def test_other_combinations_are_one_line_each(tmp_path, splits):
    made(tmp_path / "f.npz")
    data = load_dataset("embeddings", tmp_path / "f.npz")
    with pytest.raises(ValueError, match="embeddings go with backbone='mlp' and augment=False"):
        train(TrainConfig(device="cpu"), data)
    with pytest.raises(ValueError, match="images with another backbone"):
        train(CONFIG, splits)
    with pytest.raises(ValueError, match=r"needs a ResNet as backbone\. Found 'mlp'"):
        train(replace(CONFIG, architecture="mtan"), data)
    with pytest.raises(ValueError, match="pretrained should be False for backbone='mlp'"):
        MultiTaskNet("mlp", 3, 24, pretrained=True)
    with pytest.raises(ValueError, match="has features"):
        embed(CONFIG, tmp_path / "g.npz", data)


# memory, at the size of NIH ChestX-ray14

FULL = """
import re, sys
from pathlib import Path

def mebibytes():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

from deepchest_utils import TrainConfig, load_dataset, train
before = mebibytes()  # PyTorch's CUDA build and the other packages
data = load_dataset("embeddings", sys.argv[1], split="patient")
train(TrainConfig(dataset="embeddings", epochs=1, lr=3e-4, batch_size=256, device="cpu"), data)
print(sum(map(len, data.parts.values())), data.train.images.dtype, mebibytes() - before, mebibytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux counts")
def test_all_of_nih_fits_into_a_gibibyte(tmp_path):
    """112,120 x 768 in half precision, 164 MiB, loaded, split by patient and trained on."""
    made(tmp_path / "f.npz", 112_120, 768)
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "f.npz")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, dtype, added, peak = done.stdout.split()
    assert (int(count), dtype) == (112_120, "float16")
    assert int(added) < 320  # one copy of the features, and what training needs
    assert int(peak) < 1100  # of which the packages alone have 740
