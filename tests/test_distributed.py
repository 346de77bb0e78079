"""Several processes do what one does with the same batches: every method, every rank, and a job that moves to another
number of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from ranks import results
from torch import nn

from deepchest_utils import METHODS, TrainConfig
from deepchest_utils.distributed import (
    SyncBatchNorm2d,
    SyncBatchNormAct2d,
    convert_sync_batchnorm,
    shard,
    sum_gradients,
    sum_over_ranks,
    world_size,
)
from deepchest_utils.models.trunks import build_trunk

TESTS = Path(__file__).parent
BALANCING = [
    "mgda", "pcgrad", "graddrop", "gradvac", "cagrad", "imtl_g", "nash_mtl", "aligned_mtl", "fairgrad", "config",
    "dualproj", "upgrad", "rgw", "excess_mtl",
]  # fmt: skip
# sgd: Adam makes a step of a rounding error where a gradient is near zero
SGD = {"optimizer": "sgd", "lr": 0.001, "schedule": "constant"}


def torchrun(processes: int, *command: object, **environment: str) -> subprocess.Popen:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    given = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([*run, *map(str, command)], env=given, stdout=pipe, stderr=pipe, text=True)


def output(process: subprocess.Popen, seconds: float = 300) -> str:
    out, error = process.communicate(timeout=seconds)
    return out + error


def all_configs() -> list[dict]:
    configs = [{"method": name, **SGD} for name in METHODS if name not in ("static", *BALANCING)]
    configs += [{"method": "static", "method_options": {"values": [1.5] * 7 + [0.5] * 7}, **SGD}]
    configs += [{"method": name, "method_options": {"level": "features"}, **SGD} for name in BALANCING]
    for given in configs:
        if given["method"] == "fairgrad":  # whose vector is hundreds of times as long, and ill-conditioned
            given["lr"] = 1e-5
    at_parameters = (
        "pcgrad",
        "config",
    )  # an aggregator with weights, and one without; graddrop draws signs by the last bit
    configs += [{"method": name, "method_options": {"level": "parameters"}, **SGD} for name in at_parameters]
    configs += [{"method": "deepchest+pcgrad", **SGD}, {"method": "equal", "architecture": "mtan", **SGD}]
    return configs


def compare(configs: list[dict], processes: int, folder: Path) -> None:
    (folder / "configs.json").write_text(json.dumps(configs))
    job = torchrun(processes, TESTS / "ranks.py", folder)
    words = output(job, 900)
    assert job.returncode == 0, words[-3000:]
    alone, together = results(configs), torch.load(folder / "found.pt", weights_only=True)
    wrong = []
    for given, one, many in zip(configs, alone, together, strict=True):
        assert many["ranks"] == processes
        apart = (one["net"] - many["net"]).norm() / (one["net"] - one["start"]).norm()
        near = torch.allclose(many["losses"], one["losses"], rtol=1e-3, atol=1e-3, equal_nan=True)
        if not (many["agree"] and near and apart < 0.05):
            wrong.append((given["method"], given.get("method_options"), many["agree"], near, float(apart)))
    assert not wrong


def test_two_processes_do_what_one_does(tmp_path):
    names = ("deepchest", "uncertainty", "gradnorm", "famo")
    configs = [{"method": name, **SGD} for name in names]
    configs += [{"method": "pcgrad", "method_options": {"level": at}, **SGD} for at in ("features", "parameters")]
    configs += [{"method": "equal", "backbone": "timm:test_efficientnet", **SGD}]  # its BatchNormAct2d
    compare(configs, 2, tmp_path)


def test_losses_and_levers_do_in_two_processes_what_they_do_in_one(tmp_path):
    losses = ("balanced", "focal", "asymmetric", "logit_adjusted", "ldam(scale=3, defer=0.5)")
    configs = [{"method": "deepchest_relative_loss", "loss": loss, **SGD} for loss in losses]
    recipe = {"head": "two_way", "hidden": 16, "augmentation": "resized_crop", "augment_test": True, "select": "last"}
    configs += [{"method": "famo", "loss": "balanced", "oversample": 0.5, **SGD}, {"ema": 0.5, **recipe, **SGD}]
    compare(configs, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "every"), [(2, 1), (3, 4)])
def test_methods_do_in_several_processes_what_they_do_in_one(processes, every, tmp_path, tally):
    configs = all_configs()[::every]
    compare(configs, processes, tmp_path)
    tally("runs in which all ranks agreed", len(configs))


def command(run_dir: Path, **given: object) -> list[object]:
    options = {
        "image-size": 32, "epochs": 3, "batch-size": 24, "device": "cpu", "run-dir": run_dir, "optimizer": "sgd", "lr": 0.0001, "method": "dwa",
        **given,
    }  # fmt: skip
    sizes = [
        v for name, n in (("num_train", 240), ("num_val", 48), ("num_test", 48)) for v in ("--data-options", name, n)
    ]
    return ["-m", "deepchest_utils", "train", *[v for n, x in options.items() for v in (f"--{n}", x)], *sizes]


def history(run_dir: Path) -> pd.Series:
    return pd.read_csv(run_dir / "history.csv").set_index(["epoch", "split", "task", "metric"]).value


@pytest.mark.slow
def test_a_stopped_job_goes_on_with_another_number_of_processes(tmp_path):
    """Two processes until a scheduler ends them in the middle of an epoch, then three: as one that was never stopped."""
    given = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *map(str, command(tmp_path / "one"))], env=given, check=True, capture_output=True)
    first = torchrun(2, *command(tmp_path / "several"))
    while not (tmp_path / "several" / "checkpoint.pt").exists():
        assert first.poll() is None, output(first)
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    words = output(first)
    assert "stopped after" in words
    assert "goes on from" in words
    state = torch.load(tmp_path / "several" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] < 3
    second = torchrun(3, *command(tmp_path / "several"))
    words = output(second)
    assert second.returncode == 0, words[-3000:]
    assert words.count("test, epoch") == 1  # one process speaks, and writes
    one, several = history(tmp_path / "one"), history(tmp_path / "several")
    assert (one.index == several.index).all()
    apart = (one - several).abs()
    assert apart.xs("loss", level="metric").max() < 2e-3
    assert apart.xs("weight", level="metric").max() < 1e-2


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_within_a_minute(tmp_path):
    start = time.monotonic()
    job = torchrun(3, TESTS / "ranks.py", tmp_path, DIES="2")
    words = output(job, 120)
    assert time.monotonic() - start < 60
    assert job.returncode != 0
    assert "this process breaks" in words
    assert "Root Cause" in words
    assert "rank      : 2" in words


@pytest.mark.slow
def test_an_error_is_one_line_and_ends_the_job(tmp_path):
    job = torchrun(2, *command(tmp_path, **{"batch-size": 25}))
    words = output(job, 120)
    assert job.returncode != 0
    assert "batch_size should be a multiple of the 2 processes. Found 25." in words
    assert "Traceback" not in words.partition("error in process")[0]
    job = torchrun(2, "-m", "deepchest_utils", "sweep", "--out", tmp_path / "sweep.csv")
    assert "command should be train under torchrun. Found 'sweep'." in output(job, 120)


def test_in_one_process_nothing_is_done():
    net = nn.Sequential(nn.BatchNorm2d(3))
    convert_sync_batchnorm(net)
    assert type(net[0]) is nn.BatchNorm2d
    losses = torch.rand(4, requires_grad=True)
    assert sum_over_ranks(losses) is losses
    assert shard(losses) is not None
    assert torch.equal(shard(losses), losses)
    sum_gradients([])
    assert world_size() == 1


def test_every_batch_norm_is_synchronised_or_refused(monkeypatch):
    from timm.layers import BatchNormAct2d

    monkeypatch.setattr("deepchest_utils.distributed.world_size", lambda: 2)
    net, _ = build_trunk("lite0", 32)
    convert_sync_batchnorm(net)
    assert {type(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {SyncBatchNormAct2d}
    for kind in (nn.BatchNorm1d, nn.BatchNorm3d, type("Own", (BatchNormAct2d,), {})):
        with pytest.raises(ValueError, match=rf"Found {kind.__name__} \(head\.1\)"):
            convert_sync_batchnorm(nn.ModuleDict({"head": nn.Sequential(nn.ReLU(), kind(3))}))
    one = BatchNormAct2d(3, act_layer=nn.SiLU).eval()  # as PyTorch's in evaluation
    x = torch.randn(4, 3, 5, 5)
    expected = one(x)
    convert_sync_batchnorm(one)
    assert type(one) is SyncBatchNormAct2d
    torch.testing.assert_close(one(x), expected, rtol=0, atol=0)


def test_batch_norm_alone_is_pytorchs():
    one, ours = nn.BatchNorm2d(3), SyncBatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(one(x), ours(x), rtol=0, atol=0)
    torch.testing.assert_close(one.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_default_configuration_can_be_shared_by_two_and_four():
    assert TrainConfig().batch_size % 4 == 0
