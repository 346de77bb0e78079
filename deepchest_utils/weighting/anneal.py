"""Anneal: from equal weighting to equal relative progress, as far as the network has learned."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import Scalarization, has_label
from deepchest_utils.weighting.static import known_prevalence

LEAST = 0.01  # no running loss counts as less than this share of where it started: weights stay bounded


class Anneal(Scalarization):
    """w_k proportional to m_k^(-power), of mean 1, with m_k the running mean of the task's training loss, kept between H_k / 100 and
    H_k, and
        power = 1 - mean_k min(m_k / H_k, 1),
    the share of what there was to learn that has been learned. H_k is the entropy of the training prevalence, the loss of a network
    that knows nothing else. So it starts as equal weighting (power 0), and goes towards sum_k log L_k (power 1), which lowers all
    losses at one relative rate.

    Why: a weight buys progress for its task and pays with gradient noise for all, w_k^2 nu_k. While nothing is learned nu_k is in
    proportion to the prevalence times one minus it, and a rare finding's weight can only grow at the cost of the others. A learned
    task is quieter, since the variance of sigma - y falls with the loss: the idea is that its weight costs little then. Measured
    gradients say that it costs more than that: a learned task has a longer row in the head. The logarithms are of running means, not of a batch's losses, as GLS and DB-MTL have them,
    in which a rare finding is absent more often than not.

    m_k starts at H_k (`begin`), or, without a prevalence, at the task's first loss, which then stands for H_k; it follows with m_k
    <- m_k + (L_k - m_k) / window in each step that has a label of the task. A step's weights are those before it, so that they do
    not depend on its own batch.

    power: None for the above, or a fixed number in [0, 1]: 0 is equal weighting, 1/2 steps down the sum of the roots. window:
    steps, at least 1. relative: m_k / H_k instead of m_k in the weight, so that tasks that have learned alike weigh alike. Weights
    are of mean 1, each in (0, K). Raises ValueError naming the argument. No gradient is looked at; state is in float64.
    """

    running: Tensor
    start: Tensor

    def __init__(self, num_tasks: int, power: float | None = None, window: int = 100, relative: bool = False):
        super().__init__(num_tasks)
        if power is not None and not 0 <= power <= 1:
            raise ValueError(f"power should be between 0 and 1, or None. Found {power}.")
        if not 1 <= window < float("inf"):
            raise ValueError(f"window should be at least 1. Found {window}.")
        self.power, self.window, self.relative = power, window, relative
        for name in ("running", "start"):  # NaN: nothing known of the task yet
            self.register_buffer(name, torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.start = prevalence_entropy(known_prevalence(prevalence.to(self.start)))
        self.running = self.start.clone()

    def current(self) -> Float[Tensor, " k"]:
        """The weights of the next step, (K,) of mean 1; a task of which nothing is known has the mean of the others."""
        left = (self.running / self.start).clamp(LEAST, 1)
        power = (1 - left.nanmean()).nan_to_num(0.0) if self.power is None else self.power
        raw = (left if self.relative else left * self.start) ** -power
        return (raw / raw.nanmean()).nan_to_num(1.0)

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        weights = self.current().to(losses)
        with torch.no_grad():
            seen = losses.detach().to(self.running)
            here = has_label(losses)
            self.start = torch.where(here & self.start.isnan(), seen, self.start)
            followed = torch.where(self.running.isnan(), seen, torch.lerp(self.running, seen, 1 / self.window))
            self.running = torch.where(here, followed, self.running)
        return losses @ weights
