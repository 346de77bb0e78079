"""The files around the package: one source of truth for dependencies, modules of one purpose, a README whose
commands and snippet exist."""

import json
import re
import shlex
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from deepchest_utils import METHODS, DeepChest, load_dataset
from deepchest_utils.__main__ import main, parse
from deepchest_utils.datasets import DataWarning
from deepchest_utils.notebook.runner import find_notebooks, notebook_parameters, results

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
CARD = {
    "torch", "torchvision", "jupyterlab", "matplotlib", "seaborn", "pandas", "numpy", "scikit-learn", "papermill", "grad-cam",
}  # fmt: skip


def requirement(text: str) -> str:
    return re.match(r"[A-Za-z0-9-]+", text).group()


def test_every_dependency_of_the_card_is_declared():
    assert {requirement(line) for line in PROJECT["dependencies"]} >= CARD


def test_each_dependency_has_its_reason_beside_its_bound():
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dev|solvers|cluster) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in lists for line in block.splitlines()]
    assert len(lists) == 2 + len(set(PROJECT["optional-dependencies"]) - {"dev"})
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


def test_modules_stay_small():
    for path in (ROOT / "deepchest_utils").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 200, path.name


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


SMALL = [word for split in ("train", "val", "test") for word in ("--data-options", f"num_{split}", "96")]
SMALL += ["--image-size", "32", "--epochs", "1", "--device", "cpu"]
SHORTER = {"train": SMALL, "sweep": [*SMALL, "--jobs", "1"], "localize": [*SMALL, "--per-finding", "2"]}
# in tests of their own, smaller or with what they need
ELSEWHERE = ("notebooks", "bench", "torchrun", "dask")
MADE = ("runs/deepchest-0/checkpoint.pt", "runs/mine.csv", "runs/pair_summary.csv", "runs/report.png", "map.png")


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
    assert len(code.splitlines()) <= 30
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
