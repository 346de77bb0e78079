"""AMTL, achievement-based multi-task learning: accuracy over single-task accuracy."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.config import check_choice
from deepchest_utils.weighting.base import EpochReport, Scalarization, check_options
from deepchest_utils.weighting.dtp import RunningScore
from deepchest_utils.weighting.scalarization import EPSILON
from deepchest_utils.weighting.static import as_weights, clamped_prevalence


class AMTL(Scalarization):
    """Achievement-based multi-task loss (Yun and Cho, ICCV 2023, 10.1109/ICCV51070.2023.01553), as given in the
    authors' code (Achievement-based-MTL, `accuracy_based.py`). The weighted geometric mean of the losses,
        prod_k L_k^w_k,    w = softmax_k((1 - kappa_k / ((1 + margin) p_k))^gamma) over the tasks in the batch,
    with kappa_k the running mean of the task's score, as DTP has it, and p_k its potential: the score of a network that
    learns this task alone. gamma, margin and alpha are by default those of that code; it takes the scores of held-out
    images, scores_from="val" here, and single-task potentials. There the (...)^gamma goes on above the potential; here the
    achievement, kappa_k over (1 + margin) p_k, counts as 1 above 1. A task without a score has the mean of the others'
    (...)^gamma; before the first score all weights are equal.

    With the accuracy as score it cancels prevalence. If p_k is the accuracy of a constant answer, as it nearly is for
    rare findings, such an answer has achievement 1 / (1 + margin) in every task. Little is left to weigh: the softmax
    of numbers between 0 and 1 keeps every two weights within a factor e.

    Args:
        potential: (K,) single-task scores in (0, 1], as from runs with `architecture="single_task"`. Or "prevalence":
            for signal "accuracy", that of always giving the answer more frequent in training, from `begin`.
        gamma: At least 0, and `margin` too: how far above the potential a score may come.
        alpha, signal, scores_from: As DTP's.
        normalize: "softmax", or "sum": the (...)^gamma over their sum, which the authors' code offers too.
        mean: "geometric", or "arithmetic": sum_k w_k L_k, times the number of tasks, so that equal weights are ones.
    """

    def __init__(
        self,
        num_tasks: int,
        potential: Sequence[float] | Tensor | str = "prevalence",
        gamma: float = 2.0,
        margin: float = 0.05,
        alpha: float = 0.1,
        signal: str = "accuracy",
        scores_from: str = "train",
        normalize: str = "softmax",
        mean: str = "geometric",
    ):
        super().__init__(num_tasks)
        check_options("not be negative", gamma=gamma, margin=margin)
        check_choice("normalize", normalize, ("softmax", "sum"))
        check_choice("mean", mean, ("geometric", "arithmetic"))
        self.gamma, self.margin, self.normalize, self.mean = gamma, margin, normalize, mean
        self.score = RunningScore(num_tasks, alpha, signal, scores_from)
        self.by_prevalence = isinstance(potential, str)
        if isinstance(potential, str):
            check_choice("potential", potential, ("prevalence",))
            if signal != "accuracy":
                raise ValueError(f"potential should be {num_tasks} numbers for signal {signal!r}. Found 'prevalence'.")
            potential = [0.5] * num_tasks
        self.register_buffer("potential", as_weights("potential", potential, num_tasks))
        if not ((self.potential > 0) & (self.potential <= 1)).all():
            raise ValueError(f"potential should be greater than 0 and at most 1. Found {self.potential.tolist()}.")

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.by_prevalence:
            p = clamped_prevalence(prevalence, self.potential)
            self.potential.copy_(torch.maximum(p, 1 - p))

    def shares(self, present: Bool[Tensor, " k"]) -> Float[Tensor, " k"]:
        """w_k of the tasks in the batch, (K,) float64 with sum 1, or 0 without any; the others have 0."""
        achievement = self.score.kappa / ((1 + self.margin) * self.potential)
        left = (1 - achievement).clamp(min=0) ** self.gamma
        left = torch.where(left.isnan(), left.nanmean().nan_to_num(0.0), left)
        if self.normalize == "softmax":
            return torch.softmax(left.where(present, -torch.inf), dim=0).nan_to_num(0.0)
        raw = present * (left + 1e-12)  # all have achieved their potential: equal weights
        return raw / raw.sum().clamp(min=1e-12)

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        w = self.shares(present).to(losses)
        if self.mean == "arithmetic":
            return present.sum() * (losses * w).sum()
        self.check_positive(losses)
        return (w * (losses.where(present, 1.0) + EPSILON).log()).sum().exp()

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self.score.update(report, self)
