"""Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv 1705.07115)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.weighting.base import Scalarization, has_label


class Uncertainty(Scalarization):
    """Each task has a log-variance s_k = log sigma_k^2, learned with the network from 0; the loss of a step is
    sum_k exp(-s_k) L_k + s_k / 2, the paper's form for classification (equation 10). At rest exp(-s_k) = 1 / (2 L_k): a
    task with a small loss gets a large weight. A task without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_variance
        return (s.neg().exp() * losses + has_label(losses) * s / 2).sum()
