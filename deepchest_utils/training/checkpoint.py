"""The state of a run: written whole or not at all, the one before kept, read without running code."""

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from deepchest_utils.files import FileError, new_file

NAME, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
VERSION = 3  # 2: names of the findings; 3: the epoch under way
_CONTENT: dict[str, type | tuple[type, ...]] = {
    "identity": dict, "findings": list, "epoch": int, "rows": list, "best": dict, "under_way": (dict, type(None)),
    "rng": dict, "net": dict, "method": dict, "optimizer": dict, "schedule": dict, "scaler": dict,
}  # fmt: skip


def save_checkpoint(run_dir: str | Path, state: dict[str, Any]) -> None:
    """Write `run_dir/checkpoint.pt`; the one that was there becomes `checkpoint.previous.pt`. state: tensors, numbers,
    strings, and dicts and lists of them. Raises FileError if it cannot be written; the older ones stay."""
    path = Path(run_dir) / NAME
    buffer = io.BytesIO()  # writing to the file itself, PyTorch would hide what went wrong
    torch.save({"version": VERSION, **state}, buffer)
    with new_file(path) as part:
        part.write_bytes(buffer.getbuffer())
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))


def load_checkpoint(run_dir: str | Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The newest readable state of the run in `run_dir`, on the CPU; None if there is none.

    A damaged file is put aside under another name, with a warning, and the one before is used. Raises FileError if there
    is no readable one, or if it belongs to another configuration (naming the fields that differ).
    """
    paths = [path for name in (NAME, PREVIOUS) if (path := Path(run_dir) / name).exists()]
    for path in paths:
        try:
            state = read_checkpoint(path)
            break
        except FileError as error:
            if path == paths[-1]:
                raise
            os.replace(path, path.with_name(DAMAGED))
            warnings.warn(f"{error} It is now {DAMAGED}, and the run goes on from {PREVIOUS}.", stacklevel=3)
    else:
        return None
    found = state["identity"]
    names = [name for name in identity if found.get(name) != identity[name]]
    if names:
        listed = ", ".join(f"{name}: {found.get(name)!r} there, {identity[name]!r} now" for name in names)
        raise FileError(
            f"{path} belongs to another configuration or other data ({listed}). Choose another run_dir."
        )
    return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in the file, on the CPU. Raises FileError if there is none, or it is no checkpoint of this version."""
    if not path.is_file():
        raise FileError(f"{path}: no such checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:  # PyTorch stores: what unfolds to more than its size is a bomb
            unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > path.stat().st_size:
            raise ValueError(f"it would unfold to {unfolded:,} bytes")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises one of several types
        raise FileError(
            f"{path}: not a readable checkpoint ({type(error).__name__}). Delete it, or choose another run_dir."
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise FileError(f"{path}: not a checkpoint of this version. Delete it, or choose another run_dir.")
    for name, kind in _CONTENT.items():
        right = isinstance(state.get(name), kind)
        if not right or (name == "findings" and not all(isinstance(f, str) for f in state[name])):
            raise FileError(
                f"{path}: its {name!r} is not what it should be. Delete it, or choose another run_dir."
            )
    return state
