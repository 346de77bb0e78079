"""DeepChest's initial weights: from single-task accuracies, and as its authors published them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


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
