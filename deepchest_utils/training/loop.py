"""The training loop, an epoch at a time: it knows nothing of the method but `backward` and `end_epoch`."""

import time
import warnings
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from deepchest_utils.architectures import ARCHITECTURES, Network
from deepchest_utils.augment import draw_views
from deepchest_utils.datasets import ChestXrays, Splits
from deepchest_utils.distributed import gathered, highest, over_whole_batch, rank, share, sum_gradients
from deepchest_utils.losses import masked_bce
from deepchest_utils.metrics import macro, score_tasks
from deepchest_utils.records import task_rows
from deepchest_utils.training.batches import epoch_shape, inputs, predict, training_order
from deepchest_utils.training.config import TrainConfig
from deepchest_utils.training.setup import (
    ScaleGradient,
    autocast,
    make_optimizer,
    make_schedule,
    resolve_device,
)
from deepchest_utils.training.stopping import StopRequest
from deepchest_utils.weighting import EpochReport, make_method


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
        self.net = over_whole_batch(moved)
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
        self.stop = StopRequest()
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
        report = {
            name: {m: torch.from_numpy(v) for m, v in values.items()} for name, values in scores.items()
        }
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
        used = {
            "weight": self.method.weights.cpu().numpy(),
            "raw_weight": self.method.raw_weights.cpu().numpy(),
        }
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
        targets = share(torch.from_numpy(labels), dim=1).to(self.device)
        own, views = share(torch.from_numpy(order), dim=1).numpy(), None
        if self.config.augment:
            views = draw_views(order.size, self.augment_rng).view(*order.shape, -1)
            views = share(views, dim=1).to(self.device)
        self.net.train()
        done = begun["done"]
        batches = inputs(images, own, self.device, self.memory_format, views, done)
        # made before the steps: a small tensor left behind by each would keep the memory of large ones from reuse
        logits = torch.empty(targets.shape, device=self.device)
        losses = torch.empty(len(order), labels.shape[-1], device=self.device)
        if done:
            logits[:done], losses[:done] = share(begun["logits"], dim=1), begun["losses"]
        title, silent = f"epoch {epoch}/{self.config.epochs}", None if rank() == 0 else True
        bar = tqdm(batches, title, len(order), leave=False, disable=silent, initial=done)
        for step, x in enumerate(bar, start=done):
            logits[step], losses[step] = self.one_step(x, targets[step])
            if step + 1 < len(order) and self.stop_asked():
                seen = {"logits": gathered(logits, dim=1)[: step + 1], "losses": losses[: step + 1]}
                self.under_way = {**begun, "done": step + 1, **{k: v.cpu() for k, v in seen.items()}}
                bar.close()
                raise Left
        self.under_way = None
        everywhere = gathered(logits, dim=1).flatten(0, 1)
        return labels.reshape(-1, labels.shape[-1]), everywhere.cpu().numpy(), losses.cpu().numpy()

    def stop_asked(self) -> int:
        """The signal that asked for a stop, in any of the processes; 0 if none did."""
        return highest(self.stop.signal)

    def one_step(
        self, x: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, " k"]]:
        """One batch: forward, backward by the method, step. Returns logits and losses."""
        with autocast(self.config.amp, self.device):
            features = self.net.features(x)
            logits = self.net.head(features)
        losses = masked_bce(logits, target)
        self.step(losses, features)
        if self.method.looks_after_step:
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
