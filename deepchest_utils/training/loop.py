"""One loop for every method. To be read from top to bottom: `train`, an epoch, a step, `optimizer.step()`."""

import copy
import dataclasses
import hashlib
import itertools
import json
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils import distributed as dist
from deepchest_utils.config import TrainConfig, count_of
from deepchest_utils.datasets import DataWarning, Splits, load_dataset
from deepchest_utils.files import FileError, exclusive_lock, one_line
from deepchest_utils.models.augment import PADDING, SAMPLERS
from deepchest_utils.models.losses import count_known, make_loss
from deepchest_utils.models.sharing import Network, build_network
from deepchest_utils.models.trunks import MLP, is_registered
from deepchest_utils.paths import PROJECT, runs_dir
from deepchest_utils.progress import log_line, progress
from deepchest_utils.results import checkpoint, store
from deepchest_utils.results.metrics import choose_thresholds, fit_calibration, macro, score_tasks
from deepchest_utils.threads import adapt_threads
from deepchest_utils.training import setup
from deepchest_utils.weighting import EpochReport, Method, check_method, make_method

_STATEFUL = ("net", "method", "optimizer", "schedule", "scaler")
_ABOVE_TRAINING = ("sweep.py", "explain", "notebook", "studies", "__main__.py")  # no run depends on them
_KNOWN_PACKAGES = {"deepchest_utils", "torch", "torchjd"}


@dataclass
class Run:
    """A finished run. Tables are long, as `results.store` describes them."""

    config: TrainConfig
    history: pd.DataFrame  # training and validation of each epoch, with thresholds at the training prevalence
    test: pd.DataFrame  # the test split in the chosen epoch, with thresholds chosen on validation
    best_epoch: int  # the chosen one, from 1: that with the highest macro AUROC on validation, or the last by `select`
    model: nn.Module  # the network of that epoch, in eval mode
    method: Method  # after the last epoch
    logits: dict[str, np.ndarray]  # "val" and "test" -> (N, K) of the chosen epoch, in the order of the data


def train(config: TrainConfig, data: Splits | None = None) -> Run:
    """Train by the configuration, choose the epoch by macro AUROC on validation, and test it once.

    With `config.run_dir`, a checkpoint follows each epoch, and the same call goes on from it: an interruption or a kill
    loses at most the epoch under way. On the CPU the result has the same bytes as that of a run never stopped, for a
    fixed number of threads (`OMP_NUM_THREADS=1`): `adapt_threads` fits their number to the machine, and with another
    number sums round differently. Under torchrun the processes share each batch, and rank 0 writes. The caller's random
    state is left alone.

    Args:
        config: All that the run depends on.
        data: The data set, if it is loaded already.

    Raises:
        FloatingPointError: A loss, logit or weight is not finite; the message names it, epoch and step.
        FileError: `run_dir` cannot be written to, holds another run, or another process is at work in it.
        KeyboardInterrupt: With `run_dir`, the message says after how many epochs the run goes on.
    """
    folder = Path(config.run_dir) if config.run_dir else None
    check_method(config.method, config.method_options)  # before the data are loaded, which may take long
    make_loss(config.loss, torch.zeros(1, 1), **config.loss_options)
    with dist.process_group(config.device), torch.random.fork_rng():
        with dist.rank_zero_first():
            data = _load(config) if data is None else data
        with exclusive_lock(folder / "lock", "run") if folder and dist.rank() == 0 else nullcontext():
            loop = Loop(config, data)
            if folder:
                with dist.rank_zero_first():  # which may set a damaged checkpoint aside
                    state = checkpoint.load_checkpoint(folder, loop.identity)
                if state:
                    loop.load_state_dict(state)
                else:
                    store.check_place(folder)
            saved = loop.epoch
            try:
                while loop.epoch < config.epochs:
                    loop.run_epoch()
                    if folder and dist.rank() == 0:
                        checkpoint.save_checkpoint(folder, loop.state_dict())
                    saved = loop.epoch
                return _test(loop)
            except KeyboardInterrupt as stop:
                if folder is None:
                    raise
                raise type(stop)(
                    f"stopped after {count_of(saved, 'epoch')}; the same command goes on from {folder}"
                ) from stop


class Loop:
    """A run between two epochs: network, method, optimiser, random states and history."""

    def __init__(self, config: TrainConfig, data: Splits):
        self.config, self.data = config, data
        self.identity = {**config.identity(), "data": data.fingerprint()}  # what a checkpoint must agree with
        self.device = setup.resolve_device(config.device)
        vectors = data.train.are_vectors
        if vectors != (config.backbone == MLP):
            raise ValueError(f"embeddings go with backbone={MLP!r} and augment=False, images with another backbone.")
        self.memory_format = torch.channels_last if config.channels_last and not vectors else torch.contiguous_format
        torch.manual_seed(config.seed)
        order, augment = (torch.Generator().manual_seed(config.seed + offset) for offset in (0, 1_000_003))
        self.generators = {"torch": torch.default_generator, "order": order, "augment": augment}
        labels = data.train.labels
        self.repeats = setup.repeat_factors(labels, config.oversample) if config.oversample else None
        self.prevalence = torch.from_numpy(data.train.prevalence)
        num_tasks = len(data.findings)
        loss = make_loss(config.loss, data.train.labels, **config.loss_options)
        loss.begin_epoch(1, config.epochs)
        constant, self.unit = loss.best_constant(self.prevalence)  # with cross-entropy the prevalence
        start = constant if config.prior_bias else None
        net = build_network(config, num_tasks, data.train.images.shape[1], config.pretrained, start)
        self.loss = loss.to(self.device)
        # torch's stub of `to` has no memory format beside a device
        self.net: Network = cast(Any, net).to(self.device, memory_format=self.memory_format)
        dist.convert_sync_batchnorm(self.net)
        self.average = copy.deepcopy(self.net) if config.ema else None
        self.method = make_method(config.method, num_tasks, **config.method_options).to(self.device)
        self.method.begin(self.prevalence)
        self.steps, _ = setup.epoch_shape(len(data.train), config.batch_size)
        self.optimizer = setup.make_optimizer(config, self.net.parameters(), self.method.parameters())
        self.schedule = setup.make_schedule(config, self.optimizer, self.steps * config.epochs)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        most = int((data.val.labels == 1).sum(0).max())
        if config.min_positives > max(most, 1):
            found = f"no finding has so many on validation, {most} at most: the loss chooses the epoch"
            warnings.warn(f"min_positives={config.min_positives}: {found}.", DataWarning, stacklevel=2)
        self.epoch, self.history = 0, list[dict[str, Any]]()
        self.encoded, self.rows_encoded = "", 0  # the history as JSON: a checkpoint encodes what is new
        self.best: dict[str, Any] = {"epoch": 0, "score": -np.inf, "model": None}
        self.reached = ""  # by the last epoch, for a person to read

    def run_epoch(self) -> None:
        """Train on every batch, validate, log, let the method learn from the scores, and keep the best network so far."""
        epoch, start = self.epoch + 1, time.perf_counter()
        self.loss.begin_epoch(epoch, self.config.epochs)
        output, self.constant = self.loss.best_constant(self.prevalence)
        self.thresholds = {"balanced_accuracy": output.numpy()}
        labels, logits, losses, threads = self.train_epoch(epoch)
        trained = time.perf_counter()
        resources = {"train": {"seconds": trained - start, "threads": threads}}
        if len(bad := np.argwhere(~np.isfinite(losses))):
            step, task = bad[0]
            what = f"the loss of {self.data.findings[task]}"
            raise self._diverged(what, float(losses[step, task]), epoch, int(step) + 1)
        scores = {"train": score_tasks(labels, logits, self.thresholds)}
        val_logits = self.predict("val", epoch)
        scores["val"] = score_tasks(self.data.val.labels, val_logits, self.thresholds)
        resources["val"] = {"seconds": time.perf_counter() - trained}
        self._log(epoch, scores, resources)
        outputs = {"train": (labels, logits), "val": (self.data.val.labels, val_logits)}
        self.method.end_epoch(self._report(epoch, scores, outputs))
        self._check_weights(epoch)
        self.epoch = epoch
        counts = (self.data.val.labels == 1).sum(0) >= self.config.min_positives
        score, count = macro(np.where(counts, scores["val"]["auroc"], np.nan))
        self.reached = f", loss {macro(scores['train']['loss'])[0]:.4f}, validation macro AUROC {score:.3f}"
        log_line(f"epoch {epoch}/{self.config.epochs}{self.reached}", "train")
        if count == 0:  # no finding has both classes, or positives enough: the loss decides
            score = -macro(scores["val"]["loss"])[0]
        if self.best["model"] is None or self.config.select == "last" or score > self.best["score"]:
            model = {name: value.detach().cpu().clone() for name, value in self.tested.state_dict().items()}
            self.best = {"epoch": epoch, "score": float(score), "model": model}

    @property
    def tested(self) -> Network:
        """The network that is validated, kept and tested: with `ema`, the moving average of the one that is trained."""
        return self.net if self.average is None else self.average

    def predict(self, split: str, epoch: int) -> Float[np.ndarray, "n k"]:
        """Logits of all images of "val" or "test" by the network as the epoch has left it."""
        data, augmentation = getattr(self.data, split), None
        if self.config.augment_test:  # drawn anew for each epoch and split, and the same again in a run that goes on
            number = 2 * epoch + (split == "test")
            generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * (number + 1))
            augmentation = SAMPLERS[self.config.augmentation](len(data), generator)
        padding = PADDING[self.config.augmentation]
        logits = setup.predict(self.tested, data, self.device, self.memory_format, augmentation, padding)
        if len(bad := np.argwhere(~np.isfinite(logits))):
            image, task = bad[0]
            raise self._diverged(f"the {split} logit of {self.data.findings[task]}", float(logits[image, task]), epoch)
        return logits

    def _report(
        self, epoch: int, scores: dict[str, dict[str, np.ndarray]], outputs: dict[str, tuple[np.ndarray, np.ndarray]]
    ) -> EpochReport:
        """Collective: what the method may learn from, the scores with the loss that is trained. outputs: labels and logits
        of each split."""
        report = {split: {m: torch.from_numpy(v) for m, v in values.items()} for split, values in scores.items()}
        if self.config.loss == "bce":  # as in the scores
            return EpochReport(epoch, self.prevalence, report["train"], report["val"])
        # LDAM's re-weighting changes the unit of a loss; rules that compare epochs get the unit of the first
        unit = (self.unit / self.constant).where(self.constant != self.unit, 1.0).nan_to_num(1.0)
        for split, (labels, logits) in outputs.items():
            loss = self.loss(*(torch.from_numpy(part).to(self.device) for part in (logits, labels))).double().cpu()
            report[split]["loss"] = (unit * loss).where(~report[split]["loss"].isnan(), torch.nan)
        return EpochReport(epoch, self.prevalence, report["train"], report["val"], self.unit)

    def _check_weights(self, epoch: int) -> None:
        """Those of the network, which may be infinite where its logits are not, and of the method."""
        tensors = [(f"the network's {name}", value) for name, value in self.net.state_dict().items()]
        tensors += [(f"the method's {name}", value.detach()) for name, value in self.method.named_parameters()]
        weights = zip(self.method.weights, self.method.raw_weights, strict=True)
        tensors += [(f"the weight of {f}", torch.stack(w)) for f, w in zip(self.data.findings, weights, strict=True)]
        finite = torch.stack([value.isfinite().all().to(self.device) for _, value in tensors]).tolist()
        for name, value in itertools.compress(tensors, np.logical_not(finite)):
            raise self._diverged(name, value[~value.isfinite()][0].item(), epoch)

    def _diverged(self, what: str, value: float, epoch: int, step: int | None = None) -> FloatingPointError:
        when = f"epoch {epoch}, step {step}" if step else f"epoch {epoch}, after step {self.steps}, its last"
        advice = f"Lower lr ({self.config.lr}), or look at the images of that batch."
        return FloatingPointError(f"{what} is {value} in {when}. {advice}")

    def train_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """One step for each batch of a new random order. Nothing is read back from the device before the last.
        Returns labels and logits (N, K) of the images that were seen, losses (steps, K), and the mean number of threads.
        """
        images, threads = self.data.train.images, 0
        labels = self.data.train.labels
        dealt = labels if self.config.stratified else None
        order = setup.training_order(  # (steps, B)
            len(images), self.config.batch_size, self.generators["order"], dealt, self.repeats
        )
        labels = labels[order.numpy()]  # (steps, B, K)
        augmentation = None
        if self.config.augment:
            sampler = SAMPLERS[self.config.augmentation]
            augmentation = sampler(order.numel(), self.generators["augment"]).view(*order.shape, -1)
            augmentation = dist.shard(augmentation, dim=1).to(self.device)
        shard, padding = dist.shard(order, dim=1).numpy(), PADDING[self.config.augmentation]
        batches = setup.inputs(images, shard, self.device, self.memory_format, augmentation, padding)
        targets = dist.shard(torch.from_numpy(labels), dim=1).to(self.device)
        # made before the steps: a small tensor left behind by each would keep the memory of large ones from reuse
        logits = torch.empty(targets.shape, device=self.device)
        losses = torch.empty(len(order), labels.shape[-1], device=self.device)
        self.net.train()
        title = f"epoch {epoch}/{self.config.epochs}{self.reached}"
        for step, x in enumerate(progress(batches, title, len(order), leave=False)):
            threads += adapt_threads()
            logits[step], losses[step] = self.training_step(x, targets[step])
        logits = dist.all_gather(logits, dim=1).flatten(0, 1)
        return labels.reshape(-1, labels.shape[-1]), logits.cpu().numpy(), losses.cpu().numpy(), threads / len(order)

    def training_step(
        self, x: Float[Tensor, "b *input"], target: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, " k"]]:
        """One batch: logits of its shard and losses of all of it, before the step is taken."""
        with setup.autocast(self.config.amp, self.device):
            features = self.net.features(x)
            logits = self.net.head(features)
        counts = count_known(target)  # both over all processes
        losses = self.loss(logits, target, counts)
        self.optimizer_step(losses, features, counts > 0)
        if self.average is not None:
            steps = self.schedule.last_epoch  # the first weights are forgotten early (as TensorFlow's average does)
            setup.update_average(self.average, self.net, min(self.config.ema, (1 + steps) / (10 + steps)))
        if self.method.needs_losses_after_step:
            with torch.no_grad(), setup.autocast(self.config.amp, self.device):
                logits_after = self.net(x)
            self.method.after_step(self.loss(logits_after, target, counts))
        return logits.detach(), losses.detach()

    def optimizer_step(
        self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"], mask: Bool[Tensor, " k"]
    ) -> None:
        """Gradients by the method, summed over processes; then a step of the optimiser and of its learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones((), device=self.device))
            losses.register_hook(lambda gradient: gradient * scale)
            losses = losses.view_as(losses)  # behind the hook: the method sees losses and their gradients as they are
            for module in self.method.modules():  # a method in another too
                module.gradient_scale = scale
        self.method.backward(losses, features, mask)
        dist.sum_gradients(self.net.parameters())
        if self.scaler.is_enabled():
            # the scaler will divide the gradients of the method's own parameters too
            for parameter in self.method.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self.scaler.step(self.optimizer)  # optimizer.step(), unless a gradient of fp16 has overflowed
        self.scaler.update()
        # until fp16 has found its scale, steps are skipped, but scheduled: torch takes that for a mistake
        silent = self.scaler.is_enabled() and self.schedule.last_epoch == 0
        with warnings.catch_warnings(action="ignore") if silent else nullcontext():
            self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, as `save_checkpoint` writes it. Its tensors are those of the loop."""
        rng = {name: generator.get_state() for name, generator in self.generators.items()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state["average"] = {} if self.average is None else self.average.state_dict()
        new = json.dumps(self.history[self.rows_encoded :])[1:-1]
        self.encoded, self.rows_encoded = ", ".join(filter(None, (self.encoded, new))), len(self.history)
        plain = {"epoch": self.epoch, "history": f"[{self.encoded}]", "best": self.best}
        return {**state, **plain, "rng": rng, "identity": self.identity, "findings": list(self.data.findings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; FileError if it does not fit the run."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        try:
            moments = setup.moments(self.config, self.device)
            checkpoint.check_state(state, self.state_dict(), parameters, moments, self.steps)
            self.net.load_state_dict(state["best"]["model"])  # as the end of the run does
            for name in _STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            for name, generator in self.generators.items():
                generator.set_state(state["rng"][name])
            if self.device.type == "cuda" and "cuda" in state["rng"]:
                torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
            self.best = {name: state["best"][name] for name in self.best}
            self.epoch, self.history = state["epoch"], state["history"]
        except Exception as error:  # what does not fit raises one of several types
            raise FileError(
                f"the checkpoint in {self.config.run_dir} does not fit the run ({one_line(error)}). Choose another run_dir."
            ) from error

    def _log(
        self, epoch: int, scores: dict[str, dict[str, np.ndarray]], resources: dict[str, dict[str, float]]
    ) -> None:
        """Add rows to the history. Both are split -> metric -> value: of scores a value a task, of resources one a run."""
        base = {"method": self.config.method, "seed": self.config.seed, "epoch": epoch}
        for split, values in scores.items():
            self.history += store.task_rows({**base, "split": split}, values, self.data.findings)
            of_run = {**base, "split": split, "task": "run"}
            self.history += [{**of_run, "metric": m, "value": value} for m, value in resources[split].items()]
        weights = {"weight": self.method.weights.cpu().numpy(), "raw_weight": self.method.raw_weights.cpu().numpy()}
        self.history += store.task_rows({**base, "split": "train"}, weights, self.data.findings, summarise=False)


def _test(loop: Loop) -> Run:
    """Test once, with the network of the best epoch and thresholds from validation; write the tables."""
    config, data = loop.config, loop.data
    loop.tested.load_state_dict(loop.best["model"])
    logits = {split: loop.predict(split, loop.best["epoch"]) for split in ("val", "test")}
    val_probabilities = torch.from_numpy(logits["val"]).double().sigmoid().numpy()
    thresholds = choose_thresholds(data.val.labels, val_probabilities)
    base = {"method": config.method, "seed": config.seed, "epoch": loop.best["epoch"], "split": "test"}
    test_rows = store.task_rows(base, score_tasks(data.test.labels, logits["test"], thresholds), data.findings)
    chosen = {f"{name}_threshold": values for name, values in thresholds.items()}
    test_rows += store.task_rows(base, chosen, data.findings, summarise=False)
    test, history = store.to_table(test_rows), store.to_table(loop.history)
    if config.run_dir and dist.rank() == 0:
        calibration = fit_calibration(data.val.labels, logits["val"]).tolist()
        by_finding = dict(zip(data.findings, calibration, strict=True))
        store.write_run(config.run_dir, config, data.fingerprint(), history, test, by_finding)
    return Run(config, history, test, loop.best["epoch"], loop.tested.eval(), loop.method, logits)


def train_once(config: TrainConfig, data: Splits | None = None) -> Run:
    """`train` in `runs/.networks/<id>`, where the same run is trained once and from then on only tested.

    The id is a hash of configuration, data, versions and the source of this package: changed code trains anew. So does,
    each time, a method or a backbone registered from outside. A second process waits for the first. With `run_dir` it is `train`.
    """
    check_method(config.method, config.method_options)
    data = _load(config) if data is None else data
    method = make_method(config.method, len(data.findings), **config.method_options)
    packages = {type(module).__module__.partition(".")[0] for module in method.modules()}
    if config.run_dir or packages - _KNOWN_PACKAGES or is_registered(config.backbone):
        return train(config, data)
    run_id, package = hashlib.sha256(), PROJECT / "deepchest_utils"
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _ABOVE_TRAINING:
            run_id.update(path.read_bytes())
    versions = [metadata.version(name) for name in ("torch", "torchvision", "torchjd", "numpy")]
    facts = [config.identity(), data.fingerprint(), setup.resolve_device(config.device).type, versions]
    run_id.update(json.dumps(facts, sort_keys=True).encode())
    folder = runs_dir() / ".networks" / run_id.hexdigest()[:12]
    with exclusive_lock(folder.with_suffix(".lock"), "run", wait=True):
        return train(dataclasses.replace(config, run_dir=str(folder)), data)


def _load(c: TrainConfig) -> Splits:
    return load_dataset(c.dataset, c.data_root, c.image_size, c.data_seed, c.split, **c.data_options)
