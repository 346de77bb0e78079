"""The files around the package: one source of truth for dependencies, a core that needs few of them."""

import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deepchest_utils.__main__ import parse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CARD = {
    "torch", "torchvision", "jupyterlab", "matplotlib", "seaborn", "pandas", "numpy", "scikit-learn", "papermill", "grad-cam",
}  # fmt: skip


EXTRAS = PROJECT["optional-dependencies"]


@functools.cache
def closure(*extras: str) -> dict[str, Requirement]:
    """All distributions, by their metadata, that an installation with these extras brings; of this project's own metadata
    pyproject.toml is newer."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    waiting, seen = [(Requirement(text), "") for text in texts], {}
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen[name, extra] = requirement
                if name == "deepchest-utils":
                    waiting += [(Requirement(text), "") for text in EXTRAS[extra] if extra] if extra else []
                else:
                    waiting += [(Requirement(text), extra) for text in metadata.requires(name) or []]
    return {name: requirement for (name, _), requirement in seen.items()}


def test_the_core_is_small_and_the_card_is_in_the_notebooks():
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "numpy", "jaxtyping"}
    assert len(closure()) <= 35
    assert set(closure("notebooks")) >= CARD
    assert set(closure("all")) == set(closure("notebooks", "solvers", "cluster", "dicom", "encoders"))
    assert set(closure("dev")) > set(closure("all"))


LOADED = """
import sys
import torch, numpy, jaxtyping  # which take along what they happen to find
before = set(sys.modules)
from deepchest_utils import DeepChest, METHODS, TrainConfig, make_method
DeepChest(num_tasks=2), make_method("uncertainty", num_tasks=2), TrainConfig()
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))
"""


def test_deepchest_needs_the_core_alone():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert "deepchest_utils" in names
    providers = metadata.packages_distributions()
    needed = {canonicalize_name(provider) for name in names for provider in providers[name]}
    assert needed <= set(closure()) | {"deepchest-utils"}


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(("notebook", "explain", "studies"), ("all",)), ((), ("train", "cluster", "dicom", "encoders"))],
)
def test_what_the_package_imports_comes_with_the_extra(folders, extras):
    """Drawing and notebooks aside, the extra `train` has it all."""
    providers = metadata.packages_distributions()
    files = list((ROOT / "deepchest_utils").rglob("*.py"))
    if not folders:
        drawing = {"notebook", "explain", "studies", "report.py", "paths.py", "progress.py"}
        files = [path for path in files if not drawing & set(path.relative_to(ROOT / "deepchest_utils").parts)]
    text = "\n".join(path.read_text() for path in files)
    names = set(re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE)) - set(sys.stdlib_module_names)
    needed = {canonicalize_name(provider) for name in names & set(providers) for provider in providers[name]}
    assert needed <= set(closure(*extras)) | {"deepchest-utils"}


MISSING = """
import runpy, sys

def fails(module, run):
    sys.modules[module] = None  # as if it were not installed
    try:
        print(module, "and", run())
    except (ImportError, ValueError, SystemExit) as error:
        print(module, "and", error)
    del sys.modules[module]

import deepchest_utils
fails("pandas", lambda: deepchest_utils.train)
fails("tyro", lambda: runpy.run_module("deepchest_utils", run_name="__main__"))
fails("torchjd", lambda: deepchest_utils.make_method("pcgrad", num_tasks=2))
sys.stderr = sys.stdout
from deepchest_utils.__main__ import main
fails("matplotlib", lambda: main(["report", "nowhere"]))
"""


def test_a_missing_extra_is_one_line_that_names_it():
    done = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\nmatplotlib and 2", "").splitlines()
    extras = {"pandas": "train", "tyro": "train", "torchjd": "train", "matplotlib": "notebooks"}
    assert len(lines) == len(extras)
    for line, (module, extra) in zip(lines, extras.items(), strict=True):
        assert module in line
        assert f"pip install 'deepchest-utils[{extra}]'" in line


def test_an_installation_writes_nothing_beside_the_package(tmp_path, monkeypatch):
    """As `pip install` lays it: the package alone, no pyproject.toml beside it."""
    site, home = tmp_path / "site", tmp_path / "home"
    for folder in (site, home):
        folder.mkdir()
    (site / "deepchest_utils").symlink_to(ROOT / "deepchest_utils")
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import deepchest_utils.paths as paths
paths.PROJECT = Path(sys.argv[1])
print(paths.runs_dir(), paths.default_cache_dir(), paths.raw_dir(), paths.figure_folder("phantom", False))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPCHEST_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=home,
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        str(home / place) for place in ("runs", ".cache/deepchest", ".cache/deepchest/raw", "figures")
    ], done.stderr


def test_constraints_are_those_of_committed_results():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[a-z0-9.]+", line) for line in lines)  # no address, no local version
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    table = (ROOT / "data" / "results" / "rule_tuning_cells.csv").read_text().splitlines()
    columns, values = (
        table[0].split(","),
        table[1].rsplit(",", table[0].count(",") - table[0].split(",").index("settings")),
    )
    row = dict(zip(reversed(columns), reversed(values), strict=False))
    for name in ("torch", "torchvision", "numpy", "pandas", "scikit-learn"):
        assert pins[name] == row[name]
    for name, requirement in closure("dev").items():
        if name not in ("deepchest-utils", "setuptools"):  # the environment's own is not among its packages
            assert requirement.specifier.contains(pins[name]), name


def test_types_are_shipped():
    assert (ROOT / "deepchest_utils" / "py.typed").exists()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert setuptools["package-data"] == {"deepchest_utils": ["py.typed"]}


def test_each_dependency_has_its_reason_beside_its_bound():
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(rf"^(?:dependencies|{'|'.join(EXTRAS)}) = \[.*\n((?:  .*\n)*)\]", text, re.MULTILINE)
    lines = [line for block in lists for line in block.splitlines()]
    assert len(lists) == 1 + len(EXTRAS)
    for line in lines:
        bounded = r'"[a-z0-9-]+[><=!.,0-9]+"'
        itself = r'"deepchest-utils\[[a-z,]+\]"'
        assert re.match(rf"  ({bounded}|{itself}), +# .{{10,}}", line), line


def test_conda_environment_installs_the_project_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert pip == [{"pip": ["--constraint constraints.txt", "--editable .[dev]"]}]  # the versions that `make` has
    assert conda == ["python=3.12", "pip"]
    assert "dev" in PROJECT["optional-dependencies"]


def test_commands_of_the_study_parse(tmp_path):
    """All parts of study.sh, with a Python that says what it is asked for; in macOS's bash 3.2 as well."""
    script = ROOT / "data" / "results" / "study.sh"
    text = script.read_text()
    assert not re.search(r"(mapfile|readarray) -|declare -[An]|\$\{\w+(\^|,)", text)  # came with bash 4
    parts = re.findall(r"^    (\w+)\)", text, re.MULTILINE)
    assert len(parts) == len(set(parts)) > 15
    parts = [
        part for part in parts if part != "plan" and not part.startswith("study_")
    ]  # no sweeps of the command line
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(0.004 if sys.argv[1] == '-c' else json.dumps(sys.argv[3:]))\n"
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", script, *parts],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "NIH_ROOT": "nih"},
        capture_output=True,
        text=True,
        check=True,
    )
    asked = [parse(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(asked) >= len(parts)
    assert all(set(command.config.method) for command in asked)
    assert {method for command in asked for method in command.config.method} >= {
        "deepchest",
        'pcgrad(level="features")',
    }


TEXTS = (".py", ".md", ".toml", ".yml", ".svg", ".cff", ".ipynb", ".csv", ".sh", ".json", "")
IGNORED = {".git", ".venv", ".book", "students", "runs", "processed", "raw", "__pycache__"}
IGNORED |= {".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".ipynb_checkpoints"}


def texts() -> list[Path]:
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and path.suffix in TEXTS and not IGNORED & set(path.relative_to(ROOT).parts)
    ]


@pytest.mark.parametrize(
    "refused",
    [
        r"(^|[\s\"'(=])/(home|root|work|Users)/\w",  # a path of a machine
        r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abprs]-\w{10}|hf_[A-Za-z]{30}",  # keys to services
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
        r"(?i)(password|passwd|api_?key|secret)\s*[:=]\s*[\"'][^\"'\s]{6,}[\"']",
    ],
)
def test_no_path_of_a_machine_and_no_secret_in_the_tree(refused):
    files = texts()
    assert len(files) > 150
    found = [path for path in files if re.search(refused, path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []
