"""Files from strangers: whatever is in them, one error of the documented type that names the file, in seconds, with nothing
left open."""

import gc
import gzip
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deepchest_utils import DataError, TrainConfig, load_dataset, train
from deepchest_utils.datasets.cache import decode
from deepchest_utils.explain.predict import load_trained, predict_image
from deepchest_utils.files import FileError
from deepchest_utils.results.checkpoint import read_checkpoint, save_checkpoint
from deepchest_utils.results.store import COLUMNS, RunTable, read_results

TOKENS = [
    b"", b"NaN", b"inf", b"-1", b"1e999", b"9" * 400, b"../../etc/passwd", b"/etc/passwd", b"\x00", b'"', b"'", b",", b"\n",
    b"\xff\xfe", "é".encode("latin-1"), b"\xef\xbb\xbf", b"Effusion|", b"No Finding|Mass", b"__import__('os')", b"{}", b"[" * 3000,
]  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to three things that happen to files, or that someone does to them."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content) + 1)
        end = min(len(content), at + rng.randint(1, 200))
        match rng.randrange(8):
            case 0:
                content = content[:at]
            case 1:
                content = content[:at] + rng.randbytes(end - at) + content[end:]
            case 2:
                content = content[:at] + rng.choice(TOKENS) + content[at:]
            case 3:
                content = content[:at] + content[end:]
            case 4:
                content = content[:end] + content[at:]
            case 5:
                content = content[:at] + rng.choice(TOKENS) + content[end:]
            case 6:
                flipped = bytearray(content)
                for _ in range(rng.randint(1, 20)):
                    if flipped:
                        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                content = bytes(flipped)
            case 7:
                parts = re.split(rb"([,\n])", content)
                if len(parts) > 1:
                    parts[rng.randrange(0, len(parts), 2)] = rng.choice(TOKENS)
                content = b"".join(parts)
    return content


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sizes = {"num_train": 64, "num_val": 48, "num_test": 48}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(TrainConfig(image_size=32, epochs=1, device="cpu", data_options=sizes, run_dir=str(folder)))
    return folder


def write_public(root: Path) -> Path:
    """One small folder of each public data set that has a table."""
    tables = {
        "chexpert/train.csv": ["Path,Sex,Edema,Pleural Effusion"],
        "mimic-cxr-2.0.0-chexpert.csv": ["subject_id,study_id,Edema,No Finding"],
        "mimic-cxr-2.0.0-metadata.csv.gz": ["dicom_id,subject_id,study_id,ViewPosition"],
        "mimic-cxr-2.0.0-split.csv": ["dicom_id,study_id,subject_id,split"],
        "padchest/p.csv": ["ImageID,PatientID,Projection,Labels"],
        "vindr/image_labels_train.csv": ["image_id,rad_id,Edema,Pleural effusion"],
    }
    for i in range(24):
        split = ("train", "train", "validate", "test")[i // 2 % 4]
        patient, label = f"patient{i // 2:05d}", i // 2 % 2
        rows = (
            f"train/{patient}/study1/view{i % 2}_frontal.jpg,Male,{label},{1 - label}",
            f"10{i // 2:06d},5{i:07d},{label},",
            f"d{i},10{i // 2:06d},5{i:07d},PA",
            f"d{i},5{i:07d},10{i // 2:06d},{split}",
            f"""{i}.png,{i // 2},PA,"['mass', 'scoliosis']\"""",
            f"v{i},R1,{label},{1 - label}",
        )
        for lines, row in zip(tables.values(), rows, strict=True):
            lines.append(row)
        images = f"files/p10/p10{i // 2:06d}/s5{i:07d}/d{i}.jpg", f"padchest/{i}.png", f"vindr/v{i}.png"
        for name in (f"chexpert/{rows[0].split(',')[0]}", *images):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), i).save(root / name)
    for name, lines in tables.items():
        text = ("\n".join(lines) + "\n").encode()
        (root / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return root


@pytest.fixture
def targets(nih_folder, trained, tmp_path):
    """name -> (the file that is spoilt, what reads it)."""
    nih, own = nih_folder(), tmp_path / "own"
    (own / "films").mkdir(parents=True)
    for i in range(24):
        Image.new("L", (20, 20), i).save(own / "films" / f"{i}.png")
    lines = [f"films/{i}.png,p{i // 2},{i // 2 % 2},{i // 4 % 2}" for i in range(24)]
    (own / "labels.csv").write_text("\n".join(["image,patient,Effusion,Mass", *lines]) + "\n")
    mnist = tmp_path / "mnist"
    mnist.mkdir()
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(0, 9, (6, 28, 28), np.uint8) for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": rng.integers(0, 2, (6, 14)).astype(np.uint8) for s in ("train", "val", "test")}
    np.savez_compressed(mnist / "chestmnist.npz", **arrays)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = rng.integers(0, 256, (40, 40), np.uint8)
    for suffix in ("png", "jpg", "tif", "bmp", "gif"):
        Image.fromarray(noise).save(pictures / f"film.{suffix}")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    header = ",".join(["cell", *COLUMNS])
    (sweep / "out.csv").write_text(f"{header}\nabc,equal,0,1,test,Mass,auroc,0.5\n")
    (sweep / "out_cells.csv").write_text("cell,status,method,seed\nabc,done,equal,0\n")
    np.savez_compressed(sweep / "out_replicates.npz", abc=np.zeros((2, 5, 3), np.float32))
    size = {"image_size": 16}
    public = write_public(tmp_path / "public")

    def load_nih():
        return load_dataset("nih", nih, **size)

    def load_run():
        return predict_image(load_trained(trained), noise[:32, :32].copy())

    found = {
        "table of NIH": (nih / "Data_Entry_2017_v2020.csv", load_nih),
        "list of NIH": (nih / "test_list.txt", load_nih),
        "boxes of NIH": (nih / "BBox_List_2017.csv", lambda: load_dataset_boxes(nih)),
        "image of NIH": (next((nih / "images").iterdir()), load_nih),
        "own table": (own / "labels.csv", lambda: load_dataset("csv", own, **size)),
        "CheXpert": (public / "chexpert" / "train.csv", lambda: load_dataset("chexpert", public / "chexpert", **size)),
        "MIMIC": (public / "mimic-cxr-2.0.0-chexpert.csv", lambda: load_dataset("mimic", public, **size)),
        "metadata of MIMIC": (
            public / "mimic-cxr-2.0.0-metadata.csv.gz",
            lambda: load_dataset("mimic", public, **size),
        ),
        "PadChest": (
            public / "padchest" / "p.csv",
            lambda: load_dataset("padchest", public / "padchest", table="p.csv", **size),
        ),
        "VinDr-CXR": (
            public / "vindr" / "image_labels_train.csv",
            lambda: load_dataset("vindr", public / "vindr", **size),
        ),
        "ChestMNIST": (mnist / "chestmnist.npz", lambda: load_dataset("chestmnist", mnist, image_size=28)),
        "checkpoint": (trained / "checkpoint.pt", load_run),
        "calibration": (trained / "calibration.json", load_run),
        "results": (sweep / "out.csv", lambda: RunTable(sweep / "out.csv")),
        "replicates": (sweep / "out_replicates.npz", lambda: RunTable(sweep / "out.csv")),
    }
    for path in pictures.iterdir():
        found[path.suffix] = (path, lambda path=path: decode(path, 32))
    return found


def load_dataset_boxes(root: Path):
    from deepchest_utils.datasets import load_boxes

    return load_boxes(root, 64)


def late(number, frame):
    raise AssertionError("it hangs")


def refusal(read) -> str | None:
    """The words of the documented error, None if all is well; any other error is the test's."""
    signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except FileError as error:
        return str(error)
    finally:
        signal.alarm(0)
    return None


def fuzz(targets: dict, tries: int, seed: int) -> int:
    count = 0
    for number, (name, (path, read)) in enumerate(targets.items()):
        rng, content = random.Random(1000 * seed + number), path.read_bytes()
        for _ in range(tries):
            path.write_bytes(mutate(content, rng))
            try:
                words = refusal(read)
            except Exception as error:
                error.add_note(f"{name}: {path.read_bytes()[:300]}")
                raise
            if words is not None:
                count += 1
                assert path.name in words or path.parent.name in words, f"{path.name} is not in: {words}"
                assert len(words) < 3000
        path.write_bytes(content)
        assert refusal(read) is None, name
    return count


def test_spoilt_files_end_in_the_documented_error(targets):
    assert fuzz(targets, 3, seed=0) > 20


def open_files() -> int:
    gc.collect()  # a worker's pipes are held by the traceback of the error that it raised
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_three_hundred_spoilt_files(targets, tally):
    fuzz(targets, 2, seed=1)  # whatever is imported and cached at first
    handles, memory = open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = fuzz(targets, 40, seed=2)
    assert count >= 300
    assert open_files() <= handles + 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB
    tally("malformed inputs refused", count)


SETTINGS = """
from deepchest_utils import TrainConfig
count = 0
for name in TrainConfig.__dataclass_fields__:
    for value in (None, "", "x", -1, 0, 1.5, float("nan"), float("inf"), 10**30, [], {}, b"", True, object()):
        try:
            TrainConfig(**{name: value})
        except ValueError as error:
            assert name in str(error), error
            count += 1
print(count)
"""


def test_any_value_of_any_setting_is_taken_or_refused_by_name(tally):
    """In a process of its own, without the checks of types that the tests have."""
    done = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
    tally("malformed inputs refused", int(done.stdout))


# what someone means to do


def test_checkpoint_runs_no_code(trained, tmp_path):
    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'run'}",)

    state, _ = read_checkpoint(trained)
    save_checkpoint(tmp_path, {**state, "findings": Code()})
    with pytest.raises(FileError, match=r"checkpoint\.pt: not a readable checkpoint .UnpicklingError"):
        load_trained(tmp_path)
    assert not (tmp_path / "run").exists()


ABSURD = {
    "image_size": {"image_size": 10**9},
    "backbone": {"backbone": "os.system"},
    "without classifier": {"backbone": "vgg16"},
    "lr": {"lr": "1"},
    "2.6 GB": {"backbone": "regnet_y_128gf", "image_size": 64},
    "5 GB": {"backbone": "vit_h_14", "image_size": 2044},
    "a network a finding": {"architecture": "single_task"},
    "masks": {"architecture": "mtan"},
}


@pytest.mark.parametrize("name", ABSURD)
def test_checkpoint_of_an_absurd_network(trained, tmp_path, name):
    """It is refused before any of it is built."""
    state, _ = read_checkpoint(trained)
    save_checkpoint(tmp_path, {**state, "identity": {**state["identity"], **ABSURD[name]}})
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(FileError, match=r"checkpoint\.pt: no network can be made of it"):
        load_trained(tmp_path)
    assert time.monotonic() - begun < 10  # on a machine that is busy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KiB


def test_checkpoint_of_a_network_for_ten_thousand_findings(trained, tmp_path):
    state, _ = read_checkpoint(trained)
    state["findings"] = [str(number) for number in range(10_000)]
    for architecture in ("hard_sharing", "single_task", "mtan", "cross_stitch"):
        save_checkpoint(tmp_path, {**state, "identity": {**state["identity"], "architecture": architecture}})
        begun = time.monotonic()
        with pytest.raises(FileError, match=r"checkpoint\.pt: no network can be made of it"):
            load_trained(tmp_path)
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("part", ["findings", "identity", "best"])
def test_checkpoint_that_unfolds_without_end(trained, tmp_path, part):
    """A list that holds one twice that holds one twice: 2^45 numbers in a few bytes; and a tensor of 4 TB in 4."""
    state, value = read_checkpoint(trained)[0], [0]
    for _ in range(45):
        value = [value, value]
    match part:
        case "findings":
            state["findings"] = ["Mass", value]
        case "identity":
            state["identity"]["lr"] = value
        case "best":
            state["best"]["model"]["head.bias"] = torch.zeros(1).expand(10**6, 10**6)
    save_checkpoint(tmp_path, state)
    begun = time.monotonic()
    with pytest.raises(FileError, match=f"its '{part}' is not what it should be"):
        load_trained(tmp_path)
    assert time.monotonic() - begun < 5


def test_arrays_hold_no_objects(tmp_path):
    (tmp_path / "out.csv").write_text(",".join(["cell", *COLUMNS]) + "\n")
    np.savez(tmp_path / "out_replicates.npz", abc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FileError, match=r"out_replicates\.npz: not a readable archive of arrays"):
        RunTable(tmp_path / "out.csv")


def test_archive_that_unpacks_to_too_much(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "chestmnist.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train_images.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(DataError, match=r"chestmnist\.npz: would unpack to 314,572,800 bytes"):
        load_dataset("chestmnist", tmp_path, image_size=28)


def test_image_that_is_a_program(tmp_path):
    """PostScript would be handed to an interpreter."""
    path = tmp_path / "film.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(DataError, match=r"film\.png: not a readable image"):
        decode(path, 16)


def test_image_of_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    """A kilobyte that says it is a film of ten gigapixels."""
    Image.new("L", (10, 10)).save(tmp_path / "film.png")
    content = bytearray((tmp_path / "film.png").read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "film.png").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"film\.png"):
        decode(tmp_path / "film.png", 16)


def test_json_nested_without_end(trained, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    (tmp_path / "calibration.json").write_text("[" * 200_000)
    with pytest.raises(FileError, match=r"calibration\.json: should have a slope"):
        load_trained(tmp_path)
    (tmp_path / "calibration.json").write_text(json.dumps({"Mass": [1, float("nan")]}))
    with pytest.raises(FileError, match=r"calibration\.json"):
        load_trained(tmp_path)


def test_table_of_a_gigantic_number(tmp_path):
    (tmp_path / "t.csv").write_text("cell\n" + "9" * 5000 + "\n")
    assert len(read_results(tmp_path / "t.csv", ["cell"], "sweep")) == 1
