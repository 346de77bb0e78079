"""Validation discount: a task whose validation loss has risen above its lowest weighs less, for it overfits."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting


class ValDiscount(LossWeighting):
    """w_k proportional to (min_{s <= t} V_k(s) / V_k(t))^power, of mean 1, with V_k(t) the task's validation loss after epoch t: 1
    for all tasks as long as they all improve.

    power: > 0. Weights are in (0, K). A task without a validation loss keeps its discount. Raises ValueError naming the argument.
    """

    lowest: Tensor
    discount: Tensor

    def __init__(self, num_tasks: int, power: float = 2.0):
        super().__init__(num_tasks)
        if not 0 < power < float("inf"):
            raise ValueError(f"power should be greater than 0. Found {power}.")
        self.power = power
        self.register_buffer("lowest", torch.full((num_tasks,), torch.inf, dtype=torch.float64))
        self.register_buffer("discount", torch.ones(num_tasks, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) float64, of mean 1."""
        return self.discount / self.discount.mean()

    @torch.no_grad()
    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        loss = report.val["loss"].to(self.lowest)
        known = loss > 0
        self.lowest = torch.where(known, torch.minimum(self.lowest, loss), self.lowest)
        self.discount = torch.where(known, (self.lowest / loss) ** self.power, self.discount)
