"""A whole run: load, continue, train, choose the epoch, test once, write."""

import dataclasses
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from deepchest_utils.calibration import CALIBRATION, fit_calibration
from deepchest_utils.datasets import Splits, load_dataset
from deepchest_utils.distributed import first_one_first, joined, rank
from deepchest_utils.files import alone
from deepchest_utils.metrics import choose_thresholds, score_tasks
from deepchest_utils.records import environment_report, task_rows, to_table, write_json, write_table
from deepchest_utils.training.checkpoint import load_checkpoint, save_checkpoint
from deepchest_utils.training.config import TrainConfig
from deepchest_utils.training.loop import Left, Loop
from deepchest_utils.training.state import restore, state_of
from deepchest_utils.training.stopping import Stopped, StopRequest
from deepchest_utils.weighting import Method


@dataclass
class Run:
    """A finished run.

    history: long table of train and val, every epoch; test: long table of the test split, once, from the
    epoch chosen on validation. There, thresholds come from validation; in the history they are the training
    prevalence. logits: split -> (N, K) of the chosen epoch, for val and test, in the data's order.
    """

    config: TrainConfig
    history: pd.DataFrame
    test: pd.DataFrame
    best_epoch: int
    model: nn.Module
    method: Method
    logits: dict[str, np.ndarray]


def train(config: TrainConfig, data: Splits | None = None) -> Run:
    """Train by the configuration, choose the epoch by validation macro AUROC, test once.

    data: if it is at hand already; otherwise `load_dataset` by the configuration. With `run_dir`, writes a
    checkpoint after each epoch and, if there is one, goes on from it: on the CPU the result equals that of a
    run never stopped, bit for bit. In several processes (torchrun), each has its share of every batch, and the first
    writes. SIGINT and SIGTERM let the step finish and write a checkpoint in `run_dir`, then
    raise `Stopped`, a KeyboardInterrupt. Leaves the caller's random state alone.
    Raises FloatingPointError, naming epoch, step and task, if a loss is not finite; FileError if run_dir cannot be written
    to, holds what is no checkpoint of this run, or is another process's.
    """
    folder = Path(config.run_dir) if config.run_dir else None
    with joined(config.device), torch.random.fork_rng():
        with first_one_first():
            data = _load(config) if data is None else data
        with alone(folder, "run") if folder and rank() == 0 else nullcontext():
            loop = Loop(config, data)
            if folder is None:
                while loop.epoch < config.epochs:
                    loop.one_epoch()
            else:
                _train_in(loop, folder)
            return _finish(loop)


def _load(c: TrainConfig) -> Splits:
    return load_dataset(c.dataset, c.data_root, c.image_size, c.data_seed, c.split, **c.data_options)


def _train_in(loop: Loop, folder: Path) -> None:
    """Train, from the folder's checkpoint on if there is one, with a checkpoint after each epoch and before a stop."""
    with first_one_first():  # which may put a damaged checkpoint aside
        state = load_checkpoint(folder, loop.identity())
    if state:
        restore(loop, state)
    with StopRequest() as loop.stop:
        while loop.epoch < loop.config.epochs:
            with suppress(Left):
                loop.one_epoch()
            if rank() == 0:
                save_checkpoint(folder, state_of(loop))
            if signal := loop.stop_asked():
                steps = f" and {loop.under_way['done']} of {loop.steps} steps" if loop.under_way else ""
                where = f"after {loop.epoch} epochs{steps}"
                raise Stopped(f"stopped {where}; the same command goes on from {folder}", signal)


def _finish(loop: Loop) -> Run:
    """Test once, with the network of the best epoch and thresholds from validation; write the tables."""
    config, data = loop.config, loop.data
    loop.net.load_state_dict(cast("dict[str, Tensor]", loop.best_model))  # at least one epoch is over
    logits = {name: loop.predict(part) for name, part in (("val", data.val), ("test", data.test))}
    val_probabilities = torch.from_numpy(logits["val"]).double().sigmoid().numpy()
    thresholds = choose_thresholds(data.val.labels, val_probabilities)
    base = {"method": config.method, "seed": config.seed, "epoch": loop.best_epoch, "split": "test"}
    rows = task_rows(base, score_tasks(data.test.labels, logits["test"], thresholds), data.findings)
    chosen = {f"{name}_threshold": values for name, values in thresholds.items()}
    rows += task_rows(base, chosen, data.findings, summarise=False)
    test, history = to_table(rows), to_table(loop.rows)
    if config.run_dir and rank() == 0:
        folder = Path(config.run_dir)
        write_json(folder / "config.json", dataclasses.asdict(config))
        write_json(folder / "environment.json", {"data": data.fingerprint(), **environment_report()})
        clock = history.metric == "seconds"  # apart: all else is the same to the byte when a run is repeated
        write_table(folder / "history.csv", history[~clock])
        write_table(folder / "seconds.csv", history[clock])
        write_table(folder / "test.csv", test)
        calibration = fit_calibration(data.val.labels, logits["val"])
        write_json(folder / CALIBRATION, dict(zip(data.findings, calibration.tolist(), strict=True)))
    return Run(config, history, test, loop.best_epoch, loop.net, loop.method, logits)
