"""What is counted in a notebook, on one that was counted by hand, and the commit beside the tree."""

import importlib.util
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / ".ci" / "notebook_stats.py"
spec = importlib.util.spec_from_file_location("notebook_stats", FILE)
stats = importlib.util.module_from_spec(spec)
spec.loader.exec_module(stats)

LONG = " ".join(["word"] * 36) + "."
SHORT = " ".join(["word"] * 35) + "."


def cell(kind: str, source: str, **metadata) -> dict:
    return {"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": metadata}


def test_measures_are_those_counted_by_hand():
    cells = [
        cell("markdown", f"# One two\n\n{LONG} {SHORT}"),
        cell("markdown", f"| {LONG} |\n|---|\n\n- {SHORT}\n- {SHORT}\n\n```\n{LONG}\n```"),
        cell(
            "code",
            "import numpy\n\nfig, ax = plt.subplots()\nax.plot(x)\nx = axis.mean()",
            jupyter={"source_hidden": True},
        ),
        cell("code", "axes[0, 1].set_title('a')\nlosses.plot_name = 1"),
    ]
    words, long, lines, plotting, code, folded = stats.measure({"cells": cells})
    assert words == (3 + 36 + 35) + (2 + 36 + 1 + 2 * 36 + 2 + 36)  # with marks of Markdown
    assert long == 1  # headings, tables and code are no sentences
    assert (lines, plotting, code, folded) == (6, 3, 2, 1)


def test_long_sentences_end_where_they_end():
    assert len(stats.sentences("Is it so? Yes: it is. (By 0.5 in the mean.) *Then* more.")) == 4
    assert len(stats.sentences("A is 0.5 of B, i.e. half.\nThe rest follows.")) == 2


def test_tree_and_commit_are_shown_side_by_side():
    before, after = (
        {"notebooks/01_a.ipynb": (5,) * 6},
        {"notebooks/01_a.ipynb": (4,) * 6, "notebooks/02_b.ipynb": (1,) * 6},
    )
    lines = stats.table(before, after, compared=True).splitlines()
    assert lines[1].split() == ["01_a", *["5", "->", "4"] * 6]
    assert lines[2].split() == ["02_b", *["-", "->", "1"] * 6]
    assert lines[3].split() == ["all", *["5", "->", "5"] * 6]
    assert stats.table({}, after, compared=False).splitlines()[-1].split() == ["all", *["5"] * 6]


def test_command_counts_every_notebook_of_the_tree():
    done = subprocess.run([sys.executable, FILE], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert names == [*(name.removeprefix("notebooks/").removesuffix(".ipynb") for name in stats.in_tree()), "all"]
    assert len(names) > 7
