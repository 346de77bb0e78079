"""Bars, and whether somebody looks at them: a kernel asked by a front end and by a machine, and the log of a command."""

import re

import pytest
from jupyter_client.manager import start_new_kernel

from deepchest_utils import progress
from deepchest_utils.__main__ import main
from deepchest_utils.paths import PROJECT, runs_dir

BARS = """
from deepchest_utils.progress import progress
for number in (2, 3):
    for step in progress(range(number), f"epoch {number}", mininterval=0):
        pass
    print("after", number)
"""
EXPLORER = """
from matplotlib.figure import Figure
from deepchest_utils.notebook.controls import explore
print(explore(lambda step: Figure(), step=(0, 2, 1, 1)) is not None)
"""
FOLDER = "from deepchest_utils.paths import figure_folder\nprint(figure_folder('phantom', smoke=False))"


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Run a cell in a kernel, as a front end that can be asked for input or as one that cannot; its messages."""
    env = {"IPYTHONDIR": str(tmp_path_factory.mktemp("ipython")), "JPY_SESSION_NAME": "caller.ipynb"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DEEPCHEST_FIGURES", raising=False)
        for name, value in env.items():  # of JupyterLab, which a kernel that papermill starts there inherits
            patch.setenv(name, value)
        manager, client = start_new_kernel()

    def run(code: str, person: bool) -> list[dict]:
        messages = []
        reply = client.execute_interactive(code, allow_stdin=person, output_hook=messages.append, timeout=300)
        assert reply["content"]["status"] == "ok", reply["content"]
        return messages

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def texts(messages: list[dict]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


def test_a_person_sees_a_bar_that_leaves_an_empty_output(ask):
    messages = ask(BARS, person=True)
    shown = [m for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    assert [m["msg_type"] for m in shown].count("display_data") == 1  # the second bar takes the first one's place
    assert len({m["content"]["transient"]["display_id"] for m in shown}) == 1
    bars = [m["content"]["data"].get("text/plain", "") for m in shown]
    assert any(re.match(r"epoch 2:  50%\|.*1/2", bar) for bar in bars)
    assert any(re.match(r"epoch 3:  67%\|.*2/3", bar) for bar in bars)
    assert shown[-1]["content"]["data"] == {}
    assert texts(messages) == "after 2\nafter 3\n"  # and nothing on stderr


def test_a_machine_sees_no_bar_whatever_environment_it_has_inherited(ask):
    messages = ask(BARS, person=False)
    assert [m for m in messages if "display_data" in m["msg_type"]] == []
    assert texts(messages) == "after 2\nafter 3\n"


def test_explorers_have_controls_and_a_picture_for_a_person_alone(ask):
    assert texts(ask(EXPLORER, person=False)) == "True\n"
    messages = ask(EXPLORER, person=True)
    assert texts(messages) == "False\n"
    shown = [m["content"]["data"] for m in messages if m["msg_type"] == "display_data"]
    (whole,) = [data for data in shown if "application/vnd.jupyter.widget-view+json" in data]
    assert whole["image/png"].startswith("iVBOR")


def test_what_a_person_draws_stays_out_of_the_committed_figures(ask):
    assert texts(ask(FOLDER, person=True)) == f"{runs_dir() / 'figures' / 'phantom'}\n"
    assert texts(ask(FOLDER, person=False)) == f"{PROJECT / 'figures'}\n"


def test_a_log_has_lines_of_its_command_alone(capsys, monkeypatch):
    for command, expected in (("", ""), ("sweep", ""), ("train", "epoch 1\n")):
        monkeypatch.setattr(progress, "command", command)
        progress.log_line("epoch 1", "train")
        assert capsys.readouterr().err == expected


def test_what_takes_long_has_lines_in_a_log_and_else_none(capsys, monkeypatch):
    options = {"title": "decoding nih", "logged": True, "total": 4}
    assert [*progress.progress(range(4), **options)] == [0, 1, 2, 3]
    assert capsys.readouterr().err == ""  # no command
    monkeypatch.setattr(progress, "command", "data")
    bar = progress.progress(range(4), **options)
    bar.mininterval, bar.start_t = 0, bar.start_t - 40
    assert [*bar] == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"decoding nih: \d of 4, 00:4\d", line) for line in lines)
    assert lines[-1].startswith("decoding nih: 4 of 4")


def test_train_logs_an_epoch_a_line(capsys, cache_dir):
    arguments = ["train", "--image-size", "32", "--epochs", "2", "--method", "equal", "--device", "cpu"]
    arguments += ["--data-options", "max_images", "150"]
    with pytest.warns(match="without a positive"):
        assert main(arguments) == 0
    form = r"epoch (\d)/2, loss \d\.\d{4}, validation macro AUROC 0\.\d{3}"
    assert [re.fullmatch(form, line)[1] for line in capsys.readouterr().err.splitlines()] == ["1", "2"]
    assert progress.command == ""  # what runs afterwards in this process logs nothing
