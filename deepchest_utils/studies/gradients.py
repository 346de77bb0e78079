"""What each task's gradient on the trunk is made of: signal, noise, and conflict with other tasks. Every number is an average
over batches, and free of the bias that noise alone would give."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.models.losses import masked_bce
from deepchest_utils.weighting.autograd_graph import trainable_leaves


@dataclass(frozen=True)
class GradientStatistics:
    """Of K tasks over batches of one size, for a network that does not change. In squared nats per unit of the trunk's
    parameters.

    Attributes:
        products: (K, K) inner products of the tasks' mean gradients. They are unbiased: a task without signal has about 0,
            and may be negative.
        noise: (K,) trace of the covariance of one batch's gradient.
        signal: (K,) squared length of the mean gradient, the diagonal of `products`.
    """

    products: Float[Tensor, "k k"]
    noise: Float[Tensor, " k"]

    @property
    def signal(self) -> Float[Tensor, " k"]:
        return self.products.diagonal()

    def cosines(self) -> Float[Tensor, "k k"]:
        """Cosines between the mean gradients, NaN for a task whose signal is not above 0. The products are unbiased and the
        lengths estimated, so weak signals may give values outside [-1, 1]."""
        length = self.signal.where(self.signal > 0, torch.nan).sqrt()
        return self.products / torch.outer(length, length)

    def noise_share(self, weights: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Each task's share of sum_j w_j^2 noise_j, (K,), of sum 1. Adam divides the step by the root of that sum if noise
        outweighs signal and the noise of different tasks is uncorrelated."""
        weighted = weights.to(self.noise) ** 2 * self.noise
        return weighted / weighted.sum()


def gradient_statistics(
    net: nn.Module, batches: Iterable[tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b k"]]]
) -> GradientStatistics:
    """Statistics of the gradients of `masked_bce` with respect to the trunk's parameters.

    Args:
        net: has `features` and `head`. Its mode, parameters and `.grad` stay as they are; in training mode its running
            means move.
        batches: at least two of (images, labels), all of one size.

    Raises:
        ValueError: for fewer batches, or a trunk without a trainable parameter.
    """
    total: Tensor | None = None
    within, count = torch.zeros(()), 0
    for images, labels in batches:
        features = net.features(images)  # type: ignore[operator]  # a Module's attributes are Module or Tensor to mypy
        trunk = trainable_leaves(features)
        if not trunk:
            raise ValueError("net should have a trunk with a trainable parameter. Found none: is it frozen?")
        losses = masked_bce(net.head(features), labels)  # type: ignore[operator]
        flat = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk, retain_graph=True)]) for loss in losses
        ]
        gradients = torch.stack(flat).double()
        total = gradients if total is None else total + gradients
        within = within + gradients @ gradients.T  # of a batch with itself: signal and noise
        count += 1
    if total is None or count < 2:
        raise ValueError(f"batches should be at least two: noise is what differs between them. Found {count}.")
    # pairs of different batches have independent noise: their products are the signal's alone
    products = (total @ total.T - within) / (count * (count - 1))
    return GradientStatistics(products, within.diagonal() / count - products.diagonal())
