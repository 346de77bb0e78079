"""The state of a run after an epoch, in a file that is whole or known not to be; it may come from a stranger."""

import io
import json
import math
import os
import reprlib
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepchest_utils.files import FileError, atomic_write

CHECKPOINT, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"
VERSION = 7  # 5: the file ends with its checksum; 6: with the moving average of the weights; 7: the history is JSON
DELETE = "Delete {}, or choose another run_dir."  # advice for a file, or for "both"
_DICTIONARIES = ("identity", "best", "rng", "net", "average", "method", "optimizer", "schedule", "scaler")
_CONTENT = {"findings": list, "epoch": int, "history": list, **dict.fromkeys(_DICTIONARIES, dict)}
_ROW = {"method": str, "seed": int, "epoch": int, "split": str, "task": str, "metric": str, "value": float}
_MOVING = {"last_epoch", "_step_count", "_last_lr", "_is_initial", "_get_lr_called_within_step"}  # of a schedule
_BEST = {"epoch": int, "score": float, "model": dict}


def save_checkpoint(run_dir: str | Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, dicts and lists as `run_dir/checkpoint.pt`; the one before becomes PREVIOUS.
    Its history, as rows or their JSON, becomes JSON, since `torch.save` calls a function for each part of a list. The
    CRC-32 of what it writes follows at the end of the file, where `torch.load` does not look.
    """
    path = Path(run_dir) / CHECKPOINT
    buffer = io.BytesIO()  # writing to the file itself, PyTorch would hide what went wrong
    history = state["history"] if isinstance(state["history"], str) else json.dumps(state["history"])
    torch.save({"version": VERSION, **state, "history": history}, buffer)
    buffer.write(zlib.crc32(buffer.getbuffer()).to_bytes(4))
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))


def load_checkpoint(run_dir: str | Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, see `read_checkpoint`, or None. A damaged `checkpoint.pt` is renamed to DAMAGED.
    Raises FileError: no checkpoint is readable, or it is not of `identity`, the configuration and data of the run.
    """
    newest = Path(run_dir) / CHECKPOINT
    if not newest.exists() and not newest.with_name(PREVIOUS).exists():
        return None
    state, path = read_checkpoint(newest)
    saved = state["identity"]
    if names := [name for name in identity if saved.get(name) != identity[name]]:
        pairs = ((name, reprlib.repr(saved.get(name)), reprlib.repr(identity[name])) for name in names)
        listed = ", ".join(f"{name}: {there} there, {now} now" for name, there, now in pairs)
        raise FileError(f"{path} belongs to another configuration or other data ({listed}). Choose another run_dir.")
    if path != newest and newest.exists():
        os.replace(newest, newest.with_name(DAMAGED))  # or it would take the place of the good one
    return state


def read_checkpoint(path: str | Path, advice: str = DELETE) -> tuple[dict[str, Any], Path]:
    """The state in a file, on the CPU, and the file. For a missing or damaged `checkpoint.pt`, which its folder names too,
    that is PREVIOUS beside it, with a warning. Raises FileError, which ends in `advice`, if none is of this version.
    """
    path = Path(path)
    path = path / CHECKPOINT if path.is_dir() else path
    previous = path.with_name(PREVIOUS)
    try:
        return _read_state(path), path
    except ValueError as error:
        if path.name != CHECKPOINT or not previous.exists():
            raise FileError(f"{path}: {error}. {advice.format('it')}") from error
        found = f"{path}: {error}"
    try:
        state = _read_state(previous)
    except ValueError as error:
        raise FileError(f"{found}; {previous}: {error}. {advice.format('both')}") from error
    warnings.warn(f"{found}. {previous}, the one before it, is used.", stacklevel=3)
    return state, previous


def _read_state(path: Path) -> dict[str, Any]:
    """The state in a file. Raises ValueError, what is wrong with it."""
    if not path.is_file():
        raise ValueError("no such checkpoint")
    try:
        content = path.read_bytes()
        # the checksums within the zip leave out its headers and gaps, and torch.load looks at none
        if zlib.crc32(memoryview(content)[:-4]).to_bytes(4) != content[-4:]:
            raise ValueError("damaged, or of an earlier version: its checksum is not at its end")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
        if unfolded > len(content):  # PyTorch does not compress
            raise ValueError(f"it would unfold to {unfolded:,} bytes")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("version") != VERSION:
            raise ValueError("of another version")
        state["history"] = json.loads(state["history"])
        if wrong := _wrong_part(state, len(content)):
            raise ValueError(f"its {wrong!r} is not what it should be")
    except Exception as error:  # a damaged file raises one of several types
        reason = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"not a readable checkpoint ({reason})") from error
    return state


def _wrong_part(state: dict[str, Any], size: int) -> str | None:
    """The part of a state that no run writes, if there is one. size: bytes of its file."""
    for name, kind in _CONTENT.items():
        if not isinstance(state.get(name), kind):
            return name
    epoch, best, findings, history = (state[name] for name in ("epoch", "best", "findings", "history"))
    if not is_plain(state["identity"]):
        return "identity"
    if not is_plain(findings) or not findings or not all(isinstance(finding, str) for finding in findings):
        return "findings"
    if any(_types(row) != _ROW for row in history):
        return "history"
    epochs = {row["epoch"] for row in history}
    if not epochs or (min(epochs), max(epochs), len(epochs)) != (1, epoch, epoch):
        return "epoch"
    if _types(best) != _BEST or not 1 <= best["epoch"] <= epoch:
        return "best"
    # an expanded tensor has any size in a small file, and would have it in memory too
    return next((name for name in _DICTIONARIES if _num_bytes(state[name]) > size), None)


def _num_bytes(value: object) -> int:
    """Of all tensors within, each as often as it is named; lists and dicts count once."""
    total, seen, todo = 0, set[int](), [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Tensor):
            total += item.nbytes
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            todo += item.values() if isinstance(item, dict) else item
    return total


def check_state(
    state: dict[str, Any], fresh: dict[str, Any], parameters: list[Tensor], moments: dict[str, Tensor], steps: int
) -> None:
    """Raise an error unless a state can be one of a run: PyTorch takes over any learning rate, any attribute of a schedule
    and moments of any shape.

    Args:
        fresh: The state of the run before its first epoch.
        parameters: Of its optimiser.
        moments: What the optimiser keeps of a parameter of shape (1,) after a step.
        steps: Of an epoch.
    """
    schedule, first, optimizer = state["schedule"], fresh["schedule"], state["optimizer"]
    for name in ("schedule", "scaler"):
        if _types(state[name]) != _types(fresh[name]):
            raise ValueError(f"another {name}")
    rates, fixed = schedule["_last_lr"], first.keys() - _MOVING
    if schedule["last_epoch"] != state["epoch"] * steps or any(schedule[name] != first[name] for name in fixed):
        raise ValueError("another schedule")
    if not all(type(rate) is float and 0 <= rate < math.inf for rate in rates):
        raise ValueError("no learning rate")
    groups = [{**group, "lr": rate} for group, rate in zip(fresh["optimizer"]["param_groups"], rates, strict=True)]
    if optimizer["param_groups"] != groups:
        raise ValueError("another optimizer")
    if not optimizer["state"] and not fresh["scaler"]:  # fp16 may have skipped every step so far
        raise ValueError("no moments")
    for number, kept in optimizer["state"].items():
        if number not in range(len(parameters)) or kept.keys() != moments.keys():
            raise ValueError("other moments")
        for name, like in moments.items():
            value, shape = kept[name], parameters[number].shape if like.ndim else like.shape
            overlaps = value.stride() != torch.empty_like(value, device="meta").stride()
            if value.dtype != like.dtype or value.shape != shape or overlaps:
                raise ValueError("moments of another shape")


def _types(values: dict[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in values.items()}


def is_plain(value: object) -> bool:
    """Whether a value is a number or a text, or a list or dict of such, at most 8 deep and small when written out.

    A list that holds another twice, which holds another twice, and so on, takes little memory and unfolds without end.
    """
    left, todo = 100_000, [(value, 8)]  # items and characters
    while todo:
        item, depth = todo.pop()
        inside: list[object] = []
        if isinstance(item, dict):
            inside = [*item, *item.values()]
        elif isinstance(item, list):
            inside = item
        elif isinstance(item, str):
            left -= len(item)
        elif not (item is None or isinstance(item, float) or (isinstance(item, int) and abs(item) < 2**63)):
            return False
        left -= 1 + len(inside)
        if left < 0 or depth < 0:
            return False
        todo += [(child, depth - 1) for child in inside]
    return True
