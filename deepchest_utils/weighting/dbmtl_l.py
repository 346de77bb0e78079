"""The loss half of DB-MTL, dual-balancing for multi-task learning (Lin et al. 2023, arXiv 2308.12029)."""

from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import Scalarization, has_label

EPSILON = 1e-8  # the paper's


class DBMTLL(Scalarization):
    """The loss of a step is sum_k log(L_k + 1e-8) (section 3.1), which brings all losses to one scale without a
    parameter. The paper's other half normalises gradients and is not part of it."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        return (losses.where(has_label(losses), 1.0) + EPSILON).log().sum()
