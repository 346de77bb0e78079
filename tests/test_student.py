"""Student copies: no answer is left, each stub fails and names its exercise, and with the answers back all is as before."""

import ast

import nbformat
import pytest
from nbclient import NotebookClient

from deepchest_utils.__main__ import main
from deepchest_utils.files import FileError
from deepchest_utils.notebook import runner
from deepchest_utils.notebook.runner import NotebookError, find_notebooks
from deepchest_utils.notebook.student import ABOUT, student_copy, write_student_copies

SOLUTIONS = find_notebooks(part="solutions")
BY_NAME = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
ANSWER = '''from math import sqrt


class Root:
    """Of a number."""

    def __init__(self, number: float):
        """Keep it."""
        self.number = number

    def value(self) -> float:
        return sqrt(self.number)


def twice(x: float) -> float:
    """Two times x."""
    return 2 * x


secret = twice(3)'''


def cell(kind: str, source: str, *tags: str):
    made = nbformat.v4.new_code_cell(source) if kind == "code" else nbformat.v4.new_markdown_cell(source)
    made.metadata["tags"] = [*tags]
    return made


@pytest.fixture
def book():
    cells = [
        cell("markdown", "# 01 Solutions: roots\n\nThe exercises of 01, worked out. Try them first: it is worth it."),
        cell("code", "start = 1"),
        cell("markdown", "## Exercise 1 (easy): write it\n\n*Take a root, and say why.*"),
        cell("code", ANSWER, "solution"),
        cell("code", "assert Root(4.0).value() == 2 and secret == 6", "check"),
        cell("markdown", "Because four is two squared.", "solution"),
        cell("markdown", "## Exercise 2 (hard): use it"),
        cell("code", "total = start + 1", "solution"),
        cell("code", "assert total == 2", "check"),
    ]
    made = nbformat.v4.new_notebook(cells=cells)
    for number, code in enumerate((c for c in made.cells if c.cell_type == "code"), 1):
        code.execution_count, code.outputs = number, [nbformat.v4.new_output("stream", text="3\n")]
    return made


def run(notebook) -> list[str]:
    """Every code cell in turn, whatever failed before; what each says."""
    names, said = {}, []
    for code in (c for c in notebook.cells if c.cell_type == "code"):
        try:
            exec(code.source, names)
            said.append("")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_copy_fails_at_each_stub_and_passes_with_the_answers_put_back(book):
    answers = {c.id: c.source for c in book.cells if "solution" in c.metadata.tags}
    assert run(book) == [""] * 5
    copy = student_copy(book, "01_roots")
    said = run(copy)
    assert said[0] == ""
    assert said[1].startswith("NotImplementedError: Exercise 1 of 01_roots: your turn")
    assert said[3].startswith("NotImplementedError: Exercise 2 of 01_roots: your turn")
    assert said[2]  # the checks
    assert said[4]
    for c in copy.cells:
        c.source = answers.get(c.id, c.source)
    assert run(copy) == [""] * 5


def test_copy_keeps_questions_checks_and_heads_and_no_answer(book):
    copy = student_copy(book, "01_roots")
    sources = [c.source for c in copy.cells]
    assert sources[0] == f"# 01 Exercises: roots\n\nThe exercises of 01. {ABOUT}"
    assert sources[2].endswith("*Take a root, and say why.*")
    assert sources[5] == "*Exercise 1, your answer:*"
    assert sources[8] == "assert total == 2"
    stub = sources[3]
    for kept in ("from math import sqrt", '"""Of a number."""', "def value(self) -> float:", '"""Two times x."""'):
        assert kept in stub
    for lost in ("sqrt(self.number)", "2 * x", "twice(3)"):
        assert lost not in stub
    assert "\n# the checks ask for: secret\nraise " in stub
    assert sources[7].startswith("# the checks ask for: total\n")
    assert all(c.outputs == [] and c.execution_count is None for c in copy.cells if c.cell_type == "code")


def test_notebook_without_answers_is_refused(book):
    for c in book.cells:
        c.metadata.tags = []
    with pytest.raises(NotebookError, match="01_roots has no cell with the tag `solution`"):
        student_copy(book, "01_roots")


def test_command_writes_the_copies(book, tmp_path, monkeypatch, capsys):
    (tmp_path / "solutions").mkdir()
    for name in ("01_roots", "02_powers"):
        nbformat.write(book, tmp_path / "solutions" / f"{name}.ipynb")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    assert main(["notebooks", "02", "--student", str(tmp_path / "copies")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "copies" / "02_powers.ipynb")]
    assert "NotImplementedError" in (tmp_path / "copies" / "02_powers.ipynb").read_text()
    assert [file.name for file in (tmp_path / "copies").iterdir()] == ["02_powers.ipynb"]


@pytest.mark.parametrize("place", [".", "solutions", "appendix", "link"])
def test_folders_of_originals_are_refused(place, book, tmp_path, monkeypatch):
    (tmp_path / "solutions").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "solutions"):
        nbformat.write(book, folder / "01_roots.ipynb")
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.ipynb")}
    with pytest.raises(NotebookError, match=r"student should be another folder than that of the notebooks\. Found /"):
        write_student_copies(find_notebooks(["01"], "solutions"), tmp_path / place)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.ipynb")} == before
    assert write_student_copies(find_notebooks(["01"], "solutions"), tmp_path / "students")


def test_a_copy_that_has_been_worked_on_is_kept(book, tmp_path):
    paths, copies = [tmp_path / f"{name}.ipynb" for name in ("01_roots", "02_powers")], tmp_path / "copies"
    for path in paths:
        nbformat.write(book, path)
    first, second = write_student_copies(paths, copies)
    fresh = first.read_bytes()
    write_student_copies(paths, copies)  # nothing is lost
    assert first.read_bytes() == fresh
    worked = nbformat.read(second, as_version=4)
    worked.cells[7].source = "total = start + 1"
    nbformat.write(worked, second)
    first.unlink()
    answers = second.read_bytes()
    with pytest.raises(
        NotebookError, match=r"02_powers\.ipynb: it has been worked on\. Choose another folder, or delete"
    ):
        write_student_copies(paths, copies)
    assert second.read_bytes() == answers
    assert not first.exists()  # nothing is written before it is refused


def test_folder_that_cannot_be_written_to_is_one_line(book, tmp_path):
    nbformat.write(book, tmp_path / "01_roots.ipynb")
    with pytest.raises(
        FileError, match=r"cannot be written \(Not a directory\)\. Choose a folder that can be written to"
    ):
        write_student_copies([tmp_path / "01_roots.ipynb"], tmp_path / "01_roots.ipynb" / "copies")


@BY_NAME
def test_every_exercise_has_an_answer_to_leave_out_and_a_check(path):
    """In the committed solutions; and each stub ends in the exception, with nothing of the answer."""
    notebook = nbformat.read(path, as_version=4)
    tags: dict[str, set[str]] = {}
    heading = ""
    for c in notebook.cells:
        if c.source.startswith("## Exercise "):
            heading = c.source.splitlines()[0]
            tags[heading] = set()
        elif heading and c.cell_type == "markdown":
            assert "solution" in c.metadata.get("tags", []), c.source[:60]  # words that a copy would show
        if heading:
            tags[heading] |= {*c.metadata.get("tags", [])}
    assert len(tags) >= 3
    assert [name for name, found in tags.items() if "solution" not in found] == []
    assert any("check" in found for found in tags.values())
    answers = [c.source for c in notebook.cells if "solution" in c.metadata.get("tags", []) and c.cell_type == "code"]
    copy = student_copy(notebook, path.stem)
    cells = [c for c in copy.cells if "solution" in c.metadata.get("tags", []) and c.cell_type == "code"]
    assert not any(c.metadata.get("jupyter", {}).get("source_hidden") for c in cells)  # there is something to write
    stubs = [c.source for c in cells]
    assert len(stubs) == len(answers)
    for stub in stubs:
        last = ast.parse(stub).body[-1]
        assert isinstance(last, ast.Raise)
        assert "NotImplementedError('Exercise " in ast.unparse(last)


@pytest.mark.slow
@pytest.mark.notebooks
def test_a_copy_of_the_committed_solutions_fails_at_each_stub(tmp_path, monkeypatch):
    """Of 00, run from the first cell to the last, whatever fails; that it passes with its answers is tested elsewhere."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no history in the user's home
    (path,) = find_notebooks(["00"], "solutions")
    copy = student_copy(nbformat.read(path, as_version=4), path.stem)
    NotebookClient(copy, allow_errors=True, resources={"metadata": {"path": str(path.parent)}}).execute()
    stubs = [c for c in copy.cells if "solution" in c.metadata.get("tags", []) and c.cell_type == "code"]
    assert len(stubs) >= 3
    for c in stubs:
        assert c.outputs[-1].ename == "NotImplementedError"
        assert c.outputs[-1].evalue.startswith("Exercise ")
    others = [
        c for c in copy.cells if c.cell_type == "code" and not {"solution", "check"} & {*c.metadata.get("tags", [])}
    ]
    assert not [output for c in others for output in c.outputs if output.output_type == "error"]
