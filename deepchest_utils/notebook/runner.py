"""Run the notebooks headless through papermill: parameters checked by name, executed copies under `runs/`,
the failing cell named."""

import ast
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepchest_utils.paths import PROJECT

FOLDER = PROJECT / "notebooks"
OUTPUT = PROJECT / "runs" / "notebooks"


class NotebookError(ValueError):
    """A notebook or a parameter that is not there; the message lists those that are."""


def find_notebooks(names: Sequence[str] = (), solutions: bool = False) -> list[Path]:
    """The numbered notebooks, or the solutions to their exercises: all of them, or those whose name starts with
    one of `names` ("03")."""
    folder = FOLDER / "solutions" if solutions else FOLDER
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise NotebookError(f"no notebooks in {folder}: run from a checkout of the repository.")
    if not names:
        return every
    chosen = []
    for name in names:
        found = [path for path in every if path.stem.startswith(name)]
        if not found:
            raise NotebookError(f"no notebook {name!r}. There are {', '.join(p.stem for p in every)}.")
        chosen += [path for path in found if path not in chosen]
    return chosen


def parse_value(text: str) -> object:
    """A parameter from the command line: true, false, null, a Python literal (3, 1e-3, [1, 2]), else the text
    itself."""
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def notebook_parameters(path: Path) -> dict[str, dict[str, Any]]:
    """papermill's reading of the parameters cell: name -> {"default", "help", "inferred_type_name"}."""
    import papermill

    found: dict[str, dict[str, Any]] = papermill.inspect_notebook(str(path))
    return found


def describe_parameters(path: Path) -> str:
    """The notebook's parameters with default and help, one a line."""
    rows = [
        f"  {name} = {entry['default']:<14} {entry['help']}".rstrip()
        for name, entry in notebook_parameters(path).items()
    ]
    return "\n".join([path.stem, *rows])


def check_parameters(paths: Sequence[Path], parameters: dict[str, object]) -> None:
    """NotebookError for a parameter that one of the notebooks does not have: papermill would only warn."""
    for path in paths:
        known = notebook_parameters(path)
        for name in parameters:
            if name not in known:
                raise NotebookError(f"{path.stem} has no parameter {name!r}. It has {', '.join(known)}.")


def failure(error: Exception) -> str:
    """ "cell N: ErrorName: message" of papermill's exception, N as Jupyter counts; none of a kernel that died."""
    if not hasattr(error, "exec_count"):
        return f"its kernel ({error}): too little memory?"
    raised: Any = error  # papermill has no types
    message = " ".join(str(raised.evalue).split())
    return f"cell [{raised.exec_count}]: {raised.ename}: {message}"


def results(path: Path) -> str:
    """What the cells tagged "result" of an executed notebook put out, as text."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if "result" in cell.metadata.get("tags", []) for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(text.rstrip() for text in texts if not text.startswith("<"))


def run_notebooks(
    paths: Sequence[Path], parameters: dict[str, object], output: Path = OUTPUT, progress: bool = True
) -> int:
    """Run them one after the other in the caller's folder, print their results; returns how many failed.

    A figure that a changed run draws does not replace the committed one: with any parameter given, figures go
    to `<output>/figures`.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    check_parameters(paths, parameters)
    output.mkdir(parents=True, exist_ok=True)
    environment: dict[str, str | None] = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "JPY_SESSION_NAME": None,  # of a notebook that calls this: in the runs there is nobody to move sliders
    }
    if parameters and "DEEPCHEST_FIGURES" not in os.environ:
        environment["DEEPCHEST_FIGURES"] = str(output / "figures")
    before = {name: os.environ.get(name) for name in environment}
    _update_environment(environment)
    failures = []
    try:
        for path in paths:
            start = time.perf_counter()
            print(f"{path.stem} ...", flush=True)
            target = output / path.name
            try:
                papermill.execute_notebook(
                    str(path), str(target), parameters=parameters, cwd=os.getcwd(), progress_bar=progress
                )
            except (papermill.PapermillExecutionError, DeadKernelError) as error:
                failures.append(f"{path.stem} failed in {failure(error)}\n  see {target}")
                print(failures[-1], flush=True)
            else:
                print(f"{path.stem} done in {time.perf_counter() - start:.0f} s: {target}", flush=True)
                print(results(target), flush=True)
    finally:
        _update_environment(before)
    if len(paths) > 1 and failures:  # once more, below what the others put out
        print("\n".join(failures), flush=True)
    return len(failures)


def _update_environment(values: dict[str, str | None]) -> None:
    """Set the variables; those that are None are taken out."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
