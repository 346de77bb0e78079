"""Smooth Tchebycheff scalarisation (Lin et al. 2024, arXiv 2402.19078)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, check_options, has_label
from deepchest_utils.weighting.scalarization import Scalarization


class STCH(Scalarization):
    """A smooth maximum over the tasks, in the form that the authors published for multi-task learning. In the warm-up
    the loss of a step is sum_k log L_k; after it, with nadir_k the mean training loss in the warm-up's last epoch,
        K mu log sum_k exp(log(L_k / nadir_k) / mu).
    The task that lies worst against its nadir gets most. Tasks without a label in the batch are left out.

    Args:
        mu: Greater than 0; the smaller, the closer to the maximum.
        warmup: Epochs, at least 1.
    """

    nadir: Tensor
    warm: Tensor

    def __init__(self, num_tasks: int, mu: float = 1.0, warmup: int = 4):
        super().__init__(num_tasks)
        check_options("be greater than 0", mu=mu)
        check_options("be at least 1", warmup=warmup)
        self.mu, self.warmup = mu, warmup
        self.register_buffer("nadir", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.register_buffer("warm", torch.tensor(False))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        present = has_label(losses)
        # a task that the warm-up never saw has no nadir: its loss counts as it is
        nadir = self.nadir.nan_to_num(1.0).to(losses).where(self.warm, 1.0)
        logs = (losses.where(present, 1.0) / nadir.where(present, 1.0)).log()
        smooth = self.num_tasks * self.mu * torch.logsumexp((logs / self.mu).where(present, -torch.inf), dim=0)
        # all -inf, without a label in the whole batch: nothing to learn
        return torch.where(self.warm & present.any(), smooth.nan_to_num(0.0, neginf=0.0), logs.sum())

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if report.epoch <= self.warmup:
            self.nadir.copy_(report.train["loss"])
            self.warm.fill_(report.epoch == self.warmup)
