"""What the tests share: a cache of their own, a small phantom, made NIH folders, and real radiographs where
there are some.

The package is imported inside the fixtures: pytest loads this file before it installs the hook that checks
shapes, and a module imported before the hook stays unchecked.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# no deadline: a slow machine is no failure; derandomised: a test that fails was broken by a change, not by
# the day
settings.register_profile("deepchest", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("deepchest")

# One thread a process: networks this small gain nothing from a second one, tests that run side by side share the cores,
# and numbers do not depend on what else the machine does. Notebook kernels and other processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# threads that wait, where a process has several, give way soon: ten times as fast on a machine that is busy otherwise
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

NIH_HEADERS = {  # the releases differ in how they write the columns that hold a comma
    "unquoted": "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]",
    "quoted": '"OriginalImage[Width,Height]","OriginalImagePixelSpacing[x,y]"',
    "trailing": "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
}
MODES = ("L", "RGB", "RGBA", "I;16")
TALLY = pytest.StashKey[Counter]()


def pytest_collection_modifyitems(items):
    """Notebooks first: at the end of a session, short tests keep all workers at work."""
    items.sort(key=lambda item: "notebooks" not in item.keywords)


@pytest.fixture
def tally(request) -> Callable[[str, int], None]:
    """tally(what, number): add to what the session counts, for the line at its end."""
    counts = request.config.stash.setdefault(TALLY, Counter())
    return lambda what, number=1: counts.update({what: number})


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # of a worker of xdist: what it counted goes to the session
        session.config.workeroutput["tally"] = dict(session.config.stash.get(TALLY, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash.setdefault(TALLY, Counter()).update(getattr(node, "workeroutput", {}).get("tally", {}))


def pytest_terminal_summary(terminalreporter, config):
    if counts := config.stash.get(TALLY, None):
        terminalreporter.write_line(", ".join(f"{number} {what}" for what, number in counts.items()))


@pytest.fixture(scope="session", autouse=True)
def one_core() -> Iterator[None]:
    """One core: a sweep has one job by default, and that one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


@pytest.fixture
def close_figures() -> Iterator[None]:
    """For `usefixtures` in a module that draws: what a test has drawn is closed after it."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def printed() -> Callable[[Path], str]:
    """printed(path): what the cells of an executed notebook printed."""
    import nbformat

    def text(path: Path) -> str:
        cells = nbformat.read(path, as_version=4).cells
        return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)

    return text


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory) -> Iterator[Path]:
    """The image cache of this session and, beside it, the networks that notebooks share, so that no test reads or writes the
    user's. Workers of one session share them too."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = session / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPCHEST_CACHE", str(folder))
        patch.setenv("DEEPCHEST_RUNS", str(session / "runs"))
        yield folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose minutes to it where the cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def splits(cache_dir):
    """A small phantom: 300, 120 and 200 images of 64 px, too few for a positive of every finding in every
    split."""
    import warnings

    from deepchest_utils.datasets import DataWarning, load_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset("phantom", image_size=64, seed=0, num_train=300, num_val=120, num_test=200)


def nih_rows(num_patients: int) -> list[tuple[str, str, int]]:
    """(image name, labels, patient) of 1, 2 or 3 images a patient; every finding occurs from 14 patients
    on."""
    from deepchest_utils import FINDINGS

    rows = []
    for patient in range(1, num_patients + 1):
        for visit in range(1 + patient % 3):
            labels = {FINDINGS[patient % 14], FINDINGS[(patient + visit) % 14]}
            text = "|".join(sorted(labels)) if (patient + visit) % 4 else "No Finding"
            rows.append((f"{patient:08d}_{visit:03d}.png", text, patient))
    return rows


def write_radiograph(path: Path, grey: int, number: int = 0):
    """A file of one grey value, in one of the modes and sizes that NIH files have; 16-bit files hold it in
    the upper byte, and say that they use all 16 bits."""
    mode, size = MODES[number % 4], ((48, 48), (40, 56), (32, 32), (96, 64))[number // 4 % 4]
    if mode == "I;16":
        depth = PngInfo()
        depth.add(b"sBIT", bytes([16]))
        Image.fromarray(np.full(size[::-1], (grey << 8) | 0x7F, np.uint16)).save(path, pnginfo=depth)
    else:
        Image.new(mode, size, {"L": grey, "RGB": (grey,) * 3, "RGBA": (grey,) * 3 + (90,)}[mode]).save(path)


@pytest.fixture
def nih_folder(tmp_path) -> Callable[..., Path]:
    """make(num_patients=30, rows=None, header="unquoted", lists=True, folders=("images",), absent=()) -> a
    folder in the official layout.

    rows: (image name, labels, patient id), default `nih_rows`. folders: the images are dealt out to them in
    turn. absent: names of the table that are not written to disk. The grey value of image `visit` of
    `patient` (at most 41) is 2 x (3 x patient + visit), which tells whose a row of pixels is.
    """

    def make(
        num_patients: int = 30,
        rows: list[tuple[str, str, object]] | None = None,
        header: str = "unquoted",
        lists: bool = True,
        folders: tuple[str, ...] = ("images",),
        absent: tuple[str, ...] = (),
        name: str = "nih",
    ) -> Path:
        root = tmp_path / name
        rows = nih_rows(num_patients) if rows is None else rows
        for folder in folders:
            (root / folder).mkdir(parents=True)
        first = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
        lines = [f"{first},{NIH_HEADERS[header]}"]
        lines += [f"{image},{labels},0,{patient},58,M,PA,2682,2749,0.143,0.143" for image, labels, patient in rows]
        (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
        for number, (image, _, _) in enumerate(rows):
            if image not in absent:
                patient, visit = image.removesuffix(".png").split("_")
                grey = 2 * (3 * int(patient) + int(visit))
                write_radiograph(root / folders[number % len(folders)] / image, grey, number)
        if lists:  # as after a partial download, most of the listed images are not here
            test = [image for image, _, patient in rows if int(patient) % 4 == 0]
            train_val = [image for image, _, patient in rows if int(patient) % 4]
            (root / "test_list.txt").write_text("\n".join([*test, "00099991_000.png"]) + "\n")
            (root / "train_val_list.txt").write_text("\n".join([*train_val, "00099992_000.png"]))
        boxes = [f"{rows[0][0]},Atelectasis,256.0,128.5,512,64.0", f"{rows[-1][0]},Infiltrate,0,0,1024,1024"]
        text = "\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *(f"{box},,," for box in boxes)])
        (root / "BBox_List_2017.csv").write_text(text + "\n")
        return root

    return make


@pytest.fixture(scope="session")
def nih_sample() -> Path:
    """Real radiographs; they are no part of the repository."""
    folder = os.environ.get("DEEPCHEST_NIH_SAMPLE")
    if not folder:
        pytest.skip("set DEEPCHEST_NIH_SAMPLE to a folder of NIH ChestX-ray14")
    return Path(folder)


@pytest.fixture
def known_network():
    """A network whose right maps are known: channel 0 of its layer "1" lights up where the left half of a 16 px image is
    bright, channel 1 where the right half is. Task 0 looks left, task 1 right, task 2 has nothing that speaks for it."""
    import torch
    from torch import nn

    from deepchest_utils.models.network import MultiTaskNet

    class Halves(nn.Module):
        def forward(self, x):
            left = torch.arange(16) < 8
            return torch.relu(x) * torch.stack([left, ~left]).float()[:, None]

    net = MultiTaskNet("resnet18_thin", 3)
    conv = nn.Conv2d(1, 2, 1, bias=False)
    nn.init.ones_(conv.weight)
    net.trunk = nn.Sequential(conv, Halves(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.head = nn.Linear(2, 3)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    return net.train()


@pytest.fixture
def squares():
    """The regions and data of six images of three patients; finding 0 is a square at the upper left, finding 1 one at the
    lower right."""
    from deepchest_utils.datasets import ChestXrays
    from deepchest_utils.explain.regions import Regions

    masks = np.zeros((6, 16, 16), bool)
    masks[:3, 1:5, 1:5], masks[3:, 10:14, 10:14] = True, True
    tasks = np.repeat([0, 1], 3)
    truth = Regions(np.arange(6), tasks, np.array([0, 1, 2, 0, 1, 2]), masks)
    images = np.where(masks, 255, 40).astype(np.uint8)
    return truth, ChestXrays(images, np.eye(2, dtype=np.float32)[tasks], truth.patients, ("A", "B"), np.arange(6))
