"""A network with hard sharing: one trunk, and one matrix of linear heads, a row a finding."""

from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.models.losses import MIN_SHARE
from deepchest_utils.models.trunks import Backbone, Weights, build_trunk

Prevalence: TypeAlias = Float[Tensor, " k"] | None  # of positives in training, where they are known


def prevalence_logit(prevalence: Prevalence, num_tasks: int) -> Float[Tensor, " k"]:
    """Where the biases of the heads start, (K,): zeros if the prevalence is not known."""
    return torch.zeros(num_tasks) if prevalence is None else torch.logit(prevalence.nan_to_num(0.5), eps=MIN_SHARE)


class TwoWay(nn.Module):
    """K heads of two outputs each, (B, F) -> (B, K): z_1 - z_0, whose binary cross-entropy is the cross-entropy of the
    softmax over the two. The bias of a head is half that of a linear one in z_1, and minus that in z_0."""

    def __init__(self, num_features: int, num_tasks: int):
        super().__init__()
        self.out_features = num_tasks
        self.two = nn.Linear(num_features, 2 * num_tasks)

    def start(self, bias: Float[Tensor, " k"]) -> None:
        self.two.bias.copy_(torch.stack([-bias / 2, bias / 2], dim=1).flatten())

    def forward(self, features: Float[Tensor, "b f"]) -> Float[Tensor, "b k"]:
        absent, present = self.two(features).unflatten(1, (-1, 2)).unbind(2)
        return cast(Tensor, present - absent)


class LinearHeads(nn.Linear):
    """K heads of one output each, (B, F) -> (B, K)."""

    def start(self, bias: Float[Tensor, " k"]) -> None:
        self.bias.copy_(bias)


HEADS = {"linear": LinearHeads, "two_way": TwoWay}


class MultiTaskNet(nn.Module):
    """Hard sharing: one trunk for all tasks, one head a task.

    Args:
        backbone: As in `build_trunk`, with `image_size` and `pretrained`.
        prevalence: (K,) shares of positives in training, or other probabilities that the heads start with, clipped to
            [1e-4, 1 - 1e-4]; NaN counts as one half. Each bias starts at the logit of its own, so that the network starts as
            the best constant predictor. None starts them at 0.
        hidden: Units of a layer with ReLU between trunk and heads; 0 is none. It is shared: `features` are its outputs.
        head: "linear", or "two_way" for two outputs and a softmax.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_tasks: int,
        image_size: int = 64,
        pretrained: Weights = False,
        prevalence: Prevalence = None,
        hidden: int = 0,
        head: str = "linear",
    ):
        super().__init__()
        self.trunk, num_features = build_trunk(backbone, image_size, pretrained)
        self.shared = nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.head = HEADS[head](hidden or num_features, num_tasks)
        with torch.no_grad():
            self.head.start(prevalence_logit(prevalence, num_tasks))

    def features(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b f"]:
        return cast(Tensor, self.shared(self.trunk(x)))

    def forward(self, x: Float[Tensor, "b *input"]) -> Float[Tensor, "b k"]:
        return cast(Tensor, self.head(self.features(x)))
