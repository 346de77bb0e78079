"""Copies of the solutions for students: the answers are left out, and what fails until it is solved stays in."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepchest_utils.files import write_file
from deepchest_utils.notebook.runner import NotebookError, check_folder

ABOUT = "Cells that fail are yours to write; the cells below them say when an answer is right."


def write_student_copies(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write each solutions notebook into `folder` as a student gets it, see `student_copy`; returns the files.

    Raises:
        NotebookError: A notebook has no cell with the tag `solution`, the folder has originals, or a file in it has been
            worked on. Then nothing is written.
    """
    import nbformat

    check_folder("student", folder, paths)
    copies = {folder / path.name: student_copy(nbformat.read(path, as_version=4), path.stem) for path in paths}
    texts = {file: f"{nbformat.writes(copy)}\n" for file, copy in copies.items()}
    for file, text in texts.items():
        if file.is_file() and file.read_bytes() != text.encode():
            raise NotebookError(f"{file}: it has been worked on. Choose another folder, or delete it.")
    for file, text in texts.items():
        write_file(file, text)
    return [*texts]


def student_copy(notebook: Any, name: str) -> Any:
    """The notebook without outputs and without the answers in cells with the tag `solution`.

    Of code, imports and the heads of functions and classes are left, with their docstrings, and the names of the results
    that cells with the tag `check` ask for. The cell then raises NotImplementedError with the number of the exercise.
    Of Markdown, a line for the answer is left. All other cells, the checks among them, stay as they are.
    """
    asked = _asked(notebook.cells)
    exercise, answers = "the exercise", 0
    for cell in notebook.cells:
        exercise = _exercise(cell) or exercise
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "solution" in cell.metadata.get("tags", []):
            answers += 1
            cell.metadata.pop("jupyter", None)  # not folded: there is something to write
            what = f"{exercise} of {name}", asked.get(exercise, set())
            cell.source = _stub(cell.source, *what) if cell.cell_type == "code" else f"*{exercise}, your answer:*"
    if not answers:
        raise NotebookError(f"{name} has no cell with the tag `solution`: there is no answer to leave out.")
    first = notebook.cells[0]
    first.source = first.source.replace(" Solutions: ", " Exercises: ", 1)
    first.source = re.sub(r", worked out\.( Try them first: [^.]*\.)?", f". {ABOUT}", first.source, count=1)
    return notebook


def _exercise(cell: Any) -> str | None:
    """The exercise that a cell begins."""
    heading = re.match(r"## (Exercise \d+)", cell.source)
    return heading[1] if heading else None


def _names(code: ast.AST, context: type[ast.expr_context]) -> list[str]:
    """The names that a piece of code reads (ast.Load) or sets (ast.Store)."""
    return [n.id for n in ast.walk(code) if isinstance(n, ast.Name) and isinstance(n.ctx, context)]


def _asked(cells: Sequence[Any]) -> dict[str, set[str]]:
    """Exercise -> the names that its cells with the tag `check` read and do not set."""
    exercise, asked = "the exercise", dict[str, set[str]]()
    for cell in cells:
        exercise = _exercise(cell) or exercise
        if "check" in cell.metadata.get("tags", []):
            code = ast.parse(cell.source)
            asked.setdefault(exercise, set()).update({*_names(code, ast.Load)} - {*_names(code, ast.Store)})
    return asked


def _stub(source: str, exercise: str, asked: set[str]) -> str:
    """The rest of an answer in code: its imports and heads, the results that are asked for, and the failing line."""
    body = ast.parse(source).body
    kept = [line for line in body if isinstance(line, ast.Import | ast.ImportFrom)]
    heads = [_head(part) for part in body if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    targets = [target for line in body if isinstance(line, ast.Assign) for target in line.targets]
    results = dict.fromkeys(name for target in targets for name in _names(target, ast.Store) if name in asked)
    call = f"# the checks ask for: {', '.join(results)}\n" if results else ""
    call += f'raise NotImplementedError("{exercise}: your turn. Write your answer, then delete this line.")'
    imports = "\n".join(map(ast.unparse, kept))
    return "\n\n\n".join(filter(None, [imports, *map(ast.unparse, heads), call]))


def _head(part: ast.FunctionDef | ast.ClassDef) -> ast.stmt:
    """A function or class with its docstring, and `...` for what it does."""
    docstring = part.body[:1] if ast.get_docstring(part) else []
    inner = [_head(child) for child in part.body if isinstance(child, ast.FunctionDef)]
    gap: list[ast.stmt] = [ast.Expr(ast.Constant(...))]
    part.body = [*docstring, *(inner if isinstance(part, ast.ClassDef) and inner else gap)]
    return part
