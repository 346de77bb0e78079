"""The protocol between the training loop and a method: `backward` in a step, `end_epoch` after an epoch,
state in `state_dict()`."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

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


class Method(nn.Module):
    """A way to train K tasks together. Buffers and parameters are its state; trainable parameters go to the
    optimiser."""

    def __init__(self, num_tasks: int):
        super().__init__()
        if num_tasks < 1:
            raise ValueError(f"num_tasks should be at least 1. Found {num_tasks}.")
        self.num_tasks = num_tasks

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights in force, for the log; ones for a method that has none."""
        return torch.ones(self.num_tasks, dtype=torch.float64)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights before any normalisation."""
        return self.weights

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b f"] | None = None) -> None:
        """Add to `.grad` of trunk and heads. losses: (K,), 0 without gradient for a task not in the batch.
        features: the trunk's output."""
        raise NotImplementedError

    def end_epoch(self, report: EpochReport) -> None:
        """Learn from the epoch; nothing by default."""


class LossWeighting(Method):
    """A method whose step is one scalar and one backward pass."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """sum_k w_k L_k, differentiable. losses: (K,)."""
        return losses @ self.weights.to(losses)

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b f"] | None = None) -> None:
        self(losses).backward()
