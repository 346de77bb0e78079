"""The notebook runner on tiny notebooks: parameters in by name, the failing cell named, nothing left behind, nothing done
twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import psutil
import pytest

from deepchest_utils.__main__ import main
from deepchest_utils.notebook import runner
from deepchest_utils.notebook.parameters import check_values, declared_types
from deepchest_utils.notebook.runner import NotebookError, check_parameters, find_notebooks, run_notebooks

PARAMETERS = "epochs: int = 3  # passes over the training set\ndataset: str = 'phantom'  # which data set"


def write(folder, name: str, *cells: str, parameters: str | None = PARAMETERS):
    """A notebook of code cells, the first of them its parameters."""
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    if parameters is not None:
        first = nbformat.v4.new_code_cell(parameters)
        first.metadata["tags"] = ["parameters"]
        book.cells.insert(0, first)
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three notebooks, one of which cannot work, and two files that are none of them."""
    books = tmp_path / "books"
    books.mkdir()
    write(books, "01_first", "import os\nprint(epochs * 2, dataset, os.environ.get('DEEPCHEST_FIGURES'))")
    write(books, "02_second", "ready = epochs", "raise RuntimeError(f'no more than\\n{epochs - 1} epochs')")
    write(books, "03_third", "print('never asked')", parameters="seed: int = 0  # of everything")
    write(books, "scratch", "1 / 0")
    (books / "04_notes.txt").write_text("no notebook")
    monkeypatch.setattr(runner, "FOLDER", books)
    monkeypatch.setattr(runner, "OUTPUT", tmp_path / "runs")
    monkeypatch.delenv("DEEPCHEST_FIGURES", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no history in the user's home
    return books


# finding them


def test_numbered_notebooks_are_found_by_the_start_of_their_names(folder):
    assert [p.stem for p in find_notebooks()] == ["01_first", "02_second", "03_third"]
    assert [p.stem for p in find_notebooks(["03", "01"])] == ["03_third", "01_first"]
    assert [p.stem for p in find_notebooks(["01", "01_first", "0"])] == ["01_first", "02_second", "03_third"]


def test_unknown_notebook_is_refused_with_those_there_are(folder, capsys):
    with pytest.raises(NotebookError, match=r"'07'.*01_first, 02_second, 03_third"):
        find_notebooks(["01", "07"])
    with pytest.raises(NotebookError, match=r"Did you mean '02_second'\?"):
        find_notebooks(["02_secnod"])
    assert main(["notebooks", "07"]) == 2
    assert capsys.readouterr().err.startswith("error: no notebook '07'")


@pytest.mark.slow
def test_solutions_are_found_beside_the_notebooks_and_land_in_a_folder_of_their_own(folder, tmp_path, capfd, printed):
    with pytest.raises(NotebookError, match=r"no notebooks in .*solutions"):
        find_notebooks(part="solutions")
    (folder / "solutions").mkdir()
    write(folder / "solutions", "01_first", "print('solved')")
    assert [p.parent.name for p in find_notebooks(["01"], "solutions")] == ["solutions"]
    assert [p.stem for p in find_notebooks()] == ["01_first", "02_second", "03_third"]
    assert main(["notebooks", "--solutions"]) == 0
    copy = tmp_path / "runs" / "solutions" / "01_first.ipynb"  # not over that of the notebook
    assert printed(copy) == "solved\n"


@pytest.mark.slow
def test_the_appendix_has_a_folder_of_its_own(folder, tmp_path, capfd, printed):
    (folder / "appendix").mkdir()
    write(folder / "appendix", "A1_details", "print('in detail')")
    assert main(["notebooks", "--appendix"]) == 0
    assert printed(tmp_path / "runs" / "appendix" / "A1_details.ipynb") == "in detail\n"
    assert main(["notebooks", "--appendix", "--solutions"]) == 2
    assert "--solutions and --appendix are two folders" in capfd.readouterr().err


# parameters


def test_unknown_parameter_is_refused_by_name_before_anything_runs(folder, tmp_path, capsys):
    with pytest.raises(NotebookError, match=r"03_third has no parameter 'epochs'\. It has seed"):
        check_parameters(find_notebooks(), {"epochs": 1})
    assert main(["notebooks", "01", "-p", "epoch", "1", "-o", str(tmp_path / "out")]) == 2
    assert (
        "01_first has no parameter 'epoch'. It has epochs, dataset. Did you mean 'epochs'?" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["epochs", "two"], "01_first: epochs should be of type int. Found 'two'."),
        (["epochs", "3.0"], "01_first: epochs should be of type int. Found 3.0."),
        (["dataset", "nhi"], "Found 'nhi'. Did you mean 'nih'?"),
    ],
)
def test_wrong_type_or_name_is_refused_before_anything_runs(given, said, folder, tmp_path, capsys):
    assert main(["notebooks", "01", "-p", *given, "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parameters_are_listed_with_default_and_help(folder, capsys):
    assert main(["notebooks", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "01_first"
    (epochs,) = [line for line in lines[:3] if "epochs" in line]
    assert epochs.split() == ["epochs", "=", "3", "passes", "over", "the", "training", "set"]
    assert "03_third" in lines
    assert len({line.index(help) for line, help in zip(lines[1:3], ("passes", "which"), strict=True)}) == 1  # aligned
    assert not (folder.parent / "runs").exists()


@pytest.mark.parametrize(
    ("cell", "given", "said"),
    [
        (
            "method: str = 'equal'",
            "equal@mtan",
            "method should have no @, which goes with a sweep. Found 'equal@mtan'.",
        ),
        ("methods: str = 'equal deepchest'", "equal slaw@mtan", "method should have no @"),  # trained one by one
        ("methods: str = None", "deepchest", "methods should have equal and one more. Found 'deepchest'."),
        ("methods: str = None", "equal equal", "methods should have equal and one more. Found 'equal equal'."),
        ("methods: str = None", "", "methods should have equal and one more. Found ''."),
        ("num_seeds: int = 2", 0, "num_seeds should be at least 1. Found 0."),
        ("num_rates: int = 2", -1, "num_rates should be at least 1. Found -1."),
    ],
)
def test_what_a_notebook_cannot_compare_is_refused_at_once(cell, given, said):
    types = declared_types(cell)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        check_values(types, dict.fromkeys(types, given))


def test_a_sweep_in_a_notebook_takes_architectures_and_the_default_methods():
    types = declared_types("study: str = 'committed'\nmethods: str = None\nnum_seeds: int = 2")
    for methods in ("equal deepchest@mtan", "equal equal@single_task", None):
        check_values(types, {"methods": methods, "num_seeds": 1})


# running


@pytest.mark.parametrize("place", [".", "solutions", "appendix", "link"])
def test_copies_never_replace_the_notebooks(place, folder, capsys):
    (folder / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*.ipynb")}
    assert main(["notebooks", "01", "--again", "-o", str(folder / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: output should be another folder than that of the notebooks. Found /")
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.glob("*.ipynb")} == before


def test_folder_that_cannot_be_written_to_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "01_first.ipynb").mkdir(parents=True)  # the rights of a folder do not stop root
    for place, reason in (("file/out", "Not a directory"), ("out", "Is a directory")):
        assert main(["notebooks", "01", "-o", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert f"01_first.ipynb: cannot be written ({reason}). Choose a folder that can be written to" in error
        assert error.count("\n") == 1


def test_parameters_reach_the_notebook_and_a_failing_cell_is_named(folder, tmp_path, monkeypatch, capfd, printed):
    before, here = dict(os.environ), os.getcwd()
    originals = {p.name: p.read_bytes() for p in folder.iterdir()}
    out = tmp_path / "out"
    command = ["notebooks", "02", "01", "-p", "epochs", "21", "-p", "dataset", "nih", "-o", str(out)]
    assert main(command) == 1  # the first fails, the second runs all the same
    shown = capfd.readouterr().out
    # papermill puts a cell of its own after the parameters: [4] is the number that the executed copy shows
    said = "02_second failed in cell [4]: RuntimeError: no more than 20 epochs"
    assert shown.count(said) == 2  # where it happens, and below what the others put out
    assert "01_first done in" in shown
    assert printed(out / "01_first.ipynb") == f"42 nih {out / 'figures'}\n"  # not among the committed figures
    assert (out / "02_second.ipynb").exists()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == originals
    assert dict(os.environ) == before
    assert os.getcwd() == here


def test_without_parameters_figures_go_where_the_notebook_says_and_it_runs_once(folder, tmp_path, capfd, printed):
    """And no port is open: the kernel is reached through files, without a warning."""
    transport = (
        "from ipykernel.connect import get_connection_info\nprint(get_connection_info(unpack=True)['transport'])"
    )
    write(folder, "06_says", "import os\nprint(epochs, os.environ.get('DEEPCHEST_FIGURES'))", transport)
    before = dict(os.environ)
    assert run_notebooks(find_notebooks(["06"]), {}, tmp_path / "out") == 0
    assert printed(tmp_path / "out" / "06_says.ipynb") == f"3 None\n{'ipc' if os.name == 'posix' else 'tcp'}\n"
    assert dict(os.environ) == before
    assert run_notebooks(find_notebooks(["06"]), {}, tmp_path / "out") == 0
    said, warned = capfd.readouterr()
    copy = tmp_path / "out" / "06_says.ipynb"
    start, done, again = filter(None, said.splitlines())
    assert (start, done.startswith("06_says done in")) == ("06_says ...", True)
    assert again == f"06_says done before: {copy} (--again runs it anew)"
    assert warned == ""


@pytest.fixture
def executed(folder, tmp_path, monkeypatch) -> list[str]:
    """The names of the notebooks that were executed, without a kernel; one that raises an error fails."""
    names: list[str] = []

    def execute(source, target, parameters, **options):
        book = nbformat.read(source, as_version=4)
        names.append(source.rpartition("/")[2])
        nbformat.write(book, target)
        if any("raise" in cell.source for cell in book.cells):
            raise papermill.PapermillExecutionError(1, 3, "", "RuntimeError", "no more", [])
        return book

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(runner, "PROJECT", tmp_path)
    for file in ("deepchest_utils/code.py", "data/results/table.csv"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("1")
    return names


def test_a_stopped_run_goes_on_from_the_notebook_that_it_had_reached(folder, tmp_path, executed, monkeypatch):
    def run(**options) -> list[str]:
        executed.clear()
        run_notebooks(find_notebooks(), options.pop("parameters", {}), tmp_path / "out", **options)
        return [name[:2] for name in executed]

    assert run() == ["01", "02", "03"]
    assert run() == ["02"]  # it failed
    (tmp_path / "out" / "03_third.ipynb").write_text("{")  # stopped while it was written
    assert run() == ["02", "03"]
    assert run(again=True) == ["01", "02", "03"]
    write(folder, "01_first", "print('another')")
    assert run() == ["01", "02"]
    for file in ("deepchest_utils/code.py", "data/results/table.csv"):
        (tmp_path / file).write_text("2")
        assert run() == ["01", "02", "03"]
    write(folder, "03_third", "print('asked')")
    assert run(parameters={"epochs": 1}) == ["01", "02", "03"]
    assert run(parameters={"epochs": 1}) == ["02"]
    assert run(parameters={"epochs": 2}) == ["01", "02", "03"]
    monkeypatch.chdir(tmp_path)  # relative folders are others
    assert run(parameters={"epochs": 2}) == ["01", "02", "03"]


def test_a_table_that_a_parameter_points_to_counts(folder, tmp_path, executed):
    films = tmp_path / "films" / "labels.csv"
    (films.parent / "run").mkdir(parents=True)
    films.write_text("mass")

    def key(name: str, place) -> str:
        return runner._key(folder / "01_first.ipynb", {name: str(place), "epochs": 2})

    for place in (films.parent, tmp_path, films):  # in the folder, in one of its folders, beside the file
        for table, counts in ((films, True), (films.with_name("other.csv"), True), (films.with_name("a.png"), False)):
            for name in ("data_root", "run_dir"):  # the second is what the notebook writes
                before = key(name, place)
                table.write_text(f"{place}{name}")
                assert (key(name, place) != before) == (counts and name == "data_root")
    before = key("data_root", tmp_path)
    (films.parent / "run" / "history.csv").write_text("too deep")
    assert key("data_root", tmp_path) == before != key("data_root", "no/such/folder")


def test_opened_copies_and_their_outputs_do_not_matter(folder, tmp_path, executed):
    """What is committed has outputs, and a person who opens a notebook changes its metadata."""
    assert run_notebooks(find_notebooks(["01"]), {}, tmp_path / "out") == 0
    content = json.loads((folder / "01_first.ipynb").read_text())
    content["metadata"]["opened"] = True
    content["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "6"}]
    (folder / "01_first.ipynb").write_text(json.dumps(content))
    assert run_notebooks(find_notebooks(["01"]), {}, tmp_path / "out") == 0
    assert executed == ["01_first.ipynb"]


def test_again_from_the_command_line(folder, tmp_path, executed):
    for options in ([], [], ["--again"]):
        assert main(["notebooks", "01", "-o", str(tmp_path / "out"), *options]) == 0
    assert executed == ["01_first.ipynb", "01_first.ipynb"]


STOPPED = """
import signal, sys
from pathlib import Path
from deepchest_utils.__main__ import main
from deepchest_utils.notebook import runner
signal.signal(signal.SIGINT, signal.default_int_handler)
runner.FOLDER = Path(sys.argv[1])
sys.exit(main(["notebooks", "01", "05", "--output", sys.argv[2]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_line_and_no_kernel(number, folder, tmp_path):
    write(folder, "05_long", f"open({str(tmp_path / 'began')!r}, 'w').close()\nwhile True: pass")
    arguments = [sys.executable, "-c", STOPPED, str(folder), str(tmp_path / "out")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(number)
    said, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == "05_long ..."
    assert error == "stopped; the same command goes on from here (train: with --run-dir)\n"
    assert psutil.wait_procs(kernels, timeout=10)[1] == []


def test_environment_is_put_back_whatever_happens(folder, tmp_path, monkeypatch):
    def breaks(*args, **kwargs):
        assert os.environ["DEEPCHEST_FIGURES"] == "mine"  # what the user set stays
        raise KeyboardInterrupt

    monkeypatch.setenv("DEEPCHEST_FIGURES", "mine")
    monkeypatch.setenv("MPLBACKEND", "agg")  # what is replaced for the run comes back
    monkeypatch.setattr(papermill, "execute_notebook", breaks)
    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt):
        run_notebooks(find_notebooks(["01"]), {"epochs": 1}, tmp_path / "out")
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failure_too(folder, tmp_path, capsys):
    write(folder.parent / "books", "05_dies", "import os", "os._exit(1)")
    assert run_notebooks(find_notebooks(["05"]), {}, tmp_path / "out") == 1
    assert "05_dies failed in its kernel" in capsys.readouterr().out


def test_result_cells_are_printed(tmp_path):
    book = nbformat.v4.new_notebook()
    stream = nbformat.v4.new_output("stream", name="stdout", text="macro 0.9\n")
    table = nbformat.v4.new_output("execute_result", data={"text/plain": "a  b", "text/html": "<table>"})
    figure = nbformat.v4.new_output("display_data", data={"text/plain": "<Figure size 1x1>"})
    shown = nbformat.v4.new_code_cell("", outputs=[stream, table, figure], metadata={"tags": ["result"]})
    book.cells = [nbformat.v4.new_code_cell("", outputs=[stream]), shown]
    nbformat.write(book, tmp_path / "book.ipynb")
    assert runner.results(tmp_path / "book.ipynb") == "macro 0.9\na  b"


def test_no_notebooks_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    with pytest.raises(NotebookError, match="run from a checkout"):
        find_notebooks()
