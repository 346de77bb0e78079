"""NIH ChestX-ray14 in its official layout, made small and, where there is a folder of it, real: what is read,
and what each bad input says."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from deepchest_utils import FINDINGS, DataError, load_dataset
from deepchest_utils.datasets import DataWarning, decode, load_boxes

pytestmark = [
    pytest.mark.filterwarnings("ignore:nih. findings without a positive"),  # in folders so small
    pytest.mark.filterwarnings("ignore:.*grey levels"),  # the images of the tests have one grey value each
]


def load(root, **options):
    return load_dataset("nih", root, **{"image_size": 32} | options)


def everything(data):
    """ids, labels, patients and images of all splits together, ordered by id."""
    joined = [
        np.concatenate([getattr(part, name) for part in data.parts.values()])
        for name in ("ids", "labels", "patients", "images")
    ]
    order = np.argsort(joined[0])
    return [column[order] for column in joined]


def table_of(root):
    return root / "Data_Entry_2017_v2020.csv"


def edit(root, old: str, new: str):
    """Replace the first occurrence of a text in the table."""
    text = table_of(root).read_text()
    assert old in text
    table_of(root).write_text(text.replace(old, new, 1))


# --- good folders


@pytest.mark.parametrize("header", ["unquoted", "quoted", "trailing"])
@pytest.mark.parametrize("folders", [("images",), ("images_001/images", "images_002/images")])
def test_every_image_has_its_pixels_labels_and_patient(nih_folder, header, folders):
    """The files tell by their grey value whose they are; the table is read again here, by splitting its
    lines."""
    root = nih_folder(header=header, folders=folders)
    ids, labels, patients, images = everything(load(root))
    lines = sorted(line.split(",") for line in table_of(root).read_text().splitlines()[1:])
    assert ids.tolist() == [line[0] for line in lines]
    assert patients.tolist() == [int(line[3]) for line in lines]
    for name, label, image, line in zip(ids, labels, images, lines, strict=True):
        patient, visit = name.removesuffix(".png").split("_")
        assert (image == 2 * (3 * int(patient) + int(visit))).all()
        assert {f for f, value in zip(FINDINGS, label, strict=True) if value} == {*line[1].split("|")} - {"No Finding"}
    assert set(np.unique(labels)) == {0, 1}


def test_official_split(nih_folder):
    """The default where the lists are there: test as listed, validation from train_val by patient."""
    root = nih_folder(num_patients=40)
    data = load(root)
    assert data.split == "official"
    listed = {name: set((root / f"{name}_list.txt").read_text().split()) for name in ("train_val", "test")}
    assert set(data.test.ids) == listed["test"] - {"00099991_000.png"}
    assert {*data.train.ids, *data.val.ids} == listed["train_val"] - {"00099992_000.png"}
    assert not set(data.train.patients) & set(data.val.patients)
    assert 0.05 < len(data.val) / (len(data.train) + len(data.val)) < 0.2
    assert set(load(root, seed=1).test.ids) == set(data.test.ids)
    assert set(load(root, seed=1).val.ids) != set(data.val.ids)


@pytest.mark.parametrize("lists", [True, False])
def test_split_of_our_own(nih_folder, lists):
    """On request, or where the lists are not there; by patient."""
    root = nih_folder(num_patients=40, lists=lists)
    data = load(root, split="patient" if lists else None)
    assert data.split == "patient"
    patients = [set(part.patients) for part in data.parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 40


def test_split_by_image_leaks(nih_folder):
    data = load(nih_folder(num_patients=40), split="image")
    assert set(data.train.patients) & set(data.test.patients)


def test_folds_of_a_cross_validation(nih_folder):
    """Each image is in test in one fold."""
    root = nih_folder(num_patients=40)
    folds = [load(root, split=f"{fold}/4") for fold in range(1, 5)]
    assert folds[1].split == "2/4"
    tested = np.concatenate([data.test.ids for data in folds])
    assert sorted(tested) == everything(folds[0])[0].tolist()
    assert set(folds[0].val.ids) == set(folds[1].test.ids)
    assert set(load(root, split="1/4", seed=1).test.ids) != set(folds[0].test.ids)
    with pytest.raises(DataError, match=r"split should be a fold from 1/N to N/N, with N at least 3. Found '5/4'"):
        load(root, split="5/4")


def test_small_images_stay_out_if_asked(nih_folder):
    root = nih_folder(num_patients=40)
    small = sorted(root.glob("images/*.png"))[::3]
    for path in small:
        Image.new("L", (15, 90)).save(path)
    assert {f"{path.stem}.png" for path in small} < set(everything(load(root))[0])
    ids = everything(load(root, min_size=16))[0]
    assert set(ids) == {path.name for path in root.glob("images/*.png")} - {path.name for path in small}
    with pytest.raises(DataError, match="no image has min_size=4096 px"):
        load(root, min_size=4096)
    with pytest.raises(DataError, match=r"min_size should be at least 1. Found 0"):
        load(root, min_size=0)
    with pytest.raises(DataError, match="'min_size' is no option of dataset 'phantom'"):
        load_dataset("phantom", min_size=64)


def test_max_images(nih_folder):
    data = load(nih_folder(num_patients=40), split="patient", max_images=6)
    assert all(0 < len(part) <= 6 for part in data.parts.values())
    whole = load(nih_folder(num_patients=40, name="whole"), split="patient")
    for part in data.parts.values():
        for patient in np.unique(part.patients):  # whole patients
            assert (part.patients == patient).sum() == (everything(whole)[2] == patient).sum()


def test_max_train_leaves_validation_and_test_as_they_are(nih_folder):
    whole = load(nih_folder(num_patients=40), split="patient")
    few = load(nih_folder(num_patients=40, name="few"), split="patient", max_train=20)
    half = load(nih_folder(num_patients=40, name="half"), split="patient", max_train=40)
    assert 15 < len(few.train) <= 20 < len(half.train) <= 40 < len(whole.train)
    assert set(few.train.patients) < set(half.train.patients) < set(whole.train.patients)
    for name in ("val", "test"):
        np.testing.assert_array_equal(few.parts[name].ids, whole.parts[name].ids)
    with pytest.raises(DataError, match=r"max_train should be at least 1\. Found 0"):
        load(nih_folder(name="none"), max_train=0)
    with pytest.raises(DataError, match="'max_train' is no option of dataset 'phantom'"):
        load_dataset("phantom", max_train=64)


def test_newer_table_is_taken(nih_folder):
    root = nih_folder()
    (root / "Data_Entry_2017.csv").write_text("Image Index\nnothing\n")
    assert len(everything(load(root))[0])


def test_boxes(nih_folder):
    boxes = load_boxes(nih_folder(), image_size=64)
    assert list(boxes.columns) == ["image", "finding", "x", "y", "width", "height"]
    assert boxes["finding"].tolist() == ["Atelectasis", "Infiltration"]  # the file says Infiltrate
    np.testing.assert_allclose(boxes.iloc[0, 2:].to_numpy(float), [16, 128.5 / 16, 32, 4])
    np.testing.assert_allclose(boxes.iloc[1, 2:].to_numpy(float), [0, 0, 64, 64])


# --- partial downloads: usable, with one warning that counts


def test_images_not_on_disk(nih_folder):
    absent = ("00000003_000.png", "00000005_001.png", "00000008_002.png")
    root = nih_folder(absent=absent)
    with pytest.warns(DataWarning, match=r"3 of \d+ images are not on disk and left out, e\.g\. 00000003_000"):
        data = load(root)
    assert not set(absent) & set(everything(data)[0])


def test_images_in_neither_list(nih_folder):
    root = nih_folder()
    text = (root / "train_val_list.txt").read_text()
    (root / "train_val_list.txt").write_text(text.replace("00000001_000.png", "").replace("00000001_001.png", ""))
    with pytest.warns(DataWarning, match=r"2 images are in neither official list and left out, e\.g\. 00000001_000"):
        data = load(root)
    assert 1 not in everything(data)[2]


def test_a_whole_folder_does_not_warn(nih_folder):
    root = nih_folder(num_patients=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(grey levels|findings without)")
        load(root)


# --- bad folders: one clear error each


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"root \(data_root of a run\) .*nowhere': no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"root \(data_root of a run\) should name the folder of NIH ChestX-ray14"):
        load(None)


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"no table Data_Entry_2017_v2020\.csv, .* or other Data_Entry_2017\*\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Patient ID", "Patient Number", r"no column 'Patient ID'. Found Image Index, .*Patient Number"),
        ("Finding Labels", "Labels", r"no column 'Finding Labels'"),
        ("Image Index", "Image", r"no column 'Image Index'"),
        ("00000002_001.png", "00000002_000.png", r"1 images are listed more than once, e\.g\. 00000002_000"),
        ("00000002_001.png", "../00000002_001.png", r"'\.\./00000002_001\.png' points outside"),
        ("00000002_001.png", "/etc/00000002_001.png", r"'/etc/00000002_001\.png' points outside"),
        ("00000002_001.png", "..", r"'\.\.' points outside"),
        ("00000002_001.png", r"..\00000002_001.png", r"points outside"),
        ("00000002_001.png", "", r"image name '' points outside"),
        ("No Finding", "Nothing", r"of 0\d+_\d+\.png says 'Nothing'. Allowed are Atelectasis, .* and No Finding"),
        ("Mass", "mass", r"says 'mass'"),
        (",No Finding,", ",,", r"says ''"),
        (",No Finding,", ",No Finding|Mass,", r"says 'No Finding\|Mass', which contradicts itself"),
        (",0,7,58", ",0,seven,58", r"column 'Patient ID' says 'seven', not a whole number"),
        (",0,7,58", ",0,,58", r"column 'Patient ID' says ''"),
        (",0,7,58", ",0,7.5,58", r"column 'Patient ID' says '7\.5'"),
        (",0,7,58", ",0,inf,58", r"column 'Patient ID' says 'inf'"),
        (",0,7,58,M,PA,2682,2749,0.143,0.143", "", r"row \d+ has 2 fields, too few"),
        (",0.143,0.143", ",0.143", r"row 2 has 10 fields, too few: the others have 11"),
    ],
)
def test_bad_table(nih_folder, old, new, message):
    root = nih_folder()
    edit(root, old, new)
    with pytest.raises(DataError, match=message) as error:
        load(root)
    assert table_of(root).name in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the table is empty"),
        (b"Image Index,Finding Labels,Follow-up #,Patient ID\n", "has a header and no row"),
        (b"\xff\xfe\x00I\x00m", "not a readable CSV table"),
        (b"\x89PNG\r\n\x1a\n\x00", "not a readable CSV table"),
    ],
)
def test_unreadable_table(nih_folder, content, message):
    root = nih_folder()
    table_of(root).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(root)


def test_one_name_in_two_folders(nih_folder):
    root = nih_folder(folders=("images_001", "images_002"))
    (root / "images_002" / "00000001_000.png").write_bytes((root / "images_001" / "00000001_000.png").read_bytes())
    with pytest.raises(DataError, match=r"00000001_000\.png is in .*images_001 and in .*images_002"):
        load(root)


def test_one_name_in_both_lists(nih_folder):
    root = nih_folder()
    with open(root / "test_list.txt", "a") as file:
        file.write("00000001_000.png\n")
    with pytest.raises(DataError, match=r"00000001_000\.png is in train_val_list\.txt and in test_list\.txt"):
        load(root)


def test_no_image_on_disk(nih_folder):
    root = nih_folder(num_patients=5)
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of its 11 images is on disk, e\.g\. 00000001_000\.png"):
        load(root)


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated"])
def test_damaged_image_is_named(nih_folder, content):
    path = nih_folder() / "images" / "00000004_001.png"
    path.write_bytes(path.read_bytes()[:-30] if content == "truncated" else content)
    with pytest.raises(DataError, match=r"00000004_001\.png: not a readable image"):
        load(path.parents[1])


def test_oversized_image_is_named(nih_folder, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 96 * 64 - 1)  # the largest that `nih_folder` makes has 96 x 64
    with pytest.raises(DataError, match=r"\.png: an image should have at most 6,143 pixels. Found 96 x 64"):
        load(nih_folder())


@pytest.mark.parametrize("target", ["gone.png", "00000004_001.png"])
def test_link_to_no_file_is_no_image(nih_folder, target):
    """As in a folder of which only a part was fetched."""
    root = nih_folder()
    path = root / "images" / "00000004_001.png"
    path.unlink()
    path.symlink_to(target)
    with pytest.warns(DataWarning, match=r"1 of 60 images are not on disk and left out, e\.g\. 00000004_001\.png"):
        assert path.name not in everything(load(root))[0]


def test_links_are_followed(nih_folder, tmp_path):
    """A file, a folder below images, and the folder itself."""
    root = nih_folder()
    whole = everything(load(root))
    path = root / "images" / "00000004_001.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    np.testing.assert_array_equal(everything(load(root))[3], whole[3])
    (root / "images").rename(tmp_path / "pool")
    (root / "images").mkdir()
    (root / "images" / "part1").symlink_to(tmp_path / "pool")
    (root / "images" / "part1" / "again").symlink_to(root / "images")  # a circle is walked once
    np.testing.assert_array_equal(everything(load(root))[3], whole[3])
    (root / "images" / "part1").unlink()
    (root / "images").rmdir()
    (root / "images").symlink_to(tmp_path / "pool")
    np.testing.assert_array_equal(everything(load(root))[3], whole[3])


def test_two_names_of_one_file(nih_folder):
    root = nih_folder()
    (root / "images" / "00000004_001.png").unlink()
    (root / "images" / "00000004_001.png").symlink_to("00000004_000.png")
    with pytest.raises(
        DataError, match=r"1 images are listed more than once, e\.g\. 00000004_001.png in row 9, which is"
    ):
        load(root)


def test_fifos_do_not_block(nih_folder):
    root = nih_folder()
    (root / "images" / "00000004_001.png").unlink()
    os.mkfifo(root / "images" / "00000004_001.png")
    os.mkfifo(root / "Data_Entry_2017_v3000.csv")
    with pytest.warns(DataWarning, match="1 of 60 images are not on disk"):
        load(root)


@pytest.mark.parametrize(
    "folder", ["Images", "images_001/images", "images-224/images-224", "sample/images", "data", ""]
)
@pytest.mark.parametrize("suffix", [".PNG", ".jpg"])
def test_images_in_other_folders_and_forms(nih_folder, folder, suffix):
    root = nih_folder(lists=False)
    (root / "images").rename(root / "before")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path in (root / "before").iterdir():
        Image.open(path).convert("L").save(root / folder / f"{path.stem}{suffix}")
        path.unlink()
    ids, *_ = everything(load(root))
    assert len(ids) == 60
    assert ids[0] == "00000001_000.png"  # the name in the table


def test_what_a_system_leaves_behind_is_passed_over(nih_folder):
    root = nih_folder()
    for name in ("._00000004_001.png", ".DS_Store", "Thumbs.db"):
        (root / "images" / name).write_bytes(b"x")
    (root / "images" / ".ipynb_checkpoints").mkdir()
    (root / "images" / ".ipynb_checkpoints" / "00000004_001.png").write_bytes(b"x")
    assert len(everything(load(root))[0]) == 60


def test_the_official_table_is_read(nih_folder):
    root = nih_folder()
    right = everything(load(root))[1]
    text = table_of(root).read_text()
    for name in ("Data_Entry_2017_v2020_small.csv", "Data_Entry_2017_v2020 (1).csv", "Data_Entry_2017_v3000.csv"):
        (root / name).write_text(text.replace("Hernia", "Mass"))
    data = load(root)
    np.testing.assert_array_equal(everything(data)[1], right)
    assert data.source == str(table_of(root))
    table_of(root).rename(root / "Data_Entry_2017.csv")
    assert load(root).source.endswith("Data_Entry_2017.csv")
    (root / "Data_Entry_2017.csv").unlink()
    with pytest.raises(
        DataError, match=r"several tables .*: Data_Entry_2017_v2020 \(1\)\.csv, .*\. Say which with table="
    ):
        load(root)
    assert load(root, table="Data_Entry_2017_v3000.csv").source.endswith("v3000.csv")


def test_kaggles_sample(nih_folder):
    """Its table has another name and pads the patients' numbers."""
    root = nih_folder(lists=False)
    lines = table_of(root).read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    padded = [",".join([*row[:3], f"{int(row[3]):08d}", "058Y", *row[5:]]) for row in rows]
    (root / "sample_labels.csv").write_text("\n".join([lines[0], *padded]))
    table_of(root).unlink()
    data = load(root)
    assert data.split == "patient"
    assert everything(data)[2].tolist() == [int(row[3]) for row in rows]


def test_lists_with_a_mark_and_of_another_name(nih_folder):
    """Notepad writes a byte order mark, which is no part of the first name."""
    root = nih_folder(num_patients=40)
    whole = load(root)
    for name in ("train_val_list", "test_list"):
        text = (root / f"{name}.txt").read_text()
        (root / f"{name}.txt").unlink()
        (root / f"{name}_NIH.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    data = load(root)
    assert data.split == "official"
    assert data.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize("name", ["test_list.txt", "train_val_list (1).txt"])
def test_half_of_the_lists_is_said(nih_folder, name):
    root = nih_folder(num_patients=40)
    (root / "train_val_list.txt").rename(root / "train_val_list (1).txt")
    if name == "test_list.txt":
        (root / "train_val_list (1).txt").unlink()
    with pytest.warns(
        DataWarning, match=r"official split needs train_val_list\.txt and test_list\.txt\. Found test_list"
    ):
        assert load(root).split == "patient"


@pytest.mark.parametrize(
    ("empty", "message"),
    [
        ("test", "the test split is empty with split='official'"),
        ("train_val", "the official split has fewer than 2 of the patients here outside test"),
    ],
)
def test_list_without_one_of_the_images(nih_folder, empty, message):
    root = nih_folder()
    names = [path.name for path in (root / "images").iterdir()]
    for name in ("train_val", "test"):
        (root / f"{name}_list.txt").write_text("00099999_000.png" if name == empty else "\n".join(names))
    with pytest.raises(DataError, match=message):
        load(root)


def test_images_in_no_list(nih_folder):
    root = nih_folder()
    for name in ("train_val", "test"):
        (root / f"{name}_list.txt").write_text(f"{name}_000.png\n")
    with (
        pytest.warns(DataWarning, match="in neither official list"),
        pytest.raises(DataError, match=r"none of its images is in train_val_list.txt or test_list.txt"),
    ):
        load(root)


def test_patient_in_both_lists(nih_folder):
    root = nih_folder()
    for name, old, new in (
        ("train_val", "00000001_001.png", ""),
        ("test", "00000004_000", "00000001_001.png\n00000004_000"),
    ):
        path = root / f"{name}_list.txt"
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(
        DataError, match=r"in one split only. Found 1 of them in (train|val) and test, e\.g\. that of 0000"
    ):
        load(root)


@pytest.mark.parametrize(
    ("patients", "split", "message"),
    [
        (2, "patient", "needs at least 3 patients. Found 2"),
        (3, "patient", "the val split is empty with split='patient'"),
        (20, "random", "split should be one of official, patient, image. Found 'random'"),
        (20, "patients", "Found 'patients'. Did you mean 'patient'"),
    ],
)
def test_split_that_cannot_be_made(nih_folder, patients, split, message):
    with pytest.raises(DataError, match=message):
        load(nih_folder(num_patients=patients), split=split)


def test_official_split_without_the_lists(nih_folder):
    with pytest.raises(DataError, match=r"needs train_val_list\.txt and test_list\.txt"):
        load(nih_folder(lists=False), split="official")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Cardiomegally,1,2,3,4,,,\n",
            "says 'Cardiomegally'. Allowed",
        ),
        ("Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,one,2,3,4,,,\n", "not a readable table of boxes"),
        ("Image Index,Finding Label\na.png,Mass\n", "not a readable table of boxes"),
        ("header\na.png,Mass,1,2,3,4\nb.png,Mass,1,2,3,\n", r"the box of b\.png has no area in the image \(row 3\)"),
        ("header\na.png,Mass,1,2,-3,4\n", r"the box of a\.png has no area"),
        ("header\na.png,Mass,1,1024,3,4\n", r"the box of a\.png has no area"),
        ("header\na.png,Mass,1,2,inf,4\n", r"the box of a\.png has no area"),
        ("", "not a readable table of boxes"),
        (None, "no such file"),
    ],
)
def test_bad_boxes(tmp_path, content, message):
    if content is not None:
        (tmp_path / "BBox_List_2017.csv").write_text(content)
    with pytest.raises(DataError, match=f"BBox_List_2017.csv: {message}|column 'Finding Label' {message}"):
        load_boxes(tmp_path)


# --- real radiographs

SAMPLE_COUNTS = {  # counted in the sample's own table
    "Infiltration": 496,
    "Pneumonia": 456,
    "Effusion": 427,
    "Atelectasis": 374,
    "Cardiomegaly": 234,
    "Nodule": 174,
    "Pneumothorax": 172,
    "Mass": 145,
    "Edema": 133,
    "Consolidation": 105,
    "Pleural_Thickening": 76,
    "Emphysema": 61,
    "Fibrosis": 50,
    "Hernia": 12,
}


@pytest.mark.parametrize("split", ["official", "patient"])
def test_real_sample(nih_sample, split):
    data = load(nih_sample, split=split)
    ids, labels, patients, images = everything(data)
    if len(ids) != 2597:
        pytest.skip(f"the counts are of a sample of 2,597 images, this one has {len(ids)}")
    assert len(set(patients)) == 1431
    assert dict(zip(FINDINGS, labels.sum(0).astype(int).tolist(), strict=True)) == SAMPLE_COUNTS
    assert (labels.sum(1) == 0).sum() == 1156
    assert all(int(name[:8]) == patient for name, patient in zip(ids, patients, strict=True))
    parts = [set(part.patients) for part in data.parts.values()]
    assert sum(map(len, parts)) == 1431
    if split == "official":
        assert len(data.test) == 1035
    else:
        np.testing.assert_allclose([len(part) / 2597 for part in data.parts.values()], [0.7, 0.1, 0.2], atol=0.01)
        assert all((part.labels.sum(0) > 0).all() for part in data.parts.values())  # 12 images of a hernia
    brightness = images.mean((1, 2))
    assert images.reshape(len(images), -1).std(1).min() > 5  # films, not empty fields
    assert 90 < np.median(brightness) < 160


def test_real_boxes(nih_sample):
    boxes = load_boxes(nih_sample, image_size=64)
    assert len(boxes) == 984
    assert set(boxes["finding"]) <= set(FINDINGS)
    assert "Infiltration" in set(boxes["finding"])
    assert (boxes[["x", "y"]] >= 0).all(axis=None)
    assert ((boxes["x"] + boxes["width"]) <= 64.01).all()
    assert ((boxes["y"] + boxes["height"]) <= 64.01).all()


# --- the public subset of 256 px


@pytest.fixture
def subset(tmp_path):
    """labels/*_labels.csv and images/ of eight patients with two images each, as the public subset has them once unpacked."""
    root = tmp_path / "subset"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for part, patients in (("train", range(1, 5)), ("val", (11, 12)), ("test", (21, 22))):
        lines = [",".join(["Image Index", *FINDINGS])]
        for patient in patients:
            for visit in (0, 1):
                name = f"{patient:08d}_{visit:03d}.png"
                lines.append(",".join([name, *(str(int((k + patient + visit) % 3 == 0)) for k in range(14))]))
                Image.fromarray(np.full((40, 40, 3), 10 * visit + patient, np.uint8)).save(root / "images" / name)
        (root / "labels" / f"{part}_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_public_subset_has_its_labels_patients_and_split(subset):
    data = load(subset)
    assert data.split == "official"
    assert sorted(set(data.val.patients)) == [11, 12]
    assert sorted(set(data.test.patients)) == [21, 22]
    for part in data.parts.values():
        for name, patient, labels, image in zip(part.ids, part.patients, part.labels, part.images, strict=True):
            visit = int(name[9:12])
            assert int(name[:8]) == patient
            assert (image == 10 * visit + patient).all()
            assert labels.tolist() == [(k + patient + visit) % 3 == 0 for k in range(14)]
    assert {*load(subset, split="patient").train.patients} != {1, 2, 3, 4}


def test_public_subset_says_what_is_wrong_with_it(subset):
    table = subset / "labels" / "val_labels.csv"
    good = table.read_text()
    table.write_text(good.replace(",1", ",2", 1))
    with pytest.raises(DataError, match=r"val_labels\.csv: column '\w+' should say 0 or 1\. Found another .* row 2"):
        load(subset)
    table.write_text(good.replace("Hernia", "Hernya"))
    with pytest.raises(DataError, match=r"val_labels\.csv: no column 'Hernia'.*Did you mean 'Hernya'"):
        load(subset)
    table.unlink()
    with pytest.raises(DataError, match=r"val_labels\.csv: no such table"):
        load(subset)


def test_the_official_table_comes_first(nih_folder, subset):
    root = nih_folder()
    (subset / "labels").rename(root / "labels")
    assert sum(map(len, load(root).parts.values())) == len(table_of(root).read_text().splitlines()) - 1
