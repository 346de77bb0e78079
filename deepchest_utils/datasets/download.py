"""A file from the network: resumed where an earlier try stopped, checked by its hash, and never half there under its
name."""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from deepchest_utils.datasets.base import DataError

TIMEOUT = 60.0  # s without a byte
CHUNK = 2**20  # bytes


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` into `path`. What has arrived is kept in `<path>.part`, and a later call goes on from there.

    Raises DataError if the server does not answer, the connection breaks, the disk is full, another process is at it, or
    what came has another MD5 sum (it is deleted then).
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not part.exists():  # just now finished by another
                raise BlockingIOError
            _fetch(url, file, path.name)
            os.fsync(file.fileno())
            found = _md5(part)
            if found != md5:
                part.unlink()
                raise DataError(
                    f"{path}: the download from {url} has MD5 {found}, not {md5}, and is deleted. Try again."
                )
            os.replace(part, path)
    except BlockingIOError:
        raise DataError(f"{path}: another process is downloading it. Wait for it.") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{path}: the download from {url} stopped ({error}). Run again to go on, or put the file there yourself."
        ) from error
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()


def _fetch(url: str, file: BinaryIO, name: str) -> None:
    """Append what is missing; from the start, if the server cannot go on in the middle."""
    begin = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if begin and error.code == 416:  # nothing is missing, or what is here is too long: the hash will tell
            return
        raise
    with answer:
        if begin and answer.status != 206:
            file.truncate(0)
            begin = 0
        length = answer.headers.get("Content-Length")
        total = begin + int(length) if length else None
        with tqdm(desc=name, total=total, initial=begin, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(CHUNK):
                file.write(block)
                bar.update(len(block))
    if total is not None and file.tell() < total:
        raise OSError(f"{total - file.tell():,} bytes are missing")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
