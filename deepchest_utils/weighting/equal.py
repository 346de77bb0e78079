"""Equal weighting: the sum of the losses, the baseline of every comparison."""

from deepchest_utils.weighting.base import LossWeighting


class Equal(LossWeighting):
    """w_k = 1 for every task (linear scalarisation with equal weights; Xin et al. 2022, arXiv 2209.11379, on
    how hard it is to beat)."""
