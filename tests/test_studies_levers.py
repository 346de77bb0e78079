"""Levers: each has the same budget and is judged against the same network; ensembles are those of the networks that they name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from study_tables import write_table

from deepchest_utils import FINDINGS, load_dataset
from deepchest_utils.config import LOSSES
from deepchest_utils.files import FileError
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.metrics import ensemble, score_tasks
from deepchest_utils.results.statistics import judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import levers, real, replication
from deepchest_utils.studies.figures import real as figures
from deepchest_utils.studies.levers import BUDGET, KINDS, STUDIES, WORDS, lever_table, loss_weight_table
from deepchest_utils.sweep import run_sweep
from deepchest_utils.training import train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*findings without a positive"),
    pytest.mark.usefixtures("close_figures"),
]


@pytest.mark.parametrize("study", STUDIES)
def test_levers_have_one_budget_and_no_two_are_the_same(study, tmp_path):
    tried = levers.levers(study)
    assert tried.pop("default") == [{}]
    assert {len(changes) for changes in tried.values()} == {BUDGET}
    assert {name for name in tried if "@" not in name} - {"equal"} <= set(WORDS)
    assert sorted(name for names in KINDS.values() for name in names) == sorted(WORDS)
    rounds = getattr(levers, study)(tmp_path, tmp_path)
    _, cells = next(rounds)
    assert len({cell.id for cell in cells}) == len(cells)
    one = [
        cell for cell in cells if (cell.config.seed, cell.config.split) == (cells[0].config.seed, cells[0].config.split)
    ]
    assert len(one) == BUDGET * len(tried) + (study == "embeddings")  # default needs no choice on the phantom
    usual = {name: value for cell in one if cell.method == "equal" for name, value in cell.config.identity().items()}
    for cell in one:
        changed = {name for name, value in cell.config.identity().items() if value != usual[name]}
        of = {name for changes in tried.get(cell.method, [{}]) for name in changes}
        assert changed <= of | {"lr", "weight_decay"}, cell.method
    names = {"batch_size", "ema", "oversample", "prior_bias", "loss", "method", "epochs", "data_options"}
    assert names <= {name for changes in tried.values() for change in changes for name in change}


def test_fewer_images_are_a_quarter_and_a_half_of_the_training_images():
    """Of the 2,206 radiographs three fifths; steps stay about as many."""
    images, usual = 2206 * 3 / 5, STUDIES["embeddings"]["usual"]
    for name, share in (("data_quarter", 1 / 4), ("data_half", 1 / 2)):
        (own,) = STUDIES["embeddings"]["own"][name]
        assert own["data_options"]["max_train"] == pytest.approx(share * images, abs=1)
        assert own["epochs"] * share == usual["epochs"]


def test_a_quarter_is_one_of_other_data_as_well(tmp_path):
    """240 images in a file; without one, the study's."""
    for folder, wanted in ((tmp_path / "none", (331, 662)), (features(tmp_path), (36, 72))):
        _, cells = next(levers.embeddings(tmp_path, folder))
        counts = {cell.method: cell.config.data_options["max_train"] for cell in cells if cell.config.data_options}
        assert counts == dict(zip(("data_quarter", "data_half"), wanted, strict=True))


# tables


TRUE = {
    "equal": 0.70,
    "default": 0.68,
    "focal": 0.71,
    "deepchest": 0.70,
    "deepchest@focal": 0.69,
    "learning_rate": 0.69,
    "epochs_2": 0.70,
}
NOISE = np.random.default_rng(0).normal(0, 0.001, (len(TRUE), 10))
PLACES = [f"{number} {part}/5" for number in (1, 2) for part in range(1, 6)]


def value(method: str, place: str) -> float:
    return TRUE[method] + (0.0 if method == "equal" else NOISE[list(TRUE).index(method), PLACES.index(place)])


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """Tables of the embeddings: of each lever the second setting is best on validation, and has the value above."""
    every = levers.levers
    monkeypatch.setattr(levers, "levers", lambda study: {k: v for k, v in every(study).items() if k in TRUE})
    rounds, cells, count = levers.embeddings(tmp_path, tmp_path), [], {}
    name, trials = next(rounds)
    for trial in trials:
        place = f"{trial.config.seed} {trial.config.split}"
        number = count[trial.method, place] = count.get((trial.method, place), 0) + 1
        best = number == min(2, len(every("embeddings")[trial.method]))
        test = value(trial.method, place) if best else 0.99
        rows = [("val", "auroc", 0.5 + 0.1 * best), ("test", "auroc", test), ("test", "average_precision", 0.3)]
        cells.append((trial, 2.0 if trial.method == "epochs_2" else 1.0, rows))
    write_table(tmp_path / f"{name}.csv", cells)
    name, trials = next(rounds)
    assert {(t.config.lr, t.config.weight_decay) for t in trials} == {
        tuple(STUDIES["embeddings"]["settings"][1].values())
    }
    write_table(tmp_path / f"{name}.csv", [
        (t, 5.0, [("test", "auroc", 0.0), ("test", "auroc_of_3", 0.72), ("test", "auroc_of_5", 0.73), ("val", "auroc", 0.9)])
        for t in trials
    ])  # fmt: skip
    return tmp_path


def test_levers_are_read_against_equal_with_as_many_settings(out):
    found = lever_table(out)
    assert set(found.study) == {"embeddings"}
    auroc = found[found.metric == "auroc"].set_index("lever")
    assert set(auroc.index) == {"tuning", "learning_rate", "focal", "deepchest", "epochs_2", "ensemble_3", "ensemble_5"}
    assert auroc.against.to_dict() == dict.fromkeys(auroc.index, "equal") | {
        "tuning": "default",
        "learning_rate": "default",
    }
    assert set(auroc.pairs) == {10}
    d = np.array([value("focal", place) - 0.70 for place in PLACES])
    focal = auroc.loc["focal"]
    assert focal["mean"] == pytest.approx(d.mean())
    error = d.std(ddof=1) * np.sqrt(1 / 10 + 1 / 3)
    assert focal.high == pytest.approx(d.mean() + stats.t.ppf(0.975, 9) * error)
    assert (focal.verdict, auroc.verdict["deepchest"]) == ("higher", "equivalent")
    noise = np.array([NOISE[list(TRUE).index("default"), i] for i in range(10)])
    assert auroc["mean"]["tuning"] == pytest.approx(0.02 - noise.mean())
    assert auroc["mean"]["ensemble_3"] == pytest.approx(0.02)
    assert auroc["mean"]["ensemble_5"] == pytest.approx(0.03)
    assert auroc.cost.to_dict() == pytest.approx({
        "tuning": 4, "learning_rate": 4, "focal": 1, "deepchest": 1, "epochs_2": 2, "ensemble_3": 3, "ensemble_5": 5,
    })  # fmt: skip
    assert auroc.words["focal"] == "focal loss"
    assert set(found[found.metric == "average_precision"]["mean"]) == {0.0}


def test_losses_and_weights_are_read_together(out):
    found = loss_weight_table(out, "embeddings")
    auroc = found[found.metric == "auroc"].set_index(["loss", "weight"])
    assert set(auroc.index) == {("focal", "equal"), ("bce", "deepchest"), ("focal", "deepchest")}
    d = np.array([value("deepchest@focal", place) - 0.70 for place in PLACES])
    assert auroc["mean"]["focal", "deepchest"] == pytest.approx(d.mean())
    assert auroc.value["focal", "deepchest"] == pytest.approx(0.70 + d.mean())
    assert auroc.verdict["focal", "deepchest"] == "lower"


def test_scratch_and_frozen_are_read_against_the_fine_tuned_encoder(tmp_path):
    cells = []
    for part in range(1, 6):
        for method, score, seconds in (("equal", 0.75, 300.0), ("deepchest", 0.1, 1.0), (real.SCRATCH, 0.65, 330.0)):
            trial = real.fold(Path("nih"), method.partition("@")[0], 1, part, {"lr": 3e-4}, **real.FINETUNE)
            trial = replace(trial, method=method, config=replace(trial.config, pretrained=method != real.SCRATCH))
            cells.append((trial, seconds, [("val", "auroc", 0.7), ("test", "auroc", score + part / 1000)]))
    write_table(tmp_path / "real_finetune.csv", cells)
    main = [(real.fold(Path("f.npz"), "equal", 1, part, s), 3.0, [("val", "auroc", s["lr"]), ("test", "auroc", 0.7 + s["lr"])])
            for part in range(1, 6) for s in real.SETTINGS]  # fmt: skip
    write_table(tmp_path / "real_main.csv", main)
    found = lever_table(tmp_path).set_index("lever")
    assert set(found.study) == {"finetuned"}
    assert found["mean"].to_dict() == pytest.approx({"scratch": -0.1, "frozen": 0.7 + 0.00081 - 0.753})
    assert found.cost.to_dict() == pytest.approx({"scratch": 1.1, "frozen": 0.01})


# runs


@pytest.fixture
def few(monkeypatch):
    """A few levers, in cells of less than a second."""
    every, names = levers.levers, {"default", "learning_rate", "equal", "oversample", "deepchest@focal", "data_half"}

    def of(study: str) -> dict[str, list[dict]]:
        return {k: v[:2] for k, v in every(study).items() if k in names}

    own = {"data_half": [{"data_options": {"max_train": 60}}]}
    small = {"embeddings": {"usual": {"epochs": 2, "batch_size": 32}, "own": own}}
    small["phantom"] = {"usual": {"epochs": 2, "batch_size": 32}, "own": {}}
    monkeypatch.setattr(levers, "STUDIES", {study: {**STUDIES[study], **changes} for study, changes in small.items()})
    monkeypatch.setattr(levers, "levers", of)
    monkeypatch.setattr(levers, "REPLICATES", 1)
    monkeypatch.setattr(levers, "IMAGES", 240)  # of `features`
    monkeypatch.setattr(replication, "IMAGES", {"num_train": 96, "num_val": 64, "num_test": 80})
    monkeypatch.setattr(replication, "BASE", {**replication.BASE, "image_size": 28, "min_positives": 1})
    for name in ("VAL_POSITIVES", "TEST_POSITIVES"):
        monkeypatch.setattr(replication, name, 2)
    monkeypatch.setattr(real, "BASE", {**real.BASE, "min_positives": 1})
    monkeypatch.setattr(real, "FOLDS", 3)
    monkeypatch.setattr(real, "FEW", 1)


def features(folder: Path) -> Path:
    rng, n = np.random.default_rng(0), 240
    labels = (rng.random((n, 14)) < 0.2).astype(np.float32)
    values = (labels @ rng.normal(size=(14, 12)) + rng.normal(size=(n, 12))).astype(np.float32)
    of_images = {"labels": labels, "patients": np.arange(n) // 2, "ids": np.arange(n).astype(str)}
    np.savez(
        folder / "lite0.npz", features=values, split=np.zeros(n, np.int8), findings=np.array(FINDINGS), **of_images
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_stages_run_resume_and_give_the_same_rows_again(study, few, tmp_path, capsys):
    options = [study, "--features", str(features(tmp_path)), "--out", str(tmp_path), "--jobs", "1"]
    levers.main(options)
    capsys.readouterr()
    levers.main([*options, "--plan"])
    assert "0 to run" in capsys.readouterr().out.splitlines()[-1]
    *_, (first, cells), (last, several) = getattr(levers, study)(tmp_path, tmp_path)
    tables, ensembles = RunTable(tmp_path / f"{first}.csv"), RunTable(tmp_path / f"{last}.csv")
    for made in (tables, ensembles):
        assert set(made.cells.status) == {"done"}
        assert (made.cells.training_seconds > 0).all()
    found = lever_table(tmp_path)
    asked = {"tuning", "learning_rate", "oversample", "ensemble_3", "ensemble_5"} | (
        {"data_half"} if study == "embeddings" else set()
    )
    assert set(found.lever) == asked
    assert set(loss_weight_table(tmp_path, study).loss) == {"focal"} <= set(LOSSES)
    # the ensemble is that of three networks trained by themselves
    c = several[0].config
    data = load_dataset(c.dataset, c.data_root, c.image_size, c.data_seed, c.split, **c.data_options)
    logits = [train(replace(c, seed=c.seed + 10_000 * i), data).logits["test"] for i in range(3)]
    counted = real.COUNTED if study == "embeddings" else replication.endpoint_findings(c)
    values = score_tasks(data.test.labels, ensemble(logits))["auroc"]
    expected = np.nanmean([values[FINDINGS.index(finding)] for finding in counted])
    rows = ensembles.rows[ensembles.rows.cell == several[0].id]
    assert rows.value[rows.metric == "auroc_of_3"].item() == pytest.approx(expected, abs=1e-6)
    again = run_sweep(cells[:2], tmp_path / "again" / f"{first}.csv", 1, threads=1).rows
    for cell, part in again.groupby("cell"):
        same = tables.rows[tables.rows.cell == cell]
        pd.testing.assert_frame_equal(part.reset_index(drop=True), same.reset_index(drop=True), check_exact=True)


@pytest.fixture
def cut(tmp_path):
    """The committed table of the embeddings with some methods alone."""

    def write(*methods: str) -> Path:
        for name in ("levers_embeddings", "levers_embeddings_cells"):
            table = pd.read_csv(PROJECT / "data" / "results" / f"{name}.csv")
            table[table.method.isin(methods)].to_csv(tmp_path / f"{name}.csv", index=False)
        return tmp_path

    return write


def test_a_part_that_has_not_run_is_left_out_of_the_figures(cut):
    found = lever_table(cut("equal", "uncertainty", "data_half"))
    assert set(found.lever) == {"uncertainty", "data_half"}
    figures.data_and_weights(found)
    figures.lever_forest(found)


@pytest.mark.parametrize("methods", [(), ("equal",)])
def test_nothing_to_compare_is_one_line(cut, methods):
    with pytest.raises(FileError, match=r"no two levers to compare\. It should hold levers_embeddings\.csv"):
        lever_table(cut(*methods))
    with pytest.raises(FileError, match=r"no network of Equal\. It should hold real_main\.csv"):
        real.network_rows(cut(*methods))


def test_equal_alone_gives_no_differences():
    rows = pd.DataFrame({"method": "equal", "metric": "auroc", "seed": [1, 2], "value": [0.7, 0.8]})
    assert judge_differences(paired_differences(rows, "equal", ["metric"]), ["metric"]).empty
