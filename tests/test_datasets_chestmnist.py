"""ChestMNIST: its four sizes from files that the tests make, and its download from a server that they start."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from deepchest_utils import DataError, load_dataset, paths
from deepchest_utils.datasets import chestmnist

pytestmark = pytest.mark.filterwarnings("ignore:chestmnist. findings without a positive")  # in files so small

COUNTS = {"train": 12, "val": 5, "test": 7}  # the official ones are 78,468, 11,219 and 22,433


def name_of(size: int) -> str:
    return "chestmnist.npz" if size == 28 else f"chestmnist_{size}.npz"


def arrays(size: int) -> dict[str, np.ndarray]:
    """What the official files hold: `<split>_images` (N, size, size) and `<split>_labels` (N, 14), both
    uint8."""
    rng = np.random.default_rng(size)
    made = {}
    for split, count in COUNTS.items():
        made[f"{split}_images"] = rng.integers(0, 9, (count, size, size), np.uint8)
        made[f"{split}_labels"] = rng.integers(0, 2, (count, 14)).astype(np.uint8)
    return made


def load(root, size: int = 28, **options):
    return load_dataset("chestmnist", root, image_size=size, **options)


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_sizes(size, tmp_path):
    made = arrays(size)
    np.savez(tmp_path / name_of(size), **made)
    data = load(tmp_path, size, download=False)
    assert data.split == "official"
    for name, part in data.parts.items():
        np.testing.assert_array_equal(part.images, made[f"{name}_images"])
        np.testing.assert_array_equal(part.labels, made[f"{name}_labels"])
        assert part.labels.dtype == np.float32


def test_patients_are_not_known(tmp_path):
    """Each image counts as a patient of its own, and the table of counts does not pretend to know more."""
    np.savez(tmp_path / name_of(28), **arrays(28))
    data = load(tmp_path)
    assert not data.patients_known
    assert len(set(np.concatenate([part.patients for part in data.parts.values()]))) == sum(COUNTS.values())
    assert (data.summary().loc["(patients)"] == 0).all()


def test_max_images(tmp_path):
    made = arrays(28)
    np.savez(tmp_path / name_of(28), **made)
    data = load(tmp_path, max_images=6)
    assert [len(part) for part in data.parts.values()] == [6, 5, 6]
    numbers = [int(name.split("/")[1]) for name in data.train.ids]
    np.testing.assert_array_equal(data.train.images, made["train_images"][numbers])
    np.testing.assert_array_equal(data.train.labels, made["train_labels"][numbers])


@pytest.mark.parametrize("size", [32, 56, 256])
def test_other_sizes(size, tmp_path):
    with pytest.raises(DataError, match=rf"one of \(28, 64, 128, 224\) for chestmnist. Found {size}"):
        load(tmp_path, size)


def test_other_splits(tmp_path):
    with pytest.raises(DataError, match=r"only its own split.*Found 'patient'"):
        load(tmp_path, split="patient")


# --- files that are not as they should be


def test_the_file_in_place_of_its_folder(tmp_path):
    (tmp_path / "chestmnist_64.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"should be a folder\. Found a file"):
        load_dataset("chestmnist", tmp_path / "chestmnist_64.npz", image_size=64)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"chestmnist_64\.npz: no such file, and download=False"):
        load(tmp_path / "nowhere", 64, download=False)
    assert not (tmp_path / "nowhere").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def scribble(path):
    """Over bytes of the first half, of which the archive keeps a check sum and which, compressed, mean
    nothing now."""
    content = bytearray(path.read_bytes())
    for start in range(len(content) // 4, len(content) // 2, 100):
        content[start : start + 64] = b"\xff" * 64
    path.write_bytes(bytes(content))


def page(path):
    path.write_text("<html>Too many requests</html>")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # numpy's, where the archive has no directory
@pytest.mark.parametrize("damage", [cut, scribble, page, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_file(damage, save, tmp_path):
    path = tmp_path / name_of(28)
    save(path, **arrays(28))
    damage(path)
    with pytest.raises(DataError, match=r"chestmnist\.npz: not a readable ChestMNIST file .* Delete it and run again"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": None}, "not a readable ChestMNIST file.*val_labels"),
        ({"val_images": np.zeros((5, 64, 64), np.uint8)}, r"val should hold uint8 images \(N, 28, 28\).*64, 64"),
        ({"val_images": np.zeros((5, 28, 28, 3), np.uint8)}, r"Found uint8 \(5, 28, 28, 3\)"),
        ({"val_images": np.zeros((5, 28, 28), np.float32)}, "Found float32"),
        ({"val_labels": np.zeros((5, 13), np.uint8)}, r"labels \(N, 14\).*\(5, 13\)"),
        ({"val_labels": np.zeros((4, 14), np.uint8)}, r"\(4, 14\)"),
        ({"val_labels": np.full((5, 14), 3, np.uint8)}, "labels should be 0, 1 or NaN. Found 3.0"),
    ],
)
def test_file_of_something_else(change, message, tmp_path):
    made = {name: value for name, value in (arrays(28) | change).items() if value is not None}
    np.savez(tmp_path / name_of(28), **made)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


# --- the download


class Server(SimpleHTTPRequestHandler):
    """Knows how to go on in the middle of a file, unless told otherwise; `breaks`: in the middle of its first answer."""

    knows_ranges, breaks, asked = True, False, None

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file():
            self.send_error(404)
            return
        content, first = path.read_bytes(), self.asked == []
        if self.asked is not None:
            self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.knows_ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) // 2 if self.breaks and first else len(content)])


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder served on the loopback interface, where the files are now looked for, with their MD5 sums."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    for size in (28, 64):
        np.savez(folder / name_of(size), **arrays(size))
        monkeypatch.setitem(chestmnist.MD5, size, hashlib.md5((folder / name_of(size)).read_bytes()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # a proxy could not reach this server
    monkeypatch.setattr(chestmnist, "SOURCE", f"http://127.0.0.1:{server.server_port}")
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def names_in(root: Path) -> list[str]:
    """The files of a folder, without the lock of the download, which stays."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("size", [28, 64])
def test_download(served, size, tmp_path):
    root = tmp_path / "raw" / "new"
    data = load(root, size)
    np.testing.assert_array_equal(data.test.images, arrays(size)["test_images"])
    assert names_in(root) == [name_of(size)]
    (served / name_of(size)).unlink()
    np.testing.assert_array_equal(load(root, size).test.images, data.test.images)  # not fetched again


def test_wrong_md5(served, tmp_path):
    """A readable file with other contents: refused, and not left to be taken for good the next time."""
    np.savez(served / name_of(28), **arrays(28) | {"test_labels": np.ones((7, 14), np.uint8)})
    for _ in range(2):
        with pytest.raises(DataError, match=r"chestmnist\.npz: the download from .* has MD5 .* and is deleted"):
            load(tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


def test_server_without_the_file(served, tmp_path):
    (served / name_of(28)).unlink()
    with pytest.raises(DataError, match=r"chestmnist\.npz: the download from .* stopped \(HTTP Error 404.*Run again"):
        load(tmp_path / "raw")
    assert names_in(tmp_path / "raw") == []


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_download_that_breaks_is_resumed_and_never_half_there(served, tmp_path, monkeypatch, knows_ranges):
    for name, value in (("asked", []), ("breaks", True), ("knows_ranges", knows_ranges)):
        monkeypatch.setattr(Server, name, value)
    root, size = tmp_path / "raw", (served / name_of(28)).stat().st_size
    with pytest.raises(DataError, match=r"the download from .* stopped \(.*Run again to go on"):
        load(root)
    assert names_in(root) == [name_of(28) + ".part"]
    assert (root / f"{name_of(28)}.part").stat().st_size == size // 2
    data = load(root)
    np.testing.assert_array_equal(data.test.images, arrays(28)["test_images"])
    assert names_in(root) == [name_of(28)]
    assert Server.asked == [None, f"bytes={size // 2}-"]


def test_complete_part_is_taken(served, tmp_path):
    """As after a process that was killed between the last byte and the renaming."""
    root = tmp_path / "raw"
    root.mkdir()
    (root / (name_of(28) + ".part")).write_bytes((served / name_of(28)).read_bytes())
    np.testing.assert_array_equal(load(root).test.images, arrays(28)["test_images"])
    assert names_in(root) == [name_of(28)]


def test_part_that_is_too_long_is_thrown_away(served, tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    (root / (name_of(28) + ".part")).write_bytes(bytes(10**6))
    with pytest.raises(DataError, match="MD5"):
        load(root)
    load(root)


def test_server_that_is_not_there(served, tmp_path, monkeypatch):
    monkeypatch.setattr(chestmnist, "SOURCE", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"chestmnist\.npz: the download from http://127\.0\.0\.1:9/.* stopped"):
        load(tmp_path / "raw")


def test_second_download_of_a_file_waits_its_turn(served, tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    with FileLock(root / (name_of(28) + ".lock")) as lock:
        second = threading.Thread(target=load, args=(root,), daemon=True)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert [*root.iterdir()] == [Path(lock.lock_file)]  # it fetches nothing meanwhile
    second.join(30)
    assert (root / name_of(28)).is_file()


def test_download_without_a_folder_goes_to_the_cache_of_an_installed_package(served, cache_dir, tmp_path, monkeypatch):
    """Never into site-packages."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)  # as if there were no checkout
    load(None)
    assert names_in(cache_dir / "raw") == [name_of(28)]
    assert names_in(tmp_path) == ["served"]
