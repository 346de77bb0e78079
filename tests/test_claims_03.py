"""What notebook 03 says in its text, read from its committed outputs."""

import re

import numpy as np
import pytest
from claims import Committed, row

NOTEBOOK = Committed("03_training")
SAID = NOTEBOOK.text


@pytest.fixture(scope="module")
def pairs() -> list[list[str]]:
    """The rows of the table of both pairs: macro AUROC, macro AP, findings, largest change."""
    rows = re.findall(
        r"<tr>\s*<th>[^<]*Equal[^<]*</th>(.*?)</tr>", NOTEBOOK.shown("twin-table", "text/html"), re.DOTALL
    )
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", text)]


def test_ten_lines_take_the_steps_of_the_package():
    rows = re.findall(r"<td>([-\d.e]+)</td>", NOTEBOOK.shown("step-compare", "text/html"))
    table = np.array(rows, float).reshape(6, 3)
    assert (table[:, 2] == 0).all()  # "to the last bit"
    assert (table[:, 0] == table[:, 1]).all()
    lines = next(cell.source for cell in NOTEBOOK.cells if cell.id == "step").splitlines()
    assert len([line for line in lines[2:] if line.strip()]) <= 10


def test_the_pair_and_the_twins(pairs):
    (method, _, method_high), (twin, _, twin_high) = (numbers(row[0]) for row in pairs)
    assert method_high < 0
    assert twin_high < 0
    assert "Both intervals exclude zero" in SAID
    assert f"the macro AUROC falls by {-method:.3f}" in SAID
    assert f"moves by {abs(twin):.3f} in the macro AUROC" in SAID
    assert f"the macro AUROC differs by {abs(method):.3f}" in SAID
    assert f"Two seeds with equal weights differ by {abs(twin):.3f}" in SAID
    assert f"is {abs(twin):.3f}, that of the left pair {abs(method):.3f}" in SAID
    assert abs(method) < abs(twin)  # "But a second network ..."
    largest = [float(row[3]) for row in pairs]
    assert f"single findings move by up to {largest[0]:.2f}" in SAID
    assert f"by up to {largest[1]:.2f} in a finding" in SAID
    assert largest[0] < largest[1]


def test_average_precision(pairs):
    (method, _, method_high), (twin, *_) = (numbers(row[1]) for row in pairs)
    assert method_high < 0
    assert f"DeepChest's is lower by {-method:.3f}, the second seed's by {-twin:.3f}" in SAID
    assert method > twin  # "a seed moves as much as the method"


def test_about_every_second_table_has_one_by_chance(pairs):
    counts = [int(row[2].split(" of ")[1]) for row in pairs]
    assert counts == [13, 13]  # all but Hernia
    assert [row[2] for row in pairs] == ["6 of 13", "7 of 13"]
    assert "6 of 13 against 7" in SAID
    assert "seven of the fourteen paired intervals exclude zero" in SAID  # these, and that of Hernia
    assert f"{1 - 0.95**13:.0%}".rstrip("%") in re.findall(r"1 - 0\.95\^\{13\} = (\d+)", SAID)


def test_the_chosen_epochs():
    epochs = re.findall(r"best epoch (\d+) of 12", NOTEBOOK.printed)
    assert f"The best epochs are {' and '.join(epochs)} of 12" in SAID


def test_weights_follow_prevalence():
    assert float(re.findall(r"prevalence: (0\.\d+)", NOTEBOOK.shown("c11-figure"))[0]) > 0.7


def test_intervals_over_patients_cover():
    patients, images = (row(NOTEBOOK.shown("coverage"), unit)[0] for unit in ("patients", "images"))
    assert patients > 88 > 80 > images
    assert f"contain the truth in {images:.0f}% of the cases, those over patients in {patients:.0f}%" in SAID
