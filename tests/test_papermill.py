"""papermill as people use it: parameters with their help, from any folder, and the loops of
notebooks/README.md as they stand there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as command

from deepchest_utils.notebook.runner import find_notebooks, notebook_parameters
from deepchest_utils.paths import PROJECT, runs_dir

BY_NAME = pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
PAGE = (PROJECT / "notebooks" / "README.md").read_text()
SECTION = re.search(r"## Run again with other parameters\n(.*?)\n## ", PAGE, re.DOTALL).group(1)
# what a reader runs for minutes, in seconds: one seed and method of each loop, on the notebooks' smoke data
SMALL = {
    ".venv/bin/": f"{sys.prefix}/bin/",
    "in deepchest pcgrad;": "in deepchest;",
    "in 0 1 2;": "in 0;",
    "-p seed $seed": "-p seed $seed -p smoke True",
    "range(3)": "range(1)",
    '"seed": seed,': '"seed": seed, "smoke": True,',
    "seed: 3": "seed: 3\nsmoke: true",
}


@BY_NAME
def test_papermill_reads_every_parameter_with_its_help(path, caplog):
    (cell,) = [
        cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", [])
    ]
    assigned = {target.id: line for line in ast.parse(cell.source).body for target in [line.target]}
    found = notebook_parameters(path)
    assert list(found) == list(assigned)
    assert "Unable to parse" not in caplog.text
    shown = CliRunner().invoke(command, ["--help-notebook", str(path)])
    assert shown.exit_code == 0
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    for name, line in assigned.items():
        assert found[name]["help"], name
        assert ast.literal_eval(found[name]["default"]) == ast.literal_eval(line.value)
        place = next(i for i, text in enumerate(lines) if text.startswith(f"{name}: "))
        assert found[name]["help"] in " ".join(lines[place : place + 2])  # on its own line if the name is long


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """A notebook that says where its figures go."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no history in the user's home
    monkeypatch.delenv("DEEPCHEST_FIGURES", raising=False)
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    parameters = nbformat.v4.new_code_cell("seed: int = 0  # of everything", metadata={"tags": ["parameters"]})
    says = "from deepchest_utils.paths import figure_folder\nprint('->', figure_folder('phantom', False))"
    book.cells = [parameters, nbformat.v4.new_code_cell(says)]
    nbformat.write(book, tmp_path / "places.ipynb")
    return tmp_path / "places.ipynb"


SLOW_FOLDERS = [pytest.param(folder, marks=pytest.mark.slow) for folder in ("root", "notebooks")]


@pytest.mark.parametrize("folder", ["elsewhere", *SLOW_FOLDERS])
def test_a_rerun_spares_the_committed_figures_and_says_where_things_are(
    folder, places, tmp_path, cache_dir, monkeypatch, printed
):
    here = {"root": PROJECT, "notebooks": PROJECT / "notebooks", "elsewhere": tmp_path}[folder]
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(places, out, {"seed": 3}, cwd=here, progress_bar=False)
    figures = runs_dir() / "figures" / "phantom"
    assert printed(out).splitlines() == [
        f"figures: {figures}",
        f"decoded images: {cache_dir}",
        f"a relative run_dir, out or data_root: below {here}",
        f"-> {figures}",
    ]
    if folder == "elsewhere":
        monkeypatch.setenv("DEEPCHEST_FIGURES", "mine")
        papermill.execute_notebook(places, out, {"seed": 3}, cwd=here, progress_bar=False)
        assert printed(out).startswith(f"figures: {here / 'mine'}\n")


@pytest.mark.slow
def test_without_other_parameters_a_notebook_says_nothing_and_draws_the_committed_figures(places, tmp_path, printed):
    papermill.execute_notebook(places, tmp_path / "out.ipynb", cwd=PROJECT, progress_bar=False)
    assert printed(tmp_path / "out.ipynb") == f"-> {PROJECT / 'figures'}\n"


CHECKED = """from deepchest_utils.notebook.parameters import check_parameters
check_parameters(globals())
print(seed, options, rate)"""


@pytest.fixture
def checked(places):
    """A notebook that checks its parameters."""
    book = nbformat.read(places, as_version=4)
    book.cells[
        0
    ].source = "seed: int = 0  # of everything\noptions: dict = {}  # of the data\nrate: float = 0.5  # of steps"
    book.cells[1].source = CHECKED
    nbformat.write(book, places)
    return places


@pytest.mark.slow
def test_parameters_from_papermill_s_command_line_are_checked_in_the_notebook(checked, tmp_path, printed):
    """Which hands over texts: that of a dictionary is read, that of a number is refused."""
    out = str(tmp_path / "out.ipynb")
    given = ["-p", "options", '{"finding_columns": ["Mass"], "drop": true}', "-p", "rate", "1", "--no-progress-bar"]
    assert CliRunner().invoke(command, [str(checked), out, *given]).exit_code == 0
    assert printed(Path(out)) == "0 {'finding_columns': ['Mass'], 'drop': True} 1.0\n"
    failed = CliRunner().invoke(command, [str(checked), out, "-r", "seed", "1", "--no-progress-bar"])
    assert failed.exit_code == 1
    assert str(failed.exception).rstrip().endswith("ValueError: seed should be of type int. Found '1'.")


# the page's snippets


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def small(text: str) -> str:
    """The snippet with what SMALL has in place of it."""
    for old, new in SMALL.items():
        text = text.replace(old, new)
    return text


def test_every_abridgement_is_of_something_that_the_page_says():
    assert [old for old in SMALL if old not in SECTION] == []


def run(arguments: list[str], folder: Path) -> str:
    """What it printed; fails with the end of what it said."""
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.notebooks
@pytest.mark.slow
def test_loops_of_the_page_run_and_are_reported(tmp_path, monkeypatch, printed):
    """The shell loop, the Python loop and the file of parameters, from a folder that is not the repository."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("DEEPCHEST_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    (tmp_path / "notebooks").symlink_to(PROJECT / "notebooks")
    (loop,) = [text for text in snippets("bash") if "for seed" in text]
    (of_file,) = [text for text in snippets("bash") if "parameters.yaml" in text]
    (python,), (yaml,) = snippets("python"), snippets("yaml")
    shown = run(["bash", "-euc", small(loop)], tmp_path)
    assert shown.startswith("3 tested runs below runs/loop")  # Equal has one more seed
    run([sys.executable, "-c", small(python)], tmp_path)
    (tmp_path / "parameters.yaml").write_text(small(yaml))
    run(["bash", "-euc", small(of_file)], tmp_path)
    books = sorted(path.stem for path in (tmp_path / "runs" / "loop").glob("*.ipynb"))
    assert books == ["deepchest-0", "relative-3", "uncertainty-0"]
    assert f"below {tmp_path}" in printed(tmp_path / "runs" / "loop" / "relative-3.ipynb")
    shown = run([sys.executable, "-m", "deepchest_utils", "report", "runs/loop"], tmp_path)
    assert shown.startswith("7 tested runs below runs/loop")  # Equal: seeds 0, 1, 3 and 4
    for words in ("lr 0.002", "lr 0.001", "Equal", "DeepChest", "DeepChest (L/H)", "Uncertainty"):
        assert words in shown
    assert (tmp_path / "runs" / "loop" / "report.csv").exists()
    assert (tmp_path / "runs" / "loop" / "report.png").exists()
