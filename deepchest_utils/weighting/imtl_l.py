"""IMTL-L, the loss half of impartial multi-task learning (Liu et al., ICLR 2021)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.weighting.base import Scalarization, has_label


class IMTLL(Scalarization):
    """Each task has a scale s_k, learned with the network from 0; the loss of a step is sum_k exp(s_k) L_k - s_k
    (section 3.2). At rest every exp(s_k) L_k is 1. A task without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_scale
        return (s.exp() * losses - has_label(losses) * s).sum()
