"""ExcessMTL: weights by how far each task still is from its own optimum."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.base import check_options
from deepchest_utils.weighting.torchjd_adapter import GradientBalancing


class ExcessMTL(GradientBalancing):
    """Robust multi-task learning with excess risks (He et al. 2024, arXiv 2402.02009), equations 6, 7 and 9, as given
    in LibMTL and, with `n_warmup_steps=1`, in TorchJD, whose own class takes no task out of a batch. With g_k a task's
    gradient, S_k the sum of its squares so far and E_k(0) the excess E_k of the task's first step:
        E_k = sum_j g_kj^2 / sqrt(S_kj + 1e-7),    w_k <- w_k exp(eta E_k / E_k(0)) / sum, of sum 1 over the batch.
    The tasks furthest from their optimum, which label noise does not move, get most. A task without a label in the
    batch waits, its share of all weights with it. S has K rows as long as the network and goes into every checkpoint.
    With level="features" its columns are places in the batch, which must not change size.

    Args:
        eta: Step of the weights, greater than 0, by default LibMTL's. At TorchJD's 1 one task has all after a few.
        level: As for the others.
    """

    aggregator = "Sum"  # its weights are replaced by those here

    def __init__(self, num_tasks: int, eta: float = 0.01, level: str = "parameters"):
        super().__init__(num_tasks, level)
        check_options("be greater than 0", eta=eta)
        self.eta = eta
        self.register_buffer("logits", torch.zeros(num_tasks, dtype=torch.float64))  # log w, up to a constant
        self.register_buffer("first_excess", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self._squares: Tensor | None = None  # S, (K, P), as long as the first Jacobian

    @torch.no_grad()
    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        if self._squares is None or self._squares.shape[1] != rows.shape[1]:
            self._squares = rows.new_zeros(self.num_tasks, rows.shape[1])
        squares = self._squares = self._squares.to(rows)  # a checkpoint's may be on another device
        squares[present] += rows**2
        excess = (rows**2 / (squares[present] + 1e-7).sqrt()).sum(1).double()
        first, before = self.first_excess[present], self.logits[present]
        growth = self.eta * excess / (first + 1e-7)
        growth = growth.where(~first.isnan(), growth.nanmean().nan_to_num(0.0))
        after = before + growth
        self.first_excess[present] = excess.where(first.isnan(), first)
        self.logits[present] = after + before.logsumexp(0) - after.logsumexp(0)
        return torch.softmax(after, dim=0)

    def get_extra_state(self) -> dict[str, Tensor | float]:
        return {} if self._squares is None else {"squares": self._squares}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        self._squares = cast(Tensor, state["squares"]).clone() if state else None
