"""The study's cells and choices: what each replicate draws, which settings go on, who is far behind, what is left to do."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import FINDINGS
from deepchest_utils.config import parse_method
from deepchest_utils.datasets.phantom.load import phantom_of
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import replication
from deepchest_utils.studies.replication import (
    BASE,
    DECAYS,
    ENDPOINT,
    MAIN,
    METHODS,
    RATES,
    REGIMES,
    RULE,
    TUNING,
    beyond_the_edge,
    compare,
    endpoint_findings,
    main,
    main_table,
    ranked_settings,
    replicate,
    study_rows,
)
from deepchest_utils.sweep import draw_settings
from deepchest_utils.weighting import make_method

SETTING = {"lr": 4e-3, "weight_decay": 0.5}
pytestmark = pytest.mark.filterwarnings("ignore:phantom. findings without a positive")


def test_every_method_is_there_once_and_can_be_made():
    assert len(set(METHODS)) == len(METHODS)
    for spec in METHODS:
        name, options = parse_method(spec)
        make_method(name, 14, **options)


def test_a_replicate_draws_everything_anew_and_shares_it_with_the_other_methods():
    one, other, later = (replicate(m, n, SETTING).config for m, n in (("equal", 1001), ("famo", 1001), ("equal", 1002)))
    assert (one.seed, one.data_seed, later.seed, later.data_seed) == (1001, 1001, 1002, 1002)
    assert {**one.identity(), "method": "famo"} == other.identity()
    numbers = [*TUNING, *MAIN, *RULE]
    assert len(set(numbers)) == len(numbers)  # chosen on some, tested on others


def test_the_endpoint_has_the_findings_that_are_often_enough():
    usual = endpoint_findings(replicate("equal", 1001, SETTING).config)
    assert usual == [finding for finding in FINDINGS if finding != "Hernia"]
    k = [FINDINGS.index(finding) for finding in usual]
    for number in (*TUNING, *MAIN, *RULE):
        val, test = (phantom_of(number, *split).labels[:, k].sum(0) for split in (("val", 2000), ("test", 8000)))
        assert test.min() >= 60
        assert (val < 10).sum() <= 1  # Pneumonia, in two of the 42
    rare, common = (
        endpoint_findings(replicate("equal", 1001, SETTING, **REGIMES[n]).config) for n in ("rare", "common")
    )
    assert rare == list(FINDINGS[1::2])
    assert common == list(FINDINGS)


def test_settings_are_spread_over_their_ranges():
    drawn = pd.DataFrame(draw_settings(0, 16, RATES, DECAYS))
    for column, (low, high) in zip(drawn, (RATES, DECAYS), strict=True):
        sixteenth = 16 * np.log(drawn[column] / low) / np.log(high / low)
        assert np.diff(np.sort(sixteenth)) == pytest.approx([1] * 15, abs=0.3)  # of two digits
        assert low < drawn[column].min() < drawn[column].max() < high
    assert abs(np.log(drawn).corr().iloc[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("best", "rates", "decays"),
    [
        ({"lr": 0.0011, "weight_decay": 0.1}, (0.0011 / 4, 0.0011), DECAYS),
        ({"lr": 0.027, "weight_decay": 0.1}, (0.027, 4 * 0.027), DECAYS),
        ({"lr": 0.004, "weight_decay": 2.5}, RATES, (2.5, 10)),
    ],
)
def test_a_best_setting_at_the_edge_asks_for_four_beyond_it(best, rates, decays):
    more = pd.DataFrame(beyond_the_edge(best))
    assert len(more) == 4
    for column, (low, high) in zip(more, (rates, decays), strict=True):
        assert more[column].between(0.98 * low, 1.02 * high).all()


def test_a_best_setting_inside_asks_for_none():
    assert beyond_the_edge({"lr": 0.004, "weight_decay": 0.1}) == []
    assert beyond_the_edge({"lr": 0.004, "weight_decay": 0.012}) == []  # no decay is as good as nearly none


# choices from tables


def write_table(
    path: Path, values: dict[tuple[str, int, str], float], split: str = "test", epochs: int = BASE["epochs"], **fields
):
    """A stage's table with the endpoint alone: (method, replicate, phantom) -> AUROC."""
    tables = RunTable(path)
    for (method, number, phantom), value in values.items():
        options = replication.PHANTOMS[phantom]
        trial = replicate(method, number, {**SETTING, **fields}, data_options=options, epochs=epochs)
        record = {"cell": trial.id, "method": method, "seed": number, "status": "done", "error": "", "data": ""}
        record["settings"] = json.dumps(trial.settings, sort_keys=True)
        row = {"method": method, "seed": number, "epoch": 40, "split": split, "task": ENDPOINT, "metric": "auroc"}
        tables.add(record, pd.DataFrame([{**row, "value": value}]), np.empty(0))


def test_settings_are_ranked_by_the_mean_over_phantoms(tmp_path):
    table = tmp_path / "t.csv"
    for lr, (default, nih) in {0.001: (0.8, 0.7), 0.002: (0.79, 0.73), 0.004: (0.6, 0.8)}.items():
        for phantom, value in (("default", default), ("nih", nih)):
            write_table(table, {("equal", 2001, phantom): value}, "val", lr=lr)
    write_table(table, {("equal", 2001, "default"): 0.99}, "val", epochs=12, lr=0.008)
    write_table(table, {("equal", 2001, "default"): 0.95}, "val", lr=0.016)  # on the other phantom it diverged
    assert [s["lr"] for s in ranked_settings(table, BASE["epochs"])["equal"]] == [0.002, 0.001, 0.004]
    for lr, nih in {0.008: 0.6, 0.016: 0.7}.items():
        write_table(table, {("equal", 2001, "nih"): nih}, "val", epochs=12, lr=lr)
    assert [s["lr"] for s in ranked_settings(table, 12, ["nih"])["equal"]] == [0.016, 0.008]


def test_methods_far_behind_stop_and_the_others_go_on_until_they_are_known_well_enough(tmp_path):
    """gls is far behind, dwa is as good and well known, famo as good and not known well; on the other phantom nobody is far."""
    rng = np.random.default_rng(0)
    table, methods = tmp_path / "study_main.csv", ("equal", "gls", "dwa", "famo")

    def fill(count: int) -> None:
        values = {}
        for number in MAIN[:count]:
            base = rng.normal(0.8, 0.02)
            shifts = {
                "equal": 0,
                "gls": rng.normal(-0.05, 0.01),
                "dwa": rng.normal(0, 0.003),
                "famo": rng.normal(0, 0.05),
            }
            values |= {(m, number, "default"): base + shift for m, shift in shifts.items()}
            values |= {(m, number, "nih"): base + rng.normal(0, 0.05) for m in methods}
        table.unlink(missing_ok=True), table.with_name("study_main_cells.csv").unlink(missing_ok=True)
        write_table(table, values)

    rounds = main_table(tmp_path, methods)
    name, cells = next(rounds)
    assert (name, len(cells)) == ("study_main", 8 * 2 * 4)
    fill(8)
    _, cells = next(rounds)
    asked = {(c.method, c.config.data_options.get("difficulty", "default")) for c in cells}
    assert asked == {(m, p) for m in methods for p in ("default", "nih")} - {("gls", "default")}
    assert {c.config.seed for c in cells} == set(MAIN[:20])
    fill(20)
    _, cells = next(rounds)
    asked = {c.method for c in cells if "difficulty" not in c.config.data_options}
    assert asked == {"equal", "famo"}
    assert {c.config.seed for c in cells} == set(MAIN[:25])
    found = compare(study_rows(table)).query("phantom == 'default' and metric == 'auroc'").set_index("method")
    assert found.loc["gls", "verdict"] == "lower"
    assert found.loc["dwa", "verdict"] == "equivalent"
    assert found.loc["famo", "verdict"] == "open"


# runs


@pytest.fixture
def small(monkeypatch):
    """Cells of a second."""
    monkeypatch.setattr(replication, "IMAGES", {"num_train": 96, "num_val": 64, "num_test": 80})
    monkeypatch.setattr(replication, "BASE", {**replication.BASE, "image_size": 28, "epochs": 2})
    for name, value in {"TRIALS": 3, "CLOSE": 3, "SHORT": 1, "FIRST": 2, "FULL": 2, "MAIN": (1001, 1002)}.items():
        monkeypatch.setattr(replication, name, value)
    monkeypatch.setattr(replication, "METHODS", ("equal", "dwa"))
    for name in ("VAL_POSITIVES", "TEST_POSITIVES"):
        monkeypatch.setattr(replication, name, 2)


@pytest.mark.slow
def test_stages_run_resume_and_give_the_same_rows_again(small, tmp_path, capsys):
    def stage(name: str, out: Path, *options: str) -> str:
        main([name, "--out", str(out), "--jobs", "1", "--methods", "equal", "dwa", *options])
        return capsys.readouterr().out

    first, again = tmp_path / "first", tmp_path / "again"
    assert "study_tuning: 6 cells, 6 to run" in stage("tune", first, "--plan")
    with pytest.raises(SystemExit):  # no setting yet
        stage("main", first)
    assert not (first / "study_tuning.csv").exists()
    stage("tune", first)
    tuning = RunTable(first / "study_tuning.csv")
    assert set(tuning.cells.status) == {"done"}
    assert set(tuning.rows.task) == {ENDPOINT}
    assert set(tuning.rows.split) == {"val"}  # nothing of the test
    assert len(tuning.cells) >= 3 * 2 + 2 * 2 * 2
    assert "0 to run" in stage("tune", first)
    stage("main", first)
    made = RunTable(first / "study_main.csv")
    assert len(made.cells) == 2 * 2 * 2
    assert not made.replicates
    assert "0 to run" in stage("main", first, "--plan")
    rows = made.rows[made.rows.split == "test"]
    metrics = {"auroc", "average_precision", "adjusted_average_precision", "f1_at_half", "loss"}
    assert metrics <= set(rows[rows.task == ENDPOINT].metric)
    counted = endpoint_findings(replicate("equal", 1001, SETTING).config)
    for cell, part in rows[rows.metric == "auroc"].groupby("cell"):
        values = part.set_index("task").value
        assert values[ENDPOINT] == pytest.approx(values[counted].dropna().mean(), abs=1e-6), cell
    # once more, in another order and folder
    for method in ("dwa", "equal"):
        setting = ranked_settings(first / "study_tuning.csv", 2)[method][0]
        cells = [replicate(method, 1002, setting, data_options=o) for o in replication.PHANTOMS.values()]
        replication.run_sweep(cells, again / "study_main.csv", 1, threads=1)
    repeated = RunTable(again / "study_main.csv").rows
    for cell, part in repeated.groupby("cell"):
        expected = made.rows[made.rows.cell == cell]
        pd.testing.assert_frame_equal(part.reset_index(drop=True), expected.reset_index(drop=True), check_exact=True)


@pytest.mark.parametrize("name", ["regimes", "curves", "rule"])
def test_the_other_stages_can_be_planned(name, tmp_path, capsys):
    main([name, "--out", str(tmp_path), "--plan", "--methods", "hedge"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == {"regimes": 1 + len(REGIMES), "curves": 2, "rule": 2}[name]
    assert not any(tmp_path.iterdir())


def test_equal_has_the_setting_of_a_method_above_it_in_all_replicates(tmp_path, monkeypatch):
    settings = {"equal": {"lr": 0.004, "weight_decay": 0.1}, "deepchest": {"lr": 0.004, "weight_decay": 0.1}}
    above, other = {"lr": 0.002, "weight_decay": 0.5}, {"lr": 0.008, "weight_decay": 0.2}
    monkeypatch.setattr(
        replication, "tuned", lambda out: settings | dict.fromkeys([*replication.LONGER[2:], "dwa"], above)
    )
    monkeypatch.setattr(replication, "ranked_settings", lambda *of: {"equal": [settings["equal"], other, above]})
    values = {
        (m, number, phantom): 0.8 + 0.03 * (m == "dwa") + 1e-4 * (number % 3)
        for m in ("equal", "dwa")
        for number in MAIN[:5]
        for phantom in replication.PHANTOMS
    }
    write_table(tmp_path / "study_main.csv", values)
    (_, _), (name, cells) = replication.curves(tmp_path, [])
    assert name == "study_settings"
    counts = pd.Series([(cell.method, cell.config.lr) for cell in cells]).value_counts()
    assert counts.to_dict() == {
        ("equal", 0.002): 2 * replication.FULL,
        ("equal", 0.008): 2 * replication.FIRST,
        ("deepchest", 0.002): 2 * replication.FIRST,
        ("deepchest", 0.008): 2 * replication.FIRST,
    }


def test_equal_is_run_beside_the_rule_with_its_setting(tmp_path, monkeypatch):
    settings = {"equal": {"lr": 0.004, "weight_decay": 0.1}, "hedge": {"lr": 0.002, "weight_decay": 0.5}}
    monkeypatch.setattr(replication, "tuned", lambda out: settings)
    (_, judged), (name, beside) = replication.rule(tmp_path, ["hedge"])
    assert name == "study_rule_setting"
    assert {(cell.method, cell.config.lr) for cell in judged} == {("equal", 0.004), ("hedge", 0.002)}
    assert {(cell.method, cell.config.lr, cell.config.weight_decay) for cell in beside} == {("equal", 0.002, 0.5)}
    assert [cell.config.epochs for cell in beside] == [cell.config.epochs for cell in judged if cell.method == "equal"]


def test_batches_of_256_alone_have_the_best_of_three_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(replication, "tuned", lambda out: dict.fromkeys(METHODS, SETTING))
    for factor, value in {0.5: 0.7, 1.0: 0.71, 2.0: 0.72}.items():
        table = tmp_path / "study_b256_tuning.csv"
        write_table(table, {("equal", 2001, "default"): value}, "val", epochs=12, lr=factor * SETTING["lr"])
    rates = {
        (name, trial.config.lr) for name, trials in replication.regimes(tmp_path, []) for trial in trials
        if trial.method == "equal" and not trial.tune
    }  # fmt: skip
    larger = {("study_b256_e12", 0.008), ("study_b256_e48", 0.008)}
    assert rates == larger | {(f"study_{name}", 0.004) for name in REGIMES if not name.startswith("b256")}
