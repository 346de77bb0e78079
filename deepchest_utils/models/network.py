"""A network with hard sharing: one trunk, and one matrix of linear heads, a row a finding."""

from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.models.trunks import Backbone, Weights, build_trunk

Shares: TypeAlias = Float[Tensor, " k"] | None  # of positives in training, where they are known


def prevalence_logit(prevalence: Shares, num_tasks: int) -> Float[Tensor, " k"]:
    """Where the biases of the heads start, (K,): zeros if the prevalence is not known."""
    return torch.zeros(num_tasks) if prevalence is None else torch.logit(prevalence.nan_to_num(0.5), eps=1e-4)


class MultiTaskNet(nn.Module):
    """Hard sharing: one trunk for all tasks, one linear head a task, kept as one matrix.

    Args:
        backbone: As in `build_trunk`, with `image_size` and `pretrained`.
        prevalence: (K,) shares of positives in training, clipped to [1e-4, 1 - 1e-4]; NaN counts as one half. Each bias
            starts at the logit of its own, so that the network starts as the best constant predictor.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_tasks: int,
        image_size: int = 64,
        pretrained: Weights = False,
        prevalence: Shares = None,
    ):
        super().__init__()
        self.trunk, num_features = build_trunk(backbone, image_size, pretrained)
        self.head = nn.Linear(num_features, num_tasks)
        with torch.no_grad():
            self.head.bias.copy_(prevalence_logit(prevalence, num_tasks))

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b f"]:
        return cast(Tensor, self.trunk(x))

    def forward(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k"]:
        return cast(Tensor, self.head(self.features(x)))
