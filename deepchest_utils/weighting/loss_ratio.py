"""LBTW and IGB: how far a task's loss has come from where it started."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.config import check_choice
from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import EpochReport, Scalarization, check_options
from deepchest_utils.weighting.scalarization import EPSILON
from deepchest_utils.weighting.static import clamped_prevalence


class LBTW(Scalarization):
    """Loss-balanced task weighting (Liu, Liang and Gitter, AAAI 2019, 10.1609/aaai.v33i01.33019977), as given in the
    authors' code, with its alpha. In sum_k w_k L_k the weight w_k is in proportion to (L_k / L_k(0))^alpha, without
    gradient, and of mean 1 over the tasks in the batch. L_k(0) is the task's loss in the first batch of the epoch that
    has it, so an epoch begins with equal weights. A task that has learned less gets more.

    Args:
        alpha: At least 0; 0 is equal weighting.
        initial_loss: "batch", as above. Or "entropy": H_k, the entropy of the training prevalence, in every epoch. A
            finding that the first batch lacks has a loss near 0 there, and weighs much too much until the next epoch.
    """

    def __init__(self, num_tasks: int, alpha: float = 0.5, initial_loss: str = "batch"):
        super().__init__(num_tasks)
        check_options("not be negative", alpha=alpha)
        check_choice("initial_loss", initial_loss, ("batch", "entropy"))
        self.alpha, self.initial_loss = alpha, initial_loss
        self.register_buffer("first_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        if self.initial_loss == "entropy":
            self.first_loss.copy_(prevalence_entropy(clamped_prevalence(prevalence, self.first_loss)))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        now = losses.detach().to(self.first_loss) + EPSILON
        self.first_loss.copy_(torch.where(self.first_loss.isnan() & present, now, self.first_loss))
        raw = ((now / self.first_loss) ** self.alpha).where(present, 0.0)
        return (losses * (raw * present.sum() / raw.sum().clamp(min=EPSILON)).to(losses)).sum()

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if self.initial_loss == "batch":
            self.first_loss.fill_(torch.nan)


class IGB(Scalarization):
    """Improvable gap balancing, its first version (Dai, Fei and Lu, UAI 2023, arXiv 2307.15429), as given in the
    authors' code:
        sum_k w_k log(L_k + 1e-8),    w = K softmax_k(L_k / base_k),    L_k in the weight without gradient,
    with base_k the mean training loss in epoch `base_epoch`, 1 or later, by default the code's; it has no 1e-8. Until
    that epoch ends all w_k are 1. A task without a loss in it counts as L_k / base_k = 1. Tasks without a label in the
    batch are left out, of K too. The second version, which learns w by reinforcement, is not here."""

    def __init__(self, num_tasks: int, base_epoch: int = 2):
        super().__init__(num_tasks)
        check_options("be at least 1", base_epoch=base_epoch)
        self.base_epoch = base_epoch
        self.register_buffer("base", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        gap = torch.where(self.base > 0, losses.detach() / self.base, 1.0)
        w = torch.softmax(gap.where(present, -torch.inf), dim=0).where(present, 0.0) * present.sum()
        return (w.to(losses) * (losses.where(present, 1.0) + EPSILON).log()).sum()

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if report.epoch >= self.base_epoch and self.base.isnan().all():
            self.base.copy_(report.score("loss", learner=self))
