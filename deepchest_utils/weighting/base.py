"""The protocol between the training loop and a method: `begin` before the first step, `backward` in a step,
`end_epoch` after an epoch, state in `state_dict()`."""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils.models.losses import prevalence_entropy

SOURCES = ("train", "val")


@dataclass(frozen=True)
class EpochReport:
    """What a method may learn of an epoch.

    epoch: from 1. prevalence: (K,) share of positives among the known training labels. train, val: name of a
    score -> (K,), NaN where it is undefined; "loss" (nats, lower is better), and "accuracy", "auroc",
    "balanced_accuracy" (higher is better).
    """

    epoch: int
    prevalence: Float[Tensor, " k"]
    train: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    val: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)

    def relative_loss(self, source: str = "train") -> Float[Tensor, " k"]:
        """L_k / H_k, (K,) float64: the loss of "train" or "val" over that of the best constant predictor, the entropy of the
        training prevalence. About 1 if nothing is learned, 0 if all is; NaN without a loss, or with one class only."""
        loss = (self.train if source == "train" else self.val)["loss"].double()
        entropy = prevalence_entropy(self.prevalence.to(loss))
        return torch.where(entropy > 0, loss / entropy, torch.nan)


class Method(nn.Module):
    """A way to train K tasks together. Buffers and parameters are its state; trainable parameters go to the
    optimiser, without weight decay.

    needs_losses_after_step: the loop computes the losses of the batch once more after the optimiser's step and hands
    them to `after_step` (a forward pass more a step; FAMO alone needs it).
    """

    needs_losses_after_step = False
    _used: Tensor
    _steps: Tensor

    def __init__(self, num_tasks: int):
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks should be at least 1. Found {num_tasks}.")
        self.num_tasks = num_tasks
        # of the epoch under way: an epoch that is left in the middle goes on with them
        self.register_buffer("_used", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("_steps", torch.zeros((), dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights in force, for the log. A method that sets them anew in each step: their mean over
        the epoch so far; ones if it has none."""
        ones = torch.ones_like(self._used)
        return torch.where(self._steps > 0, self._used / self._steps.clamp(min=1), ones)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights before any normalisation."""
        return self.weights

    def record(self, weights: Float[Tensor, " k"]) -> None:
        """Note the weights of one step for the log. Stays on the device."""
        self._used += weights.detach().double()
        self._steps += 1

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        """Before the first step: the share of positives among the known training labels; nothing by
        default."""

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        """Add to `.grad` of trunk and heads. losses: (K,), 0 without gradient for a task not in the batch; one that is NaN
        makes the gradients NaN. features: the trunk's output."""
        raise NotImplementedError

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        """The losses of the same batch after the optimiser's step, without gradient."""

    def end_epoch(self, report: EpochReport) -> None:
        """Learn from the epoch. Whoever overrides it calls this one too: it starts the log of the next."""
        self._used.zero_()
        self._steps.zero_()


class LossWeighting(Method):
    """A method whose step is one scalar and one backward pass."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """sum_k w_k L_k, differentiable. losses: (K,)."""
        return losses @ self.weights.to(losses)

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        self(losses).backward()


class Scalarization(LossWeighting):
    """A loss weighting whose scalar is not sum_k w_k L_k with weights fixed over the epoch. Its weights are what the
    scalar gave each task: its derivative by L_k, averaged over the epoch's steps."""

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        losses = losses.view_as(losses)  # a tensor of our own: whoever called keeps no gradient of it
        losses.retain_grad()
        self(losses).backward()
        self.record(cast(Tensor, losses.grad))


def has_label(losses: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which tasks have a known label in the batch: the loss of one that has not is exactly 0. So is, in float32, that of a rare
    finding whose logit has been driven below -17 in a batch without it, as GLS does: it counts as absent too."""
    return losses.detach() > 0


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with its usual constants, for K numbers that no optimiser holds."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, num_tasks: int):
        super().__init__()
        for name in ("mean", "square"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, gradient: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The step against this gradient, (K,), before the learning rate."""
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient**2, 0.001)
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return mean / (square.sqrt() + 1e-8)
