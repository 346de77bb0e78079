"""What the tests of a notebook's claims share: its text, and what its cells showed when it was committed."""

import re
from functools import cached_property

import nbformat
import numpy as np
import pandas as pd

from deepchest_utils.notebook.runner import FOLDER
from deepchest_utils.results.statistics import ALPHA, is_significant
from deepchest_utils.studies.better_rule import split_halves


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


def finding_statements(rows: pd.DataFrame) -> pd.DataFrame:
    """What may be said of single findings: significant on the odd replicates (Holm over a method's findings of the
    endpoint), and on the even ones of the same sign with p below 0.05.

    Args:
        rows: Of `study_rows`.

    Returns:
        Columns phantom, method, task, odd and even (mean differences to Equal), p_odd (after Holm), p_even, claimed (on
        the odd ones) and holds (on both).
    """
    keys = ["phantom", "method", "task"]
    odd, even = (half.set_index(keys) for half in split_halves(rows))
    even = even.reindex(odd.index)
    claimed = is_significant(odd.p_holm, odd.pairs)
    holds = claimed & (even.p < ALPHA) & (np.sign(even["mean"]) == np.sign(odd["mean"]))
    columns = {"odd": odd["mean"], "even": even["mean"], "p_odd": odd.p_holm, "p_even": even.p}
    return pd.DataFrame({**columns, "claimed": claimed, "holds": holds}).reset_index()
