"""GradNorm (Chen et al. 2018, arXiv 1711.02257)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.distributed import all_reduce_sum
from deepchest_utils.weighting.autograd_graph import last_shared_layer
from deepchest_utils.weighting.base import Adam, Method, has_label


class GradNorm(Method):
    """Trains the task weights w so that all tasks pull equally hard on W, the weights of the last shared layer.
    With G_k = ||grad_W w_k L_k||, r_k the task's share of its first loss, L_k(t) / L_k(0), over the mean of these,
    the weights go down the gradient of sum_k |G_k - mean(G) r_k^alpha|, the target held constant (algorithm 1 of
    the paper), and are scaled to sum K after each of their steps.

    alpha: >= 0, how much more a task that lags behind may pull; the paper's for its larger experiment. lr: of
    the weights' own Adam, the paper's. A task without a label in the batch takes no part in the step. One forward
    and backward pass, and K backward passes down to W alone. Raises ValueError for features with a row a task.
    """

    current: Tensor
    first_loss: Tensor

    def __init__(self, num_tasks: int, alpha: float = 1.5, lr: float = 0.025):
        super().__init__(num_tasks)
        for name, value in (("alpha", alpha), ("lr", lr)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} should not be negative. Found {value}.")
        self.alpha, self.lr = alpha, lr
        self.register_buffer("current", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("first_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.adam = Adam(num_tasks)

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) float64, positive, of mean 1."""
        return self.current

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        if features is None:
            raise ValueError("features should be the trunk's output: GradNorm works on the last shared layer.")
        if features.ndim != 2:  # a row a task: the last layer belongs to one of them
            raise ValueError(f"features should be shared by all tasks, (B, F). Found shape {tuple(features.shape)}.")
        layer = last_shared_layer(features)
        norms = torch.stack(
            [all_reduce_sum(torch.autograd.grad(loss, layer, retain_graph=True)[0]).norm() for loss in losses]
        )
        (losses @ self.current.to(losses)).backward()
        self.learn(losses.detach().double(), norms.double())

    @torch.no_grad()
    def learn(self, losses: Float[Tensor, " k"], norms: Float[Tensor, " k"]) -> None:
        """One step of the weights. norms: (K,) of the unweighted losses' gradients."""
        here = has_label(losses)
        self.first_loss = torch.where(self.first_loss.isnan() & here, losses, self.first_loss)
        step = self.lr * self.adam(self.gradient(losses, norms, here))
        # the paper says nothing of weights below zero; a task is never turned against
        stepped = (self.current - step).clamp(min=1e-3)
        self.current = stepped * (self.num_tasks / stepped.sum())

    def gradient(self, losses: Float[Tensor, " k"], norms: Float[Tensor, " k"], here: Tensor) -> Float[Tensor, " k"]:
        """Of the sum of |G_k - target_k| by w_k; 0 for a task that is not here."""
        n = here.sum().clamp(min=1)
        pull = self.current * norms
        rate = (losses / self.first_loss).where(here, 0.0)
        relative = rate / (rate.sum() / n).clamp(min=1e-12)
        target = pull.where(here, 0.0).sum() / n * relative**self.alpha
        return (torch.sign(pull - target) * norms).where(here, 0.0)
