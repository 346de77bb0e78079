"""Anneal: from equal weighting to equal relative progress, as far as the network has learned."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import Scalarization, check_options, has_label
from deepchest_utils.weighting.static import clamped_prevalence

MIN_RELATIVE_LOSS = 0.01  # no running loss counts as less than this share of its start: weights stay bounded


class Anneal(Scalarization):
    """Weights of mean 1 in proportion to m_k^(-power), a candidate of notebook 07, which derives it.

    m_k is the running mean of the training loss, clipped to [H_k / 100, H_k], with H_k the entropy of the training
    prevalence; power = 1 - mean_k m_k / H_k is the share learned so far. So it starts as equal weighting, power 0, and
    goes towards sum_k log L_k, power 1. Without a prevalence (`begin`) a task's first loss stands for H_k.

    Args:
        power: A fixed power in [0, 1], or None for the above.
        window: Steps that the running mean looks back, at least 1: m_k <- m_k + (L_k - m_k) / window.
        relative: m_k / H_k instead of m_k in the weight, so that tasks that have learned alike weigh alike.
    """

    running: Tensor
    start: Tensor

    def __init__(self, num_tasks: int, power: float | None = None, window: int = 100, relative: bool = False):
        super().__init__(num_tasks)
        if power is not None and not 0 <= power <= 1:
            raise ValueError(f"power should be between 0 and 1, or None. Found {power}.")
        check_options("be at least 1", window=window)
        self.power, self.window, self.relative = power, window, relative
        for name in ("running", "start"):  # NaN: nothing is known of the task yet
            self.register_buffer(name, torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.start = prevalence_entropy(clamped_prevalence(prevalence.to(self.start)))
        self.running = self.start.clone()

    def current(self) -> Float[Tensor, " k"]:
        """The weights of the next step, (K,) of mean 1; a task without a loss so far has the mean of the others."""
        relative_loss = (self.running / self.start).clamp(MIN_RELATIVE_LOSS, 1)
        power = (1 - relative_loss.nanmean()).nan_to_num(0.0) if self.power is None else self.power
        raw = (relative_loss if self.relative else relative_loss * self.start) ** -power
        return (raw / raw.nanmean()).nan_to_num(1.0)

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        weights = self.current().to(losses)  # before this batch is looked at: no weight depends on its own batch
        with torch.no_grad():
            loss, present = losses.detach().to(self.running), has_label(losses)
            self.start = torch.where(present & self.start.isnan(), loss, self.start)
            followed = torch.where(self.running.isnan(), loss, torch.lerp(self.running, loss, 1 / self.window))
            self.running = torch.where(present, followed, self.running)
        return losses @ weights
