"""How far something long has come: a bar on a terminal or in a notebook, lines in a command's log, else nothing."""

import io
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from deepchest_utils.paths import is_interactive

T = TypeVar("T")
command = ""  # the one that `python -m deepchest_utils` runs; else nothing is written to stderr that is no terminal
_free: dict[int, list[Any]] = {}  # number of a cell -> its outputs without a bar


def progress(
    iterable: Iterable[T] | None = None, title: str = "", total: int | None = None, logged: bool = False, **options: Any
) -> "tqdm[T]":
    """`iterable` with a bar, of the first process alone. In a notebook the bar disappears when it is full.

    Args:
        logged: In the log of a command, a line for each half minute that it takes.
        options: Of tqdm.
    """
    if is_interactive():
        options |= {"file": _Cell(), "ncols": 110, "leave": False, "position": 0}
    elif logged and _logs():
        form = "{desc}: {n_fmt} of {total_fmt}, {elapsed}"
        options |= {"file": _Log(), "bar_format": form, "mininterval": 30, "maxinterval": 60, "delay": 1}
    else:
        options["disable"] = None  # unless stderr is a terminal
    if not _first_process():
        options["disable"] = True
    return tqdm(iterable, title, total, **options)


def log_line(text: str, *commands: str) -> None:
    """Write a line into the log of one of these commands: where its stderr is no terminal, by the first process."""
    if command in commands and _logs() and _first_process():
        print(text, file=sys.stderr, flush=True)


def _first_process() -> bool:
    from deepchest_utils.distributed import rank  # with torch, which a command's --help need not wait for

    return rank() == 0


def _logs() -> bool:
    return command != "" and not sys.stderr.isatty()


class _Log(io.StringIO):
    """A line for each state of the bar."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)


class _Cell(io.StringIO):
    """An output of the cell that shows the bar's last state. An empty one is all that is saved, and the next bar takes it."""

    def __init__(self) -> None:
        from IPython import display, get_ipython

        super().__init__()
        cell, self.shown = get_ipython().execution_count, ""
        if cell not in _free:
            _free.clear()
        self.free = _free.setdefault(cell, [])
        self.output = self.free.pop() if self.free else display.display({}, raw=True, display_id=True)

    def write(self, text: str) -> int:
        state = text.strip()
        if state != self.shown:
            self.output.update({"text/plain": state} if state else {}, raw=True)
            if not state:
                self.free.append(self.output)
        self.shown = state
        return len(text)
