"""The long table, and where it came from."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from deepchest_utils.results import store as records
from deepchest_utils.results.store import (
    COLUMNS,
    PACKAGES,
    environment_report,
    task_rows,
    to_table,
    write_json,
    write_table,
)

NAN = math.nan
BASE = {"method": "equal", "seed": 3, "epoch": 2, "split": "val"}
TASKS = ["Mass", "Nodule", "Edema"]


def value(table, task, metric):
    return table.set_index(["task", "metric"]).value.loc[task, metric]


def test_rows_of_an_epoch():
    table = to_table(task_rows(BASE, {"auroc": [0.9, NAN, 0.6], "loss": np.array([0.1, 0.2, 0.3])}, TASKS))
    assert list(table.columns) == COLUMNS
    assert (table[list(BASE)] == pd.Series(BASE)).all(axis=None)
    assert value(table, "Mass", "auroc") == 0.9
    assert np.isnan(value(table, "Nodule", "auroc"))
    assert value(table, "macro", "auroc") == pytest.approx(0.75)  # of those that are defined ...
    assert value(table, "macro", "auroc_tasks") == 2  # ... which are counted
    assert value(table, "worst", "auroc") == 0.6
    assert value(table, "macro", "loss") == pytest.approx(0.2)
    assert set(table.task[table.metric == "loss"]) == {*TASKS, "macro"}
    assert len(table) == 3 + 3 + 3 + 1


def test_nothing_defined_is_nan_and_counts_zero():
    table = to_table(task_rows(BASE, {"auroc": [NAN] * 3}, TASKS))
    assert value(table, "macro", "auroc_tasks") == 0
    assert np.isnan(value(table, "macro", "auroc"))
    assert np.isnan(value(table, "worst", "auroc"))


def test_without_summary_there_are_only_tasks():
    table = to_table(task_rows(BASE, {"weight": [1.0, 2.0, 3.0], "auroc": [0.5] * 3}, TASKS, summarise=False))
    assert set(table.task) == set(TASKS)
    assert table.value.tolist() == [1, 2, 3, 0.5, 0.5, 0.5]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        task_rows(BASE, {"auroc": [0.5, 0.6]}, TASKS)


def test_table_comes_back_to_the_last_bit(tmp_path):
    values = [1 / 3, 0.1 + 0.2, 1e-300, 123456789.123456789, NAN, np.nextafter(0.8, 1), -0.0, 1.0]
    table = to_table(task_rows(BASE, {"loss": values}, [f"t{i}" for i in range(8)], summarise=False))
    path = tmp_path / "deep" / "er" / "table.csv"
    write_table(path, table)
    back = pd.read_csv(path, dtype={"value": str})  # whether pandas rounds when it reads is not the question
    back["value"] = [float(v) for v in back.value]
    pd.testing.assert_frame_equal(back, table, check_exact=True)


def test_json_ends_with_a_line_and_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"seed": 3, "where": tmp_path})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"seed": 3, "where": str(tmp_path)}


def test_environment_report_says_what_a_result_depends_on():
    report = environment_report()
    assert {*PACKAGES, "python", "commit", "machine", "processor", "cores", "threads", "gpu"} <= set(report)
    assert report["numpy"] == np.__version__
    assert report["cores"] >= 1
    json.dumps(report)  # plain values, as they are to be written


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "deepchest_utils").mkdir()
    monkeypatch.setattr(records, "PROJECT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records._commit() is None
    monkeypatch.setenv("PATH", "")  # nor without git
    assert records._commit() is None
