"""What notebook 03 says in its text, read from its committed outputs."""

import re

import nbformat
import numpy as np
import pytest

from deepchest_utils.notebook.runner import FOLDER

CELLS = nbformat.read(FOLDER / "03_training.ipynb", as_version=4).cells


@pytest.fixture(scope="module")
def said() -> str:
    return " ".join(" ".join(cell.source.split()) for cell in CELLS if cell.cell_type == "markdown")


def output(cell_id: str) -> str:
    """A cell's outputs as committed, tables as HTML."""
    (cell,) = [cell for cell in CELLS if cell.id == cell_id]
    return "\n".join(o.get("text", "") or o.get("data", {}).get("text/html", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def pairs() -> list[list[str]]:
    """The rows of the table of both pairs: macro AUROC, macro AP, findings, largest change."""
    rows = re.findall(r"<tr>\s*<th>[^<]*Equal[^<]*</th>(.*?)</tr>", output("twin-table"), re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text)]


def test_ten_lines_take_the_steps_of_the_package():
    rows = re.findall(r"<td>([-\d.e]+)</td>", output("step-compare"))
    table = np.array(rows, float).reshape(6, 3)
    assert (table[:, 2] == 0).all()  # "to the last bit"
    assert (table[:, 0] == table[:, 1]).all()
    lines = next(cell.source for cell in CELLS if cell.id == "step").splitlines()
    assert len([line for line in lines[2:] if line.strip()]) <= 10


def test_the_pair_and_the_twins(said, pairs):
    (method, method_low, method_high), (twin, twin_low, twin_high) = (numbers(row[0]) for row in pairs)
    assert method_low < 0 < method_high
    assert twin_high < 0 or twin_low > 0
    assert f"the macro AUROC falls by {-method:.3f}" in said
    assert f"moves by {abs(twin):.3f} in the macro AUROC" in said
    assert f"the macro AUROC differs by {abs(method):.3f}" in said
    assert f"Two seeds with equal weights differ by {abs(twin):.3f}" in said
    assert "five times as much as that of the left pair" in said
    assert 4.5 < abs(twin / method) < 5.9
    largest = [float(row[3]) for row in pairs]
    assert f"single findings move by up to {largest[0]:.2f}" in said
    assert f"by up to {largest[1]:.2f} in a finding" in said


def test_average_precision(said, pairs):
    (method, _, method_high), (twin, *_) = (numbers(row[1]) for row in pairs)
    assert method_high < 0
    assert f"DeepChest's is lower by {-method:.3f}" in said
    assert "three times the difference between the seeds" in said
    assert 2.7 < method / twin < 3.9


def test_about_every_second_table_has_one_by_chance(said, pairs):
    counts = [int(row[2].split(" of ")[1]) for row in pairs]
    assert counts == [13, 13]  # all but Hernia
    assert [row[2] for row in pairs] == ["10 of 13", "6 of 13"]
    assert "10 of 13 against 6" in said
    assert f"{1 - 0.95**13:.0%}".rstrip("%") in re.findall(r"1 - 0\.95\^\{13\} = (\d+)", said)


def test_weights_follow_prevalence():
    assert float(re.findall(r"prevalence: (0\.\d+)", output("c11-figure"))[0]) > 0.7


def test_intervals_over_patients_cover(said):
    patients, images = (int(share) for share in re.findall(r"'(\d+)%'", output("coverage")))
    assert patients > 90
    assert 65 <= images <= 80
    assert "in about three quarters of the cases" in said
    assert "in more than nine of ten" in said
