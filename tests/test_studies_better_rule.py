"""The study's analyses on synthetic tables whose truth is known."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from claims import finding_statements

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.studies import better_rule
from deepchest_utils.studies.better_rule import (
    at_one_setting,
    better_rule_bar,
    expected_best,
    longer_training,
    luck_in_tuning,
    nominate,
    over_findings,
    regime_table,
    rule_candidates,
    saturated_halves,
    tuning_curves,
)
from deepchest_utils.studies.replication import ENDPOINT, FEW, FIRST, FULL, MAIN, PHANTOMS, SHORT, TRIALS, replicate

TASKS = [finding for finding in FINDINGS if finding != "Hernia"]
SIZES = (1000, 4000, 16000)


def study(effect, methods=("hedge",), seeds=range(3001, 3011), spread=0.01, sizes=SIZES, rng=0):
    """A long table as of `study_rows`: `effect(method, metric, phantom, size, task)` is the true difference to Equal."""
    noise, rows = np.random.default_rng(rng), []
    for seed in seeds:
        for phantom in ("default", "nih"):
            for size in sizes:
                for metric in ("auroc", "average_precision"):
                    for task in (ENDPOINT, *TASKS):
                        of_data = noise.normal(0.8, 0.05)  # of the replicate: the same for all methods
                        for method in ("equal", *methods):
                            true = 0.0 if method == "equal" else effect(method, metric, phantom, size, task)
                            value = of_data + true + noise.normal(0, spread)
                            rows.append((method, seed, "test", metric, task, phantom, size, value))
    columns = ["method", "seed", "split", "metric", "task", "phantom", "num_train", "value"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_expected_best_is_the_mean_over_all_choices(count):
    values = np.random.default_rng(0).random(6)
    wanted = np.mean([max(choice) for choice in combinations(values, count)])
    assert expected_best(values, count) == pytest.approx(wanted)
    scores = np.random.default_rng(1).random(6)
    wanted = np.mean([max(choice)[1] for choice in combinations(zip(scores, values, strict=True), count)])
    assert expected_best(values, count, scores) == pytest.approx(wanted)


def test_more_settings_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"between 1 and the 3 values\. Found 4"):
        expected_best(np.zeros(3), 4)


def write_sweep(path, trials, rows_of):
    """A table of a sweep and its cells, as run_sweep leaves them."""
    cells, rows = [], []
    for trial in trials:
        settings = json.dumps(trial.settings)
        cells.append(
            {
                "cell": trial.id,
                "method": trial.method,
                "seed": trial.config.seed,
                "status": "done",
                "settings": settings,
            }
        )
        rows += [{"cell": trial.id, "method": trial.method, "seed": trial.config.seed, **row} for row in rows_of(trial)]
    pd.DataFrame(cells).to_csv(path.with_name(path.stem + "_cells.csv"), index=False)
    pd.DataFrame(rows).to_csv(path, index=False)


def test_tuning_curves_rise_to_the_best_setting(tmp_path):
    rng, best = np.random.default_rng(0), {}
    settings = [{"lr": 0.001 * (i + 1), "weight_decay": 0.1} for i in range(TRIALS)]
    nih = {"difficulty": "nih"}
    trials = [replicate(m, 2001, s, True, data_options=nih, epochs=SHORT) for m in ("equal", "gls") for s in settings]
    trials.append(replicate("equal", 2001, settings[0], True, epochs=SHORT))  # the other phantom decides nothing

    def rows_of(trial):
        value = 9.0 if "difficulty" not in trial.config.data_options else rng.random()
        if value < 1:
            best[trial.method] = max(best.get(trial.method, 0), value)
        base = {"split": "val", "task": ENDPOINT, "metric": "auroc"}
        return [{"epoch": epoch, "value": value - 0.1 * (2 - epoch), **base} for epoch in (1, 2)]

    write_sweep(tmp_path / "study_tuning.csv", trials, rows_of)
    curves = tuning_curves(tmp_path / "study_tuning.csv")
    assert list(curves.columns) == [1, 2, 4, 8, 16]
    assert (curves.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)
    assert curves[16].to_dict() == pytest.approx(best)


def test_a_true_difference_of_a_finding_is_stated_and_noise_is_not():
    rows = study(lambda *of: 0.03 * (of[-1] == "Mass") - 0.03 * (of[-1] == "Edema"), seeds=range(1, 21), sizes=(4000,))
    found = finding_statements(rows)
    held = found[found.holds]
    assert set(zip(held.phantom, held.task, strict=True)) == {
        (p, t) for p in ("default", "nih") for t in ("Mass", "Edema")
    }
    assert (np.sign(held.odd) == np.sign(held.even)).all()


def test_a_difference_on_the_odd_replicates_alone_is_claimed_and_does_not_hold():
    """The test that splits the replicates: what one half says has to hold on the other."""
    rows = study(lambda *of: 0.0, seeds=range(1, 21), sizes=(4000,))
    shifted = (rows.method == "hedge") & (rows.task == "Mass") & (rows.seed % 2 == 1)
    rows.loc[shifted, "value"] += 0.05
    mass = finding_statements(rows).query("task == 'Mass'")
    assert mass.claimed.all()
    assert not mass.holds.any()


def test_statements_are_rarely_made_of_noise():
    held = sum(
        finding_statements(study(lambda *of: 0.0, seeds=range(1, 17), sizes=(4000,), rng=rng)).holds.sum()
        for rng in range(10)
    )
    assert held <= 1  # of 260: 0.05 x 0.025 x 20 families would be 0.03


@pytest.fixture
def steps():
    return pd.Series({"equal": 1.0, "hedge": 1.01, "uw_so": 1.0, "famo": 1.3, "pcgrad": 1.0, "inverse_prevalence": 1.0})


def test_the_rule_that_is_nominated_is_cheap_sees_losses_and_has_the_highest_endpoint(steps):
    gains = {"hedge": 0.01, "uw_so": 0.03, "famo": 0.06, "pcgrad": 0.09, "inverse_prevalence": 0.09, "dwa": 0.09}
    rows = study(lambda method, *_: gains[method], tuple(gains), sizes=(4000,))
    # one that was stopped after easy replicates is not helped by them
    rows = rows[(rows.method != "hedge") | (rows.seed < 3005)]
    assert nominate(rows, steps) == "uw_so"  # famo costs too much, pcgrad sees gradients, dwa was not timed
    table = rule_candidates(rows, steps)
    assert table.index.tolist() == ["dwa", "famo", "uw_so", "hedge"]
    assert table.loc["uw_so"].tolist() == pytest.approx([0.03, 0.03, 0.03, 1.0], abs=0.005)
    assert np.isnan(table.step["dwa"])
    with pytest.raises(ValueError, match="steps should have a method"):
        nominate(rows, steps[["equal", "famo"]])


def good(method, metric, phantom, size, task):
    return 0.02


def test_a_rule_that_is_better_everywhere_clears_the_bar(steps):
    bar = better_rule_bar(study(good), "hedge", steps)
    assert bar.met.tolist() == [True] * 5
    assert bar["mean"].iloc[0] == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        (lambda m, metric, p, s, t: 0.0, 1),
        (lambda m, metric, p, s, t: -0.03 if metric == "average_precision" else 0.02, 2),
        (lambda m, metric, p, s, t: -0.02 if s == 1000 else 0.04, 3),
        (lambda m, metric, p, s, t: -0.05 if t == "Mass" else 0.02, 4),
    ],
)
def test_the_bar_stops_at_the_first_item_that_fails(change, fails, steps):
    bar = better_rule_bar(study(change), "hedge", steps)
    assert bar.met.tolist() == [True] * (fails - 1) + [False]
    assert bar.index[-1].startswith(f"{fails}.")


def test_a_dear_rule_fails_at_the_price(steps):
    bar = better_rule_bar(study(good), "hedge", steps * pd.Series({"equal": 1.0, "hedge": 1.05}))
    assert bar.met.tolist() == [True] * 4 + [False]
    assert bar.measured.iloc[-1].startswith("1.06")


def test_saturated_findings_and_the_others_are_compared_apart(monkeypatch):
    easy = set(FINDINGS[::2])
    rows = study(lambda m, metric, p, s, task: 0.0 if task in easy else 0.02, seeds=range(1, 31), sizes=(4000,))
    monkeypatch.setattr(better_rule, "study_rows", lambda table: rows[rows.phantom == "default"])
    found = saturated_halves(Path("study_saturated.csv")).set_index("half")
    assert found["mean"][["saturated", "others", "all"]].tolist() == pytest.approx([0, 0.02, 0.01], abs=0.004)
    equal = rows[
        (rows.phantom == "default") & (rows.method == "equal") & (rows.metric == "auroc") & rows.task.isin(easy)
    ]
    assert found.level["saturated"] == pytest.approx(equal.value.mean())


def test_regimes_stand_below_each_other_with_the_level_of_equal():
    rows = study(lambda m, metric, p, size, task: 0.02 if size == 4000 else -0.1, seeds=range(1, 31))
    rows = rows[rows.phantom == "default"].replace({"metric": {"average_precision": "loss"}})
    regimes = {f"{size} images": rows[rows.num_train == size] for size in (1000, 4000)}
    found = regime_table(regimes)
    assert found.regime.tolist() == ["1000 images", "4000 images"]
    assert (found.metric == "auroc").all()
    assert found["mean"].tolist() == pytest.approx([-0.1, 0.02], abs=0.01)
    equal = regimes["4000 images"].query(f"method == 'equal' and metric == 'auroc' and task == '{ENDPOINT}'")
    assert found.level[1] == pytest.approx(equal.value.mean())


def test_the_endpoint_over_some_findings_is_their_mean():
    rows = study(lambda *_: 0.0, seeds=[1, 2], sizes=(4000,))
    found = over_findings(rows, ["Mass", "Nodule"])
    assert (found.task == ENDPOINT).all()
    where = "method == 'hedge' and seed == 2 and phantom == 'nih' and metric == 'auroc'"
    two = rows.query(f"{where} and task in ['Mass', 'Nodule']").value
    assert found.query(where).value.tolist() == pytest.approx([two.mean()])


def lengths_of_training(tmp_path):
    """Tables of the main stage and of the curves: Equal gains 0.01 with twice the epochs, Hedge is 0.02 above it."""
    rng = np.random.default_rng(0)
    noise = {number: rng.normal(0, 0.05) for number in MAIN[:FEW]}

    def rows_of(trial):
        epochs, of_data = trial.config.epochs, noise[trial.config.seed]
        value = 0.8 + of_data + 0.02 * (trial.method == "hedge") + 0.01 * np.log2(epochs / 24) + rng.normal(0, 1e-4)
        base = {"task": ENDPOINT, "metric": "auroc"}
        curve = [{"split": "val", "epoch": epoch, "value": value * epoch / epochs, **base} for epoch in (12, 24)]
        return [*curve, {"split": "test", "epoch": 12, "value": value, **base}]

    setting = {"lr": 0.01, "weight_decay": 0.1}
    for name, lengths in (("study_main", [24]), ("study_curves", [48, 96])):
        trials = [replicate(m, n, setting, epochs=e) for e in lengths for n in MAIN[:FEW] for m in ("equal", "hedge")]
        write_sweep(tmp_path / f"{name}.csv", trials, rows_of)
    return tmp_path / "study_main.csv", tmp_path / "study_curves.csv"


def test_longer_training_is_compared_at_each_length(tmp_path):
    curves, differences, gain = longer_training(*lengths_of_training(tmp_path))
    assert set(curves.epochs) == {24, 48, 96}
    assert gain == pytest.approx(0.01, abs=1e-3)
    assert differences.set_index("epochs")["mean"].to_dict() == pytest.approx(
        dict.fromkeys((24, 48, 96), 0.02), abs=1e-3
    )
    assert (differences.verdict == "higher").all()


def test_luck_in_tuning_is_the_range_of_equal_s_settings_and_can_be_taken_out(tmp_path):
    rng = np.random.default_rng(0)

    def rows_of(trial):
        value = 0.8 + trial.config.lr + (0.02 if trial.method == "gls" else 0.0) + rng.normal(0, 1e-5)
        return [{"split": "test", "epoch": 24, "task": ENDPOINT, "metric": "auroc", "value": value}]

    rates = {"study_main": {"equal": [0.004], "dwa": [0.01], "gls": [0.002], "rlw": [0.03]}}
    rates["study_settings"] = {"equal": [0.002, 0.01], "dwa": [0.002]}
    for name, methods in rates.items():
        settings = [(method, {"lr": lr, "weight_decay": 0.1}) for method, of in methods.items() for lr in of]
        counts = {0.002: FULL} if name == "study_settings" else {0.004: FULL, 0.002: FULL}  # as methods that are ahead
        data = [(m, s, n) for m, s in settings for n in MAIN[: counts.get(s["lr"], FIRST)]]
        trials = [replicate(m, n, s, data_options=options) for m, s, n in data for options in PHANTOMS.values()]
        write_sweep(tmp_path / f"{name}.csv", trials, rows_of)
    tables = tmp_path / "study_main.csv", tmp_path / "study_settings.csv"
    found = luck_in_tuning(*tables)
    assert found.settings.tolist() == [3, 3]
    assert found["range"].tolist() == pytest.approx([0.008, 0.008], abs=1e-4)
    judged = {name: table.set_index(["phantom", "method"])["mean"] for name, table in at_one_setting(*tables).items()}
    assert set(judged["same"].index) == set(judged["own"].index) == {(p, m) for p in PHANTOMS for m in ("dwa", "gls")}
    pairs = at_one_setting(*tables)["own"].set_index(["phantom", "method"]).pairs
    assert (pairs["nih", "dwa"], pairs["nih", "gls"]) == (FIRST, FULL)
    assert judged["own"]["nih", "dwa"] == pytest.approx(0.006, abs=1e-4)  # its rate's, and none of its own
    assert judged["same"]["nih", "dwa"] == pytest.approx(0.0, abs=1e-4)
    assert judged["same"]["default", "gls"] == pytest.approx(0.02, abs=1e-4)
