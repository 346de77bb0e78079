"""Data sets of image files: a CSV file becomes a frame, names become files, and a checked `Table` becomes `Splits`.

A reader of another layout returns a `Table` and is added to `DATASETS`.
"""

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.config import did_you_mean
from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.findings import our_name, spelling
from deepchest_utils.files import one_line

MAX_BYTES = 2**30  # of a table, unpacked; the largest public one, PadChest's, has a tenth
MAX_COLUMNS = 10_000
MAX_NAME = 1000  # characters of an image's name, more than file systems take
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm"}
OUTSIDE = {  # how it is told -> what is wrong with a name
    "it is empty": re.compile(r"^$"),
    "it is absolute": re.compile(r"^(?:[/\\]|[A-Za-z]:[/\\])"),
    "it climbs out with '..'": re.compile(r"(?:^|[/\\])\.\.(?:[/\\]|$)"),
}
NOBODY = re.compile(  # the last: a number that a spreadsheet has rounded
    r"(?i)--?|-\d+(\.0*)?|[?.]|n/?a|<na>|na[nt]|n\.\s?a\.?|k\.\s?a\.?|none|null|\(null\)|nil|unknown|unbekannt|missing|"
    r"not available|anonymous|x+|#[a-z0-9/?!]+|[0-9]([.,][0-9]+)?e\+[0-9]+"
)
AS_CSV = "Save it as CSV in UTF-8."
WORKBOOK = f"not a CSV table but a workbook or an archive. {AS_CSV}"
Files = dict[str, os.DirEntry[str]]


@dataclass(frozen=True)
class Table:
    """N image files and what the file `source` says of them; labels as in `ChestXrays`.

    Attributes:
        official: The official split: 0 train, 1 val, 2 test; None without one. Without a 1, val is split off train.
        to_be_official: What is missing where `official` is None, for the message.
        patients_known: As in `Splits`.
    """

    name: str
    source: Path
    paths: list[str]
    ids: np.ndarray
    labels: Float[np.ndarray, "n k"]
    patients: Int[np.ndarray, " n"]
    findings: tuple[str, ...]
    official: Int[np.ndarray, " n"] | None = None
    to_be_official: str = ""
    patients_known: bool = True

    @property
    def origin(self) -> str:
        """The table that was read, in words."""
        return str(self.source)


def data_folder(root: str | Path | None, dataset: str, content: str) -> Path:
    """The folder `root`; DataError if there is none. dataset, content: for the message."""
    if not isinstance(root, str | os.PathLike) or not os.fspath(root):
        raise DataError(
            f'root (data_root of a run) should name the folder of {content} for "{dataset}". Found {root!r}.'
        )
    folder = Path(os.path.expanduser(root))
    if not os.path.isdir(folder):
        wrong = "a file. Give its folder, and its name as table" if os.path.isfile(folder) else "no such folder"
        raise DataError(f"root (data_root of a run) {str(folder)[:200]!r}: {wrong}.")
    return folder


# the table


def _open_zip(source: Path, mode: str) -> Any:
    archive = zipfile.ZipFile(source)
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/") and not name.endswith("/")]
    if "[Content_Types].xml" in names:  # of Excel
        raise DataError(f"{source}: {WORKBOOK}")
    if len(names) != 1:
        raise DataError(f"{source}: should hold one table. Found {', '.join(names[:5]) or 'none'}.")
    return archive.open(names[0])


UNPACK: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"PK\x03\x04": _open_zip,
}  # fmt: skip


def _read_bytes(source: Path) -> bytes:
    """The file, unpacked if its first bytes say that it is packed, whatever its name says."""
    try:
        with open(source, "rb") as file:
            start = file.read(6)
        if start.startswith(b"\x28\xb5\x2f\xfd"):
            raise DataError(f"{source}: packed with zstd, which is not read here. Unpack it first.")
        way = next((way for magic, way in UNPACK.items() if start.startswith(magic)), Path.open)
        with way(source, mode="rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except DataError:
        raise
    except Exception as error:  # each of these packages raises several types for damaged files
        raise DataError(f"{source}: damaged, or not a file that can be read ({one_line(error)}).") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{source}: a table should have at most {MAX_BYTES:,} bytes, unpacked.")
    return content


def read_table(source: Path, text: Sequence[str], alone: bool = False) -> pd.DataFrame:
    """A CSV file as a frame whose index is the row's number in a spreadsheet. Raises DataError naming file and row.

    Fields are separated by commas, or by semicolons or tabs if the header has more of these. Lines of `#` on top and
    empty rows are passed over. All rows must have one number of fields, that of the header.

    Args:
        text: Columns that are read as text, "" for an empty cell, under these names; see `find_column`. What else is
            a number everywhere becomes one, NaN for an empty cell.
        alone: Read these columns alone, by position; the header may then have another number of fields than the rows.
    """
    if not os.path.isfile(source):
        raise DataError(f"{str(source)[:200]}: no such table.")
    content = re.sub(rb"^sep=[,;\t]\r?\n", b"", _read_bytes(source).removeprefix(b"\xef\xbb\xbf"))  # Excel's own line
    if content.startswith(b"PK"):
        raise DataError(f"{source}: {WORKBOOK}")
    if (at := content.find(b"\0")) >= 0:
        row = content.count(b"\n", 0, at) + 1
        raise DataError(f"{source}: not a readable CSV table (row {row} holds a NUL byte). {AS_CSV}")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    comments = re.match(rb"(?:[ \t]*(?:#[^\n]*)?\n)*", content).group()  # type: ignore[union-attr]
    head, _, body = content[len(comments) :].partition(b"\n")
    separator = max(",;\t", key=lambda character: head.count(character.encode()))
    if body.startswith(separator.encode()) or f"\n{separator}".encode() in body:
        body = re.sub(rb"^[,;\t]+$", b"", body, flags=re.MULTILINE)  # rows of no text, as spreadsheets leave them
    try:
        header = [name.strip() for name in next(csv.reader([head.decode()], delimiter=separator), [])]
        if not 0 < len(header) <= MAX_COLUMNS:
            raise DataError(f"{source}: the table {f'has {len(header):,} columns' if header else 'is empty'}.")
        found = [find_column(source, header, name) for name in text]
        if not body.strip():
            raise DataError(f"{source}: the table has a header and no row.")
        body = body if body.endswith(b"\n") else body + b"\n"
        counts = _count_fields(body, separator)
        numbers = 2 + comments.count(b"\n") + np.arange(len(counts))
        usual = int(np.bincount(counts[counts > 0]).argmax())
        if (wrong := (counts != usual) & (counts > 0)).any():
            row, count = numbers[wrong][0], counts[wrong][0]
            much = "few" if count < usual else "many"
            raise DataError(f"{source}: row {row} has {count} fields, too {much}: the others have {usual}.")
        name, times = Counter(filter(None, header)).most_common(1)[0]
        if not alone and times > 1:
            raise DataError(f"{source}: {times} columns have the name {name!r}. Rename or remove one.")
        if not alone and usual != len(header):
            names = f"{len(header)}: {', '.join(header[:40])}"
            raise DataError(f"{source}: each row has {usual} fields, the header {names}.")
        if usual <= max(found):
            raise DataError(f"{source}: row {numbers[0]} has {usual} fields, too few for its columns.")
        frame = pd.read_csv(
            io.BytesIO(body), sep=separator, header=None, names=range(usual), usecols=found if alone else None,
            dtype=dict.fromkeys(found, object), keep_default_na=False, na_values=[""], skip_blank_lines=False,
            low_memory=False,
        )  # fmt: skip
        if len(frame) != len(counts):
            raise csv.Error("quotes that do not match")
    except (pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a readable CSV table ({one_line(error)}). {AS_CSV}") from None
    frame.index = numbers
    if not counts.all():
        frame = frame[counts > 0]
    for position in found:
        texts = [*map(str.strip, frame[position].fillna("").tolist())]
        frame[position] = pd.Series(texts, frame.index, object)
    named = dict(zip(found, text, strict=True))
    frame = frame.rename(columns=lambda i: named.get(i) or header[i] or f"column {i + 1}")
    return frame.assign(**{name: frame[named[i]] for i, name in zip(found, text, strict=True) if name != named[i]})


def _count_fields(body: bytes, separator: str) -> Int[np.ndarray, " n"]:
    """Fields of each row, 0 for an empty one."""
    if b'"' in body:
        lines = csv.reader(io.StringIO(body.decode()), delimiter=separator, strict=True)
        return np.array([len(line) for line in lines], np.int64)
    characters = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    counts = np.diff(np.searchsorted(np.flatnonzero(characters == ord(separator)), ends), prepend=0) + 1
    return np.where(np.diff(ends, prepend=-1) > 1, counts, 0).astype(np.int64)


def find_column(source: Path, header: Sequence[str], name: str) -> int:
    """Position of a column: of that name, or else the one of that name but for case, spaces and underscores, or with
    another name of the same finding (`Pleural Effusion`). DataError if there is none, or more than one."""
    for same in (lambda other: other == name, lambda other: spelling(our_name(other)) == spelling(our_name(name))):
        if len(found := [i for i, other in enumerate(header) if same(other)]) > 1:
            both = ", ".join(f"{header[i]!r} (column {i + 1})" for i in found)
            raise DataError(f"{source}: two columns are {name!r}: {both}. Rename or remove one.")
        if found:
            return found[0]
    hint = did_you_mean(name, header)
    raise DataError(f"{source}: no column {name!r}. Found {', '.join(header[:40])}.{hint}")


# the files


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a link that leads to itself
        return False


def list_folder(folder: str | Path) -> Files:
    """The content of a folder, nothing if there is none; links are followed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{str(folder)[:200]}: cannot be read ({error.strerror}).") from None


def walk_images(folders: Iterable[Path]) -> Files:
    """Image files below some folders, however deep, by name. Links are followed, hidden files and folders passed over.
    DataError for two files of one name, unless one is a link to the other."""
    files: Files = {}
    seen, todo = set[str](), [str(folder) for folder in folders]
    for folder in todo:
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        content = {name: entry for name, entry in list_folder(folder).items() if not name.startswith(".")}
        images = {name: entry for name, entry in content.items() if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES}
        for name in sorted(files.keys() & images.keys()):
            if not os.path.samefile(files[name], images[name]):
                raise DataError(
                    f"{real}: {name} is in {os.path.dirname(files[name].path)} and in {folder}. Remove one."
                )
        files |= images
        todo += [content[name].path for name in sorted(content.keys() - images.keys()) if _is(content[name].is_dir)]
    return files


def _stem(name: str) -> str:
    """The name without a suffix of images."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _key(name: str) -> str:
    """What is left of a name without suffix, case, leading zeros and the kind of slash."""
    plain = _stem(normalize("NFC", name)).casefold().replace("\\", "/").removeprefix("./")
    return re.sub(r"(^|/)0+", r"\1", plain)


def find_images(
    source: Path, names: pd.Series, root: Path, files: Files | None = None, any_suffix: bool = False
) -> list[Any]:
    """The directory entry of each name, None where there is no such file. DataError for a name that leads elsewhere.

    Args:
        names: Relative to root, or plain names of `files`.
        any_suffix: Where there is no file of the name, that of the name with another suffix of an image.
    """
    listed = _checked(source, names, plain=files is not None)
    if files is None:
        files = {}
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in listed):
            inside = list_folder(os.path.join(root, folder))
            files |= {f"{folder}/{name}": entry for name, entry in inside.items()} if folder else inside
    found = [*map(files.get, listed)]
    if any_suffix:
        others: dict[str, list[str]] = {}
        for name in sorted(name for name in files.keys() - {*listed} if _stem(name) != name):
            others.setdefault(_stem(name), []).append(name)
        for i, name in enumerate(listed):
            if found[i] is None and (same := others.get(_stem(name))):
                if len(same) > 1:  # one may be a mask
                    raise DataError(f"{source}: image {name!r} has several files: {', '.join(same)}. Keep one of them.")
                found[i] = files[same[0]]
    near = {_key(other): other for other in files.keys() - {*listed}} if None in found else {}
    for row, name, entry in zip(names.index, listed, found, strict=True) if near else ():
        if entry is None and (other := near.get(_key(name))):
            warn(
                f"{source}: image {name!r} in row {row} is not on disk, but {other!r} is. Names should be those of the files."
            )
            break
    return [entry if entry is not None and _is(entry.is_file) else None for entry in found]


def _checked(source: Path, names: pd.Series, plain: bool) -> list[str]:
    """The names as a list. DataError for one that could lead out of the folder, or is no name. plain: without folders."""
    listed: list[str] = names.tolist()
    if not listed:
        raise DataError(f"{source}: no image is left to look for. Do the ids of its tables fit, and its labels?")
    wrong = OUTSIDE | ({"it names a folder": re.compile(r"[/\\]|^\.$")} if plain else {})
    joined = "\n".join(["", *listed, ""])  # the quick look, at all at once
    suspect = any(text in joined for text in ("..", ":", "\\", "\n/", "\n\n", *(("/", "\n.\n") if plain else ())))
    for row, name in names.items() if suspect or max(map(len, listed)) > MAX_NAME else ():
        if len(name) > MAX_NAME:
            raise DataError(f"{source}: the image name in row {row} has {len(name):,} characters: {name[:40]}...")
        for reason, pattern in wrong.items():
            if pattern.search(name):
                right = "a plain file name" if plain else "relative to root"
                outside = f"image name {name!r} points outside the folder: {reason}"
                raise DataError(f"{source}: {outside} (row {row}). It should be {right}.")
    return listed


def make_table(name: str, source: Path, names: pd.Series, entries: Sequence[Any], looked: str, **columns: Any) -> Table:
    """The `Table` of those rows whose file is there. columns: what else a `Table` has, of all rows."""
    rows = rows_on_disk(source, names, entries, looked)
    own = {key: value[rows] if isinstance(value, np.ndarray) else value for key, value in columns.items()}
    return Table(
        name,
        source,
        [entry.path for entry in entries if entry is not None],
        names.to_numpy(object)[rows].astype(str),
        **own,
    )


def _number(file: Any) -> int:
    """The inode, which a folder knows of what is in it; but a link's number is its own, not its target's."""
    return os.stat(file).st_ino if file.is_symlink() else int(file.inode())


def rows_on_disk(source: Path, names: pd.Series, entries: Sequence[Any], looked: str) -> Int[np.ndarray, " m"]:
    """Positions of the names that have a file. Warns once with the count of the others. DataError if none has, or if
    one file has two names or rows: it could be on both sides of a split. looked: where it was looked for."""
    present = np.array([entry is not None for entry in entries])
    if not present.any():
        example = f"e.g. {names.iloc[0]}. Looked {looked}. Check root, the run's data_root"
        raise DataError(f"{source}: none of its {len(names)} images is on disk, {example}.")
    rows = np.flatnonzero(present)
    files: list[Any] = [entry for entry in entries if entry is not None]
    numbers: list[Any] = [*map(_number, files)]
    # some file systems make the numbers up, and each has its own
    for i in np.flatnonzero(pd.Series(numbers).duplicated(keep=False)):
        numbers[i] = (status := os.stat(files[i])).st_dev, status.st_ino
    if (repeated := pd.Series(numbers).duplicated().to_numpy()).any():
        second = rows[repeated.argmax()]
        first = rows[numbers.index(numbers[repeated.argmax()])]
        alike = f"{names.iloc[second]} in row {names.index[second]}"
        if names.iloc[first] != names.iloc[second]:
            alike += f", which is the file of {names.iloc[first]} in row {names.index[first]}"
        raise DataError(f"{source}: {repeated.sum()} images are listed more than once, e.g. {alike}.")
    if missing := len(names) - len(rows):
        example = names.iloc[present.argmin()]
        warn(f"{source}: {missing} of {len(names)} images are not on disk and left out, e.g. {example}.")
    return rows


def patient_numbers(source: Path, ids: pd.Series) -> Int[np.ndarray, " n"]:
    """Patients numbered as they come. Ids of digits are compared as numbers: 12, 012, 12.0 and 12,0 are one patient. So are
    two spellings that look the same. One warning counts those that differ in case, zeros or punctuation alone."""
    codes, texts = pd.factorize(ids)
    if "" in (texts := list(texts)):
        raise DataError(f"{source}: column {ids.name!r} is empty in row {ids.index[codes == texts.index('')][0]}.")
    for i, text in enumerate(texts):
        if NOBODY.fullmatch(text):  # all of them would be one patient
            place = f"column {ids.name!r} says {text!r} in row {ids.index[codes == i][0]}"
            raise DataError(f"{source}: {place}, which names no patient. It should be another for each patient.")
    plain = [
        text if text.isascii() else re.sub("[\u200b-\u200f\u2060\ufeff]", "", normalize("NFKC", text)) for text in texts
    ]
    plain = [re.sub(r"^0*([0-9]+)([.,]0*)?$", r"\1", " ".join(text.split())) for text in plain]
    apart = r"(?<![0-9])[\W_]+|[\W_]+(?![0-9])|(?<![0-9])0+(?=[0-9])"
    loose = pd.Series([re.sub(apart, "", text.casefold()) for text in plain], range(len(plain)), object)
    alike = pd.Series(plain).groupby(loose).transform("nunique").gt(1)
    if alike.any():
        first, second = [*dict.fromkeys(np.array(plain, object)[loose == loose[alike.idxmax()]])][:2]
        warn(
            f"{source}: {alike.sum()} ids of column {ids.name!r} differ from another in case, zeros or punctuation alone, "
            f"e.g. {first!r} and {second!r}. They count as patients of their own: give one patient one id."
        )
    return np.asarray(pd.factorize(np.array(plain, object)[codes])[0], np.int64)
