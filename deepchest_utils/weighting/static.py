"""Static weighting: task weights that are given once and stay."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import LossWeighting

INVERSE = "inverse_prevalence"
LOWEST = 5e-4  # no prevalence counts as lower, or one finding would have all the weight


def as_weights(name: str, values: Sequence[float] | Tensor, num_tasks: int) -> Float[Tensor, " k"]:
    """(K,) float64 of finite, non-negative numbers; ValueError naming the argument otherwise."""
    given = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if given.shape != (num_tasks,):
        raise ValueError(f"{name} should have shape ({num_tasks},). Found {tuple(given.shape)}.")
    if not (given.isfinite() & (given >= 0)).all():
        raise ValueError(f"{name} should be finite and not negative. Found {given.tolist()}.")
    return given


class Static(LossWeighting):
    """w_k = the given number, in every step.

    values: K numbers, finite, >= 0, whose sum is kept as given; or "inverse_prevalence": w_k proportional to
    1 / prevalence, of mean 1, read off the training labels in `begin` (ones until then; a finding without a
    positive counts as one half of one in a thousand).
    """

    values: Tensor

    def __init__(self, num_tasks: int, values: Sequence[float] | Tensor | str):
        super().__init__(num_tasks)
        if isinstance(values, str) and values != INVERSE:
            raise ValueError(f"values should be {num_tasks} numbers or {INVERSE!r}. Found {values!r}.")
        self.from_prevalence = isinstance(values, str)
        given = torch.ones(num_tasks) if isinstance(values, str) else values
        self.register_buffer("values", as_weights("values", given, num_tasks))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.values

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.from_prevalence:
            inverse = 1 / prevalence.to(self.values).nan_to_num(0.5).clamp(min=LOWEST)
            self.values = inverse / inverse.mean()
