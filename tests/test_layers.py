"""The plan of the house: who may import whom, where the repository's root is found, how large it may grow."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepchest_utils"
FILES = sorted(PACKAGE.rglob("*.py"))
# from the ground up: a room imports from its own floor and from those below
FLOORS = [
    {
        "",
        "paths",
        "files",
        "config",
        "distributed",
        "progress",
        "threads",
    },  # "": the package itself, whose names are lazy
    {"models"},
    {"weighting"},
    {"datasets"},
    {"results"},
    {"training"},
    {"sweep", "explain"},
    {"notebook"},
    {"studies"},
    {"__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module(path: Path) -> str:
    """deepchest_utils/weighting/__init__.py -> "deepchest_utils.weighting"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def room(name: str) -> str:
    return (*name.split("."), "")[1]


def imports(node: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """The package's modules that a file imports, inside of functions too if `everywhere`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names if name.name in MODULES)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are not followed here"
            submodules = [f"{child.module}.{name.name}" for name in child.names]
            yield from (name for name in submodules if name in MODULES)
            if child.module in MODULES and not MODULES.issuperset(submodules):
                yield child.module
        elif everywhere or not isinstance(child, ast.FunctionDef):
            yield from imports(child, everywhere)


TREES = {path: ast.parse(path.read_text()) for path in FILES}


def test_every_room_has_its_floor():
    assert {room(name) for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_is_imported_from_above(path):
    own = FLOOR[room(module(path))]
    assert [name for name in imports(TREES[path]) if FLOOR[room(name)] > own] == []


def test_no_circle():
    graph = {module(path): set(imports(TREES[path])) for path in FILES}
    assert len([*TopologicalSorter(graph).static_order()]) == len(MODULES)  # raises CycleError


def test_studies_are_imported_by_a_command_alone_when_it_runs():
    for path in FILES:
        if room(module(path)) != "studies":
            assert not [name for name in imports(TREES[path], everywhere=False) if room(name) == "studies"], path
    asking = {module(path) for path in FILES if any(room(name) == "studies" for name in imports(TREES[path]))}
    assert {room(name) for name in asking} <= {"studies", "__main__"}


def test_the_root_of_the_repository_is_found_in_one_place():
    found = [path for path in FILES if "__file__" in path.read_text() and ".parent" in path.read_text()]
    assert [module(path) for path in found] == ["deepchest_utils.paths"]
    for path, tree in TREES.items():
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        assert ("PROJECT" in names) == (module(path) == "deepchest_utils.paths"), path


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_can_be_read_in_one_go(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_house_stays_small():
    """As the command in CONTRIBUTING.md counts."""
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    studies = [path for path in FILES if room(module(path)) == "studies"]
    assert sum(lines[path] for path in studies) <= 5260
    assert len(FILES) - len(studies) <= 72
    assert sum(lines.values()) - sum(lines[path] for path in studies) <= 10770
