"""The state of a run after an epoch: written whole or not at all, read without running code."""

import io
from pathlib import Path

import torch

from deepchest_utils.records import write_atomic

NAME = "checkpoint.pt"
VERSION = 2  # 2: names of the findings


def save_checkpoint(run_dir: str | Path, state: dict) -> None:
    """Write `run_dir/checkpoint.pt` atomically. state: tensors, numbers, strings, and dicts and lists of
    them."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **state}, buffer)
    write_atomic(Path(run_dir) / NAME, buffer.getvalue())


def load_checkpoint(run_dir: str | Path, identity: dict) -> dict | None:
    """The state of the run in `run_dir`, on the CPU; None if there is none.

    Raises ValueError if the file is no checkpoint, or belongs to another configuration (naming the fields
    that differ).
    """
    path = Path(run_dir) / NAME
    if not path.exists():
        return None
    state = read_checkpoint(path)
    found = state["identity"]
    names = [name for name in identity if found.get(name) != identity[name]]
    if names:
        listed = ", ".join(f"{name}: {found.get(name)!r} there, {identity[name]!r} now" for name in names)
        raise ValueError(
            f"{path} belongs to another configuration or other data ({listed}). Choose another run_dir."
        )
    return state


def read_checkpoint(path: Path) -> dict:
    """The state in the file, on the CPU. Raises ValueError if there is none, or it is no checkpoint."""
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises one of several types
        raise ValueError(
            f"{path}: not a readable checkpoint ({type(error).__name__}). Delete it, or choose another run_dir."
        ) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError(f"{path}: not a checkpoint of this version. Delete it, or choose another run_dir.")
    return state
