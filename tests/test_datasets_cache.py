"""Files are decoded once, whatever their mode and size, into a memory map whose name covers what it was made
from."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepchest_utils import paths
from deepchest_utils.datasets import ChestXrays, DataError, DataWarning, Splits, cache, load_dataset
from deepchest_utils.datasets import decode as decoding


@pytest.fixture
def files(tmp_path):
    """70 images, more than one job decodes, each of one grey value: its number."""
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(70)]
    for i, path in enumerate(paths):
        Image.new("L", (24, 20), i).save(path)
    return paths


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files decoded so far."""
    seen = []
    original = cache.decode

    def counting(path, size):
        seen.append(path.name)
        return original(path, size)

    monkeypatch.setattr(cache, "decode", counting)
    return seen


# --- the cache


def test_second_load_is_a_memmap_and_decodes_nothing(files, decoded, tmp_path):
    first = cache.decode_all("made", files, 16, tmp_path / "cache")
    assert sorted(decoded) == [path.name for path in files]
    second = cache.decode_all("made", files, 16, tmp_path / "cache")
    assert len(decoded) == len(files)
    assert isinstance(second, np.memmap)
    assert not second.flags.writeable  # what is cached stays as it was made
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(second, np.arange(70, dtype=np.uint8)[:, None, None].repeat(16, 1).repeat(16, 2))


def touch(files):
    os.utime(files[3], ns=(1, 1))


def rewrite(files):
    stat = files[3].stat()
    Image.new("RGB", (50, 50), (200,) * 3).save(files[3])
    os.utime(files[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))


def rewrite_unseen(files):
    """Other pixels, the same number of bytes, the time of change as before: what `rsync -t` and `cp -p` leave."""
    stat = files[3].stat()
    Image.new("L", (24, 20), 200).save(files[3])
    assert files[3].stat().st_size == stat.st_size
    os.utime(files[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "size"),
    [
        (touch, 16),
        (rewrite, 16),
        (rewrite_unseen, 16),
        (lambda files: files.reverse(), 16),
        (lambda files: files.pop(), 16),
        (None, 17),
    ],
    ids=["time", "bytes", "pixels alone", "order", "fewer", "size"],
)
def test_a_change_of_the_source_decodes_again(files, decoded, tmp_path, change, size):
    cache.decode_all("made", files, 16, tmp_path / "cache")
    before = len(decoded)
    if change:
        change(files)
    images = cache.decode_all("made", files, size, tmp_path / "cache")
    assert len(decoded) == before + len(files)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    np.testing.assert_array_equal(images, np.stack([cache.decode(path, size) for path in files]))


def test_another_decoder_decodes_again():
    """Where this fails, what `decode` gives may have changed: then raise DECODER by one. Put the new digest here in any
    case."""
    source = Path(decoding.__file__).read_text(encoding="utf-8")
    assert (cache.DECODER, hashlib.sha256(source.encode()).hexdigest()[:16]) == (3, "ea5610fa1de207e2")


def test_pictures_without_grey_levels_are_counted_each_time(files, tmp_path):
    ramp = np.arange(32, dtype=np.uint8)[None].repeat(32, 0)
    for path in files[5:]:
        Image.fromarray(ramp).save(path)
    Image.fromarray(ramp.clip(1)).save(files[4])  # 31 levels
    for _ in range(2):  # decoded, and out of the cache
        with pytest.warns(
            DataWarning, match=r"made: 5 of 70 pictures have fewer than 32 grey levels, e\.g\..*000\.png"
        ):
            cache.decode_all("made", files, 32, tmp_path / "cache")


def test_the_fingerprint_knows_the_pixels_but_the_phantoms():
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4), np.uint8)
    others = images.copy()
    others[2999, 3, 3] ^= 1  # in the test split
    labels, patients = np.eye(2, dtype=np.float32)[np.arange(3000) % 2], np.arange(3000)

    def fingerprint(images, name):
        pooled = ChestXrays(images, labels, patients, ("Mass", "Nodule"), patients.astype(str))
        parts = [pooled.subset(slice(start, end)) for start, end in ((0, 1500), (1500, 1600), (1600, 3000))]
        return Splits(*parts, name=name, split="patient").fingerprint()

    assert fingerprint(images, "nih") == fingerprint(images.copy(), "nih")
    assert fingerprint(images, "nih") != fingerprint(others, "nih")
    assert fingerprint(images, "chestmnist") != fingerprint(others, "chestmnist")
    assert fingerprint(images, "phantom") == fingerprint(others, "phantom")


@pytest.mark.slow
def test_the_fingerprint_of_the_phantom_is_that_of_the_committed_tables():
    table = pd.read_csv(paths.PROJECT / "data" / "results" / "candidates_1000_cells.csv", dtype=str)
    settings = json.loads(table.settings[0])
    sizes = settings["data_options"]
    data = load_dataset("phantom", image_size=settings["image_size"], seed=settings["data_seed"], **sizes)
    assert data.fingerprint() == table.data[0]


def test_failure_midway_leaves_no_file(files, tmp_path):
    files[69].write_bytes(b"no image")  # in the second job
    with pytest.raises(DataError, match=r"069\.png: not a readable image"):
        cache.decode_all("made", files, 16, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    Image.new("L", (8, 8), 69).save(files[69])
    assert cache.decode_all("made", files, 16, tmp_path / "cache")[69].max() == 69


def test_interruption_leaves_no_file(tmp_path):
    def make():
        yield 0, np.ones((2, 4, 4), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_images("made", "key", (4, 4, 4), make, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_cache_file_is_named(tmp_path):
    np.save(tmp_path / "made-key.npy", np.zeros((2, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"made-key\.npy should hold uint8 \(2, 4, 4\). Found float32"):
        cache.cached_images("made", "key", (2, 4, 4), lambda: iter(()), tmp_path)


def test_keys_cover_every_argument():
    keys = [
        cache.cache_key(size=64, files=["a", "b"]),
        cache.cache_key(size=65, files=["a", "b"]),
        cache.cache_key(size=64, files=["b", "a"]),
        cache.cache_key(size=64, files=["ab"]),
        cache.cache_key(size=64, paths=["a", "b"]),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.cache_key(files=["a", "b"], size=64)


def test_cache_folder(cache_dir, monkeypatch):
    assert paths.default_cache_dir() == cache_dir
    monkeypatch.delenv("DEEPCHEST_CACHE")
    assert paths.default_cache_dir() == paths.PROJECT / "data" / "processed"
    assert paths.raw_dir() == paths.PROJECT / "data" / "raw"
    monkeypatch.setattr(paths, "PROJECT", cache_dir)  # installed elsewhere: no pyproject.toml there
    assert paths.default_cache_dir().parts[-2:] == (".cache", "deepchest")
    assert paths.raw_dir() == paths.default_cache_dir() / "raw"


# --- decoding

RAMP = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(64, 0)  # 64 x 64, brighter to the right


def save_as(mode: str, path):
    image = Image.fromarray(RAMP)
    if mode == "I;16":
        image = Image.fromarray((RAMP.astype(np.uint16) << 8) | 0xFF)
    elif mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(RAMP[:, ::-1].copy()))
    elif mode == "P transparent":
        image = image.convert("P")
        image.info["transparency"] = bytes(range(256))
    else:
        image = image.convert(mode)
    image.save(path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "P transparent", "I;16"])
def test_every_mode_is_the_same_grey(mode, tmp_path):
    """Alpha is not blended in, 16 bits that are all used keep the upper 8, a palette is looked up."""
    save_as(mode, tmp_path / "image.png")
    np.testing.assert_array_equal(cache.decode(tmp_path / "image.png", 64), RAMP)


def test_shrinking_averages(tmp_path):
    """A film of alternate black and white columns is grey at half its size, and does not alias to black or
    white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "image.png")
    small = cache.decode(tmp_path / "image.png", 16)
    assert np.abs(small.astype(int) - 127).max() <= 12


def test_oblong_becomes_square(tmp_path):
    Image.fromarray(RAMP[:20]).save(tmp_path / "image.png")
    np.testing.assert_array_equal(cache.decode(tmp_path / "image.png", 64), RAMP)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.write_bytes(b"")


def not_an_image(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("damage", [truncate, empty, not_an_image])
def test_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(path)
    damage(path)
    with pytest.raises(DataError, match=r"film\.png: not a readable image"):
        cache.decode(path, 32)


@pytest.mark.parametrize("pillows", [4_000, 1_000])  # Pillow's own limit is above ours, or below
def test_oversized_file_is_named_before_it_is_decoded(pillows, tmp_path, monkeypatch):
    path = tmp_path / "film.png"
    Image.new("L", (60, 50)).save(path)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"film\.png"):
        cache.decode(path, 32)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(make, tmp_path):
    make(tmp_path / "film.png")
    with pytest.raises(DataError, match=r"film\.png: an image should be a file"):
        cache.decode(tmp_path / "film.png", 32)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"film\.png: no such image file"):
        cache.decode(tmp_path / "film.png", 32)


LARGER_THAN_MEMORY = """
import resource, sys
import numpy as np, torch
from torch import nn
from deepchest_utils.models.augment import sample_augmentation
from deepchest_utils.datasets import ChestXrays
from deepchest_utils.datasets.cache import cached_images
from deepchest_utils.training.setup import inputs, predict, training_order

SIDE, COUNT = 512, 2048  # half a gigabyte of pixels
torch.set_num_threads(1)

def blocks():
    for start in range(0, COUNT, 64):
        yield start, np.full((64, SIDE, SIDE), start // 64, np.uint8)

held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + 300 * 2**20,) * 2)
images = cached_images("large", "key", (COUNT, SIDE, SIDE), blocks, sys.argv[1])
try:
    np.array(images)
    sys.exit("the limit does not hold")
except MemoryError:
    pass
order = training_order(COUNT, 32, torch.Generator().manual_seed(0)).numpy()
augmentation = sample_augmentation(order.size, torch.Generator()).view(*order.shape, 8)
seen = [x.mean().item() for x in inputs(images, order, torch.device("cpu"), torch.channels_last, augmentation)]
assert len(seen) == COUNT // 32 and np.std(seen) > 0
labels, rows = np.zeros((COUNT, 1), np.float32), np.arange(COUNT)
net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 1))
logits = predict(net, ChestXrays(images, labels, rows, ("x",), rows), torch.device("cpu"))
assert len(np.unique(logits.round(5))) == COUNT // 64  # each block of images is of one grey
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA holds on Linux alone")
def test_data_larger_than_memory(tmp_path):
    """Cached, read in a training order with augmentation, and predicted, in 300 MiB for 512 MiB of images."""
    done = subprocess.run(
        [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
