"""Files that are whole or not there, whatever ends the writing; folders that one process at a time works in."""

import errno
import multiprocessing
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deepchest_utils import files
from deepchest_utils.datasets.cache import cached_images
from deepchest_utils.files import FileError, atomic_write, exclusive_lock, write_file
from deepchest_utils.results.checkpoint import save_checkpoint
from deepchest_utils.results.store import read_results


@pytest.mark.parametrize("data", ["text: é\n", b"\x00\xff"])
def test_write_replaces_the_whole_file(tmp_path, data):
    path = tmp_path / "file"
    path.write_text("a much longer text than the new one, with an end that must not stay")
    write_file(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(FileError, match=r"file: cannot be written \(No space left on device\)\. Free some space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_old_file_is_whole_until_the_new_one_is(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    seen, replace = [], os.replace

    def look(source, target):
        seen.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", look)
    write_file(path, "new")
    assert seen == [("old", "new")]


@contextmanager
def small_disk(size: int):
    """No file of this process can grow beyond `size` bytes: what a full disk is, from the system's own mouth."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def block():
    yield 0, np.ones((4, 100, 100), np.uint8)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_file(folder / "file", b"x" * 40_000),
        lambda folder: save_checkpoint(folder, {"history": list(range(20_000))}),
        lambda folder: cached_images("some", "key", (4, 100, 100), block, folder),
    ],
    ids=["bytes", "checkpoint", "cache"],
)
def test_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, write):
    with small_disk(10_000), pytest.raises(FileError, match=r"cannot be written \(File too large\)\. Free some space"):
        write(tmp_path)
    assert os.listdir(tmp_path) == []
    write(tmp_path)
    assert len(os.listdir(tmp_path)) == 1


def test_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(FileError, match=r"new: cannot be written \(.*Choose a folder that can be written to"):
        write_file(tmp_path / "a_file" / "new", "text")
    with (
        pytest.raises(FileError, match=r"lock: cannot be written"),
        exclusive_lock(tmp_path / "a_file" / "lock", "run"),
    ):
        pass


def write_slowly(path: Path, ready, end) -> None:
    with atomic_write(path) as part:
        part.write_text("half")
        ready.set()
        end.wait(60)


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    context = multiprocessing.get_context("fork")
    path, ready, end = tmp_path / "file", context.Event(), context.Event()
    other = context.Process(target=write_slowly, args=(path, ready, end))
    other.start()
    assert ready.wait(60)
    (tmp_path / ".file2.12345678.part").write_text("of another file")
    write_file(path, "new")
    assert len(list(tmp_path.glob(".file.*.part"))) == 1
    other.kill()
    other.join()
    write_file(path, "newer")
    assert sorted(os.listdir(tmp_path)) == [".file2.12345678.part", "file"]
    assert path.read_text() == "newer"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match=r"Permission denied.*Choose a folder"):
        write_file(tmp_path / "new", "text")
    tmp_path.chmod(0o700)


def test_the_error_of_the_block_is_its_own(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "file") as part:
        part.write_text(str(1 / 0))
    assert os.listdir(tmp_path) == []


def hold(folder: Path, ready, end) -> None:
    with exclusive_lock(folder / "lock", "run"):
        ready.set()
        end.wait(60)


def test_second_process_in_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, end))
    other.start()
    assert ready.wait(60)
    with (
        pytest.raises(
            FileError, match=rf"another run is at work in {tmp_path}\. Wait for it, or choose another folder"
        ),
        exclusive_lock(tmp_path / "lock", "run"),
    ):
        pass
    with exclusive_lock(tmp_path / "lock.lock", "sweep"):  # beside it, and another
        pass
    other.kill()
    other.join()
    with exclusive_lock(tmp_path / "lock", "run"):
        pass


def test_lock_names_what_it_guards_and_holds_within_a_process_too(tmp_path):
    with (
        exclusive_lock(tmp_path / "a" / "x.lock", "sweep"),
        exclusive_lock(tmp_path / "b" / "x.lock", "sweep"),
        pytest.raises(FileError, match=f"another sweep is at work in {tmp_path}/a/x. Wait"),
        exclusive_lock(tmp_path / "a" / "x.lock", "sweep"),
    ):
        pass


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda lock, precious: lock.symlink_to(precious), "a link"),
        (lambda lock, precious: lock.symlink_to(precious.with_name("nothing")), "a link"),
        (lambda lock, precious: lock.symlink_to("/dev/zero"), "a link"),
        (lambda lock, precious: os.mkfifo(lock), "no file"),
        (lambda lock, precious: lock.mkdir(), "no file"),
    ],
    ids=["link", "broken link", "link to a device", "fifo", "folder"],
)
@pytest.mark.parametrize("wait", [False, True])
def test_lock_that_is_no_file_is_refused_and_nothing_is_touched(tmp_path, make, kind, wait):
    precious, lock = tmp_path / "precious", tmp_path / "run" / "lock"
    precious.write_text("years of work")
    lock.parent.mkdir()
    make(lock, precious)
    message = rf"{lock} is {kind}, where a lock belongs\. Remove it, or choose another folder\.$"
    with pytest.raises(FileError, match=message), exclusive_lock(lock, "run", wait):
        pass
    assert precious.read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["precious", "run"]


def test_lock_empties_no_file(tmp_path):
    """Another name of it, or what a person has put there."""
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "lock").hardlink_to(precious)
    with exclusive_lock(tmp_path / "lock", "run"):
        pass
    assert precious.read_text() == "years of work"


def test_too_many_open_files_is_what_the_error_says(tmp_path):
    cached_images("some", "key", (4, 100, 100), block, tmp_path)
    before, handles = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012  the last one fails
            while True:
                handles.append(open(os.devnull))  # noqa: SIM115
        with pytest.raises(FileError, match=r"some-key\.npy: cannot be read \(Too many open files\)\.$"):
            cached_images("some", "key", (4, 100, 100), block, tmp_path)
        with pytest.raises(FileError, match=r"new: cannot be written \(Too many open files\)\. Allow more open files"):
            write_file(tmp_path / "new", "text")
    finally:
        for handle in handles:
            handle.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_error_of_a_block_under_lock_is_its_own(tmp_path):
    with pytest.raises(BlockingIOError), exclusive_lock(tmp_path / "lock", "run"):
        raise BlockingIOError


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n1,2,3\n"4'])
def test_results_that_are_no_table(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"results\.csv: not a readable table .* Choose another out"):
        read_results(path, ["cell"], "sweep")


def test_results_of_something_else(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match=r"has no column 'cell': no table of a sweep"):
        read_results(path, ["cell", "a"], "sweep")
    with pytest.raises(FileError, match=r"no table of a run\.$"):  # no advice to write elsewhere: it is only read
        read_results(path, ["cell"], "run", missing_ok=False)
    assert list(read_results(tmp_path / "none.csv", ["cell", "a"], "sweep").columns) == ["cell", "a"]
