"""What each task's gradient on the trunk is made of: signal, noise, and conflict with the others. For looking, not for training:
every number is an average over batches, with what chance alone would give taken off."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.models.losses import masked_bce
from deepchest_utils.weighting.autograd_graph import trainable_leaves


@dataclass(frozen=True)
class GradientStatistics:
    """Of K tasks over M batches of one size, for a network that stands still.

    products: (K, K) inner products of the tasks' mean gradients; the diagonal is the squared length of each, the signal.
    Unbiased, so that a task without signal has about 0, and may be negative. noise: (K,) trace of the covariance of one batch's
    gradient. Both in squared nats per unit of the trunk's parameters.
    """

    products: Float[Tensor, "k k"]
    noise: Float[Tensor, " k"]

    @property
    def signal(self) -> Float[Tensor, " k"]:
        return self.products.diagonal()

    def cosines(self) -> Float[Tensor, "k k"]:
        """Between the mean gradients; NaN for a task whose signal is not above 0. Unbiased products over estimated lengths,
        so not confined to [-1, 1] where the signal is weak."""
        length = self.signal.where(self.signal > 0, torch.nan).sqrt()
        return self.products / torch.outer(length, length)

    def noise_share(self, weights: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Each task's part of sum_j w_j^2 noise_j, (K,), of sum 1. What Adam divides the step by is the root of that sum as
        long as noise outweighs signal, and the noise of tasks is taken as uncorrelated."""
        part = weights.to(self.noise) ** 2 * self.noise
        return part / part.sum()


def gradient_statistics(
    net: nn.Module, batches: Iterable[tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b k"]]]
) -> GradientStatistics:
    """Statistics of the gradients of `masked_bce` by the trunk's parameters.

    net: with `features` and `head`, in the mode that it is in; its parameters and `.grad` stay as they are, its running means
    move if it trains. batches: at least two of (images, labels), all of one size. Raises ValueError for fewer, or a trunk
    without a trainable parameter.
    """
    total: Tensor | None = None
    within, count = torch.zeros(()), 0
    for images, labels in batches:
        features = net.features(images)  # type: ignore[operator]  # a Module's attributes are Module or Tensor to mypy
        trunk = trainable_leaves(features)
        if not trunk:
            raise ValueError("net should have a trunk with a trainable parameter. Found none: is it frozen?")
        losses = masked_bce(net.head(features), labels)  # type: ignore[operator]
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)]) for loss in losses
        ]
        each = torch.stack(rows).double()
        total = each if total is None else total + each
        within = within + each @ each.T  # of a batch with itself: signal and noise
        count += 1
    if total is None or count < 2:
        raise ValueError(f"batches should be at least two: noise is what differs between them. Found {count}.")
    # pairs of different batches have independent noise: their products are the signal's alone
    products = (total @ total.T - within) / (count * (count - 1))
    return GradientStatistics(products, within.diagonal() / count - products.diagonal())
