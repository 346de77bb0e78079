"""Dynamic weight averaging (Liu, Johns and Davison 2019, arXiv 1803.10704)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting, check_options


class DWA(LossWeighting):
    """w_k = K softmax_k(r_k / T) with r_k = L_k(t - 1) / L_k(t - 2), the ratio of the mean training losses in the last
    two epochs (equation 7): a task whose loss falls more slowly gets more. Ones in the first two epochs.

    A task without a loss in an epoch keeps its last two, and counts as r_k = 1 until it has two.

    Args:
        temperature: T, greater than 0; the larger, the more even the weights.
    """

    previous: Tensor

    def __init__(self, num_tasks: int, temperature: float = 2.0):
        super().__init__(num_tasks)
        check_options("be greater than 0", temperature=temperature)
        self.temperature = temperature
        # the task's losses of the last epoch and the one before
        self.register_buffer("previous", torch.full((2, num_tasks), torch.nan, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) float64, positive, of mean 1."""
        last, before = self.previous
        ratio = (last / before).nan_to_num(1.0, posinf=1.0)
        return self.num_tasks * torch.softmax(ratio / self.temperature, dim=0)

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        loss = report.train["loss"].to(self.previous)
        new = torch.stack([loss, self.previous[0]])
        self.previous = torch.where(loss.isnan(), self.previous, new)
