"""Validation discount: a task whose validation loss rises overfits, and weighs less. A candidate of notebook 07."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting, check_options


class ValDiscount(LossWeighting):
    """w_k proportional to (min_{s <= t} V_k(s) / V_k(t))^power, of mean 1, with V_k(t) the task's validation loss after
    epoch t: ones as long as all tasks improve. A task without a validation loss keeps its discount.

    Args:
        power: Greater than 0.
    """

    lowest: Tensor
    discount: Tensor

    def __init__(self, num_tasks: int, power: float = 2.0):
        super().__init__(num_tasks)
        check_options("be greater than 0", power=power)
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
        has_loss = loss > 0  # not where it is NaN
        self.lowest = torch.where(has_loss, torch.minimum(self.lowest, loss), self.lowest)
        self.discount = torch.where(has_loss, (self.lowest / loss) ** self.power, self.discount)
