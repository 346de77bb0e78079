"""Public data sets as they are downloaded, made small, and what an empty cell, -1 and "No Finding" mean: every label is
held against one that was worked out here by hand, cell by cell."""

import gzip
import itertools
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from deepchest_utils import FINDINGS, DataError, load_dataset
from deepchest_utils.__main__ import main
from deepchest_utils.datasets import DATASETS, DataWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*findings without a positive"),  # in tables so small
    pytest.mark.filterwarnings("ignore:.*few labels to learn from"),
    pytest.mark.filterwarnings("ignore:.*grey levels"),  # the images of the tests have one grey value each
]
# the official headers
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
MIMIC = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
VINDR = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,Enlarged PA,"
    "ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,"
    "Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis"
)
CELLS = ("1.0", "0.0", "-1.0", "")


def picture(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 20), grey % 256).save(path)


def labels_of(data) -> dict[str, dict[str, float]]:
    """id -> finding -> label."""
    found = {}
    for part in data.parts.values():
        found |= {
            name: dict(zip(part.findings, row.tolist(), strict=True))
            for name, row in zip(part.ids, part.labels, strict=True)
        }
    return found


def load(name, root, **options):
    return load_dataset(name, root, image_size=16, **options)


# what a cell means


def meant(cell: str, healthy: bool, blank: str, uncertain: str) -> float:
    """By hand: 1 and 0 as they say; empty is absent in a row without a finding, and else as `blank` says."""
    value = {"absent": 0.0, "present": 1.0, "unknown": np.nan}
    if cell in ("1.0", "0.0"):
        return float(cell)
    if cell == "-1.0":
        return value[uncertain]
    return 0.0 if healthy else value[blank]


def rows_of_cells(columns: list[str], count: int) -> list[list[str]]:
    """All four cells in every column, in many combinations; each fourth row has no finding but for devices."""
    rows = []
    for i in range(count):
        if i % 4 == 3:  # "No Finding": nothing is said, or 0, and devices may be there
            cells = [("", "0.0")[(i // 4 + k) % 2] for k in range(len(columns))]
            cells[columns.index("Support Devices")] = CELLS[i // 4 % 4]
        else:
            cells = [CELLS[(i + i // 4 * k + k) % 4] for k in range(len(columns))]
        cells[columns.index("No Finding")] = "1.0" if i % 4 == 3 else ""
        rows.append(cells)
    return rows


@pytest.fixture
def chexpert(tmp_path):
    """30 patients of train and 6 of valid with a frontal and a lateral film each."""
    columns = CHEXPERT.split(",")[5:]
    truth = {}
    for part, first, count in (("train", 1, 30), ("valid", 64541, 6)):
        lines = [CHEXPERT]
        cells_of = rows_of_cells(columns, count)
        if part == "valid":
            cells_of = [["0.0" if cell in ("", "-1.0") else cell for cell in cells] for cells in cells_of]
        for i, cells in enumerate(cells_of):
            for number, view in enumerate(("frontal", "lateral"), 1):
                name = f"{part}/patient{first + i:05d}/study1/view{number}_{view}.jpg"
                picture(tmp_path / "CheXpert-v1.0-small" / name, i)
                seen = f"Female,{20 + i},{view.capitalize()},{'AP' if view == 'frontal' else ''}"
                lines.append(",".join([f"CheXpert-v1.0-small/{name}", seen, *cells]))
                truth[name] = dict(zip(columns, cells, strict=True))
        (tmp_path / "CheXpert-v1.0-small" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, truth


@pytest.fixture
def mimic(tmp_path):
    """36 studies of 18 patients, each with a PA and a LATERAL film."""
    columns = MIMIC.split(",")[2:]
    labels, metadata, split = (
        [MIMIC],
        ["dicom_id,subject_id,study_id,ViewPosition,Rows"],
        ["dicom_id,study_id,subject_id,split"],
    )
    truth = {}
    for i, cells in enumerate(rows_of_cells(columns, 36)):
        subject, study = 10000032 + i // 2 * 7, 50414267 + i
        labels.append(",".join([str(subject), str(study), *cells]))
        for view in ("PA", "LATERAL"):
            dicom = f"02aa804e-bde0afdd-112c0b34-7bc16630-{i:06d}{view}"
            name = f"files/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg"
            metadata.append(f"{dicom},{subject},{study},{view},3056")
            split.append(f"{dicom},{study},{subject},{('train', 'train', 'train', 'validate', 'test')[i // 2 % 5]}")
            picture(tmp_path / name, i)
            if view == "PA":
                truth[name] = dict(zip(columns, cells, strict=True))
    for name, lines in (("chexpert", labels), ("metadata", metadata), ("split", split)):
        (tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path, truth


@pytest.fixture
def own(tmp_path):
    """The same cells in a table of one's own."""
    columns = CHEXPERT.split(",")[5:]
    truth, lines = {}, [",".join(["image", "patient", *columns])]
    for i, cells in enumerate(rows_of_cells(columns, 40)):
        picture(tmp_path / f"{i}.png", i)
        lines.append(",".join([f"{i}.png", f"p{i // 2}", *cells]))
        truth[f"{i}.png"] = dict(zip(columns, cells, strict=True))
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, truth


OUR = {"Pleural Effusion": "Effusion"}


def held_against_hand(data, truth, blank, uncertain, ours=True) -> int:
    """Compare every label; returns how many."""
    count = 0
    for name, labels in labels_of(data).items():
        cells = truth[name]
        for column, cell in cells.items():
            finding = OUR.get(column, column) if ours else column
            if finding in labels:
                healthy = cells["No Finding"] == "1.0" and column not in ("Support Devices", "No Finding")
                np.testing.assert_equal(
                    labels[finding], meant(cell, healthy, blank, uncertain), f"{name} {column} {cell!r}"
                )
                count += 1
    return count


POLICIES = [*itertools.product(("absent", "unknown"), ("unknown", "absent", "present"))]


@pytest.mark.parametrize(("blank", "uncertain"), [POLICIES[0], POLICIES[5]])
@pytest.mark.parametrize("name", ["chexpert", "mimic", "csv"])
def test_policies(request, name, blank, uncertain):
    root, truth = request.getfixturevalue("own" if name == "csv" else name)
    columns = [column for column in next(iter(truth.values())) if column != "No Finding"]
    options = {"finding_columns": columns} if name == "csv" else {}
    data = load(name, root, blank=blank, uncertain=uncertain, **options)
    assert held_against_hand(data, truth, blank, uncertain, ours=name != "csv") == len(data.findings) * len(
        labels_of(data)
    )
    assert len(data.findings) == 13


@pytest.mark.slow
def test_every_policy_in_every_layout(chexpert, mimic, tmp_path_factory, tally):
    """Six policies for all findings, and nine in which two findings have their own."""
    own_root = tmp_path_factory.mktemp("own")
    own_truth, columns = {}, CHEXPERT.split(",")[5:]
    lines = [",".join(["image", "patient", *columns])]
    for i, cells in enumerate(rows_of_cells(columns, 40)):
        picture(own_root / f"{i}.png", i)
        lines.append(",".join([f"{i}.png", f"p{i // 2}", *cells]))
        own_truth[f"{i}.png"] = dict(zip(columns, cells, strict=True))
    (own_root / "labels.csv").write_text("\n".join(lines) + "\n")
    policies = 0
    for name, (root, truth) in (("chexpert", chexpert), ("mimic", mimic), ("csv", (own_root, own_truth))):
        options = {"finding_columns": [c for c in columns if c != "No Finding"]} if name == "csv" else {}
        options |= {"views": "all"} if name == "chexpert" else {}
        for blank, uncertain in POLICIES:
            data = load(name, root, blank=blank, uncertain=uncertain, **options)
            assert held_against_hand(data, truth, blank, uncertain, ours=name != "csv") > 400
            policies += 1
        for edema, other in itertools.product(("unknown", "absent", "present"), repeat=2):
            own_policy = {"edema": edema, "others": other}
            data = load(
                name, root, blank={"Pleural Effusion": "unknown", "others": "absent"}, uncertain=own_policy, **options
            )
            for image, labels in labels_of(data).items():
                for finding, label in labels.items():
                    column = {ours: theirs for theirs, ours in OUR.items()}.get(finding, finding)
                    cells = truth[image]
                    healthy = cells["No Finding"] == "1.0" and column != "Support Devices"
                    blank = "unknown" if column == "Pleural Effusion" else "absent"
                    right = meant(cells[column], healthy, blank, edema if column == "Edema" else other)
                    np.testing.assert_equal(label, right, f"{name} {image} {column}")
            policies += 1
    assert policies == 45
    tally("label policies held against hand-counted tables", policies)


def test_both_kinds_have_to_be_said(own):
    root, truth = own
    cells = [
        cell
        for row in truth.values()
        for column, cell in row.items()
        if column in FINDINGS or column == "Pleural Effusion"
    ]
    healthy = sum(
        cell == ""
        for row in truth.values() if row["No Finding"] == "1.0"
        for column, cell in row.items() if column in FINDINGS or column == "Pleural Effusion"
    )  # fmt: skip
    empty, unsure = cells.count("") - healthy, cells.count("-1.0")
    for given in ({}, {"blank": "absent"}, {"uncertain": "present"}):
        with pytest.raises(
            DataError, match=rf"{empty} are empty and {unsure} are -1. Say blank=.*CheXpert's makers train empty"
        ):
            load("csv", root, **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blank": "present"}, "blank should be one of absent, unknown. Found 'present'"),
        ({"blank": "absnt"}, "Did you mean 'absent'"),
        ({"uncertain": "ignore"}, "uncertain should be one of absent, present, unknown. Found 'ignore'"),
        ({"uncertain": {"Edma": "present", "others": "absent"}}, "finding of uncertain should be .*Found 'Edma'. Did you mean 'Edema'"),
        ({"uncertain": {"Edema": "present"}}, r'uncertain should also say what .* means in \d+ cells, by name or as "others"'),
        ({"views": "side"}, "views should be one of frontal, lateral, all"),
        ({"uncertainty": "absent"}, "'uncertainty' is no option of dataset 'chexpert'.*Did you mean 'uncertain'"),
    ],
)  # fmt: skip
def test_policies_that_are_none(chexpert, options, message):
    with pytest.raises(DataError, match=message):
        load("chexpert", chexpert[0], **options)


def test_no_finding_that_contradicts_itself(own):
    root, _ = own
    lines = (root / "labels.csv").read_text().splitlines()
    header = lines[0].split(",")
    for row, column in ((4, "Edema"), (8, "Support Devices")):  # of two rows without a finding, as lists count
        cells = lines[row].split(",")
        cells[header.index(column)] = "1.0"
        lines[row] = ",".join(cells)
    (root / "labels.csv").write_text("\n".join(lines))
    policy = {"blank": "unknown", "uncertain": "unknown", "finding_columns": "Edema,Support Devices"}
    with pytest.warns(
        DataWarning, match=r"1 rows have both 'No Finding' and a finding, e\.g\. row 5; the finding is kept"
    ):
        assert labels_of(load("csv", root, **policy))["3.png"]["Edema"] == 1


def test_labels_that_teach_little_are_said(own):
    """CheXpert read as if an empty cell were unknown: nearly all that is known is positive."""
    root, _ = own
    lines = ["image,patient,Mass,Edema,Hernia"]
    lines += [f"{i}.png,{i},{'' if i % 3 else i % 2},{int(i != 7)},{'' if i % 5 else 1}" for i in range(40)]
    (root / "labels.csv").write_text("\n".join(lines))
    message = "Edema (98% of those known are positive), Hernia (known of 8 of 40 images). blank='absent' takes empty cells for absent"
    with pytest.warns(DataWarning, match=re.escape(message)):
        load("csv", root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(grey levels|without a positive)")
        load("csv", root, finding_columns="Mass,Hernia", blank="absent")


# layouts


def test_chexpert_at_full_size(chexpert, monkeypatch):
    """Its archives unpack to four folders; patients of train lie in three of them, without a folder train."""
    root, _ = chexpert
    usual = load("chexpert", root)
    base = (root / "CheXpert-v1.0-small").rename(root / "CheXpert-v1.0 batch 1 (validate & csv)")
    for i, patient in enumerate(sorted((base / "train").iterdir())):
        batch = root / f"CheXpert-v1.0 batch {i % 3 + 2} (train {i % 3 + 1})"
        batch.mkdir(exist_ok=True)
        patient.rename(batch / patient.name)
    (base / "train").rmdir()
    monkeypatch.chdir(base)
    for place in (root, base, "."):
        data = load("chexpert", place)
        assert data.fingerprint() == usual.fingerprint()
        np.testing.assert_array_equal(data.train.ids, usual.train.ids)


@pytest.mark.parametrize("inside", [False, True])
def test_chexpert(chexpert, inside):
    root, _ = chexpert
    data = load("chexpert", root / "CheXpert-v1.0-small" if inside else root)
    assert data.split == "official"
    assert data.findings[:2] == ("Enlarged Cardiomediastinum", "Cardiomegaly")
    assert "Effusion" in data.findings
    assert "No Finding" not in data.findings
    assert set(data.test.patients) == set(range(64541, 64547))
    assert {*data.train.patients, *data.val.patients} == set(range(1, 31))
    assert not {*data.train.patients} & {*data.val.patients}
    assert all("frontal" in name for name in labels_of(data))
    assert data.source == str(root / "CheXpert-v1.0-small")


def test_chexperts_views_and_test(chexpert):
    root, _ = chexpert
    assert all("lateral" in name for name in labels_of(load("chexpert", root, views="lateral")))
    assert len(labels_of(load("chexpert", root, views="all"))) == 72
    base = root / "CheXpert-v1.0-small"
    lines = [CHEXPERT]
    for i in range(4):
        name = f"test/patient{64741 + i}/study1/view1_frontal.jpg"
        picture(base / name)
        lines.append(",".join([f"CheXpert-v1.0/{name}", "Male,50,Frontal,AP", *["0.0"] * 13, "1.0"]))
    (base / "test.csv").write_text("\n".join(lines))
    data = load("chexpert", root)
    assert set(data.test.patients) == set(range(64741, 64745))
    assert set(data.val.patients) == set(range(64541, 64547))
    assert set(data.train.patients) == set(range(1, 31))
    for name in ("valid", "test"):
        (base / f"{name}.csv").unlink()
    with pytest.warns(DataWarning, match=r"no valid\.csv beside train\.csv\. So there is no official split"):
        assert load("chexpert", root).split == "patient"
    with pytest.raises(DataError, match=r'split="official" needs valid\.csv'), pytest.warns(DataWarning):
        load("chexpert", root, split="official")


def test_chexpert_without_its_table_or_patient(tmp_path, chexpert):
    with pytest.raises(DataError, match=r"no table train\.csv"):
        load("chexpert", tmp_path / "CheXpert-v1.0-small" / "valid")
    table = tmp_path / "CheXpert-v1.0-small" / "train.csv"
    table.write_text(table.read_text().replace("patient00003", "person00003"))
    with pytest.raises(DataError, match="no patient in the path 'train/person00003/"):
        load("chexpert", tmp_path)


def test_mimic(mimic):
    root, truth = mimic
    data = load("mimic", root)
    assert data.split == "official"
    assert set(labels_of(data)) == set(truth)
    for number, part in enumerate((data.train, data.val, data.test)):
        studies = [int(name.split("/s")[1][:8]) - 50414267 for name in part.ids]
        assert {(0, 0, 0, 1, 2)[i // 2 % 5] for i in studies} == {number}
    first = next(iter(truth)).split("/")[2]
    assert first == "p10000032"
    assert data.source.endswith("mimic-cxr-2.0.0-chexpert.csv.gz")
    assert len(labels_of(load("mimic", root, views="all"))) == 72


def test_mimic_unpacked_as_dicom_and_incomplete(mimic):
    """Tables that a browser unpacked; .dcm in place of .jpg is found; studies without labels are said."""
    root, _ = mimic
    for path in root.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    table = root / "mimic-cxr-2.0.0-chexpert.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    for path in [*root.glob("files/**/*.jpg")]:
        path.rename(path.with_suffix(".dcm"))
    with pytest.warns(
        DataWarning, match=r"metadata\.csv: 1 images without labels or split are left out, e\.g\. that of row 72"
    ):
        read = DATASETS["mimic"](root)
    assert len(read.paths) == 35
    assert {path[-4:] for path in read.paths} == {".dcm"}
    (root / "mimic-cxr-2.0.0-split.csv").unlink()
    with pytest.raises(DataError, match=r"no table mimic-cxr-2\.0\.0-split\.csv\.gz or mimic-cxr-2\.0\.0-split\.csv"):
        load("mimic", root)
    with pytest.raises(DataError, match="labeler should be one of chexpert, negbio"):
        load("mimic", root, labeler="chexbert")


@pytest.fixture
def padchest(tmp_path):
    lists = [
        "['normal']", "['cardiomegaly', 'pleural effusion']", "['laminar atelectasis', ' nodule']", "['hiatal hernia']",
        "['pseudonodule', 'mediastinal mass']", "['scoliosis', 'pulmonary mass']", "['Pneumonia', 'infiltrates', '']",
    ]  # fmt: skip
    lines = [",ImageID,ImageDir,StudyID,PatientID,PatientBirth,Projection,Report,Labels"]
    for i in range(56):
        name = f"2168401113669640_{i:03d}.png"
        picture(tmp_path / str(i % 3) / name, i)
        projection = ("PA", "L", "AP", "AP_horizontal")[i % 4]
        lines.append(f'{i},{name},{i % 3},s{i},{i // 4},1950,{projection},"un, dos",{chr(34)}{lists[i % 7]}{chr(34)}')
    (tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_padchest(padchest):
    found = labels_of(load("padchest", padchest))
    assert len(found) == 42
    present = [
        set(), {"Cardiomegaly", "Effusion"}, {"Atelectasis", "Nodule"}, {"Hernia"}, set(), {"Mass"}, {"Pneumonia", "Infiltration"},
    ]  # fmt: skip
    for name, labels in found.items():
        assert {finding for finding, label in labels.items() if label} == present[int(name[-7:-4]) % 7], name
        assert tuple(labels) == FINDINGS
    lateral = load("padchest", padchest, views="lateral", finding_columns=["scoliosis", "effusion", "Pseudonodule"])
    assert lateral.findings == ("scoliosis", "Effusion", "pseudonodule")
    for name, labels in labels_of(lateral).items():
        i = int(name[-7:-4])
        assert i % 4 == 1
        assert [*labels.values()] == [i % 7 == 5, i % 7 == 1, i % 7 == 4]
    with pytest.raises(DataError, match=r"no column 'scolios'.*Did you mean 'scoliosis'"):
        load("padchest", padchest, finding_columns="scolios")
    with pytest.raises(DataError, match="needs a list that PadChest does not have"):
        load("padchest", padchest, split="official")


def test_padchests_lists_that_are_none(padchest):
    table = next(padchest.glob("*.csv"))
    text = table.read_text()
    table.write_text(text.replace("\"['normal']\"", "", 1))
    with pytest.warns(DataWarning, match="1 images labelled exclude, .* or not at all are left out"):
        load("padchest", padchest)
    for i, unread in enumerate(("['exclude']", "['unchanged', 'nodule']", "['']", "[]", "['Suboptimal study']"), 2):
        table.write_text(text.replace("\"['normal']\"", f'"{unread}"', i))
        with pytest.warns(DataWarning, match=r"[1-9] images labelled exclude, .* or not at all are left out"):
            load("padchest", padchest)
    for wrong in ("'normal'", "normal", "__import__('os')", "[1]", "[" * 3000, "['pleural effusion' 'nodule']"):
        table.write_text(text.replace("['normal']", wrong, 1))
        with pytest.raises(DataError, match=r"column 'Labels' says .* in row 2. It should be a list"):
            load("padchest", padchest)


def test_of_padchests_tables_that_of_the_official_name_is_read(padchest):
    official = next(padchest.glob("*.csv"))
    head, *lines = official.read_text().splitlines()
    official.with_name(f"{official.stem} (1).csv").write_text("\n".join([head, *lines[:20]]))
    assert load("padchest", padchest).source == str(official)


@pytest.fixture
def vindr(tmp_path):
    """24 images of train by three readers, 8 of test by consensus; the last columns differ in name."""
    columns = VINDR.split(",")
    for part, count, readers, other in (("train", 24, 3, "Other diseases"), ("test", 8, 1, "Other disease")):
        lines = [",".join(["image_id", *(["rad_id"] if readers == 3 else []), VINDR, other, "No finding"])]
        for i in range(count):
            name = f"{part}{i:027d}"
            picture(tmp_path / part / f"{name}.png", i)
            for reader in range(readers):
                # column k is marked by i % 4 of the three readers: 0 to 3 of them
                cells = ["1" if reader < (i + k) % 4 else "0" for k in range(len(columns))]
                lines.append(",".join([name, *([f"R{reader}"] if readers == 3 else []), *cells, "0", "0"]))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"image_labels_{part}.csv").write_text("\n".join(lines))
    return tmp_path, columns


@pytest.mark.parametrize(("readers", "needed"), [("majority", 2), ("any", 1)])
def test_vindr(vindr, readers, needed):
    root, columns = vindr
    data = load("vindr", root, readers=readers)
    assert (data.split, data.patients_known) == ("official", False)
    ours = {"Pleural effusion": "Effusion", "Pleural thickening": "Pleural_Thickening"}
    assert data.findings == tuple(ours.get(name, name) for name in columns)
    assert set(data.test.ids) == {f"test{i:027d}" for i in range(8)}
    for name, labels in labels_of(data).items():
        i = int(name.removeprefix("train").removeprefix("test"))
        for k, label in enumerate(labels.values()):
            marks = (i + k) % 4
            assert label == (marks >= needed if name.startswith("train") else marks >= 1), (name, k)
    assert load("vindr", root, finding_columns="Pleural Effusion,ILD").findings == ("Pleural Effusion", "ILD")


def test_chexperts_other_columns_are_no_findings(chexpert):
    table = chexpert[0] / "CheXpert-v1.0-small" / "train.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{head},use", *(f"{line},1.0" for line in lines)]))
    assert len(load("chexpert", chexpert[0]).findings) == 13


def test_vindrs_other_columns_are_no_findings_and_a_second_file_is_asked_for(vindr):
    root, _ = vindr
    table = root / "annotations" / "image_labels_train.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{head},is_ap", *(f"{line},1" for line in lines)]))
    assert "is_ap" not in load("vindr", root).findings
    picture(root / "masks" / f"train{3:027d}.bmp", 200)  # a mask, or the same film as DICOM
    with pytest.raises(DataError, match=r"has several files: train0+3\.bmp, train0+3\.png\. Keep one of them"):
        load("vindr", root)


def test_vindr_without_test_or_in_one_folder(vindr):
    root, _ = vindr
    (root / "annotations" / "image_labels_test.csv").rename(root / "image_labels_test.csv")
    assert load("vindr", root).split == "official"
    (root / "image_labels_test.csv").unlink()
    (root / "annotations" / "image_labels_train.csv").rename(root / "image_labels_train.csv")
    (root / "annotations").rmdir()
    with pytest.warns(DataWarning, match=r"no image_labels_test\.csv\. So there is no official split"):
        assert load("vindr", root).split == "patient"
    with pytest.raises(DataError, match=r"needs image_labels_train\.csv and"), pytest.warns(DataWarning):
        load("vindr", root, split="official")
    (root / "image_labels_train.csv").rename(root / "image_labels_test.csv")  # five readers' images are no training set
    with pytest.raises(DataError, match=r"no table annotations/image_labels_train\.csv or image_labels_train\.csv"):
        load("vindr", root)


# the command


@pytest.mark.filterwarnings("ignore")
def test_command_says_what_it_read(own, capsys):
    root, _ = own
    policy = ["--data-options", "blank", "absent", "--data-options", "uncertain", "unknown"]
    command = ["data", "csv", "--data-root", str(root), "--image-size", "16"]
    assert main([*command, *policy]) == 0
    assert f"csv, 16 px, split=patient, read from {root / 'labels.csv'}" in capsys.readouterr().out
    assert (
        main([*command, "--data-options", "blank", "absent", "uncertain", "{'Edema': 'present', 'others': 'absent'}"])
        == 0
    )
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
