"""Smooth Tchebycheff scalarisation (Lin et al. 2024, arXiv 2402.19078)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, Scalarization, has_label


class STCH(Scalarization):
    """A smooth maximum over the tasks: after `warmup` epochs, in which the loss of a step is sum_k log L_k, it is
        K mu log sum_k exp(log(L_k / nadir_k) / mu),
    with nadir_k the task's mean training loss in the last epoch of the warm-up: the form that the authors
    published for multi-task learning. The task that lies worst against its nadir gets most.

    mu: > 0; the smaller, the closer to the maximum. warmup: epochs, at least 1. Tasks without a label in the
    batch are left out.
    """

    nadir: Tensor
    warm: Tensor

    def __init__(self, num_tasks: int, mu: float = 1.0, warmup: int = 4):
        super().__init__(num_tasks)
        if not 0 < mu < float("inf"):
            raise ValueError(f"mu should be greater than 0. Found {mu}.")
        if warmup < 1:
            raise ValueError(f"warmup should be at least 1. Found {warmup}.")
        self.mu, self.warmup = mu, warmup
        self.register_buffer("nadir", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.register_buffer("warm", torch.tensor(False))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        here = has_label(losses)
        # a task that the warm-up never saw has no nadir: its loss counts as it is
        nadir = self.nadir.nan_to_num(1.0).to(losses).where(self.warm, 1.0)
        logs = (losses.where(here, 1.0) / nadir.where(here, 1.0)).log()
        smooth = self.num_tasks * self.mu * torch.logsumexp((logs / self.mu).where(here, -torch.inf), dim=0)
        # all -inf, without a label in the whole batch: nothing to learn
        return torch.where(self.warm & here.any(), smooth.nan_to_num(0.0, neginf=0.0), logs.sum())

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if report.epoch <= self.warmup:
            self.nadir.copy_(report.train["loss"])
            self.warm.fill_(report.epoch == self.warmup)
