"""The README and the three pages that it leads to: short, true, and every command and snippet of theirs is run."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import deepchest_utils
from deepchest_utils import METHODS, DeepChest, load_dataset, make_method
from deepchest_utils.__main__ import main, parse
from deepchest_utils.datasets import DataWarning
from deepchest_utils.notebook.runner import find_notebooks, notebook_parameters, results
from deepchest_utils.results.statistics import judge_differences
from deepchest_utils.studies.better_rule import at_one_setting
from deepchest_utils.studies.figures.readme import draw, macro_differences
from deepchest_utils.studies.replication import FAR

ROOT = Path(__file__).resolve().parents[1]
README, LESSONS, DATA, HOUSE = (
    (ROOT / name).read_text()
    for name in ("README.md", "notebooks/README.md", "data/README.md", "deepchest_utils/README.md")
)
PAGES = {
    "README.md": README,
    "notebooks/README.md": LESSONS,
    "data/README.md": DATA,
    "deepchest_utils/README.md": HOUSE,
}
CARDS = ("CONTRIBUTING.md", "CLAIM.md", "data/PHANTOM.md", "deepchest_utils/MODEL_CARD.md", "data/results/PROTOCOL.md")
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BY_PAGE = pytest.mark.parametrize("page", [*PAGES, *(name for name in CARDS if (ROOT / name).exists())])


def snippets(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def section(title: str, text: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


# form


def test_readme_is_short_and_its_first_screen_says_how_to_begin():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
    first = README.partition("\n## ")[0].strip()
    assert first.count("\n") < 24
    assert re.search(r"^\*\*On drawn radiographs", first, re.MULTILINE)
    assert first.count("![") == 1
    assert "make lab TORCH_INDEX=https://download.pytorch.org/whl/cpu" in first
    links = first.splitlines()[-2:]
    assert len(re.findall(r"\[[^\]]+\]\([^)]+\)", "".join(links))) == 6


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@BY_PAGE
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@BY_PAGE
def test_files_and_targets_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= TARGETS
    for place in re.findall(r"`([\w./]+/[\w.]+\.(?:py|sh|md|txt|json))`", text):
        assert any((ROOT / folder / place).exists() for folder in ("", "deepchest_utils", "data")), place


# the finding


def interval(row: pd.Series) -> str:
    return f"{row['mean']:+.4f} [{row.low:+.4f}, {row.high:+.4f}]"


@pytest.fixture(scope="module")
def deepchest() -> list[pd.DataFrame]:
    """DeepChest minus Equal in each row of table and picture: a row a metric."""
    return [table.query("method == 'deepchest'").set_index("metric") for table in macro_differences().values()]


def test_readme_table_is_that_of_the_committed_tables(deepchest):
    rows = [line for line in section("What was found", README).splitlines() if line.startswith("| ")][1:]
    for line, table in zip(rows, deepchest, strict=True):
        auroc, precision = (table.loc[metric] for metric in ("auroc", "average_precision"))
        found = f"{auroc.smallest:.3f}, {precision.smallest:.3f}"
        expected = [str(auroc.seeds), interval(auroc), interval(precision), found]
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == expected


def test_readme_headline_is_the_study(deepchest):
    bold = " ".join(README.split("**")[1].split())
    for row in deepchest[:2]:
        for metric in ("auroc", "average_precision"):
            assert interval(row.loc[metric]) in bold
    smallest = pd.concat(deepchest[:2]).groupby("metric").smallest.max()
    assert f"difference of {smallest.auroc:.3f} AUROC, or of {smallest.average_precision:.3f}" in bold


def test_no_rule_is_significantly_better_in_any_table_of_one_training_set():
    summaries = sorted((ROOT / "data" / "results").glob("*_summary.csv"))
    judged = 0
    for path in summaries:
        table = pd.read_csv(path).query("baseline == 'equal' and task == 'macro'")
        verdicts = judge_differences(table, ["metric"]).verdict
        judged += len(verdicts)
        assert not verdicts.str.contains("higher").any(), path.name
    assert judged > 200


def test_rules_far_below_are_as_many_as_written():
    first, second = (t.query("metric == 'auroc'").set_index("method") for t in list(macro_differences().values())[:2])
    far = (first.high < FAR) & (second.high.reindex(first.index) < FAR)
    assert f"{far.sum()} of {len(first)} rules lie far below Equal on both phantoms" in README


def test_rules_that_lead_are_as_written():
    judged = list(macro_differences().values())[:2]
    higher = [set(t.method[(t.metric == "auroc") & t.verdict.str.startswith("higher")]) for t in judged]
    assert not set.intersection(*higher)  # "No rule is significantly better on both"
    leaders = higher[1]
    assert leaders == {"deepchest_loss_trend", "ldc_mtl", 'pcgrad(level="features")'}
    results = ROOT / "data" / "results"
    own, same = (
        table[(table.phantom == "nih") & table.method.isin(leaders)]
        for table in at_one_setting(results / "study_main.csv", results / "study_settings.csv").values()
    )
    assert own.verdict.str.startswith("higher").all()
    assert not same.verdict.str.contains("higher").any()  # "not significantly"
    own, same, text = own["mean"], same["mean"], " ".join(README.split())
    assert f"lead on the NIH phantom by {own.min():.3f} to {own.max():.3f} AUROC" in text
    assert f"they lead by {same.min():.3f} to {same.max():.3f}, not significantly" in text


def test_on_the_nih_sample_the_rule_trains_the_network_of_the_prevalence():
    rows = pd.read_csv(ROOT / "data" / "results" / "nih_sample.csv").query("split == 'test'")
    scores = rows.pivot_table(index=["seed", "task", "metric"], columns="method", values="value")
    assert len(scores) > 100
    assert scores.deepchest.equals(scores.prevalence_oracle)


def test_readme_picture_shows_deepchest_beside_the_others(deepchest):
    figure = draw()
    for ax, metric in zip(figure.axes, ("auroc", "average_precision"), strict=True):
        diamonds = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
        assert [line.get_xdata()[0] for line in diamonds] == [table.loc[metric, "mean"] for table in deepchest]
        low, high = ax.get_xlim()
        assert all(((low < line.get_xdata()) & (line.get_xdata() < high)).all() for line in dots)
        further = [int(text.get_text().split()[1]) for text in ax.texts if text.get_text().endswith("more")]
        others = [table.method.nunique() - 1 for table in macro_differences().values()]
        assert sum(len(line.get_xdata()) for line in dots) + sum(further) == sum(others)


def test_readme_quotes_the_committed_notebooks():
    (claims,) = snippets("text", README)
    assert claims.strip() in results(ROOT / "notebooks" / "04_baseline_comparison.ipynb")
    (cost,) = re.findall(r"1\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] times a?", README)
    assert cost.removesuffix(" a") in results(ROOT / "notebooks" / "06_cost_and_scaling.ipynb")


def test_bibtex_is_that_of_citation_cff():
    (text,) = snippets("bibtex", README)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    flat = " ".join(text.replace("{", "").replace("}", "").split())
    paper = citation["references"][0]
    assert f"title = {citation['title']}," in flat
    assert f"title = {paper['title']}," in flat
    names = " and ".join(f"{name['family-names']}, {name['given-names']}" for name in paper["authors"])
    assert f"author = {names}," in flat
    assert citation["version"] == PROJECT["version"]
    assert f"Version {PROJECT['version']}" in flat


# the notebooks' page


def test_every_notebook_is_in_both_lists_with_its_question_in_one():
    for path in find_notebooks():
        assert f"(notebooks/{path.name})" in README
        assert f"({path.name})" in LESSONS
        first = "".join(json.loads(path.read_text())["cells"][0]["source"])
        question = re.search(r"^(?:# \d\d |\**)(.*\?)\**$", first, re.MULTILINE).group(1)
        assert question in LESSONS


def test_lesson_names_sections_that_exist():
    table = section("A lesson of 90 minutes", LESSONS)
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
def test_messages_that_are_quoted_exist(message):
    assert message in section("When something goes wrong", LESSONS)
    sources = [ROOT / "Makefile", *(ROOT / "deepchest_utils").rglob("*.py")]
    assert any(message in path.read_text() for path in sources)


# the package's page


def test_every_method_is_named_once():
    table = re.search(r"\| family \| names \|\n(.*?)\n\n", HOUSE, re.DOTALL).group(1)
    named = re.findall(r"`(\w+)`", table.partition("| one over another")[0])
    assert sorted(named) == sorted(METHODS)


def test_methods_are_counted():
    """Rules that weight losses, variants and controls, and gradient balancing: each method is one of them."""
    rules, variants = map(int, re.search(r"task's gradient needed \| (\d+), and (\d+) variants", HOUSE).groups())
    balancing = int(re.search(r"^\| gradient balancing \| (\d+),", HOUSE, re.MULTILINE).group(1))
    listed = re.search(r"^\| gradient balancing \| (`.*)\|$", HOUSE, re.MULTILINE).group(1)
    assert balancing == listed.count(",") + 1
    assert rules + variants + balancing == len(METHODS)


def test_house_shows_every_room_and_every_public_name():
    rooms = set(re.findall(r"<b>(\w+)</b>", HOUSE)) | set(re.search(r'ground\["(.*)"\]', HOUSE).group(1).split(", "))
    there = {
        path.stem
        for path in (ROOT / "deepchest_utils").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms == there - {"__init__"}
    table = section("Public names", HOUSE)
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == deepchest_utils.__all__


# commands


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in snippets("bash", text) for line in block.splitlines() if line]


COMMANDS = [words for text in PAGES.values() for words in commands(text)]
OURS = [words for words in COMMANDS if "deepchest_utils" in words]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_need_no_activated_environment(words):
    if words[0].startswith(".venv/bin/"):
        assert Path(words[0]).name in ("python", "papermill", "torchrun")
    elif words[0] == "make":
        assert words[1] in TARGETS
    else:
        assert words[0] in ("git", "cd", "mkdir", "for", "do", "done", "python3")


def test_make_targets_are_named():
    used = {words[1] for words in COMMANDS if words[0] == "make"} | set(re.findall(r"`make ([a-z-]+)", README))
    assert used == TARGETS - {"lint"}


def test_first_commands_lead_from_nothing_to_jupyterlab(tmp_path):
    """As they stand, but that the repository is this one and `make` says what it would do."""
    block = snippets("bash", README)[0].replace(PROJECT["urls"]["Repository"], str(ROOT)).replace("make", "make -n")
    (tmp_path / "git").mkdir()
    safe = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    done = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=os.environ | safe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jupyter lab" in done.stdout
    assert "-m venv" in done.stdout


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_parse(words):
    parsed = parse(words[words.index("deepchest_utils") + 1 :])
    for name in getattr(parsed, "parameter", {}):
        assert all(name in notebook_parameters(path) for path in find_notebooks(parsed.names))


SMALL = [word for split in ("train", "val", "test") for word in ("--data-options", f"num_{split}", "96")]
SMALL += ["--image-size", "32", "--epochs", "1", "--device", "cpu"]
NIH = ["--image-size", "32", "--epochs", "1", "--device", "cpu"]
SHORTER = {"train": SMALL, "sweep": [*SMALL, "--jobs", "1"], "localize": [*SMALL, "--per-finding", "2"]}
ELSEWHERE = (
    "notebooks",
    "bench",
    "torchrun",
    "dask",
    "embed",
    "embeddings",
)  # the last two: test_embeddings.py  # in tests of their own, smaller or with what they need
MADE = {"runs/deepchest-0/checkpoint.pt", "runs/mine.csv", "runs/pair_summary.csv", "runs/report.png"}


def write_pictures(root: Path, names: list[str]) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(root / name)


def own_table(root: Path) -> Path:
    """films.csv with 60 films of 30 patients."""
    names = [f"{number}.png" for number in range(60)]
    write_pictures(root, names)
    labels = np.random.default_rng(0).integers(0, 2, (60, 2))
    frame = pd.DataFrame({"file": names, "patient": np.arange(60) // 2})
    frame.assign(Effusion=labels[:, 0], Fracture=labels[:, 1]).to_csv(root / "films.csv", index=False)
    return root


def chexpert(root: Path) -> Path:
    """The folder of a download: 60 films for training, 20 that radiologists labelled."""
    for part, first, count in (("train", 1, 60), ("valid", 64541, 20)):
        names = [f"{part}/patient{first + number:05d}/study1/view1_frontal.jpg" for number in range(count)]
        write_pictures(root / "CheXpert-v1.0-small", names)
        rng = np.random.default_rng(count)
        frame = pd.DataFrame({"Path": [f"CheXpert-v1.0-small/{name}" for name in names]})
        frame = frame.assign(Sex="Female", Age=50, **{"Frontal/Lateral": "Frontal", "AP/PA": "AP"})
        for finding in ("No Finding", "Edema", "Pleural Effusion", "Support Devices"):
            frame[finding] = rng.choice([0.0, 1.0], count)
        frame.loc[frame["No Finding"] == 1, ["Edema", "Pleural Effusion"]] = 0.0
        frame.to_csv(root / "CheXpert-v1.0-small" / f"{part}.csv", index=False)
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")  # images this few
def test_commands_run(tmp_path, monkeypatch, capsys, nih_folder):
    """One after the other, in one folder, as they stand but for small data and one epoch."""
    monkeypatch.chdir(tmp_path)
    data = load_dataset("phantom", image_size=32, num_train=96, num_val=96, num_test=96)
    Image.fromarray(data.test.images[0]).save(tmp_path / "image.png")
    (tmp_path / "FOLDER").symlink_to(nih_folder())
    roots = {
        "nih": tmp_path / "FOLDER",
        "csv": own_table(tmp_path / "csv"),
        "chexpert": chexpert(tmp_path / "chexpert"),
    }
    ran = [words for words in OURS if not {*ELSEWHERE} & {*words}]
    order = ("train", "sweep", "localize", "report", "predict", "data")  # a checkpoint comes before its use
    ran = [words[words.index("deepchest_utils") + 1 :] for words in ran]
    assert {arguments[0] for arguments in ran} == {*order}
    made = {*MADE}
    for arguments in sorted(ran, key=lambda arguments: order.index(arguments[0])):
        # the notebooks' loop, whose runs are reported, is not run here
        arguments = [word.replace("runs/loop", "runs") for word in arguments]
        if arguments[0] == "data":
            arguments = [str(roots[arguments[1]]) if word == "PATH" else word for word in arguments]
        shorter = NIH if arguments[:3] == ["train", "--dataset", "nih"] else SHORTER.get(arguments[0], [])
        assert main([*arguments, *shorter]) == 0, (arguments, capsys.readouterr().err)
        made |= {word for before, word in pairwise(arguments) if before == "--out"}
    assert {arguments[1] for arguments in ran if arguments[0] == "data"} == {*roots}
    missing = {name for name in made if not (tmp_path / name).exists()}
    assert not missing, missing
    assert "runs/map.png" in made
    assert "Hernia" in capsys.readouterr().out


def public_subset(root: Path) -> Path:
    """What a clone has: tables, and archives of a picture and a pickle a radiograph; 60 images of 30 patients."""
    (root / "labels").mkdir(parents=True)
    (root / "datasets").mkdir()
    rng = np.random.default_rng(0)
    for part, first, count in (("train", 1, 36), ("val", 50, 12), ("test", 70, 12)):
        names = [f"{first + number // 2:08d}_{number % 2:03d}" for number in range(count)]
        labels = pd.DataFrame(rng.integers(0, 2, (count, 14)), columns=deepchest_utils.FINDINGS)
        labels.insert(0, "Image Index", [f"{name}.png" for name in names])
        labels.to_csv(root / "labels" / f"{part}_labels.csv", index=False)
        with tarfile.open(root / "datasets" / f"ChestXray14_{part}_000.tar", "w") as archive:
            for name in names:
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save(picture, "png")
                for suffix, content in (("png", picture.getvalue()), ("pyd", b"a pickle")):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*findings without a positive")
def test_public_subset_is_unpacked_and_read(tmp_path, monkeypatch, capsys):
    """The commands as they stand, but that the clone is one of made images."""
    title = "The easiest real data: 30,545 of these images at 256 px"
    section = DATA.split(f"### {title}\n")[1].split("\n## ")[0]
    unpack, study = snippets("bash", section)
    clone = next(line for line in unpack.splitlines() if line.startswith("git clone"))
    unpack = unpack.replace(clone, f"cp -r {public_subset(tmp_path / 'made')} PATH")
    subprocess.run(["bash", "-euc", unpack], cwd=tmp_path, check=True)
    assert len([*(tmp_path / "PATH" / "images").iterdir()]) == 60  # and no pickle
    monkeypatch.chdir(tmp_path)
    for words in commands(f"```bash\n{study}```"):
        shorter = ["--epochs", "1", "--seed", "0"] if "sweep" in words else []
        assert main([*words[words.index("deepchest_utils") + 1 :], *shorter]) == 0, capsys.readouterr().err
    assert pd.read_csv(tmp_path / "runs" / "nih_summary.csv").method.nunique() == 3


# snippets


def test_loop_of_ordinary_pytorch_runs():
    """The diff's right-hand side; a network that stays as it is, wrong on the first seven findings, right on the others."""
    (diff,) = snippets("diff", README)
    code = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    net = torch.nn.Linear(4, 14)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.tensor([-1.0] * 7 + [1.0] * 7))
    names = {
        "net": net,
        "epochs": 2,
        "loader": [(torch.randn(8, 4), torch.ones(8, 14)), (torch.randn(4, 4), torch.ones(4, 14))],
        "torch": torch,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.0),
    }
    exec(code, names)
    weights = names["weighting"].weights
    assert isinstance(names["weighting"], DeepChest)
    assert (names["right"] / names["seen"]).tolist() == [0.0] * 7 + [1.0] * 7
    assert weights[:7].tolist() == pytest.approx([1.1**2] * 7)
    assert weights[7:].tolist() == pytest.approx([1.05**-2] * 7)


def test_short_method_works(monkeypatch):
    code = snippets("python", HOUSE)[0]
    monkeypatch.setitem(METHODS, "proportional", METHODS["equal"])  # taken back after the test
    exec(code, {})
    method = make_method("proportional", num_tasks=3)
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    method.backward(losses)
    assert losses.grad.tolist() == method.weights.tolist() == [0.5, 1.0, 1.5]


def test_method_in_one_file_trains(monkeypatch, capsys):
    """The block as it stands, on less data and for fewer epochs."""
    (code,) = [block for block in snippets("python", HOUSE) if "train(TrainConfig(" in block]
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


@pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")  # images this few
def test_controlled_phantom_loads():
    (code,) = [block for block in snippets("python", DATA) if "controlled" in block]
    small = {"num_train": 60, "num_val": 60, "num_test": 60, "image_size": 32}
    loaded = []
    exec(code, {"load_dataset": lambda *args, **options: loaded.append(load_dataset(*args, **options, **small))})
    assert len(loaded[0].train) == 60


@pytest.mark.parametrize("page", PAGES)
def test_snippets_compile(page):
    for code in snippets("python", PAGES[page]):
        compile(code, page, "exec")


def test_json_of_the_devcontainer_names_what_is_there():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"].split()[0] == "make"
    assert ".devcontainer/devcontainer.json" in README
    assert sys.version_info >= (3, 11)
