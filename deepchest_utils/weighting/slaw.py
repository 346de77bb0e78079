"""SLAW, scaled loss approximate weighting: the inverse of how much a loss varies."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.base import Scalarization

SMALLEST = 1e-5  # the authors' lower bound of s_k


class SLAW(Scalarization):
    """Scaled loss approximate weighting (Crawshaw and Kosecka 2021, arXiv 2109.08218): GradNorm without gradients. The
    standard deviation of a loss from step to step stands for the norm of its gradient,
        w_k = K (1 / s_k) / sum_j (1 / s_j),    s_k^2 = mean L_k^2 - (mean L_k)^2, at least 1e-5^2.
    The means are over the steps so far, with the batch's own. As in the authors' code they are plain means over the
    first 1 / (1 - beta) steps and then moving ones, m <- beta m + (1 - beta) L. The weights have mean 1. A task without
    a label in the batch keeps its means. One that was seen less than twice has the mean of the others' 1 / s_k, so all
    weights are ones at first. beta is in [0, 1)."""

    signed = (*Scalarization.signed, "mean")

    def __init__(self, num_tasks: int, beta: float = 0.99):
        super().__init__(num_tasks)
        if not 0 <= beta < 1:
            raise ValueError(f"beta should be in [0, 1). Found {beta}.")
        self.beta = beta
        for name in ("mean", "variance", "count"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))

    @torch.no_grad()
    def learn(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Take a batch's losses in; the weights with them, (K,) float64."""
        present = present & losses.isfinite()  # one bad batch would stay in the means for good
        self.count += present
        rate = (1 / self.count.clamp(min=1)).clamp(min=1 - self.beta) * present
        apart = (losses.to(self.mean) - self.mean).where(present, 0.0)
        self.mean += rate * apart
        self.variance.copy_((1 - rate) * (self.variance + rate * apart**2))  # that of the formula, without its rounding
        inverse = 1 / self.variance.sqrt().clamp(min=SMALLEST)
        inverse = inverse.where(self.count > 1, torch.nan)
        return (inverse / inverse.nanmean()).nan_to_num(1.0)

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        return (losses * self.learn(losses.detach(), present).to(losses)).sum()
