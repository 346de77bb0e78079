"""GradNorm (Chen et al. 2018, arXiv 1711.02257)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.distributed import all_reduce_sum
from deepchest_utils.weighting.autograd_graph import last_shared_layer
from deepchest_utils.weighting.base import Adam, Method, check_options, has_label


class GradNorm(Method):
    """Trains the task weights w so that all tasks pull equally hard on W, the last shared layer (algorithm 1).

    With G_k = ||grad_W w_k L_k||, and r_k the share of its first loss, L_k(t) / L_k(0), over the mean of these, w goes
    down the gradient of sum_k |G_k - mean(G) r_k^alpha|, the target held constant, and is scaled to sum K. A task
    without a label in the batch takes no part. A step costs K backward passes more, down to W alone.

    Args:
        alpha: How much more a task that lags behind may pull, not negative; the paper's for its larger experiment.
        lr: Learning rate of the Adam of w, not negative; the paper's.
    """

    current: Tensor

    def __init__(self, num_tasks: int, alpha: float = 1.5, lr: float = 0.025):
        super().__init__(num_tasks)
        check_options("not be negative", alpha=alpha, lr=lr)
        self.alpha, self.lr = alpha, lr
        self.register_buffer("current", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("first_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.adam = Adam(num_tasks)

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.current

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        if features is None:
            raise ValueError("features should be the trunk's output: GradNorm works on the last shared layer.")
        if features.ndim != 2:  # with a row a task, the last layer belongs to one of them
            raise ValueError(f"features should be shared by all tasks, (B, F). Found shape {tuple(features.shape)}.")
        layer = last_shared_layer(features)
        gradients = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses]
        norms = torch.stack([all_reduce_sum(gradient).norm() for gradient in gradients])
        (losses @ self.current.to(losses)).backward()
        self.learn(losses.detach().double(), norms.double())

    @torch.no_grad()
    def learn(self, losses: Float[Tensor, " k"], norms: Float[Tensor, " k"]) -> None:
        """One step of the weights; norms: (K,), of the unweighted losses' gradients by W."""
        present = has_label(losses)
        self.first_loss.copy_(torch.where(self.first_loss.isnan() & present, losses, self.first_loss))
        n = present.sum().clamp(min=1)
        pull = self.current * norms
        rate = (losses / self.first_loss).where(present, 0.0)
        relative = rate / (rate.sum() / n).clamp(min=1e-12)
        target = pull.where(present, 0.0).sum() / n * relative**self.alpha
        gradient = (torch.sign(pull - target) * norms).where(present, 0.0)
        # the paper says nothing of weights below zero; a task is never turned against
        stepped = (self.current - self.lr * self.adam(gradient)).clamp(min=1e-3)
        self.current = stepped * (self.num_tasks / stepped.sum())
