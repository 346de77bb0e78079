"""The study on real radiographs: folds, features that see no shape in the lungs, settings chosen inside the training part."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from claims import Committed
from scipy import stats
from study_tables import write_table

from deepchest_utils import ChestXrays, TrainConfig, load_dataset
from deepchest_utils.config import PUBLISHED_RECIPE
from deepchest_utils.datasets.base import fold_split
from deepchest_utils.models.trunks import BACKBONES, thin_resnet18
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import real
from deepchest_utils.studies.real import (
    ASKED,
    COUNTED,
    RATES,
    RUNGS,
    SCRATCH,
    SETTINGS,
    best_two,
    border,
    budget_curves,
    choose,
    compare_folds,
    finetune,
    finetune_rows,
    fold,
    ladder,
    ladder_fields,
    ladder_rows,
    ladder_step,
    ladder_table,
    main,
    make_features,
    network_rows,
    statistics,
    tuned_rate,
)
from deepchest_utils.sweep import run_sweep

pytestmark = pytest.mark.filterwarnings("ignore:.*findings without a positive", "ignore:.*grey levels")


def xrays(images: np.ndarray) -> ChestXrays:
    n = len(images)
    return ChestXrays(images, np.zeros((n, 1), np.float32), np.arange(n), ("A",), np.arange(n).astype(str))


def test_the_border_has_no_pixel_of_the_inside_and_statistics_no_place():
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), np.uint8)
    other = images.copy()
    other[:, 3:-3, 3:-3] = 0
    assert border(xrays(images)).shape == (5, 64 * 64 - 58 * 58)
    np.testing.assert_array_equal(border(xrays(images)), border(xrays(other)))
    moved = images.reshape(5, -1)[:, np.random.default_rng(1).permutation(64 * 64)].reshape(images.shape)
    np.testing.assert_allclose(statistics(xrays(images)), statistics(xrays(moved)), rtol=1e-6)
    assert statistics(xrays(images))[0, 6] == pytest.approx(np.median(images[0]) / 255)


def test_cells_of_a_fold_share_data_and_start():
    one, other, later = (
        fold(Path("f.npz"), *args, SETTINGS[0]).config for args in (("equal", 1, 2), ("famo", 1, 2), ("equal", 2, 2))
    )
    assert {**one.identity(), "method": "famo"} == other.identity()
    assert (one.split, one.data_seed, later.data_seed) == ("2/5", 1, 2)
    assert len({(setting["lr"], setting["weight_decay"]) for setting in SETTINGS}) == 8


def rows_of(values: dict[tuple[str, int, int], tuple[float, float, int]]) -> pd.DataFrame:
    """(method, fold, number of the setting) -> validation, test and epoch, as `fold_rows` has them."""
    rows = []
    for cell, ((method, part, s), (val, test, epoch)) in enumerate(values.items()):
        same = {"cell": str(cell), "method": method, "seed": 1, "fold": f"{part}/5", "epoch": epoch, **SETTINGS[s]}
        rows += [{**same, "split": split, "metric": "auroc", "value": v} for split, v in (("val", val), ("test", test))]
    return pd.DataFrame(rows)


def test_a_setting_is_chosen_on_validation_in_each_fold():
    rows = rows_of({
        ("equal", 1, 0): (0.70, 0.9, 5), ("equal", 1, 1): (0.75, 0.6, 6), ("equal", 1, 2): (0.80, 0.5, 7),
        ("equal", 2, 0): (0.80, 0.4, 8), ("equal", 2, 1): (0.75, 0.9, 9),
    })  # fmt: skip
    chosen = choose(rows).set_index("fold")
    assert chosen.value.to_dict() == {"1/5": 0.5, "2/5": 0.4}
    assert chosen.epoch.to_dict() == {"1/5": 7, "2/5": 8}
    assert choose(rows, budget=1).value.tolist() == [0.9, 0.4]
    assert choose(rows, budget=2).value.tolist() == [0.6, 0.4]


def test_folds_are_compared_with_the_correction_for_their_overlap():
    differences = np.array([0.01, 0.02, -0.01, 0.0, 0.015])
    values = {("equal", k + 1, 0): (0.7, 0.7, 5) for k in range(5)}
    values |= {("famo", k + 1, 0): (0.7, 0.7 + d, 5) for k, d in enumerate(differences)}
    (row,) = compare_folds(choose(rows_of(values))).itertuples()
    error = differences.std(ddof=1) * np.sqrt(1 / 5 + 1 / 3)
    assert row.high - row.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert row.p == pytest.approx(2 * stats.t.sf(abs(differences.mean()) / error, 4))


def test_without_a_baseline_the_scores_themselves_have_intervals():
    scores = np.array([0.7, 0.72, 0.69, 0.71, 0.73])
    rows = choose(rows_of({("equal", k + 1, 0): (0.7, value, 5) for k, value in enumerate(scores)}))
    (row,) = compare_folds(rows, None).itertuples()
    assert (row.method, row.pairs, row.mean) == ("equal", 5, pytest.approx(0.71))
    assert row.high - row.mean == pytest.approx(stats.t.ppf(0.975, 4) * scores.std(ddof=1) * np.sqrt(1 / 5 + 1 / 3))


def test_a_budget_is_any_so_many_settings_in_the_folds_that_all_methods_have():
    values = {("equal", 1, 0): (0.70, 0.9, 5), ("equal", 1, 1): (0.75, 0.6, 6), ("equal", 1, 2): (0.80, 0.5, 7)}
    values |= {("equal", 2, 0): (0.8, 0.4, 8), ("famo", 1, 0): (0.6, 0.3, 5), ("famo", 1, 7): (0.7, 0.2, 5)}
    rows = rows_of(values)
    later = rows[rows.method == "equal"].assign(seed=3, value=0.1, cell="later " + rows.cell)
    curves = budget_curves(pd.concat([rows, later], ignore_index=True))
    assert curves.loc["equal"].to_dict() == pytest.approx({1: 2.0 / 3, 2: 1.6 / 3, 4: 0.5, 8: 0.5})
    assert curves.loc["famo"].to_dict() == pytest.approx({1: 0.25, 2: 0.2, 4: 0.2, 8: 0.2})


def test_equal_stands_beside_itself_without_anatomy(tmp_path):
    """In the first two rounds, and as far as there are tables."""

    def table(name: str, value: float, methods: tuple[str, ...], rounds: int) -> None:
        made = []
        for method in methods:
            for number in range(1, rounds + 1):
                own = {"hidden": 8} if method == SCRATCH else {}  # another cell
                trial = fold(Path("f.npz"), method.partition("@")[0], number, 1, SETTINGS[0], **own)
                trial = replace(trial, method=method)
                here = value + 0.1 * (method == SCRATCH) + 0.2 * (method == "famo") + 0.01 * number
                made.append((trial, 1.0, [("val", "auroc", 0.5), ("test", "auroc", here)]))
        write_table(tmp_path / f"real_{name}.csv", made)

    table("main", 0.7, ("famo", "equal"), 3)
    table("border", 0.6, ("equal",), 2)
    found = network_rows(tmp_path)
    assert found.groupby("method", sort=False).value.mean().round(9).to_dict() == {"frozen": 0.715, "border": 0.615}
    assert found.groupby("method").seed.max().to_dict() == {"frozen": 2, "border": 2}
    table("finetune", 0.8, ("equal", "famo", SCRATCH), 2)
    found = network_rows(tmp_path)
    assert list(found.method.unique()) == ["frozen", "finetuned", "scratch", "border"]
    assert compare_folds(found, "frozen").set_index("method")["mean"].round(9).to_dict() == {
        "finetuned": 0.1,
        "scratch": 0.2,
        "border": -0.1,
    }


# images: the encoder fine-tuned, and the ladder


def test_folds_of_images_are_those_of_features():
    """Features lie in another order than images: a patient's fold does not depend on it."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 150, 300)
    labels, order = (rng.random((300, 14)) < 0.1).astype(np.float32), rng.permutation(300)
    there, here = fold_split(labels, patients, 2, 5, seed=3), fold_split(labels[order], patients[order], 2, 5, seed=3)
    np.testing.assert_array_equal(there[order], here)


def test_the_best_two_are_named_by_validation_alone(tmp_path, monkeypatch):
    scores = {"equal": 0.9, "dwa": 0.6, "famo": 0.8, "hedge": 0.7, "deepchest": 0.99, "prevalence_oracle": 0.95}
    monkeypatch.setattr(real, "METHODS", list(scores))
    cells = []
    for method, value in scores.items():
        for part in range(1, 6):
            for setting in SETTINGS[:2]:  # of which the better counts
                trial = fold(Path("f.npz"), method, 1, part, setting)
                val = value - 100 * (setting is SETTINGS[1])
                cells.append((trial, 1.0, [("val", "auroc", val), ("test", "auroc", 1 - value)]))
    lone = fold(Path("f.npz"), "dwa", 2, 1, SETTINGS[0])  # a fold that others lack decides nothing
    cells.append((lone, 1.0, [("val", "auroc", 100.0), ("test", "auroc", 1.0)]))
    write_table(tmp_path / "t.csv", cells)
    assert best_two(tmp_path / "t.csv") == ["famo", "hedge"]
    write_table(tmp_path / "t.csv", cells[:-2])  # the last method lacks a setting, and nothing more
    assert best_two(tmp_path / "t.csv") == ["famo", "hedge"]
    write_table(tmp_path / "t.csv", cells[:-3])  # it lacks a fold
    assert best_two(tmp_path / "t.csv") == []


def test_the_rate_is_the_best_mean_of_the_methods(tmp_path):
    assert tuned_rate(tmp_path / "none.csv", ASKED) == RATES[1]
    values = {(1e-4, "equal"): 0.7, (1e-4, "deepchest"): 0.8, (3e-4, "equal"): 0.72, (3e-4, "deepchest"): 0.7}
    values[1e-3, "equal"] = 0.99  # DeepChest diverged
    trials = {key: fold(Path("nih"), key[1], 2003, 1, {"lr": key[0]}, **real.FINETUNE) for key in values}
    write_table(tmp_path / "t.csv", [(trials[key], 1.0, [("val", "auroc", value)]) for key, value in values.items()])
    assert tuned_rate(tmp_path / "t.csv", ["equal", "deepchest"]) == 1e-4
    assert tuned_rate(tmp_path / "t.csv", ["equal"]) == 1e-3


def test_the_ladder_begins_at_the_published_recipe_and_changes_one_thing_a_rung():
    rungs = ladder_fields(3e-4)
    assert {name: rungs["published"][name] for name in PUBLISHED_RECIPE} == PUBLISHED_RECIPE
    configs = [TrainConfig(**fields).identity() for fields in rungs.values()]
    for before, after, (_, changes) in zip(configs, configs[1:], [*RUNGS.values()][1:], strict=False):
        changed = {name for name in after if after[name] != before[name]}
        assert changed == set(changes) | ({"lr"} if "optimizer" in changes else set())
    last, usual = TrainConfig(**rungs["initial"]), TrainConfig()
    for name in (
        "optimizer",
        "schedule",
        "weight_decay",
        "prior_bias",
        "augmentation",
        "augment_test",
        "select",
        "method_options",
    ):
        assert getattr(last, name) == getattr(usual, name), name


def test_the_ladder_is_read_rung_by_rung(tmp_path):
    """Equal 0.7, and 0.1 more from the second rung on; DeepChest higher by 0.01 on the last rung alone, in AUROC."""
    *_, (_, cells) = ladder(tmp_path, Path("nih"), ())
    fields, noise = ladder_fields(RATES[1]), np.random.default_rng(0).normal(0, 0.001, (9, 20))
    where = {json.dumps(TrainConfig(**f).identity(), sort_keys=True): rung for rung, f in fields.items()}
    made = []
    for cell in cells:
        own = {**cell.config.identity(), "method": "deepchest", "seed": 0, "data_seed": 0}
        own["method_options"] = own["method_options"] if cell.method == "deepchest" else {"initial": "resnet"}
        rung = where[json.dumps(own, sort_keys=True)]
        value = 0.7 + 0.1 * (rung != "published") + 0.01 * (rung == "initial" and cell.method == "deepchest")
        value += noise[cell.config.seed, list(RUNGS).index(rung)] * (cell.method == "deepchest")
        made.append((cell, 1.0, [("test", "auroc", value), ("test", "accuracy", 0.9)]))
    write_table(tmp_path / "t.csv", made)
    found = ladder_table(tmp_path / "t.csv")
    assert list(found.rung.unique()) == list(RUNGS)
    assert found.words[0] == "as published"
    auroc = found[found.metric == "auroc"].set_index("rung")
    assert auroc.pairs.to_list() == [5] + [8] * 8
    assert auroc.equal.round(9).to_list() == [0.7] + [0.8] * 8
    d = 0.01 + noise[1:9, 8]
    assert auroc["mean"]["initial"] == pytest.approx(d.mean())
    assert auroc.deepchest["initial"] == pytest.approx(0.8 + d.mean())
    reach = stats.t.ppf(0.975, 7) * d.std(ddof=1) * np.sqrt(1 / 8 + 2 / 7)
    assert auroc.high["initial"] == pytest.approx(d.mean() + reach)
    assert auroc.verdict.to_dict() == dict.fromkeys(RUNGS, "equivalent") | {"initial": "higher"}
    assert np.isnan(auroc.step["published"])
    assert auroc.step.to_list()[1:] == pytest.approx([0.1] + [0] * 7)
    accuracy = found[found.metric == "accuracy"]
    assert set(accuracy["mean"]) == {0.0}
    whole = ladder_step(ladder_rows(tmp_path / "t.csv"), "published", "initial").loc["auroc"]
    assert (whole.pairs, whole["mean"]) == (5, pytest.approx(0.1))
    write_table(tmp_path / "narrow.csv", [row for row in made if row[0].config.image_size == 64])
    narrow = ladder_table(tmp_path / "narrow.csv")
    assert narrow.words[0] == "as published, 64 px"
    assert list(narrow.rung.unique()) == list(RUNGS)[1:]
    assert np.isnan(narrow.step[0])


@pytest.fixture
def small(nih_folder, monkeypatch) -> Path:
    """Cells of a second: a thin network, one epoch, three folds of 80 small images."""
    monkeypatch.setitem(BACKBONES, "thin", lambda image_size, pretrained: thin_resnet18())  # with and without weights
    tiny = {"data_options": {}, "backbone": "thin", "hidden": 8, "image_size": 32, "epochs": 1}
    monkeypatch.setattr(real, "FINETUNE", {**real.FINETUNE, **tiny, "batch_size": 16})
    monkeypatch.setattr(real, "PUBLISHED", {**real.PUBLISHED, **tiny, "batch_size": 16, "min_positives": 1})
    monkeypatch.setattr(real, "BASE", {**real.BASE, "min_positives": 1})
    monkeypatch.setattr(real, "RUNGS", {**RUNGS, "size": ("28 px", {"image_size": 28})})
    for name, value in {
        "FOLDS": 3,
        "FEW": 1,
        "ROUNDS": 1,
        "SPLITS": 2,
        "WIDE_SPLITS": 1,
        "RATES": (1e-3, 2e-3),
    }.items():
        monkeypatch.setattr(real, name, value)
    return nih_folder(num_patients=40)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "cells"), [("finetune", 3 * 5 + 3), ("ladder", 2 + 2 * 15)])
def test_stages_on_images_run_resume_and_give_the_same_rows_again(stage, cells, small, tmp_path, capsys, monkeypatch):
    options = [stage, "--root", str(small), "--out", str(tmp_path), "--jobs", "1"]
    if stage == "finetune":
        with pytest.raises(SystemExit):
            main(options)
        assert "main, which is not through" in capsys.readouterr().err
        monkeypatch.setattr(real, "METHODS", [*ASKED, "dwa", "uncertainty"])
        trials = [fold(Path("f.npz"), m, 1, k, SETTINGS[0]) for m in real.METHODS for k in (1, 2, 3)]
        write_table(tmp_path / "real_main.csv", [(t, 1.0, [("val", "auroc", 0.7)]) for t in trials])
    main(options)
    capsys.readouterr()
    main([*options, "--plan"])
    assert f"real_{stage}: {cells} cells, 0 to run" in capsys.readouterr().out
    tuning, tables = (RunTable(tmp_path / f"real_{stage}{end}.csv") for end in ("_tuning", ""))
    assert set(tuning.rows.split) == {"val"}
    assert set(tables.cells.status) == {"done"}
    assert (tables.cells.training_seconds > 0).all()
    if stage == "finetune":
        rows = finetune_rows(tmp_path / "real_finetune.csv")
        assert set(rows.method) == {*ASKED, "dwa", "uncertainty", SCRATCH}
        assert set(compare_folds(rows).method) == set(rows.method) - {"equal"}
        *_, (name, trials) = finetune(tmp_path, small, ())
    else:
        found = ladder_table(tmp_path / "real_ladder.csv")
        assert len(found) == 9 * 3
        one = tables.rows[(tables.rows.task == "macro") & (tables.rows.metric == "accuracy")]
        assert len(one) == cells
        *_, (name, trials) = ladder(tmp_path, small, ())
    assert {trial.id for trial in trials} == set(tables.cells.cell)
    again = run_sweep(trials[:2], tmp_path / "again" / f"{name}.csv", 1, threads=1).rows
    for cell, part in again.groupby("cell"):
        expected = tables.rows[tables.rows.cell == cell]
        pd.testing.assert_frame_equal(part.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)


@pytest.mark.slow
@pytest.mark.skipif("DEEPCHEST_NIH_SAMPLE" not in os.environ, reason="needs real radiographs")
def test_stages_on_real_radiographs(tmp_path, monkeypatch, capsys):
    make_features(Path(os.environ["DEEPCHEST_NIH_SAMPLE"]), tmp_path / "features")
    data = load_dataset("embeddings", tmp_path / "features/lite0.npz", split="1/5", seed=1)
    assert sum(map(len, data.parts.values())) == 2206
    labels = np.concatenate([part.labels for part in data.parts.values()])
    said = Committed("08_real_radiographs").text
    assert f'"absent" has an accuracy of {1 - np.nanmean(labels, axis=0).mean():.3f} on these images' in said
    positives = dict(zip(data.findings, sum(part.labels.sum(0) for part in data.parts.values()), strict=True))
    assert {name for name, count in positives.items() if count >= 5 * 20} == set(COUNTED)
    monkeypatch.setattr(real, "SETTINGS", SETTINGS[:2])
    monkeypatch.setattr(real, "BASE", {**real.BASE, "epochs": 3})
    monkeypatch.setattr(real, "FEW", 1)
    monkeypatch.setattr(real, "ROUNDS", 1)
    options = ["--features", str(tmp_path / "features"), "--out", str(tmp_path), "--jobs", "1"]
    main(["main", *options, "--methods", "equal", "deepchest"])
    main(["blind", *options])
    tables = RunTable(tmp_path / "real_main.csv")
    assert set(tables.cells.status) == {"done"}
    assert len(tables.cells) == 2 * 5 * 2
    capsys.readouterr()
    main(["main", *options, "--methods", "equal", "deepchest", "--plan"])
    assert "20 cells, 0 to run" in capsys.readouterr().out
    means = {name: choose(real.fold_rows(tmp_path / f"real_{name}.csv")) for name in ("main", "border", "statistics")}
    auroc = {
        name: rows[(rows.metric == "auroc") & (rows.method == "equal")].value.mean() for name, rows in means.items()
    }
    assert auroc["main"] > 0.6
    assert 0.5 < auroc["border"] < auroc["main"]
