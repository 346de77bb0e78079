"""The protocol between the training loop and a method: `begin`, a `backward` a step, `end_epoch`, `state_dict()`."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils.models.losses import prevalence_entropy


@dataclass(frozen=True)
class EpochReport:
    """What a method may learn from an epoch. The first epoch has number 1.

    Args:
        prevalence: (K,) share of positives among the known training labels.
        train: Scores on the training set by name, and `val` on the validation set, each (K,), NaN where undefined:
            "loss" (nats, lower is better), "accuracy", "auroc" and "balanced_accuracy" (higher is better).
    """

    epoch: int
    prevalence: Float[Tensor, " k"]
    train: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    val: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)

    def relative_loss(self, source: str = "train") -> Float[Tensor, " k"]:
        """L_k / H_k, (K,) float64: the loss of "train" or "val" over the training prevalence's entropy, a constant's
        best loss. About 1 if nothing is learned, 0 if all is; NaN without a loss, or with one class only."""
        loss = (self.train if source == "train" else self.val)["loss"].double()
        entropy = prevalence_entropy(self.prevalence.to(loss))
        return torch.where(entropy > 0, loss / entropy, torch.nan)


class Method(nn.Module):
    """A way to train K tasks together. Buffers and parameters are its state.

    The optimiser trains its parameters beside the network's, without weight decay. `needs_losses_after_step` asks the
    loop for one more forward pass: the losses of the batch after the optimiser's step, for `after_step` (FAMO alone).
    """

    needs_losses_after_step = False

    if TYPE_CHECKING:  # to mypy, what is registered is a tensor

        def __getattr__(self, name: str) -> Tensor: ...

    def __init__(self, num_tasks: int):
        super().__init__()
        check_options("be at least 1", num_tasks=num_tasks)
        self.num_tasks = num_tasks
        # the sum of the weights that this epoch's steps have used, and the number of these steps
        self.register_buffer("_used", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("_steps", torch.zeros((), dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights in force, for the log; by default the mean of those recorded in this epoch, or ones."""
        return torch.where(self._steps > 0, self._used / self._steps.clamp(min=1), 1.0)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights before any normalisation."""
        return self.weights

    def record(self, weights: Float[Tensor, " k"]) -> None:
        """Note the weights of one step for the log; they stay on the device."""
        self._used += weights.detach().double()
        self._steps += 1

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        """Called before the first step, with the share of positives among the known training labels."""

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        """Add to `.grad` of trunk and heads.

        Args:
            losses: (K,), 0 without gradient for a task not in the batch. A loss of NaN makes the gradients NaN.
            features: The trunk's output, (B, F) or (B, K, F).
        """
        raise NotImplementedError

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        """Called with the losses of the same batch after the optimiser's step, without gradient."""

    def end_epoch(self, report: EpochReport) -> None:
        """Learn from the epoch. An override calls this one too, which starts the log of the next epoch."""
        self._used.zero_()
        self._steps.zero_()


class LossWeighting(Method):
    """A method whose step is one scalar and one backward pass."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """sum_k w_k L_k, differentiable, for losses (K,)."""
        return losses @ self.weights.to(losses)

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        self(losses).backward()


class Scalarization(LossWeighting):
    """A loss weighting whose scalar changes from step to step. Its weights are the scalar's derivatives by each loss,
    averaged over the epoch's steps."""

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        losses = losses.view_as(losses)  # a tensor of our own, so that the caller's keeps no gradient
        losses.retain_grad()
        self(losses).backward()
        self.record(cast(Tensor, losses.grad))


class Composed(Method):
    """A step of `inner`, any method, on the losses times the weights of `outer`, a loss weighting that holds them over
    an epoch. Both learn from every epoch. Raises ValueError for another `outer`, or another number of tasks."""

    def __init__(self, outer: LossWeighting, inner: Method):
        super().__init__(outer.num_tasks)
        if not isinstance(outer, LossWeighting) or isinstance(outer, Scalarization):
            kind = type(outer).__name__
            raise ValueError(f"outer should be a loss weighting that holds its weights over an epoch. Found {kind}.")
        if outer.num_tasks != inner.num_tasks:
            found = f"{outer.num_tasks} and {inner.num_tasks}"
            raise ValueError(f"outer and inner should have the same num_tasks. Found {found}.")
        self.outer, self.inner = outer, inner
        self.needs_losses_after_step = inner.needs_losses_after_step

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.outer.weights * self.inner.weights.to(self.outer.weights)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        return self.outer.raw_weights * self.inner.raw_weights.to(self.outer.raw_weights)

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        self.inner.backward(losses * self.outer.weights.to(losses), features)

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.outer.begin(prevalence)
        self.inner.begin(prevalence)

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        self.inner.after_step(losses * self.outer.weights.to(losses))

    def end_epoch(self, report: EpochReport) -> None:
        self.outer.end_epoch(report)
        self.inner.end_epoch(report)


def has_label(losses: Float[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Which tasks have a known label in the batch, (K,).

    Assumes losses that are never negative, and exactly 0 for a task without a label, as those of `masked_bce` are. A
    loss that has underflowed to 0 counts as absent too: in float32, that of a rare finding whose logit has been driven
    below -17 in a batch without it, as GLS does."""
    return losses.detach() > 0


def check_options(bound: str, **options: Any) -> None:
    """Raise ValueError for an option that is infinite, NaN or below the bound, one of those here."""
    lowest = {"be greater than 0": math.ulp(0.0), "be at least 1": 1.0, "not be negative": 0.0}[bound]
    for name, value in options.items():
        if not lowest <= value < math.inf:
            raise ValueError(f"{name} should {bound}. Found {value}.")
