"""Files that are complete or absent, and locks: one process at a time works on a run or a sweep."""

import errno
import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where a killed process leaves a file behind
    fcntl = None  # type: ignore[assignment]


class FileError(ValueError):
    """A file that cannot be read or written. The message names the file, what is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(message if len(message) <= 2000 else f"{message[:2000]}...")  # it may quote a whole file


def one_line(error: BaseException) -> str:
    """An error of a library as one line of at most about 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Replace a file at once: at any moment `path` is the old file or the new one, never half of it.

    Yields:
        A path in the same folder, which is made, to write to. After the block it is flushed to disk and renamed.

    Raises:
        FileError: The disk is full, or the folder cannot be written to. The old file stays.
    """
    path = Path(path)
    with writable(path), ExitStack() as stack:
        _remove_abandoned(path)
        temporary = _open_temporary(path, stack)
        stack.callback(temporary.unlink, missing_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _open_temporary(path: Path, stack: ExitStack) -> Path:
    """A new file beside `path`, which is locked until the stack is closed: it is not abandoned."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        if fcntl:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not fcntl or temporary.exists():  # else it was taken for abandoned before it was locked
            return temporary


def _remove_abandoned(path: Path) -> None:
    """Remove what a killed process has left of its writing of `path`; the file of a process at work is locked."""
    leftovers = path.parent.glob(f".{glob.escape(path.name)}.*.part") if fcntl else ()
    for temporary in filter(Path.is_file, leftovers):  # a FIFO would block
        with suppress(OSError), open(temporary, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Make the folder of a file; an OSError of the block becomes a FileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        advice = "Choose a folder that can be written to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "Free some space"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "Allow more open files (ulimit -n)"
        advice = f"{advice}; what was there before is kept."
        raise FileError(f"{path}: cannot be written ({error.strerror or error}). {advice}") from error


def write_file(path: str | Path, data: str | bytes) -> None:
    """Write a file through `atomic_write`; text as UTF-8 with the line ends it has."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def csv_path(out: str | Path, name: str = "out") -> Path:
    """The path of a table; ValueError, with the name of the argument, if it does not end in .csv."""
    if Path(out).suffix != ".csv":
        raise ValueError(f"{name} should be the name of a .csv. Found {str(out)!r}.")
    return Path(out)


@contextmanager
def exclusive_lock(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs. The system releases it when the process ends, however it ends.

    Args:
        path: The lock file, beside what it guards: `<run_dir>/lock`, or `x.lock` for the table `x.csv`. It stays.
        what: What is at work, for the message: "run" or "sweep".

    Raises:
        FileError: Another process holds the lock, the file cannot be written, or is a link or no file.
    """
    import filelock  # not before a file is locked: `from deepchest_utils import DeepChest` does without it

    path = Path(path)
    guarded = path.parent if path.name == "lock" else path.with_suffix("")
    with writable(path):
        # filelock follows no link, empties nothing and waits for no FIFO; here they get their message
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = "a link" if path.is_symlink() else "no file"
            raise FileError(f"{path} is {kind}, where a lock belongs. Remove it, or choose another folder.")
        try:
            lock = filelock.FileLock(path).acquire(timeout=-1 if wait else 0)
        except filelock.Timeout:
            raise FileError(f"another {what} is at work in {guarded}. Wait for it, or choose another folder.") from None
    with lock:
        yield
