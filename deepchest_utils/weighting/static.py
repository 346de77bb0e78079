"""Static weighting: task weights that are given once and stay."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.losses import prevalence_entropy
from deepchest_utils.weighting.base import LossWeighting

LOWEST = 5e-4  # no prevalence counts as lower, or one finding would have all the weight
BY_PREVALENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse_prevalence": lambda p: 1 / p,
    "inverse_entropy": lambda p: 1 / prevalence_entropy(p),
    "inverse_sqrt_entropy": lambda p: prevalence_entropy(p).rsqrt(),
}


def known_prevalence(prevalence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """(K,) in [LOWEST, 1 - LOWEST]; NaN, a finding without a known label, counts as one half."""
    return prevalence.nan_to_num(0.5).clamp(LOWEST, 1 - LOWEST)


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

    values: K numbers, finite, >= 0, whose sum is kept as given; or a name: w_k proportional to 1 / p_k ("inverse_prevalence"),
    1 / H_k ("inverse_entropy") or 1 / sqrt(H_k) ("inverse_sqrt_entropy"), of mean 1, with p_k the prevalence in training and H_k
    its entropy, read off the labels in `begin` (ones until then; a finding without a positive counts as one half of one in a
    thousand).
    """

    values: Tensor

    def __init__(self, num_tasks: int, values: Sequence[float] | Tensor | str):
        super().__init__(num_tasks)
        if isinstance(values, str) and values not in BY_PREVALENCE:
            known = " or ".join(repr(name) for name in BY_PREVALENCE)
            raise ValueError(f"values should be {num_tasks} numbers or {known}. Found {values!r}.")
        self.by_prevalence = BY_PREVALENCE[values] if isinstance(values, str) else None
        given = torch.ones(num_tasks) if isinstance(values, str) else values
        self.register_buffer("values", as_weights("values", given, num_tasks))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.values

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.by_prevalence:
            raw = self.by_prevalence(known_prevalence(prevalence.to(self.values)))
            self.values = raw / raw.mean()
