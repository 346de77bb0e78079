"""Run the notebooks headless through papermill: parameters checked by name, copies kept, a failing cell named."""

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from deepchest_utils.config import did_you_mean
from deepchest_utils.files import writable
from deepchest_utils.notebook.parameters import check_values, declared_types
from deepchest_utils.paths import PROJECT, runs_dir

FOLDER = PROJECT / "notebooks"
OUTPUT = runs_dir() / "notebooks"
KEY = "deepchest_key"  # in the metadata of an executed copy: what it was made from
TABLES = (".csv", ".npz", ".npy", ".txt", ".gz")
WRITTEN = ("out", "run_dir")  # parameters that name what a notebook itself writes


class NotebookError(ValueError):
    """A notebook or a parameter that does not exist; the message lists those that do."""


def find_notebooks(names: Sequence[str] = (), part: str = "") -> list[Path]:
    """The notebooks of a part whose names begin with one of `names` ("03"); without names, all.

    Args:
        part: "" (the numbered ones), "solutions" (to their exercises) or "appendix" (A1, A2 and so on: details).

    Raises:
        NotebookError: There is no such notebook.
    """
    folder = FOLDER / part
    notebooks = sorted(folder.glob("[0-9A][0-9]_*.ipynb"))
    if not notebooks:
        raise NotebookError(f"no notebooks in {folder}: run from a checkout of the repository.")
    stems = [path.stem for path in notebooks]
    for name in names:
        if not any(stem.startswith(name) for stem in stems):
            raise NotebookError(f"no notebook {name!r}. There are {', '.join(stems)}.{did_you_mean(name, stems)}")
    return list(dict.fromkeys(path for name in names or [""] for path in notebooks if path.stem.startswith(name)))


def check_folder(option: str, folder: Path, paths: Sequence[Path]) -> None:
    """Raise NotebookError if a copy of one of the notebooks in `folder` would lie among the originals."""
    originals = [FOLDER, FOLDER / "solutions", FOLDER / "appendix", *(path.parent for path in paths)]
    if {place.resolve() for place in originals} & {(folder / path.name).resolve().parent for path in paths}:
        raise NotebookError(f"{option} should be another folder than that of the notebooks. Found {folder}.")


def notebook_parameters(path: Path) -> dict[str, dict[str, Any]]:
    """papermill's reading of the parameters cell: name -> {"default", "help", "inferred_type_name"}."""
    import papermill

    return dict(papermill.inspect_notebook(str(path)))


def describe_parameters(path: Path) -> str:
    """The notebook's parameters with default and help, one in each line."""
    parameters = [(f"{name} = {entry['default']}", entry["help"]) for name, entry in notebook_parameters(path).items()]
    width = max((len(text) for text, _ in parameters if len(text) < 40), default=0)
    return "\n".join([path.stem, *(f"  {text:<{width}}  {about}".rstrip() for text, about in parameters)])


def check_parameters(paths: Sequence[Path], parameters: Mapping[str, object]) -> None:
    """Raise NotebookError for a parameter that one of the notebooks does not have, or not of this type or name; papermill
    would only warn, or run."""
    for path in paths:
        allowed = notebook_parameters(path)
        for name in [name for name in parameters if name not in allowed]:
            close = did_you_mean(name, allowed)
            raise NotebookError(f"{path.stem} has no parameter {name!r}. It has {', '.join(allowed)}.{close}")
        try:
            check_values(declared_types(_parameters_cell(path)), parameters)
        except ValueError as wrong:
            raise NotebookError(f"{path.stem}: {wrong}") from None


def _parameters_cell(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))


def results(path: Path) -> str:
    """The text output of the cells tagged "result" of an executed notebook."""
    import nbformat

    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if "result" in cell.metadata.get("tags", []) for output in cell.outputs]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(text.rstrip() for text in texts if not text.startswith("<"))


def run_notebooks(
    paths: Sequence[Path], parameters: Mapping[str, object], output: Path = OUTPUT, again: bool = False
) -> int:
    """Run notebooks one after the other in the caller's folder, print their results, and return how many failed.

    Unless `again`, a notebook is not run if `output` has a copy that the same cells, parameters, package, tables
    (committed, or where a parameter points to) and folder have made without an error. With any parameter given, figures
    go to `<output>/figures` unless DEEPCHEST_FIGURES says otherwise, so that they never replace the committed ones.
    """
    import nbformat
    import papermill

    check_folder("output", output, paths)
    check_parameters(paths, parameters)
    say, failures = partial(print, flush=True), []
    with _kernel_options(output / "figures" if parameters else None) as options:
        for path in paths:
            target, key = output / path.name, _key(path, parameters)
            if not again and _key_of_copy(target) == key:
                say(f"{path.stem} done before: {target} (--again runs it anew)", results(target), sep="\n")
                continue
            with writable(target), open(target, "ab"):  # before a kernel starts
                say(f"{path.stem} ...")
            start = time.perf_counter()
            options["progress_bar"] = {"desc": path.stem, "leave": False} if sys.stderr.isatty() else False
            try:
                copy = papermill.execute_notebook(str(path), str(target), parameters, cwd=os.getcwd(), **options)
            except papermill.PapermillExecutionError as error:  # it counts cells as Jupyter does
                reason = f"cell [{error.exec_count}]: {error.ename}: {' '.join(str(error.evalue).split())}"
            except RuntimeError as error:
                reason = f"its kernel ({error}): too little memory?"
            else:
                copy.metadata[KEY] = key
                nbformat.write(copy, target)
                say(f"{path.stem} done in {time.perf_counter() - start:.0f} s: {target}", results(target), sep="\n")
                continue
            failures.append(f"{path.stem} failed in {reason}\n  see {target}")
            say(failures[-1])
    if len(paths) > 1 and failures:  # once more, below the output of the others
        say(*failures, sep="\n")
    return len(failures)


def _key(path: Path, parameters: Mapping[str, object]) -> str:
    """A digest of all that an executed copy is made from."""
    cells = [cell["source"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    digest = hashlib.sha256(repr((cells, sorted(parameters.items()), os.getcwd())).encode())
    for pattern in ("deepchest_utils/**/*.py", "data/results/*.csv", "data/results/*.npz"):
        for file in sorted(PROJECT.glob(pattern)):
            digest.update(file.read_bytes())
    given = [value for name, value in parameters.items() if name not in WRITTEN and isinstance(value, str)]
    for place in map(Path, filter(os.path.exists, map(os.path.expanduser, given))):
        # two levels of a folder; beside features may lie their table
        near = [*place.glob("*"), *place.glob("*/*")] if place.is_dir() else [*place.parent.glob("*")]
        for file in sorted(file for file in near if file.suffix in TABLES and file.is_file()):
            digest.update(repr((str(file), file.stat().st_size, file.stat().st_mtime_ns)).encode())
    return digest.hexdigest()


def _key_of_copy(path: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError):  # no copy, or one that breaks off
        return str(json.loads(path.read_text(encoding="utf-8"))["metadata"][KEY])
    return None


@contextmanager
def _kernel_options(figures: Path | None) -> Iterator[dict[str, Any]]:
    """Options of papermill for kernels without a screen, reached through files where the system has such sockets."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            # a port would be open to other users of the machine; the path of a socket has 100 characters at most
            transport = "ipc" if os.name == "posix" and len(folder) < 80 else "tcp"
            super().__init__(transport=transport, connection_file=f"{folder}/kernel.json", **options)
            managers.append(self)

    managers: list[Manager] = []
    for name in ("papermill", "asyncio"):  # they would log that a kernel died, or what a stop left pending
        logging.getLogger(name).addHandler(logging.NullHandler())
    before = dict(os.environ)
    os.environ |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    if figures is not None:
        os.environ.setdefault("DEEPCHEST_FIGURES", str(figures))
    with tempfile.TemporaryDirectory(prefix="deepchest-") as folder:
        try:
            # below this level a kernel that is interrupted prints a traceback; a busy machine starts one slowly
            yield {"kernel_manager_class": Manager, "extra_arguments": ["--log-level=CRITICAL"], "start_timeout": 300}
        finally:
            os.environ.clear()
            os.environ.update(before)
            for manager in managers:  # stopped while its kernel started
                if process := getattr(manager.provisioner, "process", None):
                    process.kill()
                    process.wait()
