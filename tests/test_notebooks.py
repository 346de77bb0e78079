"""The notebooks: committed as run once from top to bottom, and run here headless, their own assertions included.

By default each runs on the phantom, loads every data set, and two run on data sets with files. `make test-slow` runs the
others on those, and the solutions.
"""

import ast
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deepchest_utils.datasets import Splits
from deepchest_utils.notebook.parameters import declared_types
from deepchest_utils.notebook.runner import (
    FOLDER,
    NotebookError,
    check_parameters,
    find_notebooks,
    notebook_parameters,
    run_notebooks,
)

NOTEBOOKS = find_notebooks()
SOLUTIONS = find_notebooks(part="solutions")
APPENDIX = find_notebooks(part="appendix")
LOADING = [path for path in NOTEBOOKS if "01" <= path.stem < "09"]  # the others load no data set
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
SOLVED = pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
ALL = pytest.mark.parametrize(
    "path", NOTEBOOKS + APPENDIX + SOLUTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
COMMON = {"dataset", "data_root", "data_options", "image_size", "epochs", "seed", "device", "smoke"}
SECTIONS = ("Exercises", "References")


def by_name(*default: str):
    """Each notebook that loads data; all but these are slow."""
    marks = {path: () if path.stem in default else pytest.mark.slow for path in LOADING}
    return pytest.mark.parametrize(
        "path", [pytest.param(path, id=path.stem, marks=mark) for path, mark in marks.items()]
    )


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(path: Path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} >= {
        "01_data_exploration",
        "02_loss_trend_weighting",
        "03_training",
        "04_baseline_comparison",
        "05_grad_cam",
        "06_cost_and_scaling",
        "07_a_better_rule",
    }


@ALL
def test_committed_as_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= (1 if path in SOLUTIONS else 3)


@ALL
def test_file_is_fit_to_publish(path):
    text = path.read_text()
    assert path.stat().st_size <= 600_000
    assert "widgets" not in json.loads(text)["metadata"]
    assert "application/vnd.jupyter.widget-view+json" not in text
    assert not re.search(r'[" ](/home/|/root/|/work/|/Users/|/tmp/|[A-Z]:\\\\)', text), "a path of a machine"


@BY_NAME
def test_skeleton(path):
    cells = read(path).cells
    first = cells[0].source
    assert first.startswith(f"# {path.stem[:2]} ")
    assert "?" in first, "the first cell asks a question"
    assert re.search(r"\*\*.+\*\*", first), "and answers it in bold"
    assert "*Run time:*" in first
    headings = re.findall(r"^## (.*)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.MULTILINE)
    assert headings[-2:] == list(SECTIONS)
    asserting = [
        cell for cell in cells if cell.cell_type == "code" and re.search(r"^\s*assert ", cell.source, re.MULTILINE)
    ]
    assert asserting, "a cell asserts a claim"


@ALL
def test_links_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    local = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    assert local
    for link in local:
        file, _, anchor = link.partition("#")
        target = (path.parent / file).read_text().lower()
        headings = re.findall(r"## (.*?)(?:\\n|\n|\")", target)
        slugs = {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-") for heading in headings}
        assert not anchor or anchor.lower() in slugs, link


@ALL
def test_words_and_code_are_in_proportion(path):
    cells = read(path).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = [[line for line in cell.source.splitlines() if line.strip()] for cell in cells if cell.cell_type == "code"]
    assert 3 <= words / sum(map(len, lines)) <= 25
    assert all(len(cell.source.splitlines()) <= 30 for cell in cells if cell.cell_type == "code")


@ALL
def test_parameters_are_typed_literals_with_help(path):
    parameters = notebook_parameters(path)
    assert "smoke" in parameters
    if path in LOADING:
        assert set(parameters) >= COMMON
    for name, entry in parameters.items():
        assert entry["help"], f"{name} has no help"
        assert entry["inferred_type_name"] in ("str", "int", "float", "bool", "dict"), name


@ALL
def test_parameters_are_checked_in_the_cell_below_theirs(path):
    if path.stem.startswith("00"):  # plain PyTorch, without the package
        return
    cells = code_cells(path)
    (place,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert cells[place + 1].source.startswith("check_parameters(globals())\n")
    assert set(declared_types(cells[place].source)) == set(notebook_parameters(path))


WRONG = {
    "smoke": ("false", "yes", 1),
    "image_size": (32.0, "32", None),
    "seed": ("1", 1.0),
    "lr": ("2e-3", None),
    "data_root": (3,),
    "data_options": ("x", [1]),
    "dataset": ("phantm", None),
    "split": ("oficial",),
    "backbone": ("resnet81",),
    "method": ("deepchst", "deepchest(flor=1)", ["deepchest"]),
    "methods": ("equal hegde",),
    "study": ("rerunn",),
    "cam": ("layer_cam",),
}
RIGHT = {
    "smoke": True,
    "image_size": 32,
    "lr": 1,
    "data_root": None,
    "data_options": '{"finding_columns": ["Effusion"]}',
    "backbone": "resnet18",
    "method": "deepchest(floor=0.25)",
    "methods": 'equal deepchest(floor=0.25, normalize=True)+pcgrad(level="features")',
}


@ALL
def test_no_wrong_type_or_name_gets_into_a_notebook(path):
    parameters = notebook_parameters(path)
    for name, values in WRONG.items():
        for value in values if name in parameters else ():
            with pytest.raises(NotebookError, match=rf"^{path.stem}: .*(Found|Did you mean) "):
                check_parameters([path], {name: value})
    check_parameters([path], {name: value for name, value in RIGHT.items() if name in parameters})


def exercises(path: Path) -> list[tuple[str, str, str]]:
    """Number, grade and text of each exercise of a notebook."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    section = text.partition("## Exercises\n")[2].partition("\n## ")[0]
    return re.findall(r"^(\d)\. \*\(([^)]+)\)\* (.+)$", section, re.MULTILINE)


@BY_NAME
def test_three_to_six_graded_exercises_with_solutions(path):
    numbers = [int(number) for number, _, _ in exercises(path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert 3 <= len(numbers) <= 6
    assert all(
        "clinical" in grade or re.search(r"\d+ minutes|easy|medium|hard", grade) for _, grade, _ in exercises(path)
    )
    assert f"(solutions/{path.name})" in "".join(cell.source for cell in read(path).cells[-3:])
    assert (FOLDER / "solutions" / path.name).exists()


@SOLVED
def test_solutions_answer_each_exercise_of_their_notebook(path):
    cells = read(path).cells
    assert cells[0].source.startswith(f"# {path.stem[:2]} Solutions: ")
    assert f"(../{path.name})" in cells[0].source
    asked = exercises(FOLDER / path.name)
    sections: list[list] = []
    for cell in cells:
        if re.match(r"## Exercise \d", cell.source):
            sections.append([])
        if sections:
            sections[-1].append(cell)
    assert len(sections) == len(asked)
    for (number, grade, question), section in zip(asked, sections, strict=True):
        assert section[0].source.startswith(f"## Exercise {number} ({grade}): ")
        assert f"*{question}*" in section[0].source  # as it is asked there
        code = "\n".join(cell.source for cell in section if cell.cell_type == "code")
        assert re.search(r"^\s*assert ", code, re.MULTILINE), f"exercise {number} asserts its claim"


@pytest.fixture(scope="module")
def chestmnist_folder(tmp_path_factory) -> Path:
    """A file in ChestMNIST's form: noise, with labels that have both classes."""
    folder = tmp_path_factory.mktemp("chestmnist")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 200), ("val", 100), ("test", 120)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 64, 64), dtype=np.uint8)
        arrays[f"{split}_labels"] = (rng.random((n, 14)) < 0.2).astype(np.uint8)
    np.savez(folder / "chestmnist_64.npz", **arrays)
    return folder


def execute(path: Path, output: Path, capsys, **parameters) -> str:
    """Run with smoke=True; what the executed copy printed. Fails with the runner's own report."""
    failed = run_notebooks([path], {"smoke": True, **parameters}, output)
    assert failed == 0, capsys.readouterr().out
    return "".join(o.get("text", "") for cell in code_cells(output / path.name) for o in cell.outputs)


SIX = ["Effusion", "Mass", "Nodule", "Infiltration", "Atelectasis", "Pneumothorax"]
TABLES = {"two": (["Effusion", "Shadow"], 0.0), "one": (["Shadow"], 0.0), "six, 60% unknown": (SIX, 0.6)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of one's own, of 360 small images of 180 patients: some findings, one of which NIH does not have, and a share
    of unknown labels."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("table")
    for number in range(360):
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(root / f"{number}.png")

    def make(name: str) -> Path:
        findings, unknown = TABLES[name]
        labels = (rng.random((360, len(findings))) < 0.3).astype(float)
        labels[rng.random(labels.shape) < unknown] = np.nan
        frame = pd.DataFrame(labels, columns=findings).assign(
            image=[f"{number}.png" for number in range(360)], patient=np.arange(360) // 2
        )
        frame.to_csv(root / "labels.csv", index=False)
        return root

    return make


def of_table(default: tuple[str, str]):
    """Each notebook that loads data on each table; all but one are slow."""
    cases = [(path, name) for path in LOADING for name in TABLES]
    marks = [() if (path.stem, name) == default else pytest.mark.slow for path, name in cases]
    ids = [f"{path.stem}-{name}" for path, name in cases]
    return pytest.mark.parametrize(
        ("path", "name"), [pytest.param(*case, id=i, marks=m) for case, i, m in zip(cases, ids, marks, strict=True)]
    )


def with_boxes(root: Path) -> Path:
    """The folder with a box for every image, in the middle, of the first finding that it has."""
    lines = (root / "BBox_List_2017.csv").read_text().splitlines()[:1]
    for row in (root / "Data_Entry_2017_v2020.csv").read_text().splitlines()[1:]:
        image, labels = row.split(",")[:2]
        if labels != "No Finding":
            lines.append(f"{image},{labels.split('|')[0]},256,256,400,500,,,")
    (root / "BBox_List_2017.csv").write_text("\n".join(lines) + "\n")
    return root


class Loaded(Exception):
    """A sweep would begin."""


def load_cell(path: Path, **parameters) -> Splits:
    """Run a notebook's statements up to the first that has data: `load_dataset`, or a sweep that would load them."""
    from deepchest_utils.sweep import data_of

    def sweep(trials, *args, **kwargs):
        raise Loaded(data_of(trials[0].config))

    namespace = {}
    with plt.rc_context():
        for cell in code_cells(path):
            for statement in ast.parse(cell.source).body:
                try:
                    exec(compile(ast.Module([statement], []), path.name, "exec"), namespace)
                except Loaded as loaded:
                    return loaded.args[0]
                if "run_sweep" in namespace:
                    namespace["run_sweep"] = sweep
                if isinstance(namespace.get("data"), Splits):
                    return namespace["data"]
            if "parameters" in cell.metadata.get("tags", []):
                assert set(parameters) <= set(namespace)
                namespace.update(parameters)
    raise AssertionError("the notebook loads no data")


@pytest.mark.filterwarnings("ignore:.*findings without a positive")
@pytest.mark.parametrize("dataset", ["phantom", "chestmnist", "nih"])
@pytest.mark.parametrize("path", LOADING, ids=lambda path: path.stem)
def test_any_data_set_is_loaded(path, dataset, chestmnist_folder, nih_folder):
    files = {"chestmnist": chestmnist_folder, "nih": nih_folder(num_patients=20) if dataset == "nih" else None}
    root, split = files.get(dataset), "patient" if dataset == "nih" else None
    given = {"data_root": root and str(root), "image_size": 64, "split": split, "smoke": True}
    if path.stem.startswith("05") and dataset == "chestmnist":
        with pytest.raises(ValueError, match='"phantom" or "nih", the others have no regions'):
            load_cell(path, dataset=dataset, **given)
        return
    data = load_cell(path, dataset=dataset, **given)
    assert data.name == dataset
    assert data.split == (split or data.split)
    assert [*data.parts] == ["train", "val", "test"]
    for part in data.parts.values():
        assert part.images.shape == (len(part), 64, 64)
        assert 0 < len(part) <= 512  # smoke: little data


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem < "07" else pytest.mark.slow) for p in NOTEBOOKS]
)
def test_runs_on_the_phantom(path, tmp_path, capsys):
    execute(path, tmp_path, capsys)
    drawn = {figure.stem[:2] for figure in (tmp_path / "figures").glob("*.png")}
    assert drawn == ({path.stem[:2]} if path in LOADING else drawn & {path.stem[:2]})


@pytest.mark.notebooks
@by_name()
def test_runs_on_chestmnist(path, tmp_path, capsys, chestmnist_folder):
    if path.stem == "05_grad_cam":  # it asks for regions, which ChestMNIST does not have, and says so
        given = {"smoke": True, "dataset": "chestmnist", "data_root": str(chestmnist_folder)}
        assert run_notebooks([path], given, tmp_path) == 1
        assert 'dataset should be "phantom" or "nih"' in capsys.readouterr().out
        return
    # 32 px, 07's own, ChestMNIST has not; this file of it has 64 px alone
    size = {"image_size": 64} if path.stem >= "07" else {}
    execute(path, tmp_path, capsys, dataset="chestmnist", data_root=str(chestmnist_folder), **size)


@pytest.mark.notebooks
@of_table(("03_training", "one"))
def test_runs_on_a_table_of_one_s_own(path, name, tmp_path, capsys, table):
    given = {"dataset": "csv", "data_root": str(table(name)), "data_options": {"finding_columns": TABLES[name][0]}}
    if path.stem == "05_grad_cam":  # it needs regions, and says so before it loads or trains anything
        assert run_notebooks([path], {"smoke": True, **given}, tmp_path) == 1
        assert 'dataset should be "phantom" or "nih", the others have no regions' in capsys.readouterr().out
        return
    execute(path, tmp_path, capsys, **given)


@pytest.mark.notebooks
@by_name("03_training")
def test_runs_on_the_nih_layout(path, tmp_path, capsys, nih_folder):
    root = with_boxes(nih_folder(num_patients=40))
    execute(path, tmp_path, capsys, dataset="nih", data_root=str(root), split="patient")


@pytest.mark.notebooks
@pytest.mark.slow
@pytest.mark.parametrize("name", ["01_data_exploration", "03_training", "05_grad_cam"])
def test_runs_on_real_radiographs(name, tmp_path, capsys, nih_sample):
    execute(FOLDER / f"{name}.ipynb", tmp_path, capsys, dataset="nih", data_root=str(nih_sample), split="patient")


@pytest.mark.notebooks
@pytest.mark.slow
@SOLVED
def test_solutions_run(path, tmp_path, capsys):
    execute(path, tmp_path, capsys)


@pytest.mark.notebooks
@pytest.mark.slow
@pytest.mark.parametrize("path", APPENDIX, ids=lambda path: path.stem)
def test_the_appendix_runs(path, tmp_path, capsys):
    execute(path, tmp_path, capsys)
    assert {figure.stem[:2] for figure in (tmp_path / "figures").glob("*.png")} == {path.stem[:2]}
