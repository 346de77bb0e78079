"""Dynamic weight averaging (Liu, Johns and Davison 2019, arXiv 1803.10704)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting


class DWA(LossWeighting):
    """w_k = K softmax_k(r_k / T) with r_k = L_k(t - 1) / L_k(t - 2), the ratio of the task's mean training losses
    in the last two epochs (equation 7 of the paper): a task whose loss falls more slowly gets more. Ones in
    the first two epochs.

    temperature: T > 0; the larger, the more even the weights. A task whose loss is unknown in an epoch keeps
    its last ones, and counts as r_k = 1 until it has two.
    """

    previous: Tensor

    def __init__(self, num_tasks: int, temperature: float = 2.0):
        super().__init__(num_tasks)
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature should be greater than 0. Found {temperature}.")
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
