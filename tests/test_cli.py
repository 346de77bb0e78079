"""`python -m deepchest_utils`: quick to say what it can do, and one clear line when it cannot."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from deepchest_utils import FINDINGS
from deepchest_utils.__main__ import build_parser, main
from deepchest_utils.notebooks import parse_value

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
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_every_field_of_the_configuration_is_an_option_with_its_help(capsys):
    import dataclasses

    from deepchest_utils import TrainConfig

    with pytest.raises(SystemExit):
        build_parser("train").parse_args(["train", "--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in shown, field.name
    assert "peak learning rate" in shown
    assert "--no-augment" in shown


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
        (["train", "--optimizer", "lion"], "adamw"),
        (["train", "--dataset", "mnist"], "phantom, nih, chestmnist, csv"),
        (["train", "--method", "magic", "--image-size", "32", *SMALL], "deepchest_loss_trend"),
        (["train", "--data-options", "num_trains", "5"], "num_train"),
        (["train", "--dataset", "nih", "--data-root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["data", "phantom", "--image-size", "8"], "image_size"),
        (["data", "nih"], "root"),
        (["notebooks", "99"], "99"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else value,
)
@small_phantom
def test_bad_value_is_one_line_and_exit_2(arguments, named, capsys):
    assert main(arguments) == 2
    assert named in one_error(capsys)


def test_option_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--epochs", "many"])
    assert end.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepchest_utils.training.train", interrupted)
    assert main(["train"]) == 130
    assert "--run-dir" in capsys.readouterr().err


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
