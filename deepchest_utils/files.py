"""Files that are whole or not there, and folders that one process at a time works in."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_MESSAGE = 2000  # characters of a message: what was found may be the whole of a file


class FileError(ValueError):
    """A file that cannot be read or written as it should be; the message names it, what was found and what to do."""

    def __init__(self, message: str):
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...")


def one_line(error: BaseException) -> str:
    """What went wrong inside a library, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''}"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A path next to `path` to write to; when the block ends it is flushed to disk and takes the place of `path`, which is
    at any moment the old file or the new one, never half of it.

    What a killed process of this machine left half written there is removed. Raises FileError if the disk is full or the
    folder cannot be written to; the old file stays.
    """
    path = Path(path)
    prefix = f".{path.name}.{socket.gethostname()}-"
    part = path.with_name(f"{prefix}{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.iterdir():
            if left.name.startswith(prefix) and not _runs(left.name[len(prefix) : -len(".part")]):
                left.unlink(missing_ok=True)
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> FileError:
    what = "Free some space" if error.errno in _FULL else "Choose a folder that can be written to"
    return FileError(f"{path}: cannot be written ({error.strerror or error}). {what}; what was there before is kept.")


def _runs(pid: str) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_file(path: str | Path, data: str | bytes) -> None:
    """The whole of a file at once, see `new_file`."""
    with atomic_write(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def read_results(
    path: str | Path, columns: list[str], what: str, types: Mapping[str, type[str]] | None = None
) -> pd.DataFrame:
    """A CSV of results, what: "sweep", say, for the message; an empty table of these columns where there is no file. Raises
    FileError if it is no readable CSV, or has no such columns. types: of columns, as pandas takes them."""
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path, dtype=types)
    except (ValueError, OSError) as error:  # pandas' own errors are of the first type
        raise FileError(f"{path}: not a readable table ({one_line(error)}). Choose another out.") from None
    if missing := set(columns) - set(table.columns):
        raise FileError(f"{path} has no column {min(missing)!r}: no table of a {what}. Choose another out.")
    return table


@contextmanager
def exclusive_lock(folder: str | Path, what: str) -> Iterator[None]:
    """Refuse a second process at work in `folder`; what: "run" or "sweep", for the message. Raises FileError.

    The lock goes with the process, however it ends.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115, held until the block ends
    except OSError as error:
        raise _cannot_write(folder / "lock", error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"another {what} is at work in {folder}. Wait for it, or choose another folder.") from None
        yield
