"""Fixed weights: equal, given, by prevalence, and those that DeepChest starts from."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.config import did_you_mean
from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import LossWeighting, check_prevalence


def initial_weights(accuracies: Sequence[float] | Tensor) -> Float[Tensor, " k"]:
    """w_k = 1 + (1 - a_k) / 2, (K,) float64, the formula that fits the published values (DeepChest, arXiv 2505.23595).

    a_k is the accuracy of a network trained on task k alone. ValueError unless each lies in [0, 1]."""
    a = torch.as_tensor(accuracies, dtype=torch.float64)
    if not ((a >= 0) & (a <= 1)).all():
        raise ValueError(f"accuracies should be between 0 and 1. Found {a.tolist()}.")
    return 1 + (1 - a) / 2


PUBLISHED_INITIAL_WEIGHTS = {  # in the order of FINDINGS; from the configuration files that the authors published
    "cnnmodel1": (1.0506, 1.01035, 1.05525, 1.0878, 1.02655, 1.0272, 1.00615,
                  1.02285, 1.0208, 1.009, 1.011, 1.0071, 1.01455, 1.00055),
    "resnet": (1.0102, 1.00535, 1.013, 1.08655, 1.025, 1.0277, 1.0059,
               1.0219, 1.0104, 1.009, 1.006, 1.00715, 1.0142, 1.00055),
}  # fmt: skip
PREVALENCE_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverse_prevalence": lambda p: 1 / p,
    "inverse_entropy": lambda p: 1 / prevalence_entropy(p),
    "inverse_sqrt_entropy": lambda p: prevalence_entropy(p).rsqrt(),
}


def clamped_prevalence(prevalence: Float[Tensor, " k"], like: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """(K,) in [5e-4, 1 - 5e-4], or a rare finding would have all the weight; NaN, without a label, counts as 1/2. ValueError
    for other shares than those of `like`'s tasks."""
    prevalence = check_prevalence(prevalence).to(like)
    if prevalence.shape != like.shape:
        raise ValueError(f"prevalence should have shape {tuple(like.shape)}. Found {tuple(prevalence.shape)}.")
    return prevalence.nan_to_num(0.5).clamp(5e-4, 1 - 5e-4)


def as_weights(name: str, values: Sequence[float] | Tensor, num_tasks: int) -> Float[Tensor, " k"]:
    """(K,) float64, a copy; ValueError naming the argument unless the values are finite, and none is negative."""
    try:
        weights = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} should be {num_tasks} numbers, one a task in order. Found {values!r}.") from None
    if weights.shape != (num_tasks,):
        raise ValueError(f"{name} should have shape ({num_tasks},). Found {tuple(weights.shape)}.")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError(f"{name} should be finite and not negative. Found {weights.tolist()}.")
    return weights


class Static(LossWeighting):
    """Fixed weights, the same in every step.

    Args:
        values: K numbers, finite and not negative, used as they are. Or a name: weights of mean 1 in proportion to
            1 / p_k ("inverse_prevalence"), 1 / H_k ("inverse_entropy") or 1 / sqrt(H_k) ("inverse_sqrt_entropy"), with
            p_k the training prevalence and H_k its entropy. `begin` sets them; until then they are ones.
    """

    def __init__(self, num_tasks: int, values: Sequence[float] | Tensor | str):
        super().__init__(num_tasks)
        if isinstance(values, str) and values not in PREVALENCE_RULES:
            names, hint = " or ".join(map(repr, PREVALENCE_RULES)), did_you_mean(values, PREVALENCE_RULES)
            raise ValueError(f"values should be {num_tasks} numbers or {names}. Found {values!r}.{hint}")
        self.by_prevalence = values if isinstance(values, str) else None
        numbers = torch.ones(num_tasks) if isinstance(values, str) else values
        self.register_buffer("values", as_weights("values", numbers, num_tasks))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.values

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.by_prevalence:
            raw = PREVALENCE_RULES[self.by_prevalence](clamped_prevalence(prevalence, self.values))
            self.values.copy_(raw / raw.mean())


class Equal(LossWeighting):
    """Weights of one, linear scalarisation. Xin et al. 2022, arXiv 2209.11379, show how hard it is to beat."""
