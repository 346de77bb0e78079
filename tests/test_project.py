"""The files around the package: one source of truth for dependencies, a core that needs few of them, a README whose
commands and snippet exist."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import deepchest_utils
from deepchest_utils import METHODS, DeepChest, load_dataset, make_method
from deepchest_utils.__main__ import main, parse
from deepchest_utils.datasets import DataWarning
from deepchest_utils.notebook.runner import find_notebooks, notebook_parameters, results

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
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
    assert pip == [{"pip": ["--editable .[dev]"]}]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert "dev" in PROJECT["optional-dependencies"]


def test_readme_indexes_every_notebook_with_its_question():
    for path in find_notebooks():
        assert f"(notebooks/{path.name})" in README
        question = re.search(r"\*\*(.*\?)\*\*", path.read_text()).group(1)
        assert question in README


def test_readme_quotes_the_committed_notebook():
    (quoted,) = re.findall(r"```text\n(.*?)\n```", README, re.DOTALL)
    assert quoted in results(ROOT / "notebooks" / "04_baseline_comparison.ipynb")


def test_readme_intervals_are_printed_by_the_notebooks():
    printed = ""
    for name in ("04_baseline_comparison", "07_a_better_rule"):
        for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
            for output in cell.get("outputs", []):
                printed += "".join(output.get("text") or output.get("data", {}).get("text/plain", []))
    quoted = re.findall(r"[+-]0\.\d+ \[[+-]0\.\d+, [+-]0\.\d+\]", README)
    assert len(quoted) >= 4
    assert not [interval for interval in quoted if interval not in printed]


def test_readme_cost_is_printed_by_the_notebook():
    (cost,) = re.findall(r"1\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] times a?", README)
    assert cost.removesuffix(" a") in results(ROOT / "notebooks" / "06_cost_and_scaling.ipynb")


def test_readme_links_and_pictures_exist():
    links = re.findall(r"\]\(([^)]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert len(local) > 6
    for link in local:
        assert (ROOT / link).exists(), link


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("words", [c for c in commands() if "deepchest_utils" in c], ids=" ".join)
def test_readme_commands_parse(words):
    arguments = words[words.index("deepchest_utils") + 1 :]
    parsed = parse(arguments)
    for name in getattr(parsed, "parameter", {}):
        assert all(name in notebook_parameters(path) for path in find_notebooks(parsed.names))


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


SMALL = [word for split in ("train", "val", "test") for word in ("--data-options", f"num_{split}", "96")]
SMALL += ["--image-size", "32", "--epochs", "1", "--device", "cpu"]
SHORTER = {"train": SMALL, "sweep": [*SMALL, "--jobs", "1"], "localize": [*SMALL, "--per-finding", "2"]}
# in tests of their own, smaller or with what they need
ELSEWHERE = ("notebooks", "bench", "torchrun", "dask")
MADE = ("runs/deepchest-0/checkpoint.pt", "runs/mine.csv", "runs/pair_summary.csv", "runs/report.png", "map.png")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")  # images this few
def test_readme_commands_run(tmp_path, monkeypatch, capsys, nih_folder):
    """One after the other, in one folder, as they stand but for small data and one epoch."""
    monkeypatch.chdir(tmp_path)
    data = load_dataset("phantom", image_size=32, num_train=96, num_val=96, num_test=96)
    Image.fromarray(data.test.images[0]).save(tmp_path / "image.png")
    (tmp_path / "PATH").symlink_to(nih_folder())
    ran = [words for words in commands() if "deepchest_utils" in words and not {*ELSEWHERE} & {*words}]
    order = ("train", "sweep", "localize", "report", "predict", "data")  # a checkpoint comes before its use
    ran = [words[words.index("deepchest_utils") + 1 :] for words in ran]
    assert {arguments[0] for arguments in ran} == {*order}
    for arguments in sorted(ran, key=lambda arguments: order.index(arguments[0])):
        # the notebooks' loop, whose runs are reported, is not run here
        arguments = [word.replace("runs/loop", "runs") for word in arguments]
        assert main([*arguments, *SHORTER.get(arguments[0], [])]) == 0, (arguments, capsys.readouterr().err)
    for made in MADE:
        assert (tmp_path / made).exists(), made
    assert "Hernia" in capsys.readouterr().out


def test_readme_names_every_method_once():
    table = re.search(r"\| family \| names \|\n(.*?)\n\n", README, re.DOTALL).group(1)
    named = re.findall(r"`(\w+)`", table.partition("| one over another")[0])
    assert sorted(named) == sorted(METHODS)


def test_readme_names_the_make_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {c[1] for c in commands() if c[0] == "make"}
    assert used == {"run", "test", "test-slow", "test-browser", "lab"}
    assert used <= targets


def test_readme_snippet_runs():
    """The diff's right-hand side, applied to a loop of ordinary PyTorch."""
    diff = re.search(r"```diff\n(.*?)```", README, re.DOTALL).group(1)
    code = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 14)
    names = {
        "net": net,
        "epochs": 2,
        "loader": [(torch.randn(8, 4), torch.randint(0, 2, (8, 14)).float())],
        "torch": torch,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1),
        "training_accuracy": torch.linspace(0.5, 1, 14),
    }
    exec(code, names)
    weights = names["weighting"].weights
    assert isinstance(names["weighting"], DeepChest)
    assert weights[:7].tolist() == pytest.approx([1.1**2] * 7)
    assert weights[7:].tolist() == pytest.approx([1.05**-2] * 7)


TEXTS = (".py", ".md", ".toml", ".yml", ".svg", ".cff", ".ipynb", ".csv", ".sh", ".json", "")
IGNORED = {".git", ".venv", "runs", "processed", "raw", "__pycache__"}
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


def test_readme_method_in_one_file_trains(monkeypatch, capsys):
    """The block as it stands, on less data and for fewer epochs."""
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "METHODS[" in b]
    small = code.replace("epochs=5", "epochs=2").replace(
        'load_dataset("phantom", seed=0)', 'load_dataset("phantom", seed=0, num_train=256, num_val=64, num_test=64)'
    )
    assert small.count("num_train") == small.count("epochs=2") == 1
    names: dict = {}
    monkeypatch.setitem(METHODS, "left", METHODS["equal"])  # taken back after the test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # so few images lack some finding
        exec(small, names)
    weights = names["run"].history.query("metric == 'weight' and epoch == 2").value
    assert weights.mean() == pytest.approx(1)
    assert weights.std() > 0.01  # it is this rule that trained
    assert "auroc" in capsys.readouterr().out


def test_readme_counts_the_methods():
    """Rules that weight losses, variants and controls, and gradient balancing: each method is one of them."""
    rules, variants = map(int, re.search(r"task's gradient needed \| (\d+), and (\d+) variants", README).groups())
    balancing = int(re.search(r"^\| gradient balancing \| (\d+),", README, re.MULTILINE).group(1))
    listed = re.search(r"^\| gradient balancing \| (`.*)\|$", README, re.MULTILINE).group(1)
    assert balancing == listed.count(",") + 1
    assert rules + variants + balancing == len(METHODS)


def test_readme_lesson_names_sections_that_exist():
    table = README.split("## A lesson of 90 minutes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+)–(\d+) \| (?:\[)?(\d\d)(?:\]\(\S+\))? ([\d, ]+) \| (.*?) \|", table, re.MULTILINE)
    assert [int(start) for start, *_ in rows] == [0, *(int(end) for _, end, *_ in rows[:-1])]
    assert rows[-1][1] == "90"
    for *_, name, sections, live in rows:
        (path,) = find_notebooks([name])
        parts = re.split(r"(?=## \d+\. )", path.read_text())
        named = [part for s in sections.split(",") for part in parts if part.startswith(f"## {s.strip()}. ")]
        assert len(named) == len(sections.split(",")), (name, sections)
        if re.search("slider|chooser|explorer", live):
            assert any(re.search(r"explore(_\w+)?\(", part) for part in named), (name, live)


@pytest.mark.parametrize(
    "message", ["device should be auto, cpu, cuda or cuda:N", "has no parameter", "is at work in", "install.log"]
)
def test_readme_quotes_messages_that_exist(message):
    table = README.split("## When something goes wrong")[1].split("\n## ")[0]
    assert message in table
    sources = [ROOT / "Makefile", *(ROOT / "deepchest_utils").rglob("*.py")]
    assert any(message in path.read_text() for path in sources)


HOUSE = (ROOT / "deepchest_utils" / "README.md").read_text()


def test_house_method_works(monkeypatch):
    code = re.findall(r"```python\n(.*?)```", HOUSE, re.DOTALL)[0]
    monkeypatch.setitem(METHODS, "proportional", METHODS["equal"])  # taken back after the test
    exec(code, {})
    method = make_method("proportional", num_tasks=3)
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    method.backward(losses)
    assert losses.grad.tolist() == method.weights.tolist() == [0.5, 1.0, 1.5]


def test_house_shows_every_room_and_every_public_name():
    rooms = set(re.findall(r"<b>(\w+)</b>", HOUSE)) | set(re.search(r'ground\["(.*)"\]', HOUSE).group(1).split(", "))
    there = {
        path.stem
        for path in (ROOT / "deepchest_utils").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms == there - {"__init__"}
    table = HOUSE.split("## Public names")[1]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == deepchest_utils.__all__


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "deepchest_utils/README.md", "data/README.md"])
def test_other_pages_name_files_and_targets_that_exist(name):
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / link).exists(), link
    folders = ("", "deepchest_utils", "data")
    for place in re.findall(r"`([\w./]+/[\w.]+\.(?:py|sh|md|txt))`", text):
        assert any((ROOT / folder / place).exists() for folder in folders), place
