"""Readers of tables with a column or a list of findings: one's own CSV, CheXpert, MIMIC-CXR-JPG, PadChest, VinDr-CXR.

What an empty cell and -1 mean, `blank` and `uncertain`, is told in `label_columns`.
"""

import ast
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from deepchest_utils.config import check_choice
from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.findings import FINDINGS, KNOWN, PADCHEST_LABELS, PADCHEST_UNREAD, our_name, spelling
from deepchest_utils.datasets.label_columns import Names, Policy, choose_columns, finding_labels, warn_of_unused
from deepchest_utils.datasets.table import (
    Table,
    data_folder,
    find_column,
    find_images,
    make_table,
    patient_numbers,
    read_table,
    walk_images,
)  # fmt: skip

Root = str | Path | None
SPLITS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validate": 1, "validation": 1, "test": 2, "testing": 2}


def read_csv_table(
    root: Root,
    table: str = "labels.csv",
    image_column: str = "image",
    patient_column: str = "patient",
    finding_columns: Names = None,
    blank: Policy = None,
    uncertain: Policy = None,
    split_column: str | None = None,
) -> Table:
    """Read and check a table of one's own. Raises DataError naming the table, column or row that is wrong.

    A column is found whatever its case, spaces and underscores. Ids of patients that are numbers are compared as such.

    Args:
        table: The CSV file, relative to root or absolute; packed by gzip, zip, bz2 or xz if need be.
        image_column: File names relative to root.
        patient_column: Any text or number.
        finding_columns: The tasks, as a list or a text with commas; by default those of the 14 findings that are there.
        blank: What an empty cell means, "absent" or "unknown".
        uncertain: What -1 means, "unknown" (U-Ignore), "absent" (U-Zeros) or "present" (U-Ones). Both are "unknown"
            where a table has only one of the two kinds, and have to be said where it has both.
        split_column: Says train, val or test (or nothing but train and test) of each image: the official split.
    """
    root = data_folder(root, "csv", "the images")
    source = root / table
    if not os.path.isfile(source):
        raise DataError(f"{str(source)[:200]}: no such table. Name it with table=...")
    names, columns = read_rows(source, image_column, patient_column, finding_columns, blank, uncertain, split_column)
    return make_table("csv", source, names, find_images(source, names, root), f"in {root}", **columns)


def read_rows(
    source: Path,
    image_column: str,
    patient_column: str,
    finding_columns: Names,
    blank: Policy,
    uncertain: Policy,
    split_column: str | None,
) -> tuple[pd.Series, dict[str, Any]]:
    """Names of images, and what a `Table` has of each; the arguments are those of `read_csv_table`."""
    text = [name for name in (image_column, patient_column, split_column) if name is not None]
    frame = read_table(source, text)
    columns = choose_columns(source, [*frame.columns], finding_columns)
    labels = finding_labels(source, frame, columns, blank, uncertain)
    if finding_columns is None:
        warn_of_unused(source, frame, [*text, *columns.values()])
    texts = [name for name in frame.columns.difference([*text, *columns.values()]) if frame[name].dtype.kind == "O"]
    if split_column is None and (like := [n for n in texts if frame[n].astype(str).str.lower().isin(SPLITS).all()]):
        warn(f"{source}: column {like[0]!r} says train, val or test and is not used. Name it with split_column=...")
    patients = patient_numbers(source, frame[patient_column])
    official = None if split_column is None else _official(source, frame[split_column])
    needs = 'a column that says train, val or test of each image: split_column="..."'
    values = {"labels": labels, "patients": patients, "findings": tuple(columns), "official": official}
    return frame[image_column], {**values, "to_be_official": needs}


def _official(source: Path, cells: pd.Series) -> np.ndarray:
    """0 train, 1 val, 2 test of each row."""
    if len(wrong := cells[~cells.str.lower().isin(SPLITS)]):
        place = f"column {cells.name!r} says {wrong.iloc[0][:80]!r} in row {wrong.index[0]}"
        raise DataError(f"{source}: {place}. Allowed are train, val and test.")
    return np.asarray(cells.str.lower().map(SPLITS), np.int64)


# public data sets


def _first(root: Path, *names: str) -> Path:
    """The first of some files that is there."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root}: no table {' or '.join(names)} in it. root (data_root of a run) should be the download.")


def _of_view(source: Path, views: str, kinds: pd.Series, **kinds_of: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Which images are of the views asked for. DataError if none is."""
    check_choice("views", views, ("frontal", "lateral", "all"), DataError)
    kept = kinds.isin(kinds.unique() if views == "all" else kinds_of[views]).to_numpy()
    if not kept.any():
        raise DataError(f"{source}: no image is of views={views!r}. Found {', '.join(sorted(set(kinds))[:10])}.")
    return np.asarray(kept)


def _read_parts(
    sources: list[Path], keys: Sequence[str], named: object, known: Collection[str], blank: Policy, uncertain: Policy
) -> tuple[pd.DataFrame, Float[np.ndarray, "n k"], tuple[str, ...]]:
    """Tables below one another: columns `keys` with the number of the table as `part`, labels, and findings: those
    named, or all that are known (by spelling), under our names where we have one."""
    frames, labels, columns = [], [], dict[str, str]()
    for part, source in enumerate(sources):
        frame = read_table(source, keys)
        if not columns:
            header = [name for name in frame.columns if name not in keys]
            all_of_them = {our_name(name): name for name in header if spelling(name) in known}
            columns = all_of_them if named is None else choose_columns(source, header, named)
        own = {name: frame.columns[find_column(source, [*frame.columns], column)] for name, column in columns.items()}
        labels.append(finding_labels(source, frame, own, blank, uncertain))
        frames.append(frame[[*keys]].assign(part=part))
    return pd.concat(frames), np.concatenate(labels), tuple(columns)


def read_chexpert(
    root: Root,
    views: str = "frontal",
    finding_columns: Names = None,
    blank: Policy = "absent",
    uncertain: Policy = "unknown",
) -> Table:
    """Read CheXpert as downloaded: train.csv, valid.csv and the folders that their `Path` names. At full size, where no
    train/ is beside train.csv, its patients are looked for in the folders `*(train *)` beside that of train.csv.

    Irvin et al., AAAI 2019, arXiv 1901.07031. Patients are those of the paths. The official split: val is split off
    train.csv by patient, and valid.csv, which radiologists labelled, is test; with a test.csv, valid.csv is val.

    Args:
        root: The folder CheXpert-v1.0* or the one that holds it.
        views: "frontal", "lateral" or "all".
        finding_columns: The tasks; by default all 13 but "No Finding", Pleural Effusion under our name of it.
        blank, uncertain: See the top of `label_columns`. The makers say that they train an empty cell as negative, and that
            they tried several ways with -1 (issues 9 and 29 of stanfordmlgroup/chexpert-labeler).
    """
    root = data_folder(root, "chexpert", "CheXpert")
    base = next((path for path in (root, *sorted(root.glob("CheXpert*"))) if (path / "train.csv").is_file()), root)
    sources = [_first(base, "train.csv"), *(path for path in (base / "valid.csv", base / "test.csv") if path.is_file())]
    frame, labels, findings = _read_parts(sources, ["Path"], finding_columns, KNOWN["chexpert"], blank, uncertain)
    names = frame["Path"].str.replace(r"^CheXpert-v1\.0[^/]*/", "", regex=True)
    patients = names.str.extract(r"(?:^|/)patient([0-9]+)/")[0]
    if patients.isna().any():
        name = names[patients.isna()].iloc[0]
        raise DataError(f"{base}: no patient in the path {name!r}. It should be like train/patient00001/study1/...")
    view = names.str.extract(r"_(frontal|lateral)\.\w+$")[0].fillna("neither")
    kept = _of_view(base, views, view, frontal=["frontal"], lateral=["lateral"])
    if not sources[1:]:
        warn(
            f"{base}: no valid.csv beside train.csv. So there is no official split, and test has labels mined from reports."
        )
    official = frame["part"].replace({1: 2} if len(sources) == 2 else {}).to_numpy()[kept] if sources[1:] else None
    entries = find_images(base, names[kept], base, any_suffix=True)
    for batch in [] if (base / "train").is_dir() else sorted(base.resolve().parent.glob("*(train *)")):
        there = find_images(base, names[kept].str.removeprefix("train/"), batch, any_suffix=True)
        entries = [entry or other for entry, other in zip(entries, there, strict=True)]
    return make_table(
        "chexpert", base, names[kept], entries, f"below {base}", labels=labels[kept], findings=findings, official=official,
        patients=patients[kept].astype(np.int64).to_numpy(), to_be_official="valid.csv beside train.csv",
    )  # fmt: skip


def read_mimic(
    root: Root,
    views: str = "frontal",
    labeler: str = "chexpert",
    finding_columns: Names = None,
    blank: Policy = "absent",
    uncertain: Policy = "unknown",
) -> Table:
    """Read MIMIC-CXR-JPG 2 as downloaded: its tables of labels, metadata and split, packed or not, and files/p10/...

    Johnson et al., arXiv 1901.07042. An image has the labels of its study. The official split is that of its table.
    MIMIC-CXR's own DICOM files in the same folders do as well.

    Args:
        views: "frontal" (ViewPosition PA or AP), "lateral" (LATERAL or LL) or "all".
        labeler: "chexpert" or "negbio", whose labels are taken.
        finding_columns, blank, uncertain: As for `read_chexpert`, whose labeller this is.
    """
    root = data_folder(root, "mimic", "MIMIC-CXR-JPG")
    check_choice("labeler", labeler, ("chexpert", "negbio"), DataError)
    tables = [f"mimic-cxr-2.0.0-{name}.csv" for name in (labeler, "metadata", "split")]
    source, metadata, splits = (_first(root, f"{name}.gz", name) for name in tables)
    keys = ["subject_id", "study_id"]
    studies, labels, findings = _read_parts([source], keys, finding_columns, KNOWN["chexpert"], blank, uncertain)
    images = read_table(metadata, ["dicom_id", *keys, "ViewPosition"], alone=True)
    split = read_table(splits, ["dicom_id", "split"], alone=True)
    for path, ids in ((source, studies["study_id"]), (splits, split["dicom_id"])):
        if (twice := ids.duplicated()).any():
            raise DataError(f"{path}: {ids[twice].iloc[0]!r} is listed twice, again in row {ids.index[twice][0]}.")
    images = images[_of_view(metadata, views, images["ViewPosition"], frontal=["PA", "AP"], lateral=["LATERAL", "LL"])]
    study = pd.Index(studies["study_id"]).get_indexer(images["study_id"])
    part = pd.Index(split["dicom_id"]).get_indexer(images["dicom_id"])
    if len(without := images.index[(study < 0) | (part < 0)]):
        warn(f"{metadata}: {len(without)} images without labels or split are left out, e.g. that of row {without[0]}.")
    images, study, part = (column[(study >= 0) & (part >= 0)] for column in (images, study, part))
    subject = images["subject_id"]
    names = "files/p" + subject.str[:2] + "/p" + subject + "/s" + images["study_id"] + "/" + images["dicom_id"] + ".jpg"
    entries = find_images(metadata, names, root, any_suffix=True)
    return make_table(
        "mimic", source, names, entries, f"below {root}/files", labels=labels[study], findings=findings,
        patients=patient_numbers(metadata, subject), official=_official(splits, split["split"])[part],
    )  # fmt: skip


def read_padchest(root: Root, views: str = "frontal", finding_columns: Names = None, table: str | None = None) -> Table:
    """Read PadChest: its table, PADCHEST_chest_x_ray_images_labels_160K*.csv, and images anywhere below `root`.

    Bustos et al., Medical Image Analysis 2020, arXiv 1901.07441. It has no official split. An image has a list of
    labels, and what is not on it is absent; images without a list are left out.

    Args:
        views: "frontal" (Projection PA, AP or AP_horizontal), "lateral" (L) or "all".
        finding_columns: Our names of findings, each made of the labels in `findings.PADCHEST_LABELS`, or labels of
            PadChest such as "scoliosis"; by default the 14. A name of ours is never the label alone: "pneumonia" is
            our union, with "atypical pneumonia" in it.
        table: Another name of the table.
    """
    root = data_folder(root, "padchest", "PadChest")
    start = "PADCHEST_chest_x_ray_images_labels_160K"
    there = sorted(path.name for path in root.glob(f"{start}*.csv*"))
    official = [f"{start}_01.02.19.csv.gz", f"{start}_01.02.19.csv"]  # a copy comes after it
    source = _first(root, *([table] if table else [*official, *(there or [f"{start}*.csv"])]))
    frame = read_table(source, ["ImageID", "PatientID", "Projection", "Labels"], alone=True)
    frame = frame[_of_view(source, views, frame["Projection"], frontal=["PA", "AP", "AP_horizontal"], lateral=["L"])]
    codes, texts = pd.factorize(frame["Labels"])
    lists = []
    for i, text in enumerate(texts):
        try:
            if re.search(r"""['"]\s+['"]""", text):  # NumPy's print, whose texts Python would join into one
                raise ValueError
            labels = list.copy(ast.literal_eval(text or "[]"))  # of nothing but a list
            lists.append({label.strip().lower() for label in labels} - {""})
        except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
            place = f"column 'Labels' says {text[:80]!r} in row {frame.index[codes == i][0]}"
            raise DataError(f"{source}: {place}. It should be a list, as ['pleural effusion', 'scoliosis'].") from None
    if (without := np.array([not own or not own.isdisjoint(PADCHEST_UNREAD) for own in lists])[codes]).any():
        warn(f"{source}: {without.sum()} images labelled {', '.join(PADCHEST_UNREAD)} or not at all are left out.")
        frame, codes = frame[~without], codes[~without]
    known = [*FINDINGS, *sorted(label for label in set().union(*lists) if our_name(label) not in FINDINGS)]
    findings = FINDINGS if finding_columns is None else tuple(choose_columns(source, known, finding_columns).values())
    meant = [PADCHEST_LABELS.get(name, (name,)) for name in findings]
    labels = np.array([[not own.isdisjoint(any_of) for any_of in meant] for own in lists], np.float32)[codes]
    names = frame["ImageID"]
    entries = find_images(source, names, root, walk_images([root]), any_suffix=True)
    return make_table(
        "padchest", source, names, entries, f"below {root}", labels=labels, findings=findings,
        patients=patient_numbers(source, frame["PatientID"]), to_be_official="a list that PadChest does not have",
    )  # fmt: skip


def read_vindr(root: Root, finding_columns: Names = None, readers: str = "majority") -> Table:
    """Read VinDr-CXR 1.0.0: image_labels_train.csv and _test.csv, in `root` or `annotations`, and images below `root`.

    Nguyen et al., Scientific Data 2022, arXiv 2012.15029. Each of three radiologists (rad_id) has a row for an image of
    train; test is the consensus of five. The official split is that of the two tables; val is split off train. The
    tables name no patient: each image counts as one of its own.

    Args:
        finding_columns: The tasks; by default all but "No finding" and "Other disease(s)".
        readers: A finding is present where the "majority" of the radiologists says so, or "any".
    """
    root = data_folder(root, "vindr", "VinDr-CXR")
    check_choice("readers", readers, ("majority", "any"), DataError)
    tables = ("image_labels_train.csv", "image_labels_test.csv")
    sources = [_first(root, f"annotations/{tables[0]}", tables[0])]
    sources += [path for path in (root / "annotations" / tables[1], root / tables[1]) if path.is_file()][:1]
    folder = sources[0].parent
    if not sources[1:]:
        warn(f"{root}: no {tables[1]}. So there is no official split, and test has no consensus of five.")
    frame, labels, findings = _read_parts(sources, ["image_id"], finding_columns, KNOWN["vindr"], None, None)
    codes, _ = pd.factorize(frame["image_id"])
    first = np.unique(codes, return_index=True)[1]  # row of each image
    share = pd.DataFrame(labels).groupby(codes).mean().to_numpy()
    labels = np.where(np.isnan(share), np.nan, share > (0.5 if readers == "majority" else 0)).astype(np.float32)
    names = frame["image_id"].iloc[first]
    entries = find_images(folder, names, root, walk_images([root]), any_suffix=True)
    official = 2 * frame["part"].to_numpy()[first] if sources[1:] else None
    return make_table(
        "vindr", folder, names, entries, f"below {root}", labels=labels, findings=findings, official=official,
        patients=np.arange(len(names)), to_be_official=" and ".join(tables), patients_known=False,
    )  # fmt: skip
