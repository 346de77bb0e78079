"""Adam on a method's own few numbers, its state in buffers: a method is resumed from its `state_dict` alone."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with its usual constants, for K numbers that no optimiser holds."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, num_tasks: int):
        super().__init__()
        for name in ("mean", "square"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, gradient: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The step against this gradient, (K,), before the learning rate."""
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient**2, 0.001)
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return mean / (square.sqrt() + 1e-8)
