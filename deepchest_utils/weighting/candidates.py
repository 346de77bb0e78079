"""Rules that notebook 07 derives and judges: Hedge, the validation discount and Anneal."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.base import EpochReport, LossWeighting, Scalarization, check_options
from deepchest_utils.weighting.static import clamped_prevalence

MIN_RELATIVE_LOSS = 0.01  # no running loss counts as less than this share of its start: weights stay bounded


class Hedge(LossWeighting):
    """Multiplicative weights (Freund and Schapire 1997, J. Comput. Syst. Sci. 55:119) on relative losses: those of an
    adversary who looks for the task that is furthest behind.

        w_k = (1 - floor) K softmax_k(eta sum_{s <= t} r_k(s)) + floor,    r_k(t) = min(L_k(t) / H_k, 1),
    with L_k the training loss and H_k that of the best constant answer: of binary cross-entropy, the entropy of the
    training prevalence. The weights have mean 1, each in [floor, (1 - floor) K + floor]. A task without a loss in an
    epoch gains what the mean of the others does. eta > 0 is the rate, and the floor, in [0, 1], the share of equal
    weighting.

    Regret (gains in [0, 1], by Hoeffding's lemma) over T epochs, whatever the losses do; a floor adds floor * T at most:
        max_k sum_t r_k(t) - sum_t sum_k (w_k(t) / K) r_k(t) <= log(K) / eta + eta T / 8.
    It bounds the relative loss of the task furthest behind, and says nothing of the mean over tasks."""

    def __init__(self, num_tasks: int, eta: float = 0.5, floor: float = 0.25):
        super().__init__(num_tasks)
        check_options("be greater than 0", eta=eta)
        if not 0 <= floor <= 1:
            raise ValueError(f"floor should be between 0 and 1. Found {floor}.")
        self.eta, self.floor = eta, floor
        self.register_buffer("gains", torch.zeros(num_tasks, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        share = torch.softmax(self.eta * self.gains, dim=0)
        return (1 - self.floor) * self.num_tasks * share + self.floor

    @torch.no_grad()
    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        r = report.relative_loss(learner=self).to(self.gains).clamp(max=1)
        self.check_positive(r)
        if not r.isnan().all():
            self.gains += torch.where(r.isnan(), r.nanmean(), r)


class ValDiscount(LossWeighting):
    """A task whose validation loss rises overfits, and weighs less: w_k is proportional to
    (min_{s <= t} V_k(s) / V_k(t))^power, of mean 1, with power > 0 and V_k(t) the task's validation loss after epoch t.
    So the weights are ones as long as all tasks improve. A task without a validation loss keeps its discount."""

    def __init__(self, num_tasks: int, power: float = 2.0):
        super().__init__(num_tasks)
        check_options("be greater than 0", power=power)
        self.power = power
        self.register_buffer("lowest", torch.full((num_tasks,), torch.inf, dtype=torch.float64))
        self.register_buffer("discount", torch.ones(num_tasks, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.discount / self.discount.mean()

    @torch.no_grad()
    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        loss = report.score("loss", "val", self).to(self.lowest)
        self.check_positive(loss)
        has_loss = loss > 0  # not where it is NaN
        self.lowest.copy_(torch.where(has_loss, torch.minimum(self.lowest, loss), self.lowest))
        self.discount.copy_(torch.where(has_loss, (self.lowest / loss) ** self.power, self.discount))


class Anneal(Scalarization):
    """From equal weighting to equal relative progress, as far as the network has learned: w_k proportional to
    m_k^(-power), of mean 1.

    m_k is the running mean of the training loss, clipped to [H_k / 100, H_k], with H_k the entropy of the training
    prevalence; power = 1 - mean_k m_k / H_k is the share learned so far. So it starts as equal weighting, power 0, and
    goes towards sum_k log L_k, power 1. Without a prevalence (`begin`) a task's first loss stands for H_k.

    Args:
        power: A fixed power in [0, 1], or None for the above.
        window: Steps that the running mean looks back, at least 1: m_k <- m_k + (L_k - m_k) / window.
        relative: m_k / H_k instead of m_k in the weight, so that tasks that have learned alike weigh alike.
    """

    def __init__(self, num_tasks: int, power: float | None = None, window: int = 100, relative: bool = False):
        super().__init__(num_tasks)
        if power is not None and not 0 <= power <= 1:
            raise ValueError(f"power should be between 0 and 1, or None. Found {power}.")
        check_options("be at least 1", window=window)
        self.power, self.window, self.relative = power, window, relative
        for name in ("running", "start"):  # NaN: nothing is known of the task yet
            self.register_buffer(name, torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.start.copy_(prevalence_entropy(clamped_prevalence(prevalence, self.start)))
        self.running.copy_(torch.where(self.running.isnan(), self.start, self.running))  # a state's goes on

    def current(self) -> Float[Tensor, " k"]:
        """The weights of the next step, (K,) of mean 1; a task without a loss so far has the mean of the others."""
        relative_loss = (self.running / self.start).clamp(MIN_RELATIVE_LOSS, 1)
        power = (1 - relative_loss.nanmean()).nan_to_num(0.0) if self.power is None else self.power
        raw = (relative_loss if self.relative else relative_loss * self.start) ** -power
        return (raw / raw.nanmean()).nan_to_num(1.0)

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        weights = self.current().to(losses)  # before this batch is looked at: no weight depends on its own batch
        with torch.no_grad():
            loss = losses.detach().to(self.running)
            present = present & ((loss > 0) | ~self.start.isnan())  # a loss of 0 is no start
            self.start.copy_(torch.where(present & self.start.isnan(), loss, self.start))
            followed = torch.where(self.running.isnan(), loss, torch.lerp(self.running, loss, 1 / self.window))
            self.running.copy_(torch.where(present, followed, self.running))
        return losses @ weights
