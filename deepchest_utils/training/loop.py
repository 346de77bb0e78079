"""The training loop, an epoch at a time: it knows nothing of the method but `backward` and `end_epoch`."""

import time
import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from deepchest_utils.architectures import ARCHITECTURES
from deepchest_utils.augment import draw_views
from deepchest_utils.datasets import ChestXrays, Splits
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
from deepchest_utils.weighting import EpochReport, make_method


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
        self.net = net.to(self.device, memory_format=self.memory_format)
        self.method = make_method(config.method, num_tasks, **config.method_options).to(self.device)
        self.method.begin(self.prevalence)
        self.steps, _ = epoch_shape(len(data.train), config.batch_size)
        self.optimizer = make_optimizer(config, self.net.parameters(), self.method.parameters())
        self.schedule = make_schedule(config, self.optimizer, self.steps * config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.rows: list[dict] = []
        self.epoch, self.best_epoch, self.best_score, self.best_model = 0, 0, -np.inf, None

    def identity(self) -> dict:
        """What a checkpoint must agree with: the configuration and the data."""
        return {**self.config.identity(), "data": self.data.fingerprint()}

    def predict(self, part: ChestXrays) -> Float[np.ndarray, "n k"]:
        """Logits of every image of a split."""
        return predict(self.net, part, self.device, self.memory_format)

    def one_epoch(self) -> None:
        start = time.perf_counter()
        epoch = self.epoch + 1
        labels, logits, losses = self.pass_over_training(epoch)
        seconds = {"train": time.perf_counter() - start}
        self.check_finite(losses, epoch)
        start = time.perf_counter()
        thresholds = {"balanced_accuracy": self.prevalence.numpy()}
        scores = {"train": score_tasks(labels, logits, thresholds)}
        val_logits = self.predict(self.data.val)
        scores["val"] = score_tasks(self.data.val.labels, val_logits, thresholds)
        seconds["val"] = time.perf_counter() - start
        base = {"method": self.config.method, "seed": self.config.seed, "epoch": epoch}
        used = {
            "weight": self.method.weights.cpu().numpy(),
            "raw_weight": self.method.raw_weights.cpu().numpy(),
        }
        for split, values in scores.items():
            self.rows += task_rows({**base, "split": split}, values, self.data.findings)
            self.rows += [
                {**base, "split": split, "task": "run", "metric": "seconds", "value": seconds[split]}
            ]
        self.rows += task_rows({**base, "split": "train"}, used, self.data.findings, summarise=False)
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

    def pass_over_training(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, logits and the losses (steps, K) of one epoch; nothing is read back from the device before
        its end."""
        images = self.data.train.images
        order = training_order(len(images), self.config.batch_size, self.order_rng).numpy()
        labels = self.data.train.labels[order]
        targets = torch.from_numpy(labels).to(self.device)
        views = None
        if self.config.augment:
            views = draw_views(order.size, self.augment_rng).to(self.device).view(*order.shape, -1)
        self.net.train()
        batches = inputs(images, order, self.device, self.memory_format, views)
        title = f"epoch {epoch}/{self.config.epochs}"
        # made before the steps: a small tensor left behind by each would keep the memory of large ones from reuse
        all_logits = torch.empty(labels.shape, device=self.device)
        all_losses = torch.empty(len(order), labels.shape[-1], device=self.device)
        for step, x in enumerate(tqdm(batches, title, len(order), leave=False, disable=None)):
            with autocast(self.config.amp, self.device):
                features = self.net.features(x)
                logits = self.net.head(features)
            losses = masked_bce(logits, targets[step])
            all_logits[step], all_losses[step] = logits.detach(), losses.detach()
            self.step(losses, features)
            if self.method.looks_after_step:
                with torch.no_grad(), autocast(self.config.amp, self.device):
                    again = self.net(x)
                self.method.after_step(masked_bce(again, targets[step]))
        return (
            labels.reshape(-1, labels.shape[-1]),
            all_logits.flatten(0, 1).cpu().numpy(),
            all_losses.cpu().numpy(),
        )

    def step(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones((), device=self.device))
            losses = ScaleGradient.apply(losses, scale)
        self.method.backward(losses, features)
        if (
            self.scaler.is_enabled()
        ):  # the scaler will divide the gradients of the method's own parameters too
            for parameter in self.method.parameters():
                parameter.grad.mul_(scale)
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

    def _parts(self) -> dict:
        return {
            "net": self.net,
            "method": self.method,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }

    def state(self) -> dict:
        """What a checkpoint holds; shares its tensors with the run, so it is to be written before the next step."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state["rng"] = {
            "torch": torch.get_rng_state(),
            "order": self.order_rng.get_state(),
            "augment": self.augment_rng.get_state(),
        }
        if self.device.type == "cuda":
            state["rng"]["cuda"] = torch.cuda.get_rng_state(self.device)
        best = {"epoch": self.best_epoch, "score": float(self.best_score), "model": self.best_model}
        return {
            **state,
            "identity": self.identity(),
            "findings": list(self.data.findings),
            "epoch": self.epoch,
            "rows": self.rows,
            "best": best,
        }

    def load_state(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"]["torch"])
        self.order_rng.set_state(state["rng"]["order"])
        self.augment_rng.set_state(state["rng"]["augment"])
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.epoch, self.rows = state["epoch"], state["rows"]
        best = state["best"]
        self.best_epoch, self.best_score, self.best_model = best["epoch"], best["score"], best["model"]
