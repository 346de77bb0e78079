"""The repository's address stands once, in pyproject.toml; badges, Colab cells and texts repeat it, and agree."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def load(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("address", root / ".ci" / "address.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load(ROOT)
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BY_NAME = pytest.mark.parametrize("path", tool.notebooks(), ids=lambda path: f"{path.parent.name}/{path.stem}")


def colab_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if "colab" in cell["metadata"].get("tags", [])]


def first_code(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_address_is_one_of_github():
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+", ADDRESS)
    assert tool.address() == ADDRESS


@BY_NAME
def test_notebook_opens_on_colab(path):
    cells = json.loads(path.read_text())["cells"]
    badges = re.findall(r"\[!\[Open in Colab\].*", "".join(cells[0]["source"]))
    place = f"{ADDRESS.replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/notebooks/"
    expected = f"]({place}{path.relative_to(ROOT / 'notebooks').as_posix()})"
    assert len(badges) == (0 if tool.is_solution(path) else 1)
    assert all(badge.endswith(expected) for badge in badges)
    assert colab_cells(path) == [tool.CELL.format(address=ADDRESS)] * tool.uses_package(cells)
    assert not colab_cells(path) or first_code(path) == colab_cells(path)[0]


def test_texts_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == citation["url"] == ADDRESS
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"git clone {ADDRESS} deepchest" in readme
    assert f"url = {{{ADDRESS}}}" in readme
    for path in tool.texts():
        named = re.findall(r"https://github\.com/[\w-]+/deepchest\b", path.read_text())
        assert {*named} <= {ADDRESS}


@pytest.mark.parametrize("cloned", [False, True])
def test_cell_fetches_the_repository_on_colab_alone(cloned, monkeypatch, capsys):
    ran, moved = [], []
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(" ".join(words)))
    monkeypatch.setattr("os.chdir", moved.append)
    monkeypatch.setattr("os.path.isdir", lambda path: cloned)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = compile(tool.CELL.format(address=ADDRESS), "colab", "exec")
    exec(code, {})
    assert (ran, moved) == ([], [])
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(code, {})
    assert moved == ["/content/deepchest/notebooks"]
    assert sys.path[0] == "/content/deepchest"
    assert (f"git clone -q --depth=1 {ADDRESS} /content/deepchest" in ran) == (not cloned)
    assert ran[-1].endswith("-m pip install -q --editable /content/deepchest[figures]")
    assert capsys.readouterr().out == ""


def test_one_line_and_one_command_move_the_repository(tmp_path):
    new = "https://github.com/somebody/elsewhere"
    notebooks = [path.relative_to(ROOT) for path in tool.notebooks()[:3]]
    for name in [".ci/address.py", "pyproject.toml", *(path.relative_to(ROOT) for path in tool.texts()), *notebooks]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace(ADDRESS, new))
    for _ in range(2):  # the second time nothing is left to change
        subprocess.run([sys.executable, tmp_path / ".ci" / "address.py"], check=True)
        for path in [*load(tmp_path).texts(), *(tmp_path / name for name in notebooks)]:
            text = path.read_text()
            assert ADDRESS not in text
            before = (ROOT / path.relative_to(tmp_path)).read_text()
            if path.suffix != ".ipynb" or before.count('"colab"'):
                colab = "colab.research.google.com/github"
                assert text == before.replace(ADDRESS, new).replace(
                    ADDRESS.replace("https://github.com", colab), new.replace("https://github.com", colab)
                )
