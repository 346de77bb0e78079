"""The benchmark's instruments, on things whose cost is known. Nothing here is a timing of the project."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from deepchest_utils import TrainConfig
from deepchest_utils.__main__ import main
from deepchest_utils.datasets.cache import decode
from deepchest_utils.studies.bench import PLAIN_STEP, BenchmarkSetup, full_bench, parts, ratios, time_interleaved
from deepchest_utils.studies.bench.inputs import bench_embed, bench_embeddings, write_pngs
from deepchest_utils.studies.bench.parts import CONDITIONS, bench_beside, bench_recipes, bench_starts, phantom_splits
from deepchest_utils.studies.bench.recipes import RECIPES
from deepchest_utils.studies.bench.steps import Step, loop_epoch, passes_through_trunk, peak_memory, plain_epoch

SMALL = BenchmarkSetup(num_tasks=3, image_size=32, batch_size=4, device="cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_all_take_their_turn_in_every_round_in_changing_order(rng):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = time_interleaved(steps, rounds=20, rng=rng, warmup=1)
    assert seconds.shape == (20, 3)
    assert (seconds >= 0).all(axis=None)
    turns = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(turns) == 21
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) == 6


def test_a_budget_ends_the_rounds_but_not_before_five(rng):
    seconds = time_interleaved({"a": lambda: time.sleep(0.01)}, rounds=1000, rng=rng, budget=0.0)
    assert seconds.shape == (5, 1)
    seconds = time_interleaved({"a": lambda: time.sleep(0.01)}, rounds=1000, rng=rng, budget=0.2)
    assert 5 <= len(seconds) <= 20


def test_ratio_is_paired_within_the_round():
    noise = np.linspace(1, 9, 40)  # of the machine, shared by a round
    seconds = pd.DataFrame({"bare": noise, "twice": 2 * noise, "slow first": noise * np.r_[3.0, np.ones(39)]})
    table = ratios(seconds, "bare")
    assert table.loc["bare", ["ratio", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["twice", ["ratio", "low", "high"]].tolist() == [2, 2, 2]
    assert table.ratio["slow first"] == 1  # one reading out of line moves no median
    assert table.seconds["bare"] == np.median(noise)


def test_interval_of_the_ratio_covers_its_median(rng):
    inside = 0
    for _ in range(300):
        seconds = pd.DataFrame({"bare": np.ones(31), "other": rng.lognormal(0.3, 0.2, 31)})
        row = ratios(seconds, "bare").loc["other"]
        inside += row.low <= np.exp(0.3) <= row.high
    assert 0.93 <= inside / 300 <= 1


def test_too_few_rounds_have_no_interval():
    table = ratios(pd.DataFrame({"bare": [1.0, 1.0], "other": [2.0, 2.0]}), "bare")
    assert np.isnan(table.loc["other", ["low", "high"]].to_numpy(float)).all()


def test_no_step_and_no_baseline_are_refused(rng):
    with pytest.raises(ValueError, match=r"steps and rounds.*0 and 3"):
        time_interleaved({}, 3, rng)
    with pytest.raises(ValueError, match=r"baseline should be one of a\. Found 'bare'"):
        ratios(pd.DataFrame({"a": [1.0]}), "bare")


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (PLAIN_STEP, 1),
        ("equal", 1),
        ("deepchest", 1),
        ("famo", 1),
        ('pcgrad(level="features")', 1),
        ("pcgrad", SMALL.num_tasks),
        ("deepchest+pcgrad", SMALL.num_tasks),
    ],
)
def test_passes_through_the_trunk(method, passes):
    assert passes_through_trunk(SMALL, method) == passes


def test_steps_train_alike():
    """The bare step has the mean of the losses, equal weighting their sum: gradients K times as large."""
    steps = [Step(SMALL, method) for method in (PLAIN_STEP, "equal")]
    before = [p.detach().clone() for p in steps[0].net.parameters()]
    for step in steps:
        step()
    bare, equal = (list(step.net.parameters()) for step in steps)
    assert all((a != b).any() for a, b in zip(before, bare, strict=True))
    for a, b in zip(bare, equal, strict=True):
        torch.testing.assert_close(b.grad, SMALL.num_tasks * a.grad, rtol=1e-3, atol=1e-5)


def test_layouts_give_the_same_gradients():
    """What makes the faster one fit to be the default."""
    steps = [Step(dataclasses.replace(SMALL, channels_last=on), "deepchest") for on in (True, False)]
    for step in steps:
        step()
    for a, b in zip(*(step.net.parameters() for step in steps), strict=True):
        assert (a.grad - b.grad).norm() < 0.02 * b.grad.norm()  # rounding, and what it flips in a ReLU


@pytest.mark.parametrize(
    ("setup", "method"),
    [(dataclasses.replace(SMALL, amp="bf16"), "deepchest"), (dataclasses.replace(SMALL, channels_last=False), "famo")],
)
def test_settings_are_used(setup, method):
    step, seen = Step(setup, method), []
    step.net.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step()
    assert seen[0] == (torch.bfloat16 if setup.amp == "bf16" else torch.float32)
    assert step.x.is_contiguous() != setup.channels_last or step.x.stride(1) == 1


@pytest.mark.slow  # processes of its own
def test_memory_sees_what_a_method_holds():
    """A batch sixteen times as large has activations sixteen times as large."""
    small = peak_memory(BenchmarkSetup(image_size=64, batch_size=32, device="cpu"), PLAIN_STEP)
    large = peak_memory(BenchmarkSetup(image_size=64, batch_size=512, device="cpu"), PLAIN_STEP)
    assert large > 5 * small > 0


@pytest.mark.parametrize("size", [64, 200])
def test_pngs_of_the_benchmark_are_read(tmp_path, rng, size):
    paths = write_pngs(tmp_path, 2, size, rng)
    images = [decode(path, 32) for path in paths]
    assert images[0].std() > 5
    assert (images[0] != images[1]).any()


@pytest.fixture(scope="module")
def data():
    return phantom_splits(TrainConfig(image_size=32), num_train=96, num_val=64)


def test_both_loops_take_the_same_steps(data):
    config = TrainConfig(image_size=32, batch_size=32, epochs=1, device="cpu")
    counts = []
    for make in (loop_epoch, plain_epoch):
        epoch, seen = make(config, data), []
        handle = register_optimizer_step_post_hook(lambda *args, seen=seen: seen.append(1))
        epoch()
        handle.remove()
        counts.append(len(seen))
    assert counts == [3, 3]


def test_beside_other_work_a_child_is_busy_in_half_of_the_conditions(data, rng, monkeypatch):
    config, busy, threads = TrainConfig(image_size=32, batch_size=32, device="cpu"), [], torch.get_num_threads()
    children, popen = [], psutil.Popen
    monkeypatch.setattr(parts.psutil, "Popen", lambda command: children.append(popen(command)) or children[0])

    def epoch():
        busy.append(children[0].status() != psutil.STATUS_STOPPED)

    monkeypatch.setattr(parts, "loop_epoch", lambda config, data: epoch)
    table = bench_beside(config, data, 2, rng, settle=0.0)
    assert table.method.tolist() == [*CONDITIONS]
    assert sum(busy) == len(busy) / 2 == 6  # one round of warm-up and two more
    assert not children[0].is_running()
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_starts_are_those_of_a_new_python(rng):
    table = bench_starts(1, rng).set_index("method")
    assert table.ratio["import torch"] == 1
    assert table.seconds["python -m deepchest_utils --help"] > 0


def test_recipes_learn_in_turns(data):
    config = TrainConfig(method="deepchest", image_size=32, batch_size=32, epochs=2, device="cpu")
    table = bench_recipes(config, data)
    assert table.method.tolist() == [*RECIPES] * 2
    assert table.auroc.between(0.2, 1).all()
    assert (table.groupby("method").seconds.diff().dropna() > 0).all()
    assert (table.groupby("method").auroc.nunique() == 2).all()  # each has trained


def test_whole_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    made = []

    def part(name):
        def measure(*args, **kwargs):
            made.append(name)
            if len(made) == 3:
                raise KeyboardInterrupt
            return pd.DataFrame({"part": [name], "method": ["deepchest"], "ratio": [1.0]})

        return measure

    monkeypatch.setattr(parts, "phantom_splits", lambda config, **sizes: None)
    for name in (
        "steps",
        "memory",
        "loop",
        "beside",
        "inputs",
        "embed",
        "embeddings",
        "settings",
        "recipes",
        "flat",
        "starts",
    ):
        monkeypatch.setattr(parts, f"bench_{name}", part(name))
    out = tmp_path / "bench.csv"
    with pytest.raises(KeyboardInterrupt):
        full_bench(out)
    first = pd.read_csv(out)
    assert len(first) == 2
    table = full_bench(out)
    assert len(made) == len(table) + 1  # the one that was stopped ran twice
    assert table.measured.is_unique
    pd.testing.assert_frame_equal(pd.read_csv(out)[: len(first)], first)
    assert {"processor", "cores", "torch", "commit"} <= set(table)


def test_two_benchmarks_of_one_table_are_not_at_work_at_once(tmp_path, monkeypatch):
    def measure(setup, methods, **arguments):
        with pytest.raises(ValueError, match=rf"another benchmark is at work in {tmp_path}/bench\. Wait for it"):
            full_bench(tmp_path / "bench.csv", only=["flat"])
        return pd.DataFrame({"part": "step", "method": list(methods), "ratio": 1.0})

    monkeypatch.setattr(parts, "bench_steps", measure)
    assert set(full_bench(tmp_path / "bench.csv", only=["close candidates"]).measured) == {"close candidates"}
    with pytest.raises(ValueError, match=r"out should be the name of a \.csv\. Found ''"):
        full_bench("", only=["close candidates"])


def test_named_parts_alone_are_measured(tmp_path, monkeypatch, capsys):
    def measure(setup, methods, **arguments):
        return pd.DataFrame({"part": "step", "method": list(methods), "ratio": 1.0})

    monkeypatch.setattr(parts, "bench_steps", measure)
    out = tmp_path / "bench.csv"
    assert main(["bench", "--part", "close candidates", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table.method.tolist()[:2] == ["equal", "deepchest"]
    assert {"hedge", "deepchest_loss_trend", "ldc_mtl"} < set(table.method)  # what the better rule is nominated from
    assert not {"gradnorm", "inverse_prevalence", "prevalence_oracle"} & set(table.method)
    assert set(table.measured) == {"close candidates"}
    assert main(["bench", "--part", "close candidate", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "part should be among" in error
    assert "Found 'close candidate'" in error
    with pytest.raises(SystemExit, match="2"):  # the quick one has no parts to choose from
        main(["bench", "--quick", "--part", "close candidates"])
    assert "--quick and --part are not allowed together" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_benchmark_prints_ratios(capsys, monkeypatch):
    monkeypatch.setattr(parts, "BenchmarkSetup", lambda device: SMALL)
    monkeypatch.setattr(parts, "QUICK", ("equal", "deepchest"))
    monkeypatch.setattr(parts, "TrainConfig", lambda device: TrainConfig(image_size=32, device="cpu"))
    assert main(["bench", "--quick"]) == 0
    printed = capsys.readouterr().out
    for word in ("step", "memory", "loop", "input", "ratio", "deepchest", "whole loop", "memory map"):
        assert word in printed
    assert not Path("runs/bench.csv").exists()


@pytest.mark.slow
def test_features_of_an_encoder_are_timed_against_its_forward_pass(rng):
    table = bench_embed("cpu", 1, rng, num_images=32)
    assert table.method.tolist() == ["bare forward", "embed"]
    assert (table.images_per_second > 0).all()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux counts")
def test_features_are_loaded_and_trained_on_in_a_process_of_their_own(rng):
    table = bench_embeddings(rng, count=2000, width=16)
    assert table.method.tolist() == ["load and split", "epoch on features"]
    assert (table.seconds > 0).all()
    assert table.images_per_second[0] == pytest.approx(2000 / table.seconds[0])
    assert 100 < table.mib[0] <= table.mib[1]
