"""Reruns put together: what may share a mean, what is said of the rest, one table and one picture."""

import json
import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image
from scipy import stats

from deepchest_utils import METHODS, TrainConfig, train
from deepchest_utils.__main__ import main
from deepchest_utils.config import format_method, parse_method
from deepchest_utils.notebook.figures import draw_summary
from deepchest_utils.results.labels import method_family, method_label
from deepchest_utils.results.report import (
    OWN_DATA,
    describe_run,
    differing_settings,
    format_summary,
    name_groups,
    report,
)
from deepchest_utils.results.store import COLUMNS, RunRecord
from deepchest_utils.sweep import make_trials, run_sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning"),
    pytest.mark.usefixtures("one_thread"),
]
TINY = {"image_size": 32, "epochs": 1, "device": "cpu", "augment": False}
TINY["data_options"] = {"num_train": 96, "num_val": 48, "num_test": 48}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Seven real runs: two methods and two seeds on one phantom; and two seeds, each with a phantom of its own."""
    root = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        for method in ("equal", "rlw"):
            train(TrainConfig(**TINY, method=method, seed=seed, run_dir=str(root / "one" / f"{method}-{seed}")))
    for method, seed in (("equal", 5), ("rlw", 5), ("equal", 6)):
        folder = str(root / "own" / "deep" / str(seed) / method)
        train(TrainConfig(**TINY, method=method, seed=seed, data_seed=seed, run_dir=folder))
    return root


@pytest.fixture
def runs(trained, tmp_path):
    """A copy to break."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def score(folder, metric="auroc", task="macro") -> float:
    table = pd.read_csv(folder / "test.csv")
    return table.set_index(["metric", "task"]).value[metric, task]


def change(path, **values):
    """Rewrite fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


ONE, OWN = "phantom, 32 px, data seed 0", f"phantom, 32 px, {OWN_DATA}"


def lines(folder) -> dict[tuple[str, str], pd.Series]:
    """(start of the group's name, method) -> its row of the summary."""
    table = report(folder).summary
    return {(row.group.partition(" (")[0], row.method): row for _, row in table.iterrows()}


# numbers


def test_means_intervals_and_differences_are_those_of_the_runs(trained):
    found = lines(trained)
    assert set(found) == {(ONE, "equal"), (ONE, "rlw"), (OWN, "equal"), (OWN, "rlw")}
    equal, own = (
        np.array([score(trained / "one" / f"{method}-{seed}") for seed in (0, 1)]) for method in ("equal", "rlw")
    )
    row = found[ONE, "rlw"]
    assert (row.seeds, row.pairs) == (2, 2)
    assert row.auroc == pytest.approx(own.mean())
    low, high = stats.ttest_1samp(own, 0).confidence_interval()
    assert (row.auroc_low, row.auroc_high) == pytest.approx((low, high))
    paired = stats.ttest_rel(own, equal)
    assert row.difference == pytest.approx((own - equal).mean())
    assert (row.difference_low, row.difference_high) == pytest.approx((*paired.confidence_interval(),))
    assert row.difference_p == pytest.approx(paired.pvalue)
    ap = [score(trained / "one" / f"rlw-{seed}", "average_precision") for seed in (0, 1)]
    assert row.average_precision == pytest.approx(np.mean(ap))
    assert np.isnan(found[ONE, "equal"].difference)


def test_the_worst_finding_has_the_lowest_mean_and_findings_are_counted(trained):
    row = lines(trained)[ONE, "equal"]
    tables = [pd.read_csv(trained / "one" / f"equal-{seed}" / "test.csv") for seed in (0, 1)]
    test = pd.concat(tables).query("metric == 'auroc' and task not in ['macro', 'worst']")
    means = test.groupby("task").value.mean()
    assert (row.worst, row.worst_auroc) == (means.idxmin(), pytest.approx(means.min()))
    assert row.findings == means.notna().sum() < 14  # 48 images have not every finding


def test_one_seed_has_no_interval(trained):
    row = lines(trained)[OWN, "rlw"]
    folder = trained / "own" / "deep" / "5"
    assert (row.seeds, row.pairs) == (1, 1)
    assert row.auroc == pytest.approx(score(folder / "rlw"))
    assert row.difference == pytest.approx(score(folder / "rlw") - score(folder / "equal"))
    assert row[["auroc_low", "auroc_high", "difference_low", "difference_high", "difference_p"]].isna().all()


def test_the_long_table_has_every_row_of_every_run(trained):
    found = report(trained)
    folders = [path.parent for path in trained.rglob("test.csv")]
    assert sorted(found.runs.run) == sorted(map(str, folders))
    assert list(found.rows.columns) == ["run", "group", *COLUMNS]  # nothing but data, method and seed differs
    for folder in folders:
        parts = [pd.read_csv(folder / f"{name}.csv") for name in ("history", "test")]
        mine = found.rows[found.rows.run == str(folder)]
        pd.testing.assert_frame_equal(mine[COLUMNS].reset_index(drop=True), pd.concat(parts, ignore_index=True))
    assert found.remarks == []


# what may share a mean


def test_another_setting_is_another_group_and_a_column(runs):
    change(runs / "one" / "rlw-1" / "config.json", lr=1e-3)
    found = lines(runs)
    assert found["phantom, 32 px, lr 0.002, data seed 0", "rlw"].seeds == 1
    alone = found["phantom, 32 px, lr 0.001, data seed 0", "rlw"]
    assert (alone.seeds, alone.pairs) == (1, 0)  # Equal did not run at this rate
    rows = report(runs).rows
    assert set(rows[rows.run == str(runs / "one" / "rlw-1")].lr) == {1e-3}
    shown = format_summary(report(runs).summary)
    assert "phantom, 32 px, lr 0.001, data seed 0 (no Equal with these settings)\n" in shown


@pytest.mark.parametrize("fingerprint", ["0123456789abcdef", None])
def test_other_data_are_another_group(runs, fingerprint):
    """A changed folder of images, say; and a run of before data were noted."""
    for method in ("equal", "rlw"):
        change(runs / "one" / f"{method}-1" / "environment.json", data=fingerprint)
    table = report(runs / "one").summary.query("method == 'rlw'")
    assert table.seeds.tolist() == [1, 1]
    assert table.pairs.tolist() == [1, 1]  # each with the Equal of its own data
    assert table.group.nunique() == 2


def test_split_by_name_and_split_by_default_are_the_same_data(runs):
    """The notebooks name the split that the data have, the command leaves it to the data."""
    change(runs / "one" / "rlw-1" / "config.json", split="patient")
    assert lines(runs)[ONE, "rlw"].seeds == 2


def test_where_data_do_not_hang_on_the_seed_it_is_no_matter(runs):
    """An official split, of which notebook 03 with another seed names another data seed."""
    for path in (runs / "one").rglob("config.json"):
        change(path, dataset="nih", data_root="somewhere", data_seed=json.loads(path.read_text())["seed"])
    table = report(runs / "one").summary
    assert table.seeds.tolist() == [2, 2]
    assert set(table.group) == {"nih, 32 px"}


def test_only_phantoms_are_independent_draws(runs):
    for path in (runs / "own").rglob("config.json"):
        change(path, dataset="nih", data_root="somewhere")
    table = report(runs / "own").summary
    assert sorted(table.seeds) == [1, 1, 1]
    assert [name.partition(" (")[0] for name in table.group.unique()] == [
        "nih, 32 px, data seed 5",
        "nih, 32 px, data seed 6",
    ]


def test_options_and_architectures_are_methods_of_their_own(runs):
    change(runs / "one" / "rlw-0" / "config.json", method_options={"floor": 0.25})
    change(runs / "one" / "equal-1" / "config.json", architecture="single_task")
    found = lines(runs / "one")
    assert {method for _, method in found} == {"equal", "rlw", "rlw(floor=0.25)", "equal@single_task"}
    assert {row.pairs for _, row in found.items()} == {0, 1}


def test_a_run_that_is_there_twice_counts_once(runs):
    shutil.copytree(runs / "one" / "equal-1", runs / "two" / "again")
    found = report(runs)
    assert found.summary.seeds.tolist() == [2, 2, 2, 1]
    assert found.remarks == [f"repeated: {runs / 'two' / 'again'}: counted once"]
    path = runs / "two" / "again" / "test.csv"
    table = pd.read_csv(path)
    table.loc[(table.task == "macro") & (table.metric == "auroc"), "value"] += 0.01
    table.to_csv(path, index=False)
    (said,) = report(runs).remarks
    assert said.endswith("counted once, the first, although their scores are not the same")
    assert report(runs).summary.auroc.tolist() == found.summary.auroc.tolist()


def test_groups_by_hand():
    """Settings that are lists stay apart, and data seeds are only told where there are several."""
    configs = [
        TrainConfig(method="equal", seed=seed, data_options={"controlled": factor} if factor else {})
        for seed in (0, 1)
        for factor in (None, {"contrast": {"Mass": 2}})
    ]
    records = [RunRecord(f"run{i}", c, {"data": "abc"}, pd.DataFrame()) for i, c in enumerate(configs)]
    table = pd.DataFrame([describe_run(record) for record in records])
    differing = differing_settings(table)
    assert differing.controlled.tolist() == [None, '{"contrast": {"Mass": 2}}'] * 2
    names = name_groups(table, differing)
    assert names == ["phantom, 64 px", 'phantom, 64 px, controlled {"contrast": {"Mass": 2}}'] * 2


@pytest.mark.parametrize(
    "spec",
    [
        "equal",
        "deepchest(floor=0.25, normalize=True)",
        'pcgrad(level="features")',
        'deepchest(floor=0.25)+pcgrad(level="features")',
        'deepchest+pcgrad(level="features")',
        "deepchest(initial=[1.0, 2.0], cap=None)+equal",
    ],
)
def test_a_method_is_written_as_it_is_read(spec):
    assert format_method(*parse_method(spec)) == spec


# what is not counted, and said


def test_the_folder_that_one_is_in(runs, monkeypatch):
    monkeypatch.chdir(runs / "one")
    assert sorted(report(".").runs.run) == ["equal-0", "equal-1", "rlw-0", "rlw-1"]


def test_unfinished_runs_are_listed(runs):
    (runs / "one" / "equal-1" / "test.csv").unlink()
    (runs / "just").mkdir()
    (runs / "just" / "lock").touch()
    found = report(runs)
    assert found.remarks == [
        f"unfinished: {runs / 'just'}: neither test.csv nor a checkpoint",
        f"unfinished: {runs / 'one' / 'equal-1'}: equal seed 1, 1 of 1 epochs; its command goes on from there",
    ]
    assert found.summary.query("method == 'equal'").seeds.tolist() == [1, 2]


BROKEN = {
    "test.csv": (lambda text: text[: len(text) // 2], "it breaks off"),
    "history.csv": (lambda text: text.replace("metric", "quantity", 1), "history.csv has no column 'metric'"),
    "config.json": (lambda text: text[:-10], "JSONDecodeError"),
    "environment.json": (lambda text: "", "JSONDecodeError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_run_is_one_line_and_the_others_count(name, runs, capsys):
    spoil, words = BROKEN[name]
    path = runs / "one" / "equal-1" / name
    path.write_text(spoil(path.read_text()))
    assert main(["report", str(runs)]) == 1
    shown = capsys.readouterr()
    (said,) = shown.err.splitlines()
    assert said.startswith(f"damaged: {path.parent}: ")
    assert words in said
    assert shown.out.startswith("6 tested runs below")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda table: table.assign(seed=9), "another method or seed"),
        (lambda table: table[table.metric != "average_precision"], "one macro AUROC and one macro AP"),
        (lambda table: table.assign(value="high"), "could not convert"),
    ],
)
def test_a_table_of_another_run_is_refused(spoil, words, runs):
    path = runs / "one" / "equal-1" / "test.csv"
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    (said,) = report(runs).remarks
    assert words in said


def test_a_configuration_of_another_version_is_refused(runs):
    change(runs / "one" / "equal-1" / "config.json", momentum=0.9)
    (said,) = report(runs).remarks
    assert "damaged" in said
    assert "momentum" in said


def test_a_method_of_ones_own_has_its_own_name(runs, monkeypatch):
    """Whatever it is; and the others are reported."""
    own = ["my-rule", "rule 2", "a@b", "$x_1$", "1+", "equal-ish(now)", "x" * 200]
    monkeypatch.setitem(METHODS, "my-rule", METHODS["equal"])
    train(TrainConfig(**TINY, method="my-rule", run_dir=str(runs / "one" / "my-rule")))
    for number, name in enumerate(own[1:]):
        shutil.copytree(runs / "one" / "my-rule", runs / "one" / f"own{number}")
        change(runs / "one" / f"own{number}" / "config.json", method=name)
        path = runs / "one" / f"own{number}" / "test.csv"
        pd.read_csv(path).assign(method=name).to_csv(path, index=False)
    config = runs / "one" / f"own{own.index('equal-ish(now)') - 1}" / "config.json"
    found = report(runs)
    (damaged,) = found.remarks  # brackets hold options
    assert damaged.startswith(f"damaged: {config.parent}: ValueError: a method or loss should read NAME")
    own.remove("equal-ish(now)")
    assert set(found.summary.method) == {"equal", "rlw", *own}
    assert [method_label(name) for name in own] == own
    assert method_label("my-rule@single_task") == "my-rule, single-task"
    assert method_family("my-rule") == "loss"
    assert main(["report", str(runs)]) == 1
    assert (runs / "report.png").exists()


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


SPOILT = {
    "FIFO": ("history.csv", fifo),
    "test as FIFO": ("test.csv", fifo),
    "config as FIFO": ("config.json", fifo),
    "without end": ("history.csv", endless),
    "config without end": ("config.json", endless),
    "long name": ("config.json", lambda path: change(path, method="x" * 200_000)),
    "many words": ("config.json", lambda path: change(path, method="+".join("x" * 100_000))),
    "escapes": ("config.json", lambda path: change(path, method="\x1b[31mred")),
    "two lines": ("config.json", lambda path: change(path, method="a\nb")),
    "no name": ("config.json", lambda path: change(path, method=7)),
    "many numbers": ("config.json", lambda path: change(path, method_options={"values": [0.5] * 10**6})),
    "deep": ("config.json", lambda path: path.write_text("[" * 200_000)),
    "settings are a list": ("config.json", lambda path: path.write_text("[]")),
    "environment is a list": ("environment.json", lambda path: path.write_text("[]")),
    "two AUROCs": (
        "test.csv",
        lambda path: path.write_text(path.read_text().replace("macro,average_precision,", "macro,auroc,")),
    ),
    "another split": ("test.csv", lambda path: path.write_text(path.read_text().replace(",test,", ",val,"))),
    "tested twice": ("history.csv", lambda path: path.write_text(path.read_text().replace(",val,", ",test,"))),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_cannot_be_read_is_named_at_once_and_the_others_count(name, runs):
    file, spoil = SPOILT[name]
    folder = runs / "one" / "equal-1"
    spoil(folder / file)
    begun = time.monotonic()
    found = report(runs)
    assert time.monotonic() - begun < 10  # on a machine that is busy
    (said,) = found.remarks
    assert said.startswith(f"damaged: {folder}: ")
    assert len(said) < 600
    assert said.isprintable()
    assert len(found.runs) == 6


def test_out_is_no_table_of_a_run_or_of_anyone(runs, tmp_path, capsys):
    mine = tmp_path / "labels.csv"
    mine.write_text("image,Mass\n1.png,1\n")
    folder = runs / "one" / "equal-1"
    (folder / "seconds.csv").unlink()  # nor one that is still to come
    for out in (folder / "history.csv", folder / "test.csv", folder / "seconds.csv", folder / "config.json", mine):
        before = out.read_bytes() if out.exists() else None
        assert main(["report", str(runs), "--out", str(out)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(
            "error: out should be the name of a .csv, and neither it nor its .png anything but a report's."
        )
        assert (out.read_bytes() if out.exists() else None) == before
    mine.unlink()
    for _ in range(2):  # its own it writes again
        assert main(["report", str(runs), "--out", str(mine)]) == 0


def test_a_damaged_checkpoint_of_an_unfinished_run(runs):
    folder = runs / "one" / "equal-1"
    (folder / "test.csv").unlink()
    (folder / "checkpoint.pt").write_bytes(b"half")
    (said,) = report(runs).remarks
    assert said.startswith(f"damaged: {folder}: FileError: {folder / 'checkpoint.pt'}: not a readable checkpoint")


def test_a_folder_without_runs_is_one_line_and_exit_2(tmp_path, runs, capsys):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "test.csv").write_text("image,label\n")  # some data set's
    for folder, words in (
        (tmp_path / "empty", "neither a folder of train nor a table of sweep"),
        (tmp_path / "absent", "Found no folder"),
    ):
        assert main(["report", str(folder)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("error: folder should hold runs")
        assert words in said
    assert not list(tmp_path.glob("*/report*"))
    for path in runs.rglob("test.csv"):
        path.unlink()
    with pytest.raises(ValueError, match=r"unfinished: .* and 4 more") as error:
        report(runs)
    assert "\n" not in str(error.value)


def test_commits_are_told_apart(runs):
    for path in runs.rglob("environment.json"):
        change(path, commit="abcdef012345")
    change(runs / "one" / "equal-1" / "environment.json", commit="0123456789ab")
    change(runs / "one" / "equal-0" / "environment.json", commit=None)  # outside a checkout
    (said,) = report(runs).remarks
    assert said == "note: the runs are of 2 commits of the code: 0123456789ab, abcdef012345"


# sweeps


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """One thread, as cores may be shared."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


def test_sweeps_count_with_the_runs_of_train(runs, in_tmp):
    methods = ["equal", "deepchest(floor=0.25)", "static(values=[1.0, 2.0])"]
    cells = make_trials(TrainConfig(**TINY), {"method": methods, "seed": [0]})
    tables = run_sweep(cells, runs / "mine.csv", jobs=1)
    cell = tables.cells.set_index("method").cell
    found = report(runs)
    failed, repeated = found.remarks
    assert failed.startswith(f"failed: {runs / 'mine.csv'}: static(values=[1.0, 2.0]) seed 0: ValueError: values")
    # equal, seed 0, on the same data with the same settings: the same run
    assert repeated == f"repeated: {runs / 'one' / 'equal-0'}: counted once"
    row = lines(runs)[ONE, "deepchest(floor=0.25)"]
    value = tables.rows.query("task == 'macro' and metric == 'auroc' and split == 'test'").set_index("cell").value
    assert row.auroc == pytest.approx(value[cell["deepchest(floor=0.25)"]])
    assert row.pairs == 1
    assert str(runs / "mine" / cell["equal"]) in set(found.runs.run)  # the folder, and not its row in the table too
    assert lines(runs)[ONE, "equal"].seeds == 2


def test_a_table_without_its_folders_reports_the_same(runs, in_tmp):
    """As the committed ones are; and a folder that was copied elsewhere needs no table."""
    trials = make_trials(TrainConfig(**TINY), {"method": ["equal", "rlw", "static(values=[1.0, 2.0])"], "seed": [8]})
    tables = run_sweep(trials, runs / "sweep" / "mine.csv", jobs=1)
    whole = report(runs / "sweep")
    shutil.copytree(tables.folder, runs / "copied" / "deep" / "elsewhere")
    shutil.move(tables.folder / trials[0].id, runs / "moved")
    part = report(runs / "sweep")
    assert set(part.runs.run) == {f"{tables.out}:{trials[0].id}", str(tables.folder / trials[1].id)}
    shutil.rmtree(tables.folder)
    exported = report(runs / "sweep")
    assert set(exported.runs.run) == {f"{tables.out}:{trial.id}" for trial in trials[:2]}
    copied = report(runs / "copied")
    assert set(copied.runs.run) == {str(runs / "copied" / "deep" / "elsewhere" / trial.id) for trial in trials[:2]}
    for other in (part, exported, copied):
        pd.testing.assert_frame_equal(other.summary, whole.summary, rtol=1e-6)
        (failed,) = other.remarks
        assert "static(values=[1.0, 2.0]) seed 8: ValueError: values should have" in failed
    assert exported.remarks == part.remarks == whole.remarks
    assert copied.remarks[0].startswith(f"failed: {runs / 'copied' / 'deep' / 'elsewhere' / trials[2].id}: static")


def test_sweeps_that_were_to_tune_and_other_tables_of_cells(runs, in_tmp):
    before = report(runs).summary
    cells = make_trials(TrainConfig(**TINY), {"method": ["equal"], "seed": [9]}, tune=True)
    run_sweep(cells, runs / "tuning.csv", jobs=1)
    for name in ("maps.csv", "maps_cells.csv"):  # as localize leaves them
        (runs / name).write_text("cell,method,seed\na1,equal,0\n")
    (runs / "lost_cells.csv").write_text("cell,status,method,seed,settings\na1,done,equal,0,{}\n")
    found = report(runs)
    lost, untested = found.remarks
    assert lost.startswith(f"damaged: {runs / 'lost_cells.csv'}: FileError: {runs / 'lost.csv'}: not a readable table")
    assert untested == f"untested: {runs / 'tuning.csv'}: validation scores alone of 1 runs"
    pd.testing.assert_frame_equal(found.summary, before)
    (runs / "tuning.csv").unlink()
    (runs / "tuning_cells.csv").unlink()
    assert f"untested: {runs / 'tuning' / cells[0].id}: validation scores alone" in report(runs).remarks


# table and picture


def test_one_command_from_runs_to_table_and_picture(runs, capsys):
    assert main(["report", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"7 tested runs below {runs}, means over seeds [95%]")
    found = report(runs)
    assert format_summary(found.summary) in shown
    assert f"table in {runs / 'report.csv'}, picture in {runs / 'report.png'}" in shown
    for row in found.summary.itertuples():
        assert f"{row.auroc:.4f}" in shown
        assert np.isnan(row.difference) or f"{row.difference:+.4f}" in shown
    back = pd.read_csv(runs / "report.csv")
    pd.testing.assert_frame_equal(back, found.rows, check_dtype=False)
    with Image.open(runs / "report.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5
    files = {path: path.read_bytes() for path in runs.glob("report.*")}
    assert main(["report", str(runs)]) == 0  # does not read itself
    assert {path: path.read_bytes() for path in runs.glob("report.*")} == files


def test_out_is_a_new_csv(runs, tmp_path, capsys):
    out = tmp_path / "new" / "table.csv"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["table.csv", "table.png"]
    assert not (runs / "report.csv").exists()
    capsys.readouterr()
    (tmp_path / "mine_cells.csv").touch()
    (tmp_path / "film.png").touch()  # the picture would lie there
    for refused in ("table.txt", "mine.csv", "film.csv"):
        assert main(["report", str(runs), "--out", str(tmp_path / refused)]) == 2
        assert "out should be the name of a .csv, and neither it nor its .png" in capsys.readouterr().err


def test_the_picture_shows_the_summary(trained):
    summary = report(trained).summary
    fig = draw_summary(summary)
    left, right = fig.axes
    dots = [line.get_xdata()[0] for line in left.lines if len(line.get_xdata()) == 1]
    assert [x for x in dots if not np.isnan(x)] == summary.auroc.tolist()
    gaps = [line.get_xdata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    assert [x for x in gaps if not np.isnan(x)] == summary.difference.dropna().tolist()
    assert [text.get_text() for text in left.texts] == [*summary.group.unique()]
    full = [line.get_markerfacecolor() != "white" for line in left.lines if not np.isnan(line.get_xdata()[0])]
    assert full == (summary.seeds > 1).tolist()
    plt.close(fig)
    fig = draw_summary(summary[summary.method == "equal"].assign(pairs=0))
    assert len(fig.axes) == 1  # nothing to compare with
    plt.close(fig)


def test_summary_of_a_table_that_was_put_together_elsewhere(trained):
    """What the summary needs is in the collection: a notebook may drop runs before."""
    found = report(trained)
    keep = found.runs[found.runs.seed < 5]
    table = type(found)(keep, found.rows[found.rows.run.isin(keep.run)], []).summary
    assert table.seeds.tolist() == [2, 2]
