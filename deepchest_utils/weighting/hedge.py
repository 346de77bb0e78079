"""Hedge, multiplicative weights (Freund and Schapire 1997, J. Comput. Syst. Sci. 55:119), on relative losses."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting, check_options


class Hedge(LossWeighting):
    """The weights of an adversary who looks for the task that is furthest behind, a candidate of notebook 07.

        w_k = (1 - floor) K softmax_k(eta sum_{s <= t} r_k(s)) + floor,    r_k(t) = min(L_k(t) / H_k, 1),
    with L_k the training loss and H_k the entropy of the training prevalence: of mean 1, each in
    [floor, (1 - floor) K + floor]. A task without a loss in an epoch gains what the mean of the others does.

    Regret (their theorem 2, for gains in [0, 1]) over T epochs, whatever the losses do; a floor adds floor * T at most:
        max_k sum_t r_k(t) - sum_t sum_k (w_k(t) / K) r_k(t) <= log(K) / eta + eta T / 8.
    It bounds the relative loss of the task furthest behind, and says nothing of the mean over tasks.

    Args:
        eta: Rate, greater than 0.
        floor: Share of equal weighting, in [0, 1].
    """

    gains: Tensor

    def __init__(self, num_tasks: int, eta: float = 0.5, floor: float = 0.25):
        super().__init__(num_tasks)
        check_options("be greater than 0", eta=eta)
        if not 0 <= floor <= 1:
            raise ValueError(f"floor should be between 0 and 1. Found {floor}.")
        self.eta, self.floor = eta, floor
        self.register_buffer("gains", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) float64, of mean 1."""
        share = torch.softmax(self.eta * self.gains, dim=0)
        return (1 - self.floor) * self.num_tasks * share + self.floor

    @torch.no_grad()
    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        r = report.relative_loss().to(self.gains).clamp(max=1)
        if not r.isnan().all():
            self.gains = self.gains + torch.where(r.isnan(), r.nanmean(), r)
