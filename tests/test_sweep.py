"""Sweeps on the phantom: what the tables hold, and that a stop, a failure or a killed process costs no more than it
must."""

import contextlib
import io
import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import TrainConfig, load_dataset, train
from deepchest_utils.datasets import DataWarning
from deepchest_utils.results import store
from deepchest_utils.results.statistics import bootstrap_metric
from deepchest_utils.results.store import COLUMNS, PACKAGES, RunTable, environment_report, read_run
from deepchest_utils.sweep import PATIENTS_SEED, TrialResult, make_trials, run_sweep
from deepchest_utils.training.loop import Loop

# images this few have too few positives of the rare findings: that is what the warning says
pytestmark = [
    pytest.mark.usefixtures("one_core"),
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
]

SIZES = {"num_train": 128, "num_val": 64, "num_test": 200}
BASE = TrainConfig(image_size=32, epochs=2, device="cpu", data_options=SIZES)
AUROC = "deepchest(signal='auroc')"
UNEQUAL = f"static(values={[1.0, 2.0] * 7})"  # weights that differ, and do not move
REFUSED = "static(values=[1.0, 2.0])"  # for two tasks: that the data have more is known when they are loaded
TRIALS = make_trials(BASE, {"method": ["equal", AUROC], "seed": [0, 1]})
STATIC, FAILING = make_trials(BASE, {"method": [UNEQUAL, REFUSED]})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, cache_dir, one_core):
    """Six trials, one of which fails, on two processes. The tables, and what was printed meanwhile."""
    folder = tmp_path_factory.mktemp("sweep")
    printed, kept = io.StringIO(), os.dup(2)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("PYTHONWARNINGS", "ignore::UserWarning")  # of the data, in the processes
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", DataWarning)
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        file = stack.enter_context(open(folder / "stderr", "wb"))
        os.dup2(file.fileno(), 2)  # what the processes inherit
        stack.callback(os.dup2, kept, 2)
        run_sweep([*TRIALS, STATIC, FAILING], folder / "out.csv", jobs=2)
    os.close(kept)
    return RunTable(folder / "out.csv"), printed.getvalue() + (folder / "stderr").read_text()


@pytest.fixture
def copied(sweep, tmp_path):
    """The finished sweep in a folder where a test may change it; what run_sweep needs to go on with it."""
    tables, _ = sweep
    for path in (tables.out, tables.cells_path, tables.replicates_path):
        shutil.copy(path, tmp_path)
    return {"out": tmp_path / "out.csv"}


@pytest.fixture(scope="module")
def data(cache_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return load_dataset("phantom", image_size=32, **SIZES)


def lines(out) -> dict[str, list[str]]:
    """Each trial's lines of the long table, as they are in the file."""
    found: dict[str, list[str]] = {}
    for line in RunTable(out).out.read_text().splitlines()[1:]:
        found.setdefault(line.partition(",")[0], []).append(line)
    return found


def assert_trials_are_whole(out, sweep, trials):
    """These trials and no other are finished, each with all that the undisturbed sweep has of it."""
    tables, whole = RunTable(out), sweep[0]
    assert tables.finished() == {trial.id for trial in trials}
    assert not tables.cells.cell.duplicated().any()
    found, expected = lines(out), lines(whole.out)
    for trial in trials:
        assert found[trial.id] == expected[trial.id]
        np.testing.assert_array_equal(tables.replicates[trial.id], whole.replicates[trial.id])


def known(tables: RunTable, calls: list | None = None):
    """Stands for `run_trial` where training is beside the point: it hands over what `tables` have of the trial."""
    rows, replicates, records = tables.rows, dict(tables.replicates), tables.cells.set_index("cell")

    def run_trial(trial, threads, folder=None):
        if calls is not None:
            calls.append((trial.id, threads))
        record = {"cell": trial.id, **records.loc[trial.id].to_dict()}
        return TrialResult(trial, record, rows[rows.cell == trial.id], replicates.get(trial.id, np.empty(0)))

    return run_trial


# what a sweep leaves


def test_table_of_trials_has_a_row_a_trial(sweep, data):
    table = sweep[0].cells.set_index("cell")
    trials = [*TRIALS, STATIC, FAILING]
    assert sorted(table.index) == sorted(trial.id for trial in trials)
    here = environment_report()
    for trial in trials:
        row = table.loc[trial.id]
        assert (row.method, row.seed) == (trial.method, trial.config.seed)
        assert json.loads(row.settings) == trial.settings
        assert row.data == data.fingerprint()
        assert row.seconds >= 0
        assert row.threads == 1
        for name in ("python", *PACKAGES, "commit"):
            assert row[name] == here[name]
    assert (table.seconds[table.status == "done"] > 0).all()
    assert table.error[table.status == "done"].isna().all()
    assert list(table.index[table.status == "failed"]) == [FAILING.id]
    assert "ValueError: values should have shape (14,). Found (2,)" in table.error[FAILING.id]


@pytest.mark.parametrize("trial", [TRIALS[0], TRIALS[3], STATIC], ids=lambda trial: trial.method[:9])
def test_long_table_has_what_the_same_run_says_alone(sweep, data, trial):
    run = train(trial.config, data)
    history = run.history
    base = {"seed": trial.config.seed, "epoch": 0, "split": "train", "metric": "prevalence"}
    named = zip(data.findings, data.train.prevalence, strict=True)
    kept = [run.test, pd.DataFrame([{**base, "task": f, "value": p} for f, p in named])]
    if trial.method == AUROC:  # the one of the three whose weights move
        kept.append(history[history.metric == "weight"])
    kept.append(history[(history.split == "val") & (history.metric == "auroc")])
    table = pd.concat(kept).assign(method=trial.method, cell=trial.id)[["cell", *COLUMNS]]
    expected = table.to_csv(index=False, float_format="%.7g")
    assert "\n".join(lines(sweep[0].out)[trial.id]) == "\n".join(expected.splitlines()[1:])
    weights = sweep[0].rows.query(f"cell == '{trial.id}' and metric == 'weight'")
    assert len(weights) == (2 * 14 if trial.method == AUROC else 0)  # epochs x findings


def test_replicates_are_those_of_the_trials_own_logits(sweep, data):
    trial = TRIALS[1]
    logits, found = train(trial.config, data).logits["test"], sweep[0].replicates
    assert found.keys() == {c.id for c in [*TRIALS, STATIC]}  # a failed trial has none
    rng = np.random.default_rng(PATIENTS_SEED)
    for m, metric in enumerate(("auroc", "average_precision")):
        own = bootstrap_metric(data.test.labels, [logits], data.test.patients, rng, metric, 100)[0]
        np.testing.assert_allclose(found[trial.id][m], own, rtol=1e-6)
    # the same patients in every trial: a finding without a positive in a replicate is without one in all
    undefined = [np.isnan(found[c.id]) for c in TRIALS]
    assert undefined[0].any()
    assert all(np.array_equal(undefined[0], other) for other in undefined[1:])


def test_nothing_is_printed_headless(sweep):
    assert sweep[1] == ""


def test_each_run_has_its_folder_without_a_checkpoint(sweep):
    folders = {path.name: {file.name for file in path.iterdir()} for path in sweep[0].folder.iterdir()}
    tables = {"config.json", "environment.json", "history.csv", "seconds.csv", "test.csv", "calibration.json"}
    assert folders.pop(FAILING.id) - {"lock"} == {"failure.json"}
    assert folders == {trial.id: {*tables, "replicates.npz", "lock"} for trial in [*TRIALS, STATIC]}
    failure = json.loads((sweep[0].folder / FAILING.id / "failure.json").read_text())
    assert failure["method"] == FAILING.method
    assert "ValueError: values should have shape (14,)" in failure["error"]
    assert read_run(sweep[0].folder / TRIALS[1].id).config.identity() == TRIALS[1].config.identity()


# again


def test_second_call_runs_nothing_and_writes_nothing(copied, monkeypatch):
    def never(*args):
        raise AssertionError("a finished trial should not run")

    files = sorted(copied["out"].parent.glob("out*"))
    assert len(files) == 3
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", never)
    tables = run_sweep([*TRIALS, STATIC], **copied)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert tables.finished() == {trial.id for trial in [*TRIALS, STATIC]}


def test_one_trial_from_scratch_elsewhere_is_the_same_byte_for_byte(sweep, tmp_path):
    """In this process, where the sweep had two others."""
    tables = run_sweep([TRIALS[3]], tmp_path / "other.csv", jobs=1)
    assert_trials_are_whole(tables.out, sweep, [TRIALS[3]])


def test_failed_trial_is_tried_again_and_its_row_replaced(sweep, tmp_path, monkeypatch):
    given = {"out": tmp_path / "out.csv", "jobs": 1}
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", known(sweep[0]))
    run_sweep([TRIALS[0], FAILING, TRIALS[1]], **given)
    assert_trials_are_whole(given["out"], sweep, TRIALS[:2])  # the rest went on
    monkeypatch.undo()

    def broken(config, data):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("deepchest_utils.sweep.train", broken)
    tables = run_sweep([TRIALS[0], FAILING, TRIALS[2]], **given)
    errors = tables.cells.set_index("cell").error
    assert errors[FAILING.id] == errors[TRIALS[2].id] == "FloatingPointError: the loss is nan"
    assert_trials_are_whole(given["out"], sweep, TRIALS[:2])
    monkeypatch.undo()
    tables = run_sweep([TRIALS[0], TRIALS[2]], **given)
    assert_trials_are_whole(given["out"], sweep, TRIALS[:3])
    # a failure that nobody asked for again stays on record, as the file has it
    assert list(RunTable(given["out"]).cells.query("status == 'failed'").cell) == [FAILING.id]


# stopped


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sweep_stopped_between_trials_goes_on(sweep, tmp_path, monkeypatch, jobs):
    given = {"out": tmp_path / "out.csv"}
    add, seen = RunTable.add, []

    def stopped(self, record, *others):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(next(trial for trial in TRIALS if trial.id == record["cell"]))
        add(self, record, *others)

    monkeypatch.setattr(RunTable, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(TRIALS, jobs=jobs, **given)
    assert_trials_are_whole(given["out"], sweep, seen)
    assert lines(given["out"]).keys() == {trial.id for trial in seen}
    monkeypatch.setattr(RunTable, "add", add)
    run_sweep(TRIALS, jobs=1, **given)
    assert_trials_are_whole(given["out"], sweep, TRIALS)


def test_sweep_stopped_between_its_tables_has_no_half_trial(sweep, tmp_path, monkeypatch):
    """The row in the table of cells comes last: without it, the trial runs again, and its rows are not doubled."""
    given = {"out": tmp_path / "out.csv", "jobs": 1}
    write, calls = store.write_file, []
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", known(sweep[0], calls))

    def stopped(path, text):
        if Path(path).name == "out_cells.csv" and len(calls) == 2:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(store, "write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(TRIALS, **given)
    assert lines(given["out"]).keys() == {trial.id for trial in TRIALS[:2]}
    assert_trials_are_whole(given["out"], sweep, TRIALS[:1])
    monkeypatch.setattr(store, "write_file", write)
    run_sweep(TRIALS, **given)
    assert [trial for trial, _ in calls] == [TRIALS[i].id for i in (0, 1, 1, 2, 3)]
    assert_trials_are_whole(given["out"], sweep, TRIALS)


def count_epochs(patch, stop_in: int | None = None) -> list[int]:
    """The epochs that are trained in this process from now on; in one of them, whatever stops a process."""
    train_epoch, seen = Loop.train_epoch, []

    def counted(self, epoch):
        seen.append(epoch)
        out = train_epoch(self, epoch)
        if epoch == stop_in:
            raise KeyboardInterrupt
        return out

    patch.setattr(Loop, "train_epoch", counted)
    return seen


def test_trial_stopped_in_mid_training_goes_on_from_its_checkpoint(sweep, tmp_path, monkeypatch):
    trial = TRIALS[1]
    given = {"out": tmp_path / "out.csv", "jobs": 1}
    with monkeypatch.context() as patch:
        count_epochs(patch, stop_in=2)
        with pytest.raises(KeyboardInterrupt):
            run_sweep([trial], **given)
    assert (tmp_path / "out" / trial.id / "checkpoint.pt").exists()
    assert not given["out"].exists()
    epochs = count_epochs(monkeypatch)
    run_sweep([trial], **given)
    assert epochs == [2]
    assert_trials_are_whole(given["out"], sweep, [trial])
    assert not (tmp_path / "out" / trial.id / "checkpoint.pt").exists()


def test_run_that_was_finished_before_its_row_was_written_is_read_from_its_folder(sweep, tmp_path, monkeypatch):
    given = {"out": tmp_path / "out.csv", "jobs": 1}

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunTable, "add", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(TRIALS[:1], **given)
    assert not given["out"].exists()
    epochs = count_epochs(monkeypatch)
    run_sweep(TRIALS[:1], **given)
    assert epochs == []
    assert_trials_are_whole(given["out"], sweep, TRIALS[:1])
    # other data under the same name since: what lies there is of no use
    for path in tmp_path.glob("out*.*"):
        path.unlink()
    environment = tmp_path / "out" / TRIALS[0].id / "environment.json"
    environment.write_text(environment.read_text().replace('"data": "', '"data": "another'))
    run_sweep(TRIALS[:1], **given)
    assert epochs == [1, 2]
    assert_trials_are_whole(given["out"], sweep, TRIALS[:1])


def kills_itself(killer: str, once: str, marker: str):
    """`run_trial` for processes of a pool: trial `killer` ends its process each time, trial `once` the first time, in its
    second epoch. A function made here goes to other processes as it is, so it names nothing of this module."""
    parent = os.getpid()

    def run_trial(trial, threads, folder=None):
        from pathlib import Path

        from deepchest_utils import sweep
        from deepchest_utils.training.loop import Loop

        assert os.getpid() != parent
        if trial.id == killer:
            os.kill(os.getpid(), signal.SIGKILL)
        train_epoch, first = Loop.train_epoch, not Path(marker).exists()

        def dies(self, epoch):
            if epoch == 2 and first:
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if not first and epoch == 1:
                raise AssertionError("it should go on from its checkpoint")
            return train_epoch(self, epoch)

        if trial.id == once:
            Loop.train_epoch = dies
        try:
            return sweep.run_trial(trial, threads, folder)
        finally:
            Loop.train_epoch = train_epoch

    return run_trial


@pytest.mark.slow
def test_killed_process_costs_its_own_trial_alone(sweep, tmp_path, monkeypatch):
    """A trial is tried twice, and goes on from its checkpoint; the others do not notice."""
    killer, once, beside = TRIALS[:3]
    stand_in = kills_itself(killer.id, once.id, str(tmp_path / "marker"))
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", stand_in)
    given = {"out": tmp_path / "out.csv"}
    tables = run_sweep([killer, once, beside], jobs=2, **given)
    assert_trials_are_whole(given["out"], sweep, [once, beside])
    failed = tables.cells.set_index("cell").loc[killer.id]
    assert failed.status == "failed"
    assert "its process died twice" in failed.error
    assert json.loads(failed.settings) == killer.settings
    assert "died twice" in (tables.folder / killer.id / "failure.json").read_text()
    monkeypatch.undo()
    run_sweep([killer, once], jobs=1, **given)
    assert_trials_are_whole(given["out"], sweep, [killer, once, beside])
    assert not (tables.folder / killer.id / "failure.json").exists()
