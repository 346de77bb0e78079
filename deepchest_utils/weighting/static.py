"""DeepChest's initial weights: from single-task accuracies, and as its authors published them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import LossWeighting


def initial_weights(accuracies: Sequence[float] | Tensor) -> Float[Tensor, " k"]:
    """w_k = 1 + (1 - a_k) / 2, from the accuracy a_k of a network trained on task k alone.

    accuracies: (K,), each in [0, 1]. Returns (K,) float64, each in [1, 1.5]. The formula fits the published
    values (DeepChest, arXiv 2505.23595).
    Raises ValueError for an accuracy outside [0, 1] or NaN.
    """
    a = torch.as_tensor(accuracies, dtype=torch.float64)
    if not ((a >= 0) & (a <= 1)).all():
        raise ValueError(f"accuracies should be between 0 and 1. Found {a.tolist()}.")
    return 1 + (1 - a) / 2


# fmt: off
PUBLISHED_INITIAL_WEIGHTS = {  # in the order of FINDINGS; from the configuration files that the authors published
    "cnnmodel1": (1.0506, 1.01035, 1.05525, 1.0878, 1.02655, 1.0272, 1.00615, 1.02285, 1.0208, 1.009, 1.011, 1.0071, 1.01455, 1.00055),
    "resnet": (1.0102, 1.00535, 1.013, 1.08655, 1.025, 1.0277, 1.0059, 1.0219, 1.0104, 1.009, 1.006, 1.00715, 1.0142, 1.00055),
}
# fmt: on


def published(initial: Sequence[float] | Tensor | str) -> Sequence[float] | Tensor:
    """The published weights of that name; anything but a name as it is. Raises ValueError for an unknown name."""
    if not isinstance(initial, str):
        return initial
    if initial not in PUBLISHED_INITIAL_WEIGHTS:
        known = ", ".join(PUBLISHED_INITIAL_WEIGHTS)
        raise ValueError(f"initial should be numbers, or one of {known}. Found {initial!r}.")
    return PUBLISHED_INITIAL_WEIGHTS[initial]


LOWEST = 5e-4  # no prevalence counts as lower, or one finding would have all the weight
PREVALENCE_RULES: dict[str, Callable[[Tensor], Tensor]] = {
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
        if isinstance(values, str) and values not in PREVALENCE_RULES:
            known = " or ".join(repr(name) for name in PREVALENCE_RULES)
            raise ValueError(f"values should be {num_tasks} numbers or {known}. Found {values!r}.")
        self.by_prevalence = PREVALENCE_RULES[values] if isinstance(values, str) else None
        given = torch.ones(num_tasks) if isinstance(values, str) else values
        self.register_buffer("values", as_weights("values", given, num_tasks))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.values

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.by_prevalence:
            raw = self.by_prevalence(known_prevalence(prevalence.to(self.values)))
            self.values = raw / raw.mean()


class Equal(LossWeighting):
    """w_k = 1 for every task (linear scalarisation with equal weights; Xin et al. 2022, arXiv 2209.11379, on
    how hard it is to beat)."""
