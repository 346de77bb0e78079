"""Static weighting: task weights that are given once and stay."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import LossWeighting


def as_weights(name: str, values: Sequence[float] | Tensor, num_tasks: int) -> Float[Tensor, " k"]:
    """(K,) float64 of finite, non-negative numbers; ValueError naming the argument otherwise."""
    given = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if given.shape != (num_tasks,):
        raise ValueError(f"{name} should have shape ({num_tasks},). Found {tuple(given.shape)}.")
    if not (given.isfinite() & (given >= 0)).all():
        raise ValueError(f"{name} should be finite and not negative. Found {given.tolist()}.")
    return given


class Static(LossWeighting):
    """w_k = the given number. values: K numbers, finite, >= 0; their sum is kept as given."""

    def __init__(self, num_tasks: int, values: Sequence[float] | Tensor):
        super().__init__(num_tasks)
        self.register_buffer("values", as_weights("values", values, num_tasks))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.values
