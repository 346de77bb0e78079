"""Root: task weights that fall with the root of each task's own running loss, so that no task makes more noise than another."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.losses import prevalence_entropy
from deepchest_utils.weighting.base import Scalarization, in_batch
from deepchest_utils.weighting.static import known_prevalence

LEAST = 0.01  # no running loss counts as less than this share of where it started: weights stay bounded


class Root(Scalarization):
    """w_k proportional to m_k^(-power), of mean 1, with m_k the running mean of the task's training loss: with power 1/2, steps
    down the sum of the roots, sum_k 2 sqrt(L_k), whose derivative by L_k is 1 / sqrt(L_k).

    Why: the gradient of a batch's cross-entropy by the logit is sigma - y, of variance E[(sigma - y)^2], and while tasks differ
    in that far more than in how their logits depend on the trunk, its noise on the trunk is in proportion. That variance falls
    with the loss, and about as fast; so w_k^2 m_k = const gives all tasks the same share of the noise (notebook 07). Power 0 is
    equal weighting, power 1 minimises the sum of the logarithms, but of running means: not those of a batch, as GLS and DB-MTL
    do, in which a rare finding is absent more often than not.

    m_k starts at the entropy H_k of the training prevalence (`begin`), the loss of a network that knows nothing else, or, without
    a prevalence, at the task's first loss; it follows with m_k <- m_k + (L_k - m_k) / window in each step that has a label of
    the task. A step's weights are those before it, so that they do not depend on its own batch.

    power: in [0, 1]. window: steps, at least 1. relative: m_k / start instead of m_k, so that tasks start alike and only what was
    learned counts. Weights are of mean 1, each in (0, K). Raises ValueError naming the argument. No gradient is looked at; state is
    in float64.
    """

    running: Tensor
    start: Tensor

    def __init__(self, num_tasks: int, power: float = 0.5, window: int = 100, relative: bool = False):
        super().__init__(num_tasks)
        if not 0 <= power <= 1:
            raise ValueError(f"power should be between 0 and 1. Found {power}.")
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
        bounded = torch.maximum(self.running, LEAST * self.start)
        raw = (bounded / self.start if self.relative else bounded) ** -self.power
        mean = raw.nanmean()
        return (raw / mean).nan_to_num(1.0)

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        weights = self.current().to(losses)
        with torch.no_grad():
            seen = losses.detach().to(self.running)
            here = in_batch(losses)
            self.start = torch.where(here & self.start.isnan(), seen, self.start)
            followed = torch.where(
                self.running.isnan(), seen, torch.lerp(self.running, seen, 1 / self.window)
            )
            self.running = torch.where(here, followed, self.running)
        return losses @ weights
