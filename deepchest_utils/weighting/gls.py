"""Geometric loss strategy (Chennupati et al. 2019, MultiNet++, arXiv 1904.08492)."""

from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import Scalarization, has_label


class GLS(Scalarization):
    """The loss of a step is the geometric mean of the tasks' losses, (prod_k L_k)^(1/K) (equation 2): each task's
    gradient is divided by its own loss. Tasks without a label in the batch are left out of the mean."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        present = has_label(losses)
        # 1 in place of a missing loss, so that neither its logarithm nor its gradient is infinite
        logs = losses.where(present, 1.0).log()
        return (logs.sum() / present.sum().clamp(min=1)).exp()
