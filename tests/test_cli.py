"""`python -m deepchest_utils`: quick to say what it can do, and one clear line when it cannot."""

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest

from deepchest_utils import FINDINGS, TrainConfig
from deepchest_utils.__main__ import COMMANDS, main, parse
from deepchest_utils.notebook.parameters import parse_value
from deepchest_utils.results.store import RunTable, task_rows, to_table

SMALL = ["--data-options", "num_train", "96", "--data-options", "num_val", "48"]
SMALL += ["--data-options", "num_test", "48"]
small_phantom = pytest.mark.filterwarnings("ignore::deepchest_utils.datasets.base.DataWarning")


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


# what is imported


@pytest.mark.parametrize("arguments", [["--help"], ["notebooks", "--help"], ["data", "--help"]])
def test_help_does_not_wait_for_torch(arguments):
    done = python(
        "import runpy, sys\n"
        f"sys.argv = ['deepchest_utils', *{arguments!r}]\n"
        "try:\n"
        "    runpy.run_module('deepchest_utils', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'sklearn', 'papermill'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr
    assert "usage: python -m deepchest_utils" in done.stdout


def test_deepchest_costs_little_more_than_torch():
    done = python(
        "import sys\n"
        "from deepchest_utils import DeepChest\n"
        "assert 'torch' in sys.modules\n"
        "import torch\n"
        "w = DeepChest(num_tasks=2)\n"
        "w.update(torch.tensor([0.0, 1.0]))\n"
        "print(float(w(torch.ones(2))))\n"
        "heavy = {'pandas', 'sklearn', 'matplotlib', 'torchvision', 'papermill'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1.1 + 1 / 1.05)


def test_every_public_name_is_there_and_no_other():
    import deepchest_utils

    for name in deepchest_utils.__all__:
        assert getattr(deepchest_utils, name) is not None
        assert name in dir(deepchest_utils)
    with pytest.raises(AttributeError, match="nonsense"):
        deepchest_utils.nonsense  # noqa: B018  reading it is the test


def test_without_a_command_the_usage_is_shown(capsys):
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: python -m deepchest_utils")
    assert all(f"\n  {name} " in error for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{version('deepchest-utils')}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_shown_with_its_help(name, capsys):
    """The comment beside its field; a field whose comment is on another line would have none."""
    with pytest.raises(SystemExit):
        parse([name, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    fields = {field.name: COMMANDS[name] for field in dataclasses.fields(COMMANDS[name])}
    if fields.pop("config", None):
        fields |= {field.name: TrainConfig for field in dataclasses.fields(TrainConfig)}
        for field in ("run_dir", "method_options", "loss_options") if "lr_from" in fields else ():
            del fields[field]  # the sweep's own, and part of a text
            assert f"--{field.replace('_', '-')} " not in shown
    for field, owner in fields.items():
        source = "".join(inspect.getsource(base) for base in owner.__mro__[:-1])
        (comment,) = re.findall(rf"^    {field}: .*  # (.*)", source, re.MULTILINE)
        assert " ".join(comment.split()) in shown, field
        assert owner is not TrainConfig or f"--{field.replace('_', '-')}" in shown, field
    assert ("--no-augment" in shown) == (name == "train")


# values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[1, 2.5]", [1, 2.5]),
        ("{'cap': 2}", {"cap": 2}),
        ("'3'", "3"),
        ("loss_trend", "loss_trend"),
        ("../data/nih", "../data/nih"),
        ("__import__('os')", "__import__('os')"),  # a literal or a text, never run
        ("", ""),
    ],
)
def test_values_from_the_command_line(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


# train


@small_phantom
def test_train_end_to_end_and_again(tmp_path, capsys):
    command = [
        "train", "--image-size", "32", "--epochs", "2", "--run-dir", str(tmp_path / "run"), *SMALL,
        "--method", "deepchest", "--method-options", "signal", "auroc", "--method-options", "cap", "2.0",
        "--no-augment", "--lr", "1e-3", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "of 2" in first
    assert all(name in first for name in (*FINDINGS, "macro", "worst", "auroc"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["method_options"] == {"signal": "auroc", "cap": 2.0}
    assert saved["data_options"] == {"num_train": 96, "num_val": 48, "num_test": 48}
    assert saved["augment"] is False
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history.epoch.max() == 2
    assert main(command) == 0  # there is nothing left to train, and the same to say
    assert capsys.readouterr().out == first
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / "history.csv"), history)
    # the same folder with another configuration
    assert main([*command, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now" in one_error(capsys)


def one_error(capsys) -> str:
    """The one line that the command left on standard error."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--epochs", "0"], "epochs"),
        (
            ["trian"],
            "train, sweep, report, localize, predict, bench, notebooks, data, embed. Found 'trian'. Did you mean 'train'?",
        ),
        (["train", "--backbone", "resnet8", "--image-size", "32", *SMALL], "resnet18"),
        (["train", "--dataset", "mnist"], "phantom, nih, chestmnist, csv"),
        (["train", "--method", "magic", "--image-size", "32", *SMALL], "deepchest_loss_trend"),
        (["train", "--data-options", "num_trains", "5"], "num_train"),
        (["train", "--dataset", "nih", "--data-root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["data", "phantom", "--image-size", "8"], "image_size"),
        (["data", "nih"], "root"),
        (["data", "--data-options", "num_train", "1.5"], "num_train should be of type int. Found 1.5"),
        (["data", "--data-options", "num_train", "x"], "num_train should be of type int. Found 'x'"),
        (["data", "--data-options", "num_train", "1e3"], "num_train should be of type int. Found 1000.0"),
        (["data", "--data-options", "num_val", "true"], "num_val should be of type int. Found True"),
        (["data", "--data-options", "num_test", "99999999999"], "num_test should be at least 1 and at most 10000000"),
        (["data", "--data-options", "unknown", "nan"], "unknown should be of type float. Found 'nan'"),
        (["data", "--data-options", "label_noise", "2"], "label_noise should be a share between 0 and 1. Found 2"),
        (["data", "--data-options", "max_images", "0"], "max_images should be at least 1. Found 0"),
        (["data", "--data-options", "max_images", "[]"], "max_images should be of type int | None. Found []"),
        (["data", "--data-seed", str(2**63 - 1)], "seed should be less than"),
        (["localize", "--per-finding", "-1"], "per_finding should be at least 1. Found -1"),
        (["data", "--data-options", "seed", "1"], "data_options should not have seed"),
        (["train", "--data-options", "image_size", "64"], "data_options should not have image_size"),
        (["train", "--run-dir", ""], "run_dir should be the path of a folder, or left out. Found an empty text"),
        (["bench", "--out", ""], "out should be the name of a .csv. Found ''"),
        (["localize", "--out", ""], "out should be the name of a .csv. Found ''"),
        (["notebooks", "01", "-p", "x", "{[]: 1}"], "01_data_exploration has no parameter 'x'"),
        (["notebooks", "01", "-p", "x", "-" * 9999 + "1"], "01_data_exploration has no parameter 'x'"),
        (["train", "--method", "+".join(["equal"] * 5000)], "at most ten"),
        (["notebooks", "99"], "99"),
        (["sweep", "--method", "equal", "magic"], "deepchest_loss_trend"),
        (["sweep", "--lr", "1e-3", "-1"], "lr should be greater than 0"),
        (["sweep", "--seed", "--lr", "1e-3"], "seed should have at least one value"),
        (["sweep", "--augment", "maybe"], "augment should be of type bool. Found 'maybe'"),
        (["sweep", "--jobs", "0"], "jobs"),
        (["sweep", "--backend", "ray"], "joblib, dask"),
        (["sweep", "--scheduler", "tcp://host:1"], "dask"),
        (["sweep", "--out", "table.txt"], ".csv"),
        (
            ["sweep", "--lr-from", "/nowhere/at/all.csv"],
            "/nowhere/at/all.csv: no such file. lr_from should be the table",
        ),
        (["sweep", "--tune", "--baseline", "equal"], "baseline compares test scores, and tune keeps none. Leave one"),
        (
            ["sweep", "--method", "equal", "--baseline", "equl", "--out", "/nowhere/at/all.csv"],
            "baseline should be one of equal. Found 'equl'. Did you mean 'equal'?",
        ),
        (["sweep", "--lr-from", "runs/mine"], "lr_from should be the name of a .csv. Found 'runs/mine'"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else value,
)
@small_phantom
def test_bad_value_is_one_line_and_exit_2(arguments, named, capsys):
    assert main(arguments) == 2
    assert named in one_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--optimizer", "lion"], "adamw"),
        (["train", "--epoch", "3"], "--epochs"),  # did you mean
        (["predict", "image.png"], "--checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_option_that_cannot_be_read_is_refused(arguments, named, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{[]: 1}", "-" * 9999 + "1", "[" * 9999, "(" * 9999, "{1: " * 9999])
def test_value_that_python_cannot_read_is_a_text(text):
    assert parse_value(text) == text


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "--image-size", "32", *SMALL]])
def test_closed_pipe_is_a_quiet_end(arguments, tmp_path):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "DEEPCHEST_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-m", "deepchest_utils", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Error" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["notebooks", "--list"]])
def test_full_disk_behind_standard_output_is_one_line(arguments):
    command = [sys.executable, "-m", "deepchest_utils", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr


def test_a_warning_is_one_line_without_a_line_of_source(tmp_path):
    environment = {**os.environ, "DEEPCHEST_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "deepchest_utils", "data", "--image-size", "32", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"note: phantom: findings without a positive image, .*\n", done.stderr)


@pytest.mark.slow
def test_options_of_no_plain_type_are_checked_too():
    """In a process of its own: here the types of arguments are checked before the reader looks at them."""
    given = {
        ("cache_dir", "1.5"): "cache_dir should be of type str | None. Found 1.5.",
        ("controlled", "1.5"): "controlled should be of type dict. Found 1.5.",
        ("controlled", '{1: 1, "x": 1}'): "controlled should have factors among",
        ("controlled", '{"loading": 1}'): "controlled 'loading' should be of type dict. Found 1.",
        ("controlled", '{"loading": {1: 1, "x": 1}}'): "controlled 'loading' should name findings. Found 1.",
        (
            "controlled",
            '{"loading": {"Mass": "x"}}',
        ): "controlled 'loading' of Mass should be of type float. Found 'x'.",
    }
    code = f"from deepchest_utils.__main__ import main\nfor words in {[*given]}:\n"
    done = python(f"{code}    assert main(['data', '--data-options', *words]) == 2\n")
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stderr.splitlines(), given.values(), strict=True):
        assert line.startswith(f"error: {expected}")


def test_error_of_the_system_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("deepchest_utils.training.train", lambda config: os.listdir("/nowhere/at/all"))
    assert main(["train"]) == 2
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'" in one_error(capsys)


def test_folder_with_a_null_character_is_named():
    for name in ("run_dir", "data_root"):
        with pytest.raises(ValueError, match=rf"^{name} should be the path of a folder\. Found 'a\\x00b'"):
            TrainConfig(**{name: "a\0b"})


def test_the_last_of_a_repeated_option_counts():
    parsed = parse(["train", "--epochs", "12", "--epochs", "1", "--data-options", "num_train", "9", *SMALL])
    assert parsed.config.epochs == 1
    assert parsed.config.data_options == {"num_train": 96, "num_val": 48, "num_test": 48}
    assert parse(["sweep", "--seed", "0", "1", "--seed", "2"]).config.seed == (2,)


@pytest.mark.parametrize(
    "order",
    [["03", "04", "-p", "seed", "1", "-p", "dataset", "nih"], ["-p", "seed", "1", "-p", "dataset", "nih", "03", "04"]],
)
def test_notebooks_and_their_parameters_come_in_any_order(order):
    parsed = parse(["notebooks", *order])
    assert parsed.names == ("03", "04")
    assert parsed.parameter == {"seed": 1, "dataset": "nih"}
    assert parse(["notebooks", "-l"]).show
    assert parse(["notebooks", "--list"]).show


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys, monkeypatch):
    monkeypatch.setattr("deepchest_utils.training.train", lambda config: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["train"]) == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepchest_utils.training.train", interrupted)
    assert main(["train"]) == 130
    assert "--run-dir" in capsys.readouterr().err
    monkeypatch.setattr("deepchest_utils.sweep.run_sweep", interrupted)
    assert main(["sweep"]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


# sweep

TINY = ["--image-size", "32", "--epochs", "1", "--device", "cpu", "--jobs", "1", *SMALL]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Where a sweep writes; one thread, as cores may be shared."""
    import torch

    monkeypatch.setenv("DEEPCHEST_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    before = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(before)


def cells(path) -> list[tuple]:
    table = pd.read_csv(path)
    options = [json.loads(text) for text in table.settings]
    rows = zip(table.method, table.seed, options, table.status, strict=True)
    return sorted((method, seed, own.get("lr", 2e-3), status) for method, seed, own, status in rows)


@small_phantom
def test_sweep_from_tuning_to_summary(in_tmp, capsys):
    """Tune on one seed, compare with each method's best on two; and once more, which runs nothing."""
    methods, tuning = ["equal", "deepchest(initial='resnet')"], str(in_tmp / "tuning.csv")
    given = ["sweep", *TINY, "--method", *methods]
    assert main([*given, "--tune", "--lr", "1e-3", "1e-2", "--seed", "5", "--out", tuning]) == 0
    assert capsys.readouterr().out.startswith(f"4 runs in {tuning}, validation, macro")
    assert cells(in_tmp / "tuning_cells.csv") == [
        (method, 5, lr, "done") for method in sorted(methods) for lr in (1e-3, 1e-2)
    ]
    out = str(in_tmp / "main.csv")
    command = [*given, "--lr-from", tuning, "--seed", "0", "1", "--baseline", "equal", "--out", out]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert set(pd.read_csv(tuning).split) == {"val"}  # what is chosen with has not seen the test
    rows = pd.read_csv(tuning).query("split == 'val' and task == 'macro' and metric == 'auroc'")
    settings = pd.read_csv(in_tmp / "tuning_cells.csv").set_index("cell").settings
    best = rows.loc[rows.groupby("method").value.idxmax()].set_index("method").cell
    lr = {method: json.loads(settings[cell]).get("lr") for method, cell in best.items()}
    assert cells(in_tmp / "main_cells.csv") == [
        (method, seed, lr[method], "done") for method in sorted(methods) for seed in (0, 1)
    ]
    table = pd.read_csv(out).query("split == 'test' and task == 'macro' and metric == 'auroc'")
    for method, values in table.groupby("method").value:
        (line,) = (line for line in shown.splitlines() if line.startswith(method))
        assert str(values.mean().round(4)) in line
    assert f"compared with equal: {in_tmp / 'main_summary.csv'}" in shown
    summary = pd.read_csv(in_tmp / "main_summary.csv")
    assert set(summary.baseline) == {"itself", "equal"}
    paired = summary.query("baseline == 'equal' and metric == 'auroc' and task == 'macro'")
    values = table.pivot(index="seed", columns="method", values="value")
    difference = values["deepchest(initial='resnet')"] - values["equal"]
    assert paired["mean"].item() == pytest.approx(difference.mean(), abs=1e-6)
    files = {path: path.read_bytes() for path in in_tmp.glob("main[._]*[vz]")}
    assert len(files) == 4
    assert main(command) == 0
    assert capsys.readouterr().out == shown
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("tune", [False, True])
def test_sweep_prints_a_line_for_each_setting_but_the_seed(in_tmp, capsys, monkeypatch, tune):
    def made(trials, out, *_):
        tables = RunTable(out)
        for trial in trials:
            run = {"method": trial.method, "seed": trial.config.seed}
            scores = {"auroc": [100 * trial.config.lr], "average_precision": [0.5]}
            rows = task_rows({**run, "epoch": 1, "split": "val" if tune else "test"}, scores, ["Mass"])
            record = {"cell": trial.id, **run, "status": "done", "settings": json.dumps(trial.settings)}
            tables.add(record, to_table(rows), np.empty(0))
        return tables

    monkeypatch.setattr("deepchest_utils.sweep.run_sweep", made)
    lists = ["--architecture", "hard_sharing", "mtan", "--lr", "1e-3", "2e-3", "--weight-decay", "0", "0.1"]
    given = ["sweep", "--method", "equal", *lists, "--seed", "0", "1", "2", "--out", str(in_tmp / "out.csv")]
    assert main([*given, *(["--tune"] if tune else [])]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines()].count("3") == 8
    assert all(name in shown for name in ("equal@mtan", "lr", "weight_decay", "0.1", "0.2"))


@small_phantom
def test_sweep_in_which_a_cell_fails_names_it_and_exits_1(in_tmp, capsys):
    command = ["sweep", *TINY, "--out", str(in_tmp / "out.csv"), "--augment", "false"]
    failing = "static(values=[1.0, 2.0])"  # not the phantom's number of findings
    assert main([*command, "--method", "equal", failing, "--baseline", "equal"]) == 1
    shown = capsys.readouterr()
    *log, error = shown.err.splitlines()
    assert log == ["1 of 2, equal seed 0: done", f"2 of 2, {failing} seed 0: failed"]
    assert error == f"failed: {failing} seed 0: ValueError: values should have shape (14,). Found (2,)."
    assert "equal" in shown.out
    assert cells(in_tmp / "out_cells.csv") == [("equal", 0, 2e-3, "done"), (failing, 0, 2e-3, "failed")]
    assert main([*command, "--method", failing]) == 1  # also where nothing is left to show
    shown = capsys.readouterr()
    assert failing in shown.err
    assert shown.out == f"1 run in {in_tmp / 'out.csv'}, test, macro\nno run finished\n"
    assert main([*command, "--method", "equal", "--baseline", failing]) == 2  # what has failed is no baseline
    assert "baseline should be one of equal. Found" in one_error(capsys)
    assert main([*command, "--method", "equal"]) == 0  # a failure of another command is not this one's
    assert capsys.readouterr().err == ""
    assert main([*command, "--method", "equal", failing, "--baseline", failing]) == 2
    assert f"no finished run of baseline '{failing}'. It failed: " in capsys.readouterr().err


# data


@small_phantom
def test_data_prints_the_splits(capsys):
    assert main(["data", "phantom", "--image-size", "32", *SMALL, "--data-options", "unknown", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("phantom, 32 px, split=patient")
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.strip()}
    assert rows["(images)"] == ["96", "0", "48", "0", "48", "0"]
    for finding in FINDINGS:
        assert 25 < int(rows[finding][1]) < 71  # half of 96, within five standard deviations
