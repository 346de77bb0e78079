"""SIGINT and SIGTERM while a run is under way: the step is finished and a checkpoint written before the process ends."""

import dataclasses
import signal
import threading
import time
import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import ChestXrays, Splits, load_dataset
from deepchest_utils.distributed import (
    all_gather,
    all_reduce_max,
    convert_sync_batchnorm,
    process_group,
    rank,
    rank_zero_first,
    shard,
    sum_gradients,
)
from deepchest_utils.files import FileError, exclusive_lock, one_line
from deepchest_utils.models.augment import sample_augmentation
from deepchest_utils.models.losses import masked_bce
from deepchest_utils.models.sharing import ARCHITECTURES, Network
from deepchest_utils.results.metrics import CALIBRATION, choose_thresholds, fit_calibration, macro, score_tasks
from deepchest_utils.results.store import (
    environment_report,
    load_checkpoint,
    save_checkpoint,
    task_rows,
    to_table,
    write_json,
    write_table,
)
from deepchest_utils.training.setup import (
    ScaleGradient,
    autocast,
    epoch_shape,
    inputs,
    make_optimizer,
    make_schedule,
    predict,
    resolve_device,
    training_order,
)
from deepchest_utils.weighting import EpochReport, Method, make_method

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """A run has stopped at the user's wish, or the scheduler's; the message says where it goes on. `signal`: its number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class GracefulShutdown:
    """As a context: the first signal is kept in `signal`, for the loop to see after its step; the second stops at once.

    Outside the main thread, where Python handles no signals, nothing is ever asked for.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Left(Exception):
    """A stop was asked for, and the epoch is left after a step; a checkpoint takes it up again."""


class Loop:
    """A run under way: network, method, optimiser and all else that a checkpoint holds."""

    def __init__(self, config: TrainConfig, data: Splits):
        self.config, self.data = config, data
        self.device = resolve_device(config.device)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        torch.manual_seed(config.seed)
        self.order_rng = torch.Generator().manual_seed(config.seed)
        self.augment_rng = torch.Generator().manual_seed(config.seed + 1_000_003)
        self.prevalence = torch.from_numpy(data.train.prevalence)
        num_tasks = len(data.findings)
        net = ARCHITECTURES[config.architecture](
            config.backbone, num_tasks, data.train.images.shape[1], config.pretrained, self.prevalence
        )
        # torch's stub of `to` has no memory format beside a device
        moved: Network = cast(Any, net).to(self.device, memory_format=self.memory_format)
        self.net = convert_sync_batchnorm(moved)
        self.method = make_method(config.method, num_tasks, **config.method_options).to(self.device)
        self.method.begin(self.prevalence)
        self.steps, _ = epoch_shape(len(data.train), config.batch_size)
        self.optimizer = make_optimizer(config, self.net.parameters(), self.method.parameters())
        self.schedule = make_schedule(config, self.optimizer, self.steps * config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.rows: list[dict[str, Any]] = []
        self.epoch, self.best_epoch, self.best_score = 0, 0, -np.inf
        self.best_model: dict[str, Tensor] | None = None
        self.thresholds = {"balanced_accuracy": self.prevalence.numpy()}
        self.stop = GracefulShutdown()
        self.under_way: dict[str, Any] | None = None  # an epoch that was left after some of its steps

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the configuration and the data."""
        return {**self.config.identity(), "data": self.data.fingerprint()}

    def predict(self, part: ChestXrays) -> Float[np.ndarray, "n k"]:
        """Logits of every image of a split."""
        return predict(self.net, part, self.device, self.memory_format)

    def one_epoch(self) -> None:
        """Train, validate, log, let the method learn, and keep the best network so far. Raises `Left` if a stop is asked for
        in the middle."""
        start = time.perf_counter()
        epoch = self.epoch + 1
        labels, logits, losses = self.pass_over_training(epoch)
        seconds = {"train": time.perf_counter() - start}
        self.check_finite(losses, epoch)
        start = time.perf_counter()
        scores = {"train": score_tasks(labels, logits, self.thresholds)}
        scores["val"] = score_tasks(self.data.val.labels, self.predict(self.data.val), self.thresholds)
        seconds["val"] = time.perf_counter() - start
        self.log(epoch, scores, seconds)
        report = {name: {m: torch.from_numpy(v) for m, v in values.items()} for name, values in scores.items()}
        self.method.end_epoch(EpochReport(epoch, self.prevalence, **report))
        self.epoch = epoch
        score, count = macro(scores["val"]["auroc"])
        if count == 0:  # no finding has both classes: the loss decides
            score = -macro(scores["val"]["loss"])[0]
        if self.best_model is None or score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best_model = {k: v.detach().cpu().clone() for k, v in self.net.state_dict().items()}

    def log(self, epoch: int, scores: dict[str, dict[str, np.ndarray]], seconds: dict[str, float]) -> None:
        """Add an epoch to the rows of the history. scores: split -> metric -> (K,)."""
        base = {"method": self.config.method, "seed": self.config.seed, "epoch": epoch}
        for split, values in scores.items():
            here = {**base, "split": split}
            self.rows += task_rows(here, values, self.data.findings)
            self.rows += [{**here, "task": "run", "metric": "seconds", "value": seconds[split]}]
        used = {"weight": self.method.weights.cpu().numpy(), "raw_weight": self.method.raw_weights.cpu().numpy()}
        self.rows += task_rows({**base, "split": "train"}, used, self.data.findings, summarise=False)

    def pass_over_training(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, logits and the losses (steps, K) of one epoch; nothing is read back from the device before its end. Goes on
        where an earlier one was left, and raises `Left` itself if a stop is asked for."""
        images = self.data.train.images
        begun = self.under_way or {
            "done": 0, "order": self.order_rng.get_state(), "augment": self.augment_rng.get_state()
        }  # fmt: skip
        self.order_rng.set_state(begun["order"])
        self.augment_rng.set_state(begun["augment"])
        order = training_order(len(images), self.config.batch_size, self.order_rng).numpy()
        labels = self.data.train.labels[order]
        targets = shard(torch.from_numpy(labels), dim=1).to(self.device)
        own, views = shard(torch.from_numpy(order), dim=1).numpy(), None
        if self.config.augment:
            views = sample_augmentation(order.size, self.augment_rng).view(*order.shape, -1)
            views = shard(views, dim=1).to(self.device)
        self.net.train()
        done = begun["done"]
        batches = inputs(images, own, self.device, self.memory_format, views, done)
        # made before the steps: a small tensor left behind by each would keep the memory of large ones from reuse
        logits = torch.empty(targets.shape, device=self.device)
        losses = torch.empty(len(order), labels.shape[-1], device=self.device)
        if done:
            logits[:done], losses[:done] = shard(begun["logits"], dim=1), begun["losses"]
        title, silent = f"epoch {epoch}/{self.config.epochs}", None if rank() == 0 else True
        bar = tqdm(batches, title, len(order), leave=False, disable=silent, initial=done)
        for step, x in enumerate(bar, start=done):
            logits[step], losses[step] = self.one_step(x, targets[step])
            if step + 1 < len(order) and self.stop_asked():
                seen = {"logits": all_gather(logits, dim=1)[: step + 1], "losses": losses[: step + 1]}
                self.under_way = {**begun, "done": step + 1, **{k: v.cpu() for k, v in seen.items()}}
                bar.close()
                raise Left
        self.under_way = None
        everywhere = all_gather(logits, dim=1).flatten(0, 1)
        return labels.reshape(-1, labels.shape[-1]), everywhere.cpu().numpy(), losses.cpu().numpy()

    def stop_asked(self) -> int:
        """The signal that asked for a stop, in any of the processes; 0 if none did."""
        return all_reduce_max(self.stop.signal)

    def one_step(
        self, x: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, " k"]]:
        """One batch: forward, backward by the method, step. Returns logits and losses."""
        with autocast(self.config.amp, self.device):
            features = self.net.features(x)
            logits = self.net.head(features)
        losses = masked_bce(logits, target)
        self.step(losses, features)
        if self.method.needs_losses_after_step:
            with torch.no_grad(), autocast(self.config.amp, self.device):
                again = self.net(x)
            self.method.after_step(masked_bce(again, target))
        return logits.detach(), losses.detach()

    def step(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones((), device=self.device))
            losses = ScaleGradient.apply(losses, scale)
        self.method.backward(losses, features)
        sum_gradients(self.net.parameters())
        if self.scaler.is_enabled():
            # the scaler will divide the gradients of the method's own parameters too
            for parameter in self.method.parameters():
                cast(Tensor, parameter.grad).mul_(scale)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.schedule.last_epoch == 0:
            with warnings.catch_warnings():
                # until fp16 has found its scale, steps are skipped: the schedule counts them, and torch takes
                # that for a mistake
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                self.schedule.step()
        else:
            self.schedule.step()

    def check_finite(self, losses: Float[np.ndarray, "steps k"], epoch: int) -> None:
        bad = np.argwhere(~np.isfinite(losses))
        if len(bad):
            step, task = bad[0]
            raise FloatingPointError(
                f"the loss of {self.data.findings[task]} is {losses[step, task]} in epoch {epoch}, step {step + 1}. "
                f"Lower lr ({self.config.lr}), or look at the images of that batch."
            )


def _parts(loop: Loop) -> dict[str, Any]:
    return {
        "net": loop.net,
        "method": loop.method,
        "optimizer": loop.optimizer,
        "schedule": loop.schedule,
        "scaler": loop.scaler,
    }


def state_of(loop: Loop) -> dict[str, Any]:
    """What a checkpoint holds; shares its tensors with the run, so it is to be written before the next step."""
    rng = {"torch": torch.get_rng_state(), "order": loop.order_rng.get_state(), "augment": loop.augment_rng.get_state()}
    if loop.device.type == "cuda":
        rng["cuda"] = torch.cuda.get_rng_state(loop.device)
    return {
        **{name: part.state_dict() for name, part in _parts(loop).items()},
        "rng": rng,
        "identity": loop.identity(),
        "findings": list(loop.data.findings),
        "epoch": loop.epoch,
        "under_way": loop.under_way,
        "rows": loop.rows,
        "best": {"epoch": loop.best_epoch, "score": float(loop.best_score), "model": loop.best_model},
    }


def restore(loop: Loop, state: dict[str, Any]) -> None:
    """Put the loop where it was. Raises FileError if the state does not fit it."""
    try:
        for name, part in _parts(loop).items():
            part.load_state_dict(state[name])
        rng, best = state["rng"], state["best"]
        torch.set_rng_state(rng["torch"])
        loop.order_rng.set_state(rng["order"])
        loop.augment_rng.set_state(rng["augment"])
        if loop.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], loop.device)
        loop.epoch, loop.rows, loop.under_way = state["epoch"], state["rows"], state["under_way"]
        loop.best_epoch, loop.best_score, loop.best_model = best["epoch"], best["score"], best["model"]
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise FileError(
            f"the checkpoint in {loop.config.run_dir} does not fit the run ({one_line(error)}). Choose another run_dir."
        ) from error


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
    with process_group(config.device), torch.random.fork_rng():
        with rank_zero_first():
            data = _load(config) if data is None else data
        with exclusive_lock(folder / "lock", "run") if folder and rank() == 0 else nullcontext():
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
    with rank_zero_first():  # which may put a damaged checkpoint aside
        state = load_checkpoint(folder, loop.identity())
    if state:
        restore(loop, state)
    with GracefulShutdown() as loop.stop:
        while loop.epoch < loop.config.epochs:
            with suppress(Left):
                loop.one_epoch()
            if rank() == 0:
                save_checkpoint(folder, state_of(loop))
            if signal := loop.stop_asked():
                steps = f" and {loop.under_way['done']} of {loop.steps} steps" if loop.under_way else ""
                where = f"after {loop.epoch} epochs{steps}"
                raise TrainingInterrupted(f"stopped {where}; the same command goes on from {folder}", signal)


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
