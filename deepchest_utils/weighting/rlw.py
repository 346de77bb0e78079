"""Random loss weighting (Lin et al. 2022, arXiv 2111.10603): the litmus test for every clever rule."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import Scalarization


class RLW(Scalarization):
    """In each step w = K softmax(z), of mean 1, z standard normal (the paper's default), from torch's random state."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        # drawn on the CPU: the same weights on every device
        z = torch.randn(self.num_tasks)
        return losses @ (self.num_tasks * torch.softmax(z, dim=0)).to(losses)
