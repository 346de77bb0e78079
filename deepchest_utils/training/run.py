"""A whole run: load, continue, train, choose the epoch, test once, write."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from deepchest_utils.calibration import CALIBRATION, fit_calibration
from deepchest_utils.datasets import Splits, load_dataset
from deepchest_utils.metrics import choose_thresholds, score_tasks
from deepchest_utils.records import environment_report, task_rows, to_table, write_json, write_table
from deepchest_utils.training.checkpoint import load_checkpoint, save_checkpoint
from deepchest_utils.training.config import TrainConfig
from deepchest_utils.training.loop import Loop
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
    run never stopped, bit for bit. Leaves the caller's random state alone.
    Raises FloatingPointError, naming epoch, step and task, if a loss is not finite.
    """
    if data is None:
        data = load_dataset(
            config.dataset,
            config.data_root,
            config.image_size,
            config.data_seed,
            config.split,
            **config.data_options,
        )
    with torch.random.fork_rng():
        loop = Loop(config, data)
        if config.run_dir and (state := load_checkpoint(config.run_dir, loop.identity())):
            loop.load_state(state)
        while loop.epoch < config.epochs:
            loop.one_epoch()
            if config.run_dir:
                save_checkpoint(config.run_dir, loop.state())
        return _finish(loop)


def _finish(loop: Loop) -> Run:
    """Test once, with the network of the best epoch and thresholds from validation; write the tables."""
    config, data = loop.config, loop.data
    loop.net.load_state_dict(loop.best_model)
    logits = {name: loop.predict(part) for name, part in (("val", data.val), ("test", data.test))}
    val_probabilities = torch.from_numpy(logits["val"]).double().sigmoid().numpy()
    thresholds = choose_thresholds(data.val.labels, val_probabilities)
    base = {"method": config.method, "seed": config.seed, "epoch": loop.best_epoch, "split": "test"}
    rows = task_rows(base, score_tasks(data.test.labels, logits["test"], thresholds), data.findings)
    chosen = {f"{name}_threshold": values for name, values in thresholds.items()}
    rows += task_rows(base, chosen, data.findings, summarise=False)
    test, history = to_table(rows), to_table(loop.rows)
    if config.run_dir:
        folder = Path(config.run_dir)
        write_json(folder / "config.json", dataclasses.asdict(config))
        write_json(folder / "environment.json", environment_report())
        write_table(folder / "history.csv", history)
        write_table(folder / "test.csv", test)
        calibration = fit_calibration(data.val.labels, logits["val"])
        write_json(folder / CALIBRATION, dict(zip(data.findings, calibration.tolist(), strict=True)))
    return Run(config, history, test, loop.best_epoch, loop.net, loop.method, logits)
