"""Any table as a data set: what a cell may say, and errors that name the column and the row."""

import bz2
import gzip
import io
import lzma
import os
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepchest_utils import FINDINGS, DataError, load_dataset
from deepchest_utils.datasets import DataWarning
from deepchest_utils.datasets.layouts import choose_columns

pytestmark = [
    pytest.mark.filterwarnings("ignore:csv. findings without a positive"),  # in tables so small
    pytest.mark.filterwarnings("ignore:.*grey levels"),  # the images of the tests have one grey value each
]


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
        ("True", 1),
        ("False", 0),
        ("true", 1),
        ("1e0", 1),
        ("00", 0),
    ],
)
def test_cell(make, cell, value):
    """As CheXpert writes them: 1.0 present, 0.0 absent, -1.0 uncertain, empty not mentioned."""
    lines = rows()
    lines[5] = f"films/5.png,p2,{cell},0"
    labels = everything(load(make(lines)))[1]
    np.testing.assert_array_equal(labels[5], [value, 0])
    assert np.isnan(labels).sum() == np.isnan(value)


@pytest.mark.parametrize("cell", ["2", "0.5", "-2", "yes", "nan", "TRUE!", "1e400", "NA", "inf", "null"])
def test_other_cells_are_refused_by_column_and_row(make, cell):
    """Row 7 as a spreadsheet counts: the header is row 1."""
    lines = rows()
    lines[5] = f"films/5.png,p2,1,{cell}"
    with pytest.raises(DataError, match=rf"labels\.csv: column 'Mass' says '{cell}' in row 7. Allowed are 1, 0"):
        load(make(lines))


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("../outside.png", "climbs out with '..'"),
        ("films/../../outside.png", "climbs out with '..'"),
        ("films/../films/3.png", "climbs out with '..'"),
        ("films\\..\\..\\outside.png", "climbs out with '..'"),
        ("..", "climbs out with '..'"),
        ("/etc/outside.png", "is absolute"),
        ("\\\\server\\outside.png", "is absolute"),
        ("C:\\outside.png", "is absolute"),
        ("", "is empty"),
    ],
)
def test_names_that_point_outside(make, cell, reason):
    root = make(rows())
    with open(root / "labels.csv", "a") as file:
        file.write(f"{cell},p99,0,1\n")
    message = re.escape(f"labels.csv: image name {cell!r} points outside the folder: it {reason} (row 26)")
    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,patient,Effusion,Mass", "no column 'image'. Found file, patient, Effusion, Mass"),
        ("image,id,Effusion,Mass", "no column 'patient'"),
        (
            "image,patient,first,second",
            "no column has the name of a finding. Found image, patient, first, second. Name",
        ),
        ("image,patient,Mass,mass ", "one finding is there twice, 'Mass' and 'mass'. Name each once"),
        ("image,patient,Effusion,Pleural Effusion", "one finding is there twice, 'Effusion' and 'Pleural Effusion'"),
        ("image,patient,Mass,Mass", "2 columns have the name 'Mass'"),
        ("image,patient,Mass,old,old", "2 columns have the name 'old'"),
        ("image,Image ,Effusion,Mass", "no column 'patient'"),
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
        ([*rows(), "films/30.png,p99,1"], True, "row 26 has 3 fields, too few: the others have 4"),
        ([*rows(), "films/30.png,p99,1,1,1"], True, "row 26 has 5 fields, too many: the others have 4"),
        ([row + ",7" for row in rows()], True, "each row has 5 fields, the header 4: image, patient, Effusion, Mass"),
        (rows(4), True, "needs at least 3 patients. Found 2"),
        ([*rows(), 'films/30.png,"p1,1,1'], True, "not a readable CSV table"),
    ],
    ids=[
        "no row",
        "no image",
        "repeated",
        "no patient",
        "cut short",
        "too long",
        "all too long",
        "few patients",
        "quote",
    ],
)
def test_bad_tables(make, lines, images, message):
    with pytest.raises(DataError, match=message):
        load(make(lines, images=images))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table is empty"),
        (b"\xef\xbb\xbf# nothing but a remark\n", "the table is empty"),
        (b"\xff\xfe\x00i\x00m", r"not a readable CSV table \(row 1 holds a NUL byte"),
        (b"image,patient,Mass\nfilms/0.png,p\xff,1\n", "not a readable CSV table"),
        (b"image|patient|Mass\nfilms/0.png|p|1\n", r"no column 'image'. Found image\|patient\|Mass"),
        (b"image,patient,Mass\n" + b"a" * 5000 + b",1,1\n", "image name in row 2 has 5,000 characters: aaaa"),
        (b"image,patient,Mass\n" + b"f/" * 300 + b"a,1,1\n", "none of its 1 images is on disk"),
        (b"image,patient,Mass\n" + b"a" * 300 + b"/a,1,1\n", "cannot be read"),
        (b"image,patient,Mass\n" + b"a" * 30_000_000, "each row has 1 fields, the header 3: image, patient, Mass"),
    ],
)
def test_unreadable_table(make, content, message):
    root = make(rows())
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(root)
    assert len(str(error.value)) < 3000
    assert "\n" not in str(error.value)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load(tmp_path / "nowhere")
    for root, found in ((None, "None"), ("", "''")):
        with pytest.raises(
            DataError, match=rf'root .*should name the folder of the images for "csv"\. Found {found}\.'
        ):
            load(root)
    (tmp_path / "labels.csv").write_text("image")
    with pytest.raises(DataError, match=r"labels\.csv': a file\. Give its folder, and its name as table"):
        load(tmp_path / "labels.csv")


def test_no_official_split(make):
    with pytest.raises(DataError, match='split="official" needs a column that says train, val or test'):
        load(make(rows()), split="official")


def test_damaged_images_are_named_all_at_once(make):
    root = make(rows())
    for name in ("7.png", "12.png", "20.png"):
        (root / "films" / name).write_bytes(b"GIF89a")
    everyone = r"3 of 24 images cannot be used.* \S*12\.png: not a readable.*20\.png: .*7\.png: not a readable image"
    with pytest.raises(DataError, match=everyone):
        load(root)


def test_a_column_may_be_named_twice_in_two_spellings(make):
    data = load(
        make([f"films/{i}.png,{i // 2 % 2}" for i in range(24)], "File,Mass"),
        image_column="file",
        patient_column="File",
    )
    assert len(set(np.concatenate([part.patients for part in data.parts.values()]).tolist())) == 24


# spellings, forms and packages


@pytest.mark.parametrize(
    "header",
    ["image,patient,effusion,MASS ", "Image, Patient ,Pleural Effusion,mass", "IMAGE,patient_,Pleural_effusion,Mass"],
)
def test_spelt_otherwise(make, header):
    data = load(make(rows(), header))
    assert data.findings == ("Effusion", "Mass")
    np.testing.assert_array_equal(everything(data)[1][:, 0], np.arange(24) // 2 % 2)


def test_columns_that_look_like_findings_are_said(make):
    lines = [
        f"{row},{i % 2},{i % 90},{'yes' if i % 2 else 'no'},{'' if i % 2 else 1},1" for i, row in enumerate(rows())
    ]
    root = make(lines, "image,patient,Effusion,Mass,Lung Opacity,age,smoker,Fracture,site")
    with pytest.warns(
        DataWarning, match=r"like findings are not used: Lung Opacity, Fracture. Name them in finding_col"
    ):
        data = load(root)
    assert data.findings == ("Effusion", "Mass")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        warnings.filterwarnings("ignore", ".*(grey levels|without a positive)")
        load(root, finding_columns=["Mass"])  # who names some knows of the others


@pytest.mark.parametrize("named", ["Effusion,Mass", "effusion, mass", ("Effusion", "Mass"), ["Effusion", "Mass"]])
def test_finding_columns_as_text_or_list(make, named):
    data = load(make(rows()), finding_columns=named)
    assert [name.lower() for name in data.findings] == ["effusion", "mass"]
    assert load(data.source.removesuffix("/labels.csv"), finding_columns="Effusion").findings == ("Effusion",)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["Effusion", "Effusion"], "one finding is there twice, 'Effusion' and 'Effusion'. Name each once"),
        (["Effusion", "effusion "], "one column is there twice, 'Effusion' and 'Effusion'"),
        ("Effusion,Mas", r"no column 'Mas'. Found Effusion, Mass. Did you mean 'Mass'"),
        (3, "finding_columns should be names of columns. Found 3"),
        ([], "finding_columns should be names of columns"),
        ([1], "finding_columns should be names of columns"),
    ],
)
def test_finding_columns_that_are_none(named, message):
    with pytest.raises(DataError, match=message):
        choose_columns(Path("labels.csv"), ["Effusion", "Mass"], named)


@pytest.mark.parametrize("character", [";", "\t"])
@pytest.mark.parametrize("top", ["", "# made in 2020\n#\n\n"])
def test_other_separators_and_remarks(make, character, top):
    root = make(rows())
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(top + text.replace(",", character + " ") + character * 3 + "\n\n")
    assert len(everything(load(root))[0]) == 24
    (root / "labels.csv").write_text(top + text.replace(",", character).replace("1\n", "x\n", 1))
    row = 6 + 3 * bool(top)  # the first patient with a mass is the third
    with pytest.raises(DataError, match=f"column 'Mass' says 'x' in row {row}"):
        load(root)


def packed(text: bytes, kind: str) -> bytes:
    if kind == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("labels.csv", text)
            archive.writestr("__MACOSX/._labels.csv", b"nothing")
        return file.getvalue()
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[kind].compress(text)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_packed_tables(make, kind):
    """The first bytes say how a file is packed; a browser may have unpacked it and left the name."""
    root = make(rows())
    text = (root / "labels.csv").read_bytes()
    for name in ("labels.csv", f"other.csv.{kind}"):
        (root / name).write_bytes(packed(text, kind))
        assert len(everything(load(root, table=name))[0]) == 24
        (root / name).write_bytes(packed(text, kind)[:-25])
        with pytest.raises(DataError, match=f"{name}: damaged, or not a file that can be read") as error:
            load(root, table=name)
        assert "\n" not in str(error.value)
        (root / name).write_bytes(text)
        assert len(everything(load(root, table=name))[0]) == 24


def test_packages_that_are_not_read(make):
    root = make(rows())
    (root / "labels.csv").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(DataError, match="packed with zstd"):
        load(root)
    with zipfile.ZipFile(root / "labels.csv", "w") as archive:
        archive.writestr("a.csv", "a")
        archive.writestr("b.csv", "b")
    with pytest.raises(DataError, match=r"should hold one table. Found a\.csv, b\.csv"):
        load(root)
    with zipfile.ZipFile(root / "labels.csv", "a") as archive:  # as a workbook of Excel is one
        archive.writestr("[Content_Types].xml", "<x/>")
    with pytest.raises(DataError, match="not a CSV table but a workbook or an archive"):
        load(root)


def test_a_package_that_is_too_large(make, monkeypatch):
    root = make(rows())
    monkeypatch.setattr("deepchest_utils.datasets.table.MAX_BYTES", 200)
    with pytest.raises(DataError, match="at most 200 bytes, unpacked"):
        load(root)


def test_ids_that_differ_in_form_are_one_patient(make):
    """pandas writes 12 as 12.0 where a column has a gap; a spreadsheet takes zeros away."""
    forms = ("{}", "{}.0", "0{}", " {} ", "{}.00", '"{},0"')
    lines = [f"films/{i}.png,{forms[i % 6].format(i // 4)},{i // 2 % 2},{i // 4 % 2}" for i in range(40)]
    patients = everything(load(make(lines)))[2]
    np.testing.assert_array_equal(patients, np.arange(40) // 4)


@pytest.mark.parametrize("spelt", ["Mu\u0308ller  {}", "M\u00fcller\u200b {}", "M\u00fcller\u00a0{}"])
def test_ids_that_look_the_same_are_one_patient(make, spelt):
    """Composed and decomposed letters, blanks of any kind and number, characters of no width."""
    forms = ("M\u00fcller {}", spelt)
    lines = [f"films/{i}.png,{forms[i % 2].format(i // 2 + 1)},{i // 2 % 2},{i // 4 % 2}" for i in range(24)]
    np.testing.assert_array_equal(everything(load(make(lines)))[2], np.arange(24) // 2)


@pytest.mark.parametrize(("a", "b"), [("Meier {}", "MEIER {}"), ("P{}", "P00{}"), ("A-{}", "A {}")])
def test_ids_that_differ_in_spelling_alone_are_said(make, a, b):
    lines = [f"films/{i}.png,{(b if i == 5 else a).format(i // 2 + 1)},{i // 2 % 2},{i // 4 % 2}" for i in range(24)]
    said = rf"2 ids of column 'patient' differ from another in case.*e\.g\. '{a.format(3)}' and '{b.format(3)}'"
    with pytest.warns(DataWarning, match=said):
        assert len(set(everything(load(make(lines)))[2])) == 13


def test_a_split_that_is_not_used_is_said(make):
    lines = [f"{line},{('train', 'val', 'Test')[i // 2 % 3]}" for i, line in enumerate(rows())]
    with pytest.warns(DataWarning, match=r"column 'part' says train, val or test and is not used.*split_column="):
        load(make(lines, "image,patient,Effusion,Mass,part"))


@pytest.mark.parametrize("wrong", ["./FILMS/{}.PNG", "films/{}", "films/00{}.png", "films/{}.jpg"])
def test_images_of_nearly_that_name_are_said(make, wrong):
    """Written on a system that knows no case, without a suffix, with a number of another width, or converted."""
    root, lines = make(rows()), rows()
    said = [line.replace(f"films/{i}.png", wrong.replace("FILMS", "films").format(i)) for i, line in enumerate(lines)]
    (root / "labels.csv").write_text("\n".join(["image,patient,Effusion,Mass", *said]))
    with (
        pytest.warns(DataWarning, match=r"in row 2 is not on disk, but '.*films/0\.png' is\. Names should be those of"),
        pytest.raises(DataError, match="none of its 24 images is on disk"),
    ):
        load(root)


@pytest.mark.filterwarnings("ignore:.*few labels to learn from")
def test_findings_without_a_negative_are_said(make):
    lines = [f"films/{i}.png,p{i // 2},{i // 2 % 2},1" for i in range(24)]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load(make(lines))
    (said,) = [str(one.message) for one in seen if "NaN" in str(one.message)]
    assert "or a negative one, whose metrics there are NaN: train: Mass (no negative); val: " in said


@pytest.mark.parametrize(
    "cell",
    [
        "nan",
        "N/A",
        "#N/A",
        "<NA>",
        "NaT",
        "unknown",
        "missing",
        "Anonymous",
        "-1",
        "-1.0",
        "--",
        "1.23457E+11",
        "?",
        "#NV",
        "k.A.",
        "XXXX",
        "-99",
        "(null)",
    ],
)
def test_cells_that_name_no_patient_are_refused(make, cell):
    """All of them would be one patient, with images of many."""
    root = make([f"films/{i}.png,{cell if i % 3 else f'p{i}'},{i % 2},{i // 2 % 2}" for i in range(24)])
    with pytest.raises(
        DataError, match=rf"column 'patient' says {re.escape(repr(cell))} in row 3, which names no patient"
    ):
        load(root)


def test_one_picture_of_two_patients_is_said(make):
    """Filed twice under two names: with two patients it lies in two splits."""
    root, rng = make(rows(40)), np.random.default_rng(0)
    for i in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8))
        for name in (i, 39 - i):
            picture.save(root / "films" / f"{name}.png")
    with pytest.warns(
        DataWarning, match=r"\d+ images are the same, bit by bit, as one in another split, e\.g\. films/\d+\.png and"
    ):
        load(root, image_size=20)


# links and other files


def test_links_are_followed(make, tmp_path_factory):
    """A link to a file, to a folder, and to itself or nothing, which is no file."""
    root, far = make(rows(22)), tmp_path_factory.mktemp("far")
    for i in (22, 23):
        Image.new("L", (20, 20), i).save(far / f"{i}.png")
    (root / "linked").symlink_to(far)
    (root / "films" / "22.png").symlink_to(far / "22.png")
    (root / "films" / "loop.png").symlink_to(root / "films" / "loop.png")
    (root / "films" / "gone.png").symlink_to(far / "gone.png")
    os.mkfifo(root / "films" / "fifo.png")
    with open(root / "labels.csv", "a") as file:
        for i, name in enumerate(
            ("films/22.png", "linked/23.png", "films/loop.png", "films/gone.png", "films/fifo.png")
        ):
            file.write(f"{name},p{11 + i // 2},1,1\n")
    with pytest.warns(DataWarning, match=r"3 of 27 images are not on disk and left out, e\.g\. films/loop\.png"):
        ids, *_, images = everything(load(root))
    assert ids[22:].tolist() == ["films/22.png", "linked/23.png"]
    assert images[22:, 0, 0].tolist() == [22, 23]


@pytest.mark.parametrize(
    "name", ["./films/3.png", "films//3.png", "films/./3.png", "films/link.png", "folder/3.png", "hard.png"]
)
def test_one_image_under_two_names(make, name):
    """It could be on both sides of a split."""
    root = make(rows())
    (root / "films" / "link.png").symlink_to("3.png")
    (root / "folder").symlink_to("films")
    os.link(root / "films" / "3.png", root / "hard.png")
    with open(root / "labels.csv", "a") as file:
        file.write(f"{name},p99,1,1\n")
    message = f"1 images are listed more than once, e.g. {name} in row 26, which is the file of films/3.png in row 5."
    with pytest.raises(DataError, match=re.escape(message)):
        load(root)


def test_file_system_without_numbers(make, monkeypatch):
    """Some give all entries of a folder one number; the file's own tells them apart."""
    monkeypatch.setattr("deepchest_utils.datasets.table._number", lambda entry: 2**32 - 1)
    assert len(everything(load(make(rows())))[0]) == 24


@pytest.mark.parametrize("table", ["a" * 5000, "a\0b", "films", "loop"])
def test_name_of_a_table_that_is_none(make, table):
    root = make(rows())
    (root / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"no such table. Name it with") as error:
        load(root, table=table)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("root", ["a" * 5000, "a\0b", "~nobody-of-this-name/x", "labels.csv"])
def test_name_of_a_folder_that_is_none(root):
    with pytest.raises(DataError, match="no such folder"):
        load(root)


def test_a_million_columns(make):
    root = make(rows())
    (root / "labels.csv").write_text(",".join(["image", "patient", *map(str, range(10**6))]) + "\n")
    with pytest.raises(DataError, match="has 1,000,002 columns"):
        load(root)


def test_table_that_is_no_file(make):
    root = make(rows())
    (root / "labels.csv").unlink()
    os.mkfifo(root / "labels.csv")
    with pytest.raises(DataError, match="no such table"):
        load(root)


# splits


def test_official_split_of_a_column(make):
    lines = [f"{row},{('Train', 'train', 'VALID', 'test')[i // 2 % 4]}" for i, row in enumerate(rows())]
    data = load(make(lines, "image,patient,Effusion,Mass,part"), split_column="part")
    assert data.split == "official"
    parts = [[int(name[6:-4]) // 2 % 4 for name in part.ids] for part in data.parts.values()]
    assert [set(part) for part in parts] == [{0, 1}, {2}, {3}]
    assert data.source.endswith("labels.csv")


def test_official_split_without_val_and_wrong_words(make):
    lines = [f"{row},{'test' if i // 2 % 4 == 3 else 'train'}" for i, row in enumerate(rows())]
    root = make(lines, "image,patient,Effusion,Mass,part")
    data = load(root, split_column="part")
    assert {int(name[6:-4]) // 2 % 4 for name in data.test.ids} == {3}
    assert len(data.val)
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("test", "prod", 1))
    with pytest.raises(DataError, match=r"column 'part' says 'prod' in row 8\. Allowed are train, val and test"):
        load(root, split_column="part")
    with pytest.raises(DataError, match=r'split="official" needs a column .* split_column="..."'):
        load(root, split="official")
