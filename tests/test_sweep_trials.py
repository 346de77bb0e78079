"""The trials of a sweep: the product of lists, what a trial is called, and a learning rate for each method."""

import dataclasses
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import FINDINGS, METHODS, TrainConfig, sweep
from deepchest_utils.config import ARCHITECTURES
from deepchest_utils.results.store import RunTable
from deepchest_utils.sweep import Trial, best_lr, make_trials

BASE = TrainConfig(image_size=32, data_options={"num_train": 128, "num_val": 64})
OTHER = {  # of each setting that makes another run, a value that BASE has not
    "dataset": "chestmnist",
    "image_size": 64,
    "split": "image",
    "data_seed": 1,
    "data_options": {"num_train": 128, "num_val": 65},
    "method": "equal",
    "method_options": {"cap": 2.0},
    "loss": "focal",
    "loss_options": {"gamma": 3.0},
    "architecture": "mtan",
    "hidden": 8,
    "head": "two_way",
    "prior_bias": False,
    "backbone": "resnet18",
    "pretrained": True,
    "epochs": 13,
    "batch_size": 32,
    "stratified": True,
    "optimizer": "sgd",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "augment": False,
    "augmentation": "resized_crop",
    "augment_test": True,
    "oversample": 0.1,
    "ema": 0.9,
    "select": "last",
    "amp": "bf16",
    "channels_last": False,
    "min_positives": 10,
    "seed": 1,
}
ELSEWHERE = {"data_root": "/elsewhere", "device": "cpu", "run_dir": "/elsewhere"}


# the product


def test_product_of_the_lists_seed_by_seed():
    made = make_trials(BASE, {"method": ["equal", "deepchest"], "lr": [1e-3, 2e-3], "seed": [3, 1]})
    found = [(c.config.seed, c.method, c.config.lr) for c in made]
    assert found == [
        (3, "equal", 1e-3), (3, "equal", 2e-3), (3, "deepchest", 1e-3), (3, "deepchest", 2e-3),
        (1, "equal", 1e-3), (1, "equal", 2e-3), (1, "deepchest", 1e-3), (1, "deepchest", 2e-3),
    ]  # fmt: skip
    assert len({c.id for c in made}) == 8
    for trial in made:  # all else is the base's
        own = {"method": trial.method, "lr": trial.config.lr, "seed": trial.config.seed}
        assert trial.config == dataclasses.replace(BASE, **own)


def test_without_lists_there_is_one_trial_the_base():
    assert make_trials(BASE, {}) == [Trial("deepchest", BASE)]
    assert make_trials(BASE, {"seed": []}) == []


def test_a_listed_architecture_is_in_the_name():
    lists = {"method": ["equal", "deepchest@single_task"], "architecture": ["hard_sharing", "mtan"], "loss": ["focal"]}
    made = [(trial.method, trial.config.architecture) for trial in make_trials(BASE, lists)]
    assert set(made) == {
        ("equal@focal", "hard_sharing"),
        ("equal@mtan@focal", "mtan"),
        ("deepchest@single_task@focal", "single_task"),
    }
    (trial,) = make_trials(BASE, {"method": ["equal"], "architecture": ["mtan"]}, {"equal": 1e-3, "equal@mtan": 4e-3})
    assert trial.config.lr == 4e-3
    assert trial.id == make_trials(BASE, {"method": ["equal@mtan"], "lr": [4e-3]})[0].id


def test_same_settings_twice_are_one_trial():
    assert len(make_trials(BASE, {"method": ["equal", "equal"], "seed": [0, 0, 1]})) == 2


@pytest.mark.parametrize(
    ("spec", "method", "options", "architecture"),
    [
        ("deepchest", "deepchest", {}, "hard_sharing"),
        ("deepchest(floor=0.25)", "deepchest", {"floor": 0.25}, "hard_sharing"),
        ("static(values=[1.0, 2.0])", "static", {"values": [1.0, 2.0]}, "hard_sharing"),
        (
            "deepchest(floor=0.5, signal='auroc')+pcgrad(level='features')",
            "deepchest+pcgrad",
            {"floor": 0.5, "signal": "auroc", "inner_options": {"level": "features"}},
            "hard_sharing",
        ),
        ("equal@single_task", "equal", {}, "single_task"),
        ("deepchest(floor=0.25)@mtan", "deepchest", {"floor": 0.25}, "mtan"),
    ],
)
def test_method_with_options_in_one_word(spec, method, options, architecture):
    (trial,) = make_trials(BASE, {"method": [spec]})
    assert trial.method == spec  # as the tables name it
    assert (trial.config.method, trial.config.method_options) == (method, options)
    assert trial.config.architecture == architecture


@pytest.mark.parametrize(
    ("lists", "named"),
    [
        ({"learning_rate": [1e-3]}, "'learning_rate' is no setting of a run.* lr, "),
        ({"method_options": [{"cap": 2.0}]}, "'method_options' is no setting"),  # the method's text has them
        ({"run_dir": ["here"]}, "'run_dir' is no setting"),
        ({"seed": [0, -1]}, "seed.*-1"),
        ({"lr": [1e-3, 0.0]}, r"lr.*0\.0"),
        ({"optimizer": ["lion"]}, "optimizer.*adamw, adam, rmsprop, sgd.*'lion'"),
        ({"method": ["equal", "magic"]}, "method should be one of equal, .*'magic'"),
        ({"method": ["deepchest+magic"]}, r"method should be one of .*'deepchest\+magic'"),
        ({"method": ["deepchest(0.25)"]}, r"a method or loss should read NAME.*'deepchest\(0\.25\)'"),
        ({"method": ["deepchest(floor=__import__('os'))"]}, "a method or loss should read"),  # a literal, never run
        ({"method": ["equal@nowhere"]}, f"architecture.*{', '.join(ARCHITECTURES)}.*'nowhere'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_run_is_refused_before_anything_runs(lists, named):
    with pytest.raises(ValueError, match=named) as error:
        make_trials(BASE, lists)
    assert "\n" not in str(error.value)


def test_options_of_one_method_are_not_dropped_when_others_are_listed():
    base = dataclasses.replace(BASE, method="deepchest", method_options={"cap": 2.0})
    with pytest.raises(ValueError, match=r"method_options.*\{'cap': 2\.0\}.*deepchest\(floor=0\.25\)"):
        make_trials(base, {"method": ["equal", "deepchest"]})
    assert make_trials(base, {"seed": [0]})[0].config.method_options == {"cap": 2.0}


def test_each_method_has_its_own_learning_rate():
    lr = {"equal": 1e-3, "deepchest(cap=2.0)": 4e-3, "deepchest@mtan": 3e-3, "deepchest": 5e-3}
    methods = ["equal", "deepchest(cap=2.0)", "equal@mtan", "deepchest@mtan"]
    made = make_trials(BASE, {"method": methods, "lr": [0.1, 0.2], "seed": [0, 1]}, lr)
    # in place of the lists' two; another architecture takes the method's, unless it has its own
    assert [(c.method, c.config.lr) for c in made[:4]] == list(zip(methods, [1e-3, 4e-3, 1e-3, 3e-3], strict=True))
    assert len(made) == 8
    with pytest.raises(ValueError, match=r"lr.*none for 'famo', only equal, deepchest\(cap=2\.0\)"):
        make_trials(BASE, {"method": ["equal", "famo"]}, lr)
    with pytest.raises(ValueError, match=r"none for 'deepchest\(cap=3\.0\)'"):  # other options, another optimum
        make_trials(BASE, {"method": ["deepchest(cap=3.0)"]}, lr)
    assert make_trials(BASE, {}, lr)[0].config.lr == 5e-3


# what a trial is called


def test_id_is_a_hash_of_what_differs_from_the_defaults():
    """So that a field that TrainConfig gets one day, left at its default, changes no id of today."""
    trial = Trial("deepchest", BASE)
    assert trial.settings == {"image_size": 32, "data_options": {"num_train": 128, "num_val": 64}}
    text = '{"data_options": {"num_train": 128, "num_val": 64}, "image_size": 32}'
    assert trial.id == hashlib.sha256(text.encode()).hexdigest()[:10]
    assert Trial("deepchest", TrainConfig()).settings == {}


def test_a_new_field_with_a_default_changes_no_id(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Grown(TrainConfig):
        warmup: int = 0

    before = Trial("deepchest", BASE)
    monkeypatch.setattr(sweep, "TrainConfig", Grown)
    grown = Grown(**{f.name: getattr(BASE, f.name) for f in dataclasses.fields(BASE)})
    assert Trial("deepchest", grown).id == before.id
    assert Trial("deepchest", dataclasses.replace(grown, warmup=1)).id != before.id


def test_every_setting_but_where_it_runs_makes_another_id():
    assert OTHER.keys() | ELSEWHERE.keys() == {f.name for f in dataclasses.fields(TrainConfig)}
    one = Trial("deepchest", BASE).id
    assert Trial("deepchest", dataclasses.replace(BASE, **ELSEWHERE)).id == one
    others = {Trial("any", dataclasses.replace(BASE, **{name: value})).id for name, value in OTHER.items()}
    assert len(others | {one}) == len(OTHER) + 1


def test_id_depends_on_no_order_of_options():
    turned = dataclasses.replace(BASE, data_options={"num_val": 64, "num_train": 128})
    assert Trial("deepchest", turned).id == Trial("deepchest", BASE).id
    first, second = (
        make_trials(BASE, {"method": [f"deepchest({text})"]})[0]
        for text in ("cap=2.0, floor=0.5", "floor=0.5, cap=2.0")
    )
    assert first.id == second.id


def test_every_method_has_an_id_of_its_own():
    made = make_trials(BASE, {"method": [*METHODS.keys() - {"static"}, "static(values=[1.0, 2.0])"]})
    assert len({c.id for c in made}) == len(METHODS)


# the learning rate


def write_tuning(out, scores: dict[tuple, list[float]], status: str = "done"):
    """A sweep's tables. scores: (method, lr, seed) -> validation macro AUROC, an epoch each."""
    rows, records = [], []
    for number, ((method, lr, seed), values) in enumerate(scores.items()):
        base = {"cell": f"{number:010d}", "method": method, "seed": seed}
        settings = {} if lr == TrainConfig.lr else {"lr": lr}
        records.append({**base, "status": status, "error": "", "settings": json.dumps(settings)})
        for epoch, value in enumerate(values, 1):
            row = {**base, "epoch": epoch, "split": "val", "task": "macro", "metric": "auroc", "value": value}
            rows += [row, {**row, "task": "Hernia", "value": 1 - value}, {**row, "metric": "auroc_tasks"}]
        # what must not choose: the test split
        rows.append({**base, "epoch": 1, "split": "test", "task": "macro", "metric": "auroc", "value": lr})
    pd.DataFrame(rows).to_csv(out, index=False)
    pd.DataFrame(records).to_csv(out.with_name(f"{out.stem}_cells.csv"), index=False)


def test_best_lr_has_the_best_validation_mean_over_seeds(tmp_path):
    scores = {
        ("equal", 1e-3, 0): [0.60, 0.80, 0.70], ("equal", 1e-3, 1): [0.70, 0.60, 0.60],  # 0.80, 0.70
        ("equal", 2e-3, 0): [0.85, 0.10, 0.10], ("equal", 2e-3, 1): [0.63, 0.10, 0.10],  # 0.85, 0.63
        ("equal", 4e-3, 0): [0.73, 0.74, 0.74], ("equal", 4e-3, 1): [0.74, 0.74, 0.74],
        ("deepchest(cap=2.0)", 2e-3, 0): [0.50, 0.51, 0.52],
        ("deepchest(cap=2.0)", 4e-3, 0): [0.50, 0.51, 0.51],
    }  # fmt: skip
    out = tmp_path / "tuning.csv"
    write_tuning(out, scores)
    found = best_lr(out)
    # 1e-3: the best epoch's, (0.80 + 0.70) / 2, against (0.85 + 0.63) / 2 and 0.74; the default, which the settings
    # do not name, is one of them
    assert found == {"equal": 1e-3, "deepchest(cap=2.0)": 2e-3}
    chosen = make_trials(BASE, {"method": ["deepchest(cap=2.0)", "equal"]}, found)
    assert [c.config.lr for c in chosen] == [2e-3, 1e-3]


def test_where_the_last_epoch_is_tested_it_is_the_one_that_counts(tmp_path):
    out = tmp_path / "tuning.csv"
    write_tuning(out, {("equal", 1e-3, 0): [0.6, 0.9, 0.7], ("equal", 4e-3, 0): [0.6, 0.6, 0.8]})
    assert best_lr(out) == {"equal": 1e-3}
    cells = pd.read_csv(out.with_name("tuning_cells.csv"), dtype=str)
    cells["settings"] = [json.dumps({**json.loads(text), "select": "last"}) for text in cells.settings]
    cells.to_csv(out.with_name("tuning_cells.csv"), index=False)
    assert best_lr(out) == {"equal": 4e-3}


def test_a_rate_at_which_runs_failed_is_not_the_best(tmp_path):
    out, seeds = tmp_path / "tuning.csv", (0, 1, 2)
    write_tuning(out, {("equal", 1e-3, seed): [0.801] for seed in seeds} | {("equal", 8e-3, 1): [0.81]})
    assert best_lr(out) == {"equal": 1e-3}


def test_best_lr_chooses_among_rates_alone(tmp_path):
    out = tmp_path / "tuning.csv"
    write_tuning(out, {("equal", 1e-3, 0): [0.6], ("equal", 4e-3, 0): [0.7]})
    cells = pd.read_csv(out.with_name("tuning_cells.csv"), dtype=str)
    cells.loc[0, "settings"] = json.dumps({**json.loads(cells.settings[0]), "epochs": 60})
    cells.to_csv(out.with_name("tuning_cells.csv"), index=False)
    with pytest.raises(ValueError, match=r"tuning\.csv has several values of epochs: lr_from chooses among"):
        best_lr(out)


def test_folders_of_data_are_no_list():
    same = make_trials(BASE, {"method": ["equal", "equal"], "data_root": ["a"]})
    assert [trial.config.data_root for trial in same] == ["a"]
    with pytest.raises(ValueError, match=r"data_root and device should have one value each"):
        make_trials(BASE, {"data_root": ["a", "b"]})


def test_best_lr_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv: no such file\. lr_from should be the table of a sweep"):
        best_lr(tmp_path / "none.csv")
    pd.DataFrame(columns=["cell", "method", "seed", "epoch", "split", "task", "metric", "value"]).to_csv(
        tmp_path / "failed.csv", index=False
    )
    pd.DataFrame([{"cell": "ab", "method": "equal", "seed": 0, "status": "failed", "settings": "{}"}]).to_csv(
        tmp_path / "failed_cells.csv", index=False
    )
    with pytest.raises(ValueError, match=r"failed\.csv holds no finished run"):
        best_lr(tmp_path / "failed.csv")
    with pytest.raises(ValueError, match=r"\.csv.*'tuning'"):
        best_lr("tuning")
    (tmp_path / "other.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"other\.csv has no column .* Choose another lr_from\."):
        best_lr(tmp_path / "other.csv")


@pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")  # too few for every finding
def test_without_history_the_test_scores_and_the_prevalence_stay(tmp_path):
    base = dataclasses.replace(BASE, epochs=2, data_options={**BASE.data_options, "num_test": 64})
    (short,), (full,) = (make_trials(base, {"method": ["deepchest"]}, history=h) for h in (False, True))
    kept, all_rows = sweep.run_trial(short, 1), sweep.run_trial(full, 1)
    assert set(zip(kept.rows.split, kept.rows.metric, strict=True)) >= {("test", "auroc"), ("train", "prevalence")}
    assert set(kept.rows.metric[kept.rows.split != "test"]) == {"prevalence"}
    more = all_rows.rows[~all_rows.rows.metric.isin(["weight"]) & (all_rows.rows.split != "val")]
    pd.testing.assert_frame_equal(kept.rows.reset_index(drop=True), more.reset_index(drop=True))
    np.testing.assert_array_equal(kept.replicates, all_rows.replicates)
    assert {"weight"} < set(all_rows.rows.metric)
    assert short.id == full.id
    tables = RunTable(tmp_path / "out.csv")
    tables.add(kept.record, kept.rows, kept.replicates)
    with pytest.raises(
        ValueError, match=r"out\.csv has deepchest seed 0, lr .*, without its validation scores\. Choose"
    ):
        sweep.run_sweep([dataclasses.replace(short, tune=True)], tables.out, jobs=1)


@pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")  # too few for every finding
def test_tuning_keeps_the_validation_score_alone():
    base = dataclasses.replace(BASE, epochs=2, data_options={**BASE.data_options, "num_test": 64})
    (tuned,), (plain,) = (make_trials(base, {"method": ["equal"]}, tune=tune) for tune in (True, False))
    kept, full = sweep.run_trial(tuned, 1), sweep.run_trial(plain, 1)
    assert (kept.record["status"], full.record["status"]) == ("done", "done"), full.record["error"]
    whole = full.rows.query("split == 'val' and task == 'macro' and metric == 'auroc'")
    assert len(whole) == 2
    assert kept.rows.to_dict("records") == whole.to_dict("records")
    assert kept.replicates.size == 0 < full.replicates.size
    assert tuned.id == plain.id
    positives = (sweep.data_of(base).val.labels == 1).sum(0)
    few = dataclasses.replace(tuned, config=replace(base, method="equal", min_positives=int(positives.max())))
    counted = full.rows[
        (full.rows.split == "val") & full.rows.task.isin(np.array(FINDINGS)[positives == positives.max()])
    ]
    assert sweep.run_trial(few, 1).rows.value.tolist() == counted.groupby("epoch").value.mean().tolist()


def test_threads_of_one_process_take_turns(monkeypatch):
    """They share PyTorch's random state, which each run sets."""
    inside, most = [], []

    def slow(config):
        inside.append(config)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(config)
        raise FileNotFoundError

    monkeypatch.setattr(sweep, "data_of", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: sweep.run_trial(Trial("equal", replace(BASE, seed=seed)), 1), range(4)))
    assert most == [1, 1, 1, 1]


@pytest.mark.parametrize(("jobs", "threads", "expected"), [(1, None, 4), (2, None, 2), (2, 1, 1), (1, 1, 1)])
def test_a_sweep_may_fix_the_threads_of_its_processes(tmp_path, monkeypatch, jobs, threads, expected):
    """A row then does not depend on the machine's cores, nor on how many runs go on at a time."""
    seen = []

    def pretend(trials, jobs, threads, folder):
        seen.append(threads)
        return iter(())

    monkeypatch.setattr(sweep, "with_joblib", pretend)
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 4)
    sweep.run_sweep(make_trials(BASE, {}), tmp_path / "t.csv", jobs, threads=threads)
    assert seen == [expected]
