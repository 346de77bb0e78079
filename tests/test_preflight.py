"""What `make` says before and after an installation: one line for each thing that is missing."""

import importlib.util
import re
import subprocess
import sys
from collections import namedtuple

import pytest

from deepchest_utils.paths import PROJECT

Version = namedtuple("Version", "major minor micro")
FILE = str(PROJECT / ".ci" / "preflight.py")  # no part of the package
spec = importlib.util.spec_from_file_location("preflight", FILE)
preflight = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preflight)


def test_nothing_is_missing_here():
    assert preflight.before(str(PROJECT), cpu_only=True) == []


def test_an_old_python_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.sys, "version_info", Version(3, 9, 2))
    monkeypatch.setattr(preflight.sys, "executable", "/usr/bin/python3")
    (line,) = preflight.before(str(tmp_path), cpu_only=True)
    assert line == "Python 3.11 or newer is needed, python3 is 3.9.2: make PYTHON=python3.12"


def test_a_python_without_venv_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    (line,) = preflight.before(str(tmp_path), cpu_only=True)
    assert "cannot make environments: apt install python3-venv" in line


@pytest.mark.parametrize(("cpu_only", "enough"), [(True, 3.0), (False, 7.5)])
def test_a_small_disk_is_named(monkeypatch, tmp_path, cpu_only, enough):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(9e12, 9e12, int(1e9 * enough) - 1))
    (line,) = preflight.before(str(tmp_path), cpu_only)
    assert str(tmp_path) in line
    assert ("TORCH_INDEX" in line) != cpu_only  # the smaller one, where it would help
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(9e12, 0, int(1e9 * enough)))
    assert preflight.before(str(tmp_path), cpu_only) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory", "a compiler or Python's headers"),
        ("error: command '/usr/bin/cc' failed with exit code 1", "a compiler or Python's headers"),
        ("unable to execute 'clang': No such file or directory", "a compiler or Python's headers"),
        ("FileNotFoundError: No such file or directory: '/usr/bin/c++'", "a compiler or Python's headers"),
        ("x.c:1:10: fatal error: Python.h: No such file or directory\nerror: command 'gcc' failed", "headers"),
        ("[Errno -3] Temporary failure in name resolution\nNo matching distribution found for torch", "network"),
        ("ERROR: No matching distribution found for torch>=2.11", "no release of torch>=2.11"),
        ("ERROR: No matching distribution found for torch==2.14.1", "make CONSTRAINTS="),
        ("ERROR: ResolutionImpossible: for help visit", "make CONSTRAINTS="),
        ("a line\n\n  ERROR: something new  \n", "ERROR: something new"),
        ("", "it said nothing"),
    ],
)
def test_the_cause_of_a_failure_is_one_line(said, told):
    line = preflight.cause(said)
    assert told in line
    assert "\n" not in line


def test_make_stops_with_the_cause(tmp_path):
    """As `make` calls it: a failure is reported and fails."""
    log = tmp_path / "install.log"
    log.write_text("error: command 'gcc' failed: No such file or directory\n")
    done = subprocess.run([sys.executable, FILE, "cause", str(log)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.startswith("pip failed: a package has to be compiled")
    assert str(log) in done.stdout
    done = subprocess.run([sys.executable, FILE, "before", str(tmp_path), "cpu"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_device_is_said(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    assert preflight.device().startswith("No NVIDIA driver here")
    monkeypatch.setattr(preflight.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    answers = {b"GPU 0: some card": "PyTorch cannot use it", b"No devices were found": "no GPU here"}
    for answer, told in answers.items():
        monkeypatch.setattr(
            preflight.subprocess, "run", lambda *a, answer=answer, **k: namedtuple("Done", "stdout")(answer)
        )
        assert told in preflight.device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a card")
    assert preflight.device() == "Networks are trained on a card."


def test_make_installs_torch_from_the_index_that_is_named(tmp_path):
    def said(*more: str, venv: str = "none") -> str:
        command = ["make", "-n", "-B", f"VENV={venv}", f"{venv}/.installed", *more]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout

    index = "TORCH_INDEX=https://index.invalid/cpu"
    # the versions alone: that index does not have all else that constraints.txt names
    assert re.search(
        r"install \$quiet torch==\S+ torchvision==\S+ --index-url https://index.invalid/cpu &&", said(index)
    )
    assert "install $quiet torch torchvision --index-url" in said(index, "CONSTRAINTS=")
    assert "torchvision" not in said()
    assert "--constraint constraints.txt" in said()
    assert "--constraint" not in said("CONSTRAINTS=")
    # made anew, the environment has it from there again
    (tmp_path / ".torch_index").write_text("https://index.invalid/cpu")
    assert "--index-url https://index.invalid/cpu &&" in said(venv=str(tmp_path))
    assert f"echo 'https://index.invalid/cpu' > {tmp_path}/.torch_index" in said(venv=str(tmp_path))
    assert "--index-url" not in said("TORCH_INDEX=", venv=str(tmp_path))
