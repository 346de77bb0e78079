"""FAMO, fast adaptive multi-task optimisation (Liu et al. 2023, arXiv 2306.03792)."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import Adam, check_options, has_label
from deepchest_utils.weighting.scalarization import Scalarization

EPSILON = 1e-8


class FAMO(Scalarization):
    """Lowers all losses at one rate without a task's gradient (algorithm 1). The loss of a step is c sum_k z_k log L_k
    with z = softmax(xi) and c = 1 / sum_k (z_k / L_k). After it, xi takes an Adam step along how much less each task's
    log-loss has fallen on the same batch. A task without a label in it is left out, but for its decay.

    Args:
        lr: Learning rate of xi, not negative, the paper's.
        gamma: Decay of xi, not negative, the paper's.
    """

    needs_losses_after_step = True
    xi: Tensor

    def __init__(self, num_tasks: int, lr: float = 0.025, gamma: float = 1e-3):
        super().__init__(num_tasks)
        check_options("not be negative", lr=lr, gamma=gamma)
        self.lr, self.gamma = lr, gamma
        self.register_buffer("xi", torch.zeros(num_tasks, dtype=torch.float64))  # the logits
        self.adam = Adam(num_tasks)
        self._before: Tensor | None = None

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        self._before = losses.detach()
        present = has_label(losses)
        z = torch.softmax(self.xi, dim=0).to(losses) * present
        shifted = losses.where(present, 1.0) + EPSILON
        c = (z / shifted).sum().detach().clamp(min=EPSILON)
        return (z * shifted.log()).sum() / c

    @torch.no_grad()
    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        if self._before is None:
            raise ValueError("after_step should come after backward: there are no losses to compare with.")
        present = has_label(self._before)
        fall = ((self._before + EPSILON).log() - (losses + EPSILON).log()).double() * present
        z = torch.softmax(self.xi, dim=0) * present
        z = z / z.sum().clamp(min=EPSILON)  # over the tasks in the batch, as the loss of the step has it
        # the derivative of sum_k z_k fall_k by xi, and the decay
        self.xi -= self.lr * self.adam(z * (fall - z @ fall) + self.gamma * self.xi)
        self._before = None
