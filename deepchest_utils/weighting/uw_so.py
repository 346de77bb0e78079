"""UW-SO, soft optimal uncertainty weighting: a softmax over inverse losses."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.base import Scalarization, check_options
from deepchest_utils.weighting.scalarization import EPSILON


class UWSO(Scalarization):
    """Soft optimal uncertainty weighting (Kirchdorfer et al. 2024, arXiv 2408.07985). The learned variances of
    uncertainty weighting have a closed-form optimum, the weight 1 / L_k. A softmax with a temperature T tames it:
        sum_k w_k L_k,    w = K softmax_k((1 / L_k) / T),    L_k in the weight without gradient, plus 1e-8.
    The paper's weights have sum 1; here equal ones are ones. K and the softmax are those of the tasks in the batch.

    T > 0 is to be tuned for the data; the default is ours. For a finding of one in 300, 1 / L_k is about 50 at the start,
    and 300 in a batch without it. At T = 1, as in published code, this finding then has all the weight; at T = 100, it has
    20 times as much as a common one. That drives its loss towards 0, and 1 / L_k has no bound: watch the weights."""

    def __init__(self, num_tasks: int, temperature: float = 100.0):
        super().__init__(num_tasks)
        check_options("be greater than 0", temperature=temperature)
        self.temperature = temperature

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        logits = 1 / (losses.detach() + EPSILON) / self.temperature
        # NaN without a label in the whole batch: nothing to learn
        share = torch.softmax(logits.where(present, -torch.inf), dim=0).where(present, 0.0)
        return present.sum() * (share * losses).sum()
