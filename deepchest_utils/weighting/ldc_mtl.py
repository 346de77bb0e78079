"""LDC-MTL, loss discrepancy control: learned weights that bring neighbouring weighted losses together."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils.weighting.base import Scalarization, check_options


class LDCMTL(Scalarization):
    """Loss discrepancy control (Xiao et al. 2025, arXiv 2502.08585) in its single loop, as given in the authors' code
    for CelebA's 40 binary tasks. The bilevel problem: find weights that make the weighted losses alike (above), where
    the network minimises their sum (below). Without the penalty's gradient by the inner solution this is one loss,
    which the network and v minimise at once,
        K (sum_k w_k L_k / [sum_k w_k] + lambda sum_k |w_k L_k - w_(k+1) L_(k+1)|),    w_k = sigmoid(v_k), v from 1,
    [...] without gradient. The paper's loss without K is a mean; with it equal weights are ones. Neighbours are those
    in the order of the tasks, so that, as in the paper, another order is another rule. Tasks without a label in the
    batch are left out of both sums and of K, and give their v no gradient. lambda, at least 0, is the authors' by default."""

    def __init__(self, num_tasks: int, penalty: float = 0.01):
        super().__init__(num_tasks)
        check_options("not be negative", penalty=penalty)
        self.penalty = penalty
        self.v = nn.Parameter(torch.ones(num_tasks))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        w = self.v.to(losses).sigmoid() * present
        weighted = w * losses
        # the place of the last task with a label at or before each, -1 if none: no number leaves the device
        place = torch.arange(self.num_tasks, device=losses.device).where(present, -1).cummax(0).values
        gaps = (weighted[1:] - weighted[place[:-1].clamp(min=0)]).abs() * (present[1:] & (place[:-1] >= 0))
        mean = weighted.sum() / w.sum().detach().clamp(min=1e-12)
        return present.sum() * (mean + self.penalty * gaps.sum())
