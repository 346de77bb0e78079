"""ExcessMTL: weights by how far each task still is from its own optimum."""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, check_options
from deepchest_utils.weighting.torchjd_adapter import GradientBalancing


class ExcessMTL(GradientBalancing):
    """Robust multi-task learning with excess risks (He et al. 2024, arXiv 2402.02009), equations 6, 7 and 9, as given
    in LibMTL and TorchJD, whose own class takes no task out of a batch. With g_k a task's gradient and S_k the sum of
    its squares so far,
        E_k = sum_j g_kj^2 / sqrt(S_kj + 1e-7),    w_k <- w_k exp(eta E_k / E_k(0)) / sum, of sum 1 over the batch,
    with E_k(0) the task's mean excess E_k in the warm-up, in which all weights are equal. The tasks furthest from their
    optimum, which label noise does not move, get most. A task without a label in the batch waits, its share of all
    weights with it. S has K rows as long as the network and goes into every checkpoint. With level="features" its
    columns are places in the batch, which must not change size.

    Args:
        eta: Step of the weights, greater than 0, by default LibMTL's.
        warmup: Epochs, not negative, by default the paper's (appendix C.1, as TorchJD says). 0: E_k(0) is that of the
            first step with the task, as in LibMTL; small by chance where that batch had no positive.
        level: As for the others.
    """

    aggregator = "Sum"  # its weights are replaced by those here

    def __init__(self, num_tasks: int, eta: float = 0.01, warmup: int = 3, level: str = "parameters"):
        super().__init__(num_tasks, level)
        check_options("be greater than 0", eta=eta)
        check_options("not be negative", warmup=warmup)
        self.eta, self.warmup = eta, warmup
        for name in ("logits", "excess_sum", "excess_count"):  # logits: log w, up to a constant
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("epochs", torch.tensor(0))
        self._squares: Tensor | None = None  # S, (K, P), as long as the first Jacobian

    @torch.no_grad()
    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        if self._squares is None or self._squares.shape[1] != rows.shape[1]:
            self._squares = rows.new_zeros(self.num_tasks, rows.shape[1])
        squares = self._squares = self._squares.to(rows)  # a checkpoint's may be on another device
        if present.all():  # no copy if it can be
            mine = squares.addcmul_(rows, rows)
        else:
            mine = squares[present] = squares[present].addcmul_(rows, rows)
        excess = rows.square().mul_((mine + 1e-7).rsqrt_()).sum(1).double()
        warm = (self.epochs < self.warmup) | (self.excess_count[present] == 0)
        self.excess_sum[present] += excess * warm
        self.excess_count[present] += warm
        growth = self.eta * excess / (self.excess_sum[present] / self.excess_count[present] + 1e-7)
        growth = growth.where(~warm, torch.nan)
        before = self.logits[present]
        after = before + growth.where(~warm, growth.nanmean().nan_to_num(0.0))  # one that is first seen: as the others
        self.logits[present] = after + before.logsumexp(0) - after.logsumexp(0)
        return torch.softmax(after, dim=0)

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self.epochs += 1

    def get_extra_state(self) -> dict[str, Tensor | float]:
        return {} if self._squares is None else {"squares": self._squares}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        self._squares = cast(Tensor, state["squares"]).clone() if state else None
