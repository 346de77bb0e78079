"""What the tests of a notebook's claims share: its text, and what its cells showed when it was committed."""

import re
from functools import cached_property

import nbformat

from deepchest_utils.notebook.runner import FOLDER


class Committed:
    """A notebook as it was committed: `Committed("05_grad_cam")`, or `Committed("appendix/A3_benchmark")`."""

    def __init__(self, name: str):
        self.cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells

    @cached_property
    def text(self) -> str:
        """All Markdown, without line breaks."""
        return " ".join(" ".join(cell.source.split()) for cell in self.cells if cell.cell_type == "markdown")

    @cached_property
    def printed(self) -> str:
        """All that its cells printed, tables and pictures left out."""
        outputs = [output for cell in self.cells if cell.cell_type == "code" for output in cell.outputs]
        return "".join(output.get("text", "") for output in outputs)

    def shown(self, place: str, kind: str = "text/plain") -> str:
        """What one code cell printed and showed; its id, or words that are in its source alone, find it."""
        found = [cell for cell in self.cells if cell.id == place]
        found = found or [cell for cell in self.cells if cell.cell_type == "code" and place in cell.source]
        assert len(found) == 1, f"{len(found)} cells with {place!r}"
        return "\n".join(o.get("text") or o.get("data", {}).get(kind, "") for o in found[0].outputs)


def row(table: str, name: str) -> list[float]:
    """The numbers behind a row's name in a table that was shown as text."""
    found = re.findall(rf"^ *{re.escape(name)}  +([-+\d.einfa% ]+)$", table, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} rows {name!r}"
    return [float(number.rstrip("%")) for number in found[0].split()]
