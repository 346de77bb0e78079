"""Any table as a data set: what a cell may say, and errors that name the column and the row."""

import numpy as np
import pytest
from PIL import Image

from deepchest_utils import FINDINGS, DataError, load_dataset
from deepchest_utils.datasets import DataWarning

pytestmark = pytest.mark.filterwarnings("ignore:csv. findings without a positive")  # in tables so small


@pytest.fixture
def make(tmp_path):
    """make(lines, header) -> a folder with the images that the lines name in their first column, if they are
    plain names, and labels.csv."""

    def make(lines: list[str], header: str = "image,patient,Effusion,Mass", images: bool = True):
        (tmp_path / "films").mkdir()
        (tmp_path / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
        for number, line in enumerate(lines):
            name = line.split(",")[0].strip()
            if images and name and name[0] not in "./":
                Image.new("L", (20, 20), number).save(tmp_path / name)
        return tmp_path

    return make


def rows(count: int = 24) -> list[str]:
    """Two images a patient, both findings in both values; image i is of grey value i."""
    return [f"films/{i}.png,p{i // 2},{i // 2 % 2},{i // 4 % 2}" for i in range(count)]


def load(root, **options):
    return load_dataset("csv", root, **{"image_size": 16} | options)


def everything(data):
    """(ids, labels, patients, images), in the order of the images' numbers."""
    joined = [
        np.concatenate([getattr(part, name) for part in data.parts.values()])
        for name in ("ids", "labels", "patients", "images")
    ]
    order = np.argsort(joined[3].mean((1, 2)))
    return [column[order] for column in joined]


def test_rows_keep_their_image_labels_and_patient(make):
    data = load(make(rows()))
    ids, labels, patients, images = everything(data)
    assert (data.split, data.findings) == ("patient", ("Effusion", "Mass"))
    assert ids.tolist() == [f"films/{i}.png" for i in range(24)]
    np.testing.assert_array_equal(images[:, 0, 0], np.arange(24))
    np.testing.assert_array_equal(labels[:, 0], np.arange(24) // 2 % 2)
    np.testing.assert_array_equal(labels[:, 1], np.arange(24) // 4 % 2)
    np.testing.assert_array_equal(patients[0::2], patients[1::2])  # patients are text: numbered as they come
    assert len(set(patients)) == 12
    parts = [set(part.patients) for part in data.parts.values()]
    assert sum(map(len, parts)) == 12


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1),
        ("0", 0),
        ("1.0", 1),
        ("0.0", 0),
        (" 1 ", 1),
        ("", np.nan),
        ("  ", np.nan),
        ("-1", np.nan),
        ("-1.0", np.nan),
    ],
)
def test_cell(make, cell, value):
    """As CheXpert writes them: 1.0 present, 0.0 absent, -1.0 uncertain, empty not mentioned."""
    lines = rows()
    lines[5] = f"films/5.png,p2,{cell},0"
    labels = everything(load(make(lines)))[1]
    np.testing.assert_array_equal(labels[5], [value, 0])
    assert np.isnan(labels).sum() == np.isnan(value)


@pytest.mark.parametrize("cell", ["2", "0.5", "-2", "yes", "nan", "True", "1e400", "NA"])
def test_other_cells_are_refused_by_column_and_row(make, cell):
    """Row 7 as a spreadsheet counts: the header is row 1."""
    lines = rows()
    lines[5] = f"films/5.png,p2,1,{cell}"
    with pytest.raises(DataError, match=rf"labels\.csv: column 'Mass' says '{cell}' in row 7. Allowed are 1, 0"):
        load(make(lines))


@pytest.mark.parametrize("cell", ["../outside.png", "films/../../outside.png", "/etc/outside.png", "films/link.png"])
def test_names_that_point_outside(make, cell):
    root = make(rows())
    Image.new("L", (20, 20)).save(root.parent / "outside.png")
    (root / "films" / "link.png").symlink_to(root.parent / "outside.png")
    with open(root / "labels.csv", "a") as file:
        file.write(f"{cell},p99,0,1\n")
    with pytest.raises(DataError, match=f"labels.csv: image name '{cell}' points outside"):
        load(root)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,patient,Effusion,Mass", "no column 'image'. Found file, patient, Effusion, Mass"),
        ("image,id,Effusion,Mass", "no column 'patient'"),
        ("image,patient,effusion,mass", "no column has the name of a finding. Name them with finding_columns"),
    ],
)
def test_missing_columns(make, header, message):
    with pytest.raises(DataError, match=message):
        load(make(rows(), header))


def test_columns_named_by_arguments(make):
    root = make(rows(), "Path,Study,Support Devices,Effusion")
    data = load(root, image_column="Path", patient_column="Study", finding_columns=["Effusion", "Support Devices"])
    assert data.findings == ("Effusion", "Support Devices")
    np.testing.assert_array_equal(everything(data)[1][:, 1], np.arange(24) // 2 % 2)
    with pytest.raises(DataError, match=r"no column 'Fracture'. Found Path, Study, Support Devices, Effusion"):
        load(root, image_column="Path", patient_column="Study", finding_columns=["Fracture"])


def test_findings_come_in_our_order(make):
    data = load(make(rows(), "image,patient,Mass,Effusion"))
    assert data.findings == ("Effusion", "Mass")
    assert [FINDINGS.index(name) for name in data.findings] == [2, 4]
    np.testing.assert_array_equal(everything(data)[1][:, 1], np.arange(24) // 2 % 2)


def test_table_elsewhere(make, tmp_path):
    root = make(rows())
    (root / "labels.csv").rename(root / "films" / "other.csv")
    assert len(everything(load(root, table="films/other.csv"))[0]) == 24
    assert len(everything(load(root, table=str(root / "films" / "other.csv")))[0]) == 24
    with pytest.raises(DataError, match=r"labels\.csv: no such table. Name it with table="):
        load(root)


def test_written_by_a_spreadsheet(make):
    """With a byte order mark, and Windows line ends."""
    root = make(rows())
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    np.testing.assert_array_equal(everything(load(root))[1][:, 0], np.arange(24) // 2 % 2)


def test_images_not_on_disk(make):
    root = make(rows())
    (root / "films" / "3.png").unlink()
    with pytest.warns(DataWarning, match=r"1 of 24 images are not on disk and left out, e\.g\. films/3\.png"):
        ids, labels, *_ = everything(load(root))
    assert "films/3.png" not in ids
    np.testing.assert_array_equal(labels[3], [0, 1])  # what is left has moved up together


@pytest.mark.parametrize(
    ("lines", "images", "message"),
    [
        ([], True, "the table has a header and no row"),
        (rows(), False, r"none of its 24 images is on disk, e\.g\. films/0\.png"),
        ([*rows(), "films/3.png,p99,1,1"], True, r"1 images are listed more than once, e\.g\. films/3\.png in row 26"),
        ([*rows(), "films/30.png,,1,1"], True, "column 'patient' is empty in row 26"),
        (rows(4), True, "needs at least 3 patients. Found 2"),
        ([*rows(), 'films/30.png,"p1,1,1'], True, "not a readable CSV table"),
    ],
    ids=["no row", "no image", "repeated", "no patient", "few patients", "open quote"],
)
def test_bad_tables(make, lines, images, message):
    with pytest.raises(DataError, match=message):
        load(make(lines, images=images))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00i\x00m"])
def test_unreadable_table(make, content):
    root = make(rows())
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.csv: not a readable CSV table"):
        load(root)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r'for dataset="csv". Found None'):
        load(None)


def test_no_official_split(make):
    with pytest.raises(DataError, match='split="official" needs'):
        load(make(rows()), split="official")


def test_damaged_image_is_named(make):
    root = make(rows())
    (root / "films" / "7.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"7\.png: not a readable image"):
        load(root)
