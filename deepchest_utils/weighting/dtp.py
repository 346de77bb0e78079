"""DTP, dynamic task prioritisation: DeepChest's direct ancestor."""

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.config import check_choice
from deepchest_utils.weighting.base import EpochReport, LossWeighting, Stateful, check_options

KPIS = ("accuracy", "auroc", "balanced_accuracy")  # the scores in [0, 1] of an `EpochReport`


class RunningScore(Stateful):
    """kappa_k, a task's running mean of a score: (1 - alpha) kappa + alpha score, once an epoch; NaN before the first.
    ValueError for an unknown score or source, or an alpha outside (0, 1]."""

    kappa: Tensor

    def __init__(self, num_tasks: int, alpha: float, signal: str, scores_from: str):
        super().__init__()
        check_choice("signal", signal, KPIS)
        check_choice("scores_from", scores_from, ("train", "val"))
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha should be in (0, 1]. Found {alpha}.")
        self.alpha, self.signal, self.scores_from = alpha, signal, scores_from
        self.register_buffer("kappa", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def update(self, report: EpochReport, learner: object) -> None:
        """Take the epoch's scores in; a task without one keeps its mean."""
        score = report.score(self.signal, self.scores_from, learner).to(self.kappa)
        followed = torch.where(self.kappa.isnan(), score, torch.lerp(self.kappa, score, self.alpha))
        self.kappa.copy_(torch.where(score.isnan(), self.kappa, followed))


class DTP(LossWeighting):
    """Dynamic task prioritisation (Guo et al., ECCV 2018, 10.1007/978-3-030-01270-0_17), its weight of a task: a focal
    loss over tasks, in which the task with the lowest score gets most,
        w_k = -(1 - kappa_k)^gamma log kappa_k,    kappa_k the running mean of the task's key performance indicator,
    as given in Yun and Cho's code (Achievement-based-MTL, 2023). gamma and alpha are by default those of that code, where a
    comment recommends gamma = 0.5. It takes the scores of held-out images, which is scores_from="val" here. Scaled to mean
    1, which is ours. Ones until there is a score; a task without one gets the others' mean. kappa counts as in
    [1e-4, 1 - 1e-4]. The paper's focal loss within a task, over images, is not here.

    With the accuracy as score it follows prevalence: a constant answer on a finding of prevalence p < 1/2 has
    kappa = 1 - p, and so w_k = p^(gamma + 1) to first order.

    Args:
        gamma: At least 0; the larger, the more the weakest task stands out.
        alpha: Share of the newest score in the running mean, in (0, 1].
        signal: "accuracy", "auroc" or "balanced_accuracy".
        scores_from: "train" or "val".
    """

    def __init__(
        self,
        num_tasks: int,
        gamma: float = 1.0,
        alpha: float = 0.1,
        signal: str = "accuracy",
        scores_from: str = "train",
    ):
        super().__init__(num_tasks)
        check_options("not be negative", gamma=gamma)
        self.gamma = gamma
        self.score = RunningScore(num_tasks, alpha, signal, scores_from)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        kappa = self.score.kappa.clamp(1e-4, 1 - 1e-4)
        raw = -((1 - kappa) ** self.gamma) * kappa.log()
        return torch.where(raw.isnan(), raw.nanmean().nan_to_num(1.0), raw)

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.raw_weights / self.raw_weights.mean()

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self.score.update(report, self)
