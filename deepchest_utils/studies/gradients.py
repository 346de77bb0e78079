"""What each task's gradient on the trunk is made of: signal, noise, and conflict with other tasks. All are unbiased."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.models.losses import masked_bce
from deepchest_utils.weighting.autograd_graph import trainable_leaves


@dataclass(frozen=True)
class GradientStatistics:
    """Of K tasks over batches of one size, for a network that does not change, in squared nats per unit of the trunk's
    parameters. All are unbiased: a task without signal has about 0, and may be negative."""

    products: Float[Tensor, "k k"]  # inner products of the tasks' mean gradients
    noise: Float[Tensor, " k"]  # trace of the covariance of one batch's gradient

    @property
    def signal(self) -> Float[Tensor, " k"]:
        """Squared length of the mean gradient."""
        return self.products.diagonal()

    def cosines(self) -> Float[Tensor, "k k"]:
        """Cosines between mean gradients: NaN for a signal not above 0, perhaps outside [-1, 1] for a weak one."""
        length = self.signal.where(self.signal > 0, torch.nan).sqrt()
        return self.products / torch.outer(length, length)

    def noise_share(self, weights: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Each task's share of sum_j w_j^2 noise_j. Adam divides the step by the root of that sum if noise outweighs signal
        and is uncorrelated between tasks."""
        weighted = weights.to(self.noise) ** 2 * self.noise
        return weighted / weighted.sum()


def gradient_statistics(
    net: nn.Module, batches: Iterable[tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b k"]]]
) -> GradientStatistics:
    """Statistics of the gradients of `masked_bce` with respect to the trunk's parameters, over at least two batches of one
    size. Of `net` only the running means move, in training mode."""
    total, within, count = torch.zeros(()), torch.zeros(()), 0
    for images, labels in batches:
        features = net.features(images)  # type: ignore[operator]  # a Module's attributes are Module or Tensor to mypy
        trunk = trainable_leaves(features)
        if not trunk:
            raise ValueError("net should have a trunk with a trainable parameter. Found none: is it frozen?")
        losses = masked_bce(net.head(features), labels)  # type: ignore[operator]
        by_task = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in losses]
        gradients = torch.stack([torch.cat([g.flatten() for g in of_task]) for of_task in by_task]).double()
        total = total + gradients
        within = within + gradients @ gradients.T  # of a batch with itself: signal and noise
        count += 1
    if count < 2:
        raise ValueError(f"batches should be at least two: noise is what differs between them. Found {count}.")
    # pairs of different batches have independent noise: their products are the signal's alone
    products = (total @ total.T - within) / (count * (count - 1))
    return GradientStatistics(products, within.diagonal() / count - products.diagonal())
