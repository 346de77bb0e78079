"""The bookkeeping of a sweep, with runs that are made up: arguments, threads, one sweep at a time, tables that stay what
they are."""

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import TrainConfig
from deepchest_utils import sweep as sweep_module
from deepchest_utils.files import FileError
from deepchest_utils.results.store import COLUMNS, PACKAGES, RunTable, to_table
from deepchest_utils.sweep import TrialResult, make_trials, run_sweep

TRIALS = make_trials(TrainConfig(), {"method": ["equal", "deepchest"], "seed": [0, 1]})
DATA, COMMIT = "0012345678901234", "123456789e12"  # hashes that look like numbers


def outcome(trial, **record) -> TrialResult:
    row = {"method": trial.method, "seed": trial.config.seed, "epoch": 3, "split": "test"}
    value = 1 / (3 + trial.config.seed)
    rows = to_table([{**row, "task": "macro", "metric": "auroc", "value": value}]).assign(cell=trial.id)
    own = {"cell": trial.id, "method": trial.method, "seed": trial.config.seed, "status": "done", "error": ""}
    own |= {"data": DATA, "settings": "{}", "commit": COMMIT, "cores": 2}
    return TrialResult(trial, own | record, rows, np.full((2, 3, 14), value, dtype=np.float32))


def add(tables: RunTable, result: TrialResult) -> None:
    tables.add(result.record, result.rows, result.replicates)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Where the sweep writes. Cells are run by `outcome`; their data are never looked at."""
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", lambda trial, *_: outcome(trial))
    monkeypatch.setattr("deepchest_utils.sweep.check_data", lambda *_: None)
    return {"out": tmp_path / "out.csv", "jobs": 1}


# arguments


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"jobs": 0}, r"jobs should be at least 1\. Found 0"),
        ({"jobs": -1}, r"jobs.*-1"),
        ({"backend": "ray"}, "backend should be one of joblib, dask.*'ray'"),
        ({"scheduler": "tcp://host:8786"}, "scheduler goes with backend dask.*'joblib', 'tcp://host:8786'"),
        ({"backend": "dask"}, "scheduler goes with backend dask.*'dask', None"),
        ({"out": "table.parquet"}, r"\.csv\. Found 'table\.parquet'"),
        ({"out": "table"}, r"\.csv\. Found 'table'"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_bad_argument_is_one_clear_error_and_nothing_is_written(given, tmp_path, bad, named):
    with pytest.raises(ValueError, match=named) as error:
        run_sweep(TRIALS, **{**given, **bad})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.csv", "out_cells.csv"])
def test_foreign_csv_is_refused_and_kept(given, name):
    path = given["out"].with_name(name)
    path.write_text("patient,age\n1,50\n")
    with pytest.raises(ValueError, match=rf"{name} has no column 'cell': no table of a sweep"):
        run_sweep(TRIALS, **given)
    assert path.read_text() == "patient,age\n1,50\n"


def test_no_trials_are_an_empty_table(given):
    tables = run_sweep([], **given)
    assert len(tables.rows) == len(tables.cells) == 0
    assert list(tables.rows.columns) == ["cell", *COLUMNS]


def test_same_trial_twice_runs_once(given, monkeypatch):
    calls = []
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", lambda trial, *_: calls.append(trial) or outcome(trial))
    run_sweep([*TRIALS, *TRIALS[:2]], **given)
    assert calls == TRIALS


# threads and processes


@pytest.mark.parametrize(
    ("cores", "jobs", "expected"),
    [(8, 2, (2, 4)), (8, 3, (3, 2)), (2, 4, (4, 1)), (4, None, (4, 1)), (4, 1, (1, 4)), (None, None, (1, 1))],
)
def test_processes_share_the_cores_evenly(given, monkeypatch, cores, jobs, expected):
    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(
        sweep_module, "with_joblib", lambda trials, jobs, threads, folder: seen.append((jobs, threads)) or iter(())
    )
    run_sweep(TRIALS, **{**given, "jobs": jobs})
    assert seen == [expected]


def test_trial_left_alone_runs_in_a_process_of_its_own_unless_there_is_one_job(given, monkeypatch):
    """It would take this process along."""
    monkeypatch.setattr(os, "cpu_count", lambda: 6)

    def run_trial(trial, threads, folder=None):
        out = trial.failed("")
        out.record.update(pid=os.getpid(), threads=threads, library=int(os.environ["OMP_NUM_THREADS"]))
        return out

    monkeypatch.setattr("deepchest_utils.sweep.run_trial", run_trial)
    (row,) = run_sweep(TRIALS[:1], **{**given, "jobs": 2}).cells.itertuples()
    assert row.pid != os.getpid()
    assert row.threads == row.library == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # one job leaves the libraries of this process as they are
    (row,) = run_sweep(TRIALS[:1], **{**given, "jobs": 1}).cells.itertuples()
    assert (row.pid, row.threads, row.library) == (os.getpid(), 6, 5)


# one sweep at a time


def test_second_sweep_at_the_same_time_is_refused(given, monkeypatch):
    refused = []

    def run_trial(trial, threads, folder=None):
        with pytest.raises(
            ValueError, match=rf"another sweep is at work in {given['out'].with_suffix('')}\. Wait"
        ) as error:
            run_sweep(TRIALS, **given)
        refused.append(error)
        return outcome(trial)

    monkeypatch.setattr("deepchest_utils.sweep.run_trial", run_trial)
    assert run_sweep(TRIALS, **given).finished() == {trial.id for trial in TRIALS}
    assert len(refused) == len(TRIALS)
    run_sweep(TRIALS, **given)  # and afterwards it may


def test_sweeps_of_one_name_in_different_folders_and_of_different_names_in_one_run_at_once(given, monkeypatch):
    inner = [given["out"].parent / "b" / "out.csv", given["out"].with_name("another.csv")]

    def run_trial(trial, threads, folder):
        if inner:
            assert run_sweep(TRIALS[:1], **{**given, "out": inner.pop()}).finished() == {TRIALS[0].id}
        return outcome(trial)

    monkeypatch.setattr("deepchest_utils.sweep.run_trial", run_trial)
    assert run_sweep(TRIALS, **given).finished() == {trial.id for trial in TRIALS}
    assert not inner


def test_sweep_of_another_process_is_in_the_way_until_it_ends(given):
    """However it ends: the lock goes with the process."""
    code = "import filelock, sys, time\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\n"
    code += "print('locked', flush=True)\ntime.sleep(600)\n"
    lock = str(given["out"].with_suffix(".lock"))
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="another sweep is at work"):
            run_sweep(TRIALS, **given)
        other.kill()
    assert not given["out"].exists()
    assert run_sweep(TRIALS, **given).finished() == {trial.id for trial in TRIALS}


def sweep_until_it_may(trials, given, begin, refused) -> None:
    begin.wait(60)
    while True:
        try:
            run_sweep(trials, **given)
            return
        except FileError:
            refused.set()
            time.sleep(0.02)


def test_two_processes_that_share_a_table_lose_no_trial(given, monkeypatch):
    """One by the path of the folder, the other by a link to it, as from two checkouts."""
    monkeypatch.setattr("deepchest_utils.sweep.run_trial", lambda trial, *_: time.sleep(0.1) or outcome(trial))
    link = given["out"].parent / "link"
    link.symlink_to(given["out"].parent)
    context = multiprocessing.get_context("fork")
    begin, refused = context.Barrier(2), context.Event()
    calls = [(TRIALS[:2], given), (TRIALS[2:], {**given, "out": link / "out.csv"})]
    processes = [context.Process(target=sweep_until_it_may, args=(*call, begin, refused)) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert refused.is_set()
    assert RunTable(given["out"]).finished() == {trial.id for trial in TRIALS}
    assert len(RunTable(given["out"]).rows) == len(TRIALS)


def test_what_another_sweep_wrote_just_before_is_not_lost(given, monkeypatch):
    """The tables are read once this sweep has the lock, not before."""
    exclusive_lock = sweep_module.exclusive_lock

    def late(path, what):
        monkeypatch.setattr(sweep_module, "exclusive_lock", exclusive_lock)
        run_sweep(TRIALS[:2], **given)
        return exclusive_lock(path, what)

    monkeypatch.setattr(sweep_module, "exclusive_lock", late)
    run_sweep(TRIALS[1:], **given)
    assert RunTable(given["out"]).finished() == {trial.id for trial in TRIALS}
    assert not RunTable(given["out"]).cells.cell.duplicated().any()


def test_tuned_trial_runs_again_for_its_test_scores_and_not_the_other_way_round(given, monkeypatch):
    calls = []

    def run_trial(trial, threads, folder=None):
        calls.append(trial)
        out = outcome(trial)
        val = out.rows.assign(split="val")
        return dataclasses.replace(out, rows=val if trial.tune else pd.concat([out.rows, val], ignore_index=True))

    monkeypatch.setattr("deepchest_utils.sweep.run_trial", run_trial)
    tuned = [dataclasses.replace(trial, tune=True) for trial in TRIALS[:2]]
    run_sweep(tuned, **given)
    run_sweep(tuned, **given)
    assert calls == tuned
    tables = run_sweep(TRIALS[:1], **given)
    assert calls == [*tuned, TRIALS[0]]
    assert sorted(zip(tables.rows.cell, tables.rows.split, strict=True)) == sorted(
        [(TRIALS[0].id, "test"), (TRIALS[0].id, "val"), (TRIALS[1].id, "val")]
    )
    assert len(tables.cells) == 2
    run_sweep(tuned, **given)
    assert len(calls) == 3


# tables that stay what they are


def test_tables_read_back_are_written_the_same(given):
    """Also hashes that look like numbers; and the text of a value does not depend on what else is in the table."""
    run_sweep(TRIALS[:1], **given)
    first, _ = (path.read_text().splitlines() for path in (given["out"], RunTable(given["out"]).cells_path))
    assert first[1].endswith(",0.3333333")
    tables = run_sweep(TRIALS, **given)
    assert given["out"].read_text().splitlines()[:2] == first
    assert set(tables.cells.data) == {DATA}
    assert set(tables.cells.commit) == {COMMIT}
    again = RunTable(given["out"])
    assert set(again.cells.data) == {DATA}
    assert set(again.cells.commit) == {COMMIT}
    pd.testing.assert_frame_equal(again.rows, tables.rows, check_exact=True)
    before = [path.read_bytes() for path in (again.out, again.cells_path, again.replicates_path)]
    add(again, outcome(TRIALS[-1]))
    assert [path.read_bytes() for path in (again.out, again.cells_path, again.replicates_path)] == before


def test_table_of_before_a_version_was_noted_goes_on(given):
    """The committed tables do not say which TorchJD and SciPy they were made with."""
    run_sweep(TRIALS[:1], **given)
    assert "torchjd" not in RunTable(given["out"]).cells
    tables = RunTable(given["out"])
    later = outcome(TRIALS[1], torchjd="0.18.0", scipy="1.17.1")
    add(tables, later)
    read = RunTable(given["out"]).cells.set_index("cell")
    assert read.torchjd.isna().tolist() == [True, False]
    assert read.scipy[TRIALS[1].id] == "1.17.1"
    assert {"torchjd", "scipy"} <= set(PACKAGES)


def test_trial_that_failed_and_its_successor_have_one_row(tmp_path):
    tables = RunTable(tmp_path / "out.csv")
    failed = outcome(TRIALS[0], status="failed", error='ValueError: "this",\nand that')
    tables.add(failed.record, failed.rows[:0], np.empty(0))
    add(tables, outcome(TRIALS[1]))
    read = RunTable(tmp_path / "out.csv")
    assert read.finished() == {TRIALS[1].id}
    assert read.cells.error[0] == 'ValueError: "this",\nand that'
    assert read.replicates.keys() == {TRIALS[1].id}
    add(read, outcome(TRIALS[0]))
    with warnings.catch_warnings(action="error"):
        last = RunTable(tmp_path / "out.csv")
    assert list(last.cells.cell) == [TRIALS[1].id, TRIALS[0].id]
    assert list(last.rows.cell) == [TRIALS[1].id, TRIALS[0].id]
    assert last.rows.dtypes[["seed", "epoch", "value"]].astype(str).to_list() == ["int64", "int64", "float64"]


def test_finished_trial_of_other_data_is_refused(tmp_path, monkeypatch):
    """What a trial is called does not say where its data lie, and files change."""

    class Data:
        def fingerprint(self):
            return DATA

    monkeypatch.setattr("deepchest_utils.sweep.run_trial", lambda trial, *_: outcome(trial))
    monkeypatch.setattr(sweep_module, "data_of", lambda config: Data())
    given = {"out": tmp_path / "out.csv", "jobs": 1}
    run_sweep(TRIALS, **given)
    run_sweep(TRIALS, **given)
    before = Path(given["out"]).read_bytes()
    monkeypatch.setattr(Data, "fingerprint", lambda self: "another")
    with pytest.raises(ValueError, match=r"out\.csv has \w+ seed \d on other data than phantom in None now"):
        run_sweep(TRIALS, **given)
    assert Path(given["out"]).read_bytes() == before
