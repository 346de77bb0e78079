"""Scalars that change from step to step, and those of one formula: what a method does is one line of algebra."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.weighting.base import LossWeighting, has_label


class Scalarization(LossWeighting):
    """A loss weighting whose scalar changes from step to step. Its weights are the scalar's derivatives by each loss,
    averaged over the epoch's steps."""

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        losses = losses.view_as(losses)  # a tensor of our own, so that the caller's keeps no gradient
        losses.retain_grad()
        self(losses).backward()
        self.record(cast(Tensor, losses.grad))


class Uncertainty(Scalarization):
    """Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10, for classification):
    sum_k exp(-s_k) L_k + s_k / 2, the log-variances s_k learned with the network from 0. At rest exp(-s_k) is
    1 / (2 L_k): a small loss gets a large weight. A task without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_variance
        return (s.neg().exp() * losses + has_label(losses) * s / 2).sum()


class IMTLL(Scalarization):
    """IMTL-L, the loss half of impartial multi-task learning (Liu et al., ICLR 2021, section 3.2):
    sum_k exp(s_k) L_k - s_k, the scales s_k learned with the network from 0. At rest every exp(s_k) L_k is 1. A task
    without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_scale
        return (s.exp() * losses - has_label(losses) * s).sum()


class GLS(Scalarization):
    """Geometric loss strategy (Chennupati et al. 2019, MultiNet++, arXiv 1904.08492, equation 2): the geometric mean of
    the losses of the tasks with a label in the batch. Each task's gradient is divided by its own loss."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        present = has_label(losses)
        # 1 in place of a missing loss, so that neither its logarithm nor its gradient is infinite
        logs = losses.where(present, 1.0).log()
        return (logs.sum() / present.sum().clamp(min=1)).exp()


class DBMTLL(Scalarization):
    """The loss half of DB-MTL, dual-balancing for multi-task learning (Lin et al. 2023, arXiv 2308.12029, section 3.1):
    sum_k log(L_k + 1e-8), which brings all losses to one scale. The paper's other half normalises gradients."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        return (losses.where(has_label(losses), 1.0) + 1e-8).log().sum()


class RLW(Scalarization):
    """Random loss weighting (Lin et al. 2022, arXiv 2111.10603), the litmus test for every clever rule: in each step
    w = K softmax(z), of mean 1, z standard normal (the paper's default), from torch's random state."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        z = torch.randn(self.num_tasks)  # on the CPU: the same weights on every device
        return losses @ (self.num_tasks * torch.softmax(z, dim=0)).to(losses)
