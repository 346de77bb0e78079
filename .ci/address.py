"""Write the repository's address, as pyproject.toml has it, wherever it is repeated: `make address`.

Notebooks get the badge that opens them on Colab and the cell that fetches the repository there. Only those named, or all.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB = "https://colab.research.google.com"
TAG = "colab"
CELL = """\
# On Colab, fetch the repository: the package and the tables of data/results. Elsewhere, nothing.
import os
import subprocess
import sys

if "google.colab" in sys.modules:
    home, address = "/content/deepchest", "{address}"
    if not os.path.isdir(home):
        subprocess.run(["git", "clone", "-q", "--depth=1", address, home], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--editable", f"{{home}}[figures]"]
    subprocess.run(pip, check=True)
    sys.path.insert(0, home)  # the kernel that runs does not see an editable installation
    os.chdir(f"{{home}}/notebooks")"""


def address() -> str:
    """The repository's address, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Repository"]).rstrip("/")


def badge(path: Path) -> str:
    """The line of Markdown that opens this notebook of the repository on Colab."""
    place = address().replace("https://github.com", f"{COLAB}/github") + "/blob/main/"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place}{path.resolve().relative_to(ROOT).as_posix()})"


def notebooks() -> list[Path]:
    """All numbered notebooks, with the appendix and the solutions."""
    found = (ROOT / "notebooks").rglob("[0-9A][0-9]_*.ipynb")
    return sorted(path for path in found if "students" not in path.parts)


def texts() -> list[Path]:
    """Files besides notebooks that may have the address."""
    return [ROOT / "CITATION.cff", ROOT / "README.md", ROOT / "notebooks" / "README.md"]


def uses_package(cells: list[dict]) -> bool:
    """Whether a notebook needs what the Colab cell fetches; an indented import is one that it can do without."""
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return bool(re.search(r"^(from|import) deepchest_utils", code, re.MULTILINE))


def is_solution(path: Path) -> bool:
    return "solutions" in path.parts


def mend_notebook(path: Path) -> None:
    """The badge below the title, but in solutions; the Colab cell before all code, where the package is used."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = notebook["cells"]
    if not is_solution(path):
        paragraphs = "".join(cells[0]["source"]).split("\n\n")
        paragraphs = [words for words in paragraphs if f"({COLAB}/" not in words]
        source = "\n\n".join([paragraphs[0], badge(path), *paragraphs[1:]])
        cells[0]["source"] = source.splitlines(keepends=True)
    ours = [cell for cell in cells if TAG in cell["metadata"].get("tags", [])]
    if uses_package(cells) and not ours:
        first = next(place for place, cell in enumerate(cells) if cell["cell_type"] == "code")
        ours = [{"cell_type": "code", "id": TAG, "metadata": {}, "execution_count": None, "outputs": [], "source": []}]
        cells.insert(first, ours[0])
    for cell in ours:
        cell["metadata"] |= {"jupyter": {"source_hidden": True}, "tags": [TAG]}
        cell["source"] = CELL.format(address=address()).splitlines(keepends=True)
    mended = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if mended != text:
        path.write_text(mended, encoding="utf-8")


def mend_texts() -> None:
    """The address that CITATION.cff had becomes that of pyproject.toml."""
    lines = texts()[0].read_text(encoding="utf-8").splitlines()
    (old,) = [line.split('"')[1] for line in lines if line.startswith("repository-code:")]
    for path in texts():
        path.write_text(path.read_text(encoding="utf-8").replace(old, address()), encoding="utf-8")


if __name__ == "__main__":
    if not sys.argv[1:]:
        mend_texts()
    for name in sys.argv[1:] or notebooks():
        mend_notebook(Path(name))
