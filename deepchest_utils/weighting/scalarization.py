"""Published loss weightings: DWA, which holds its weights over an epoch, and those whose scalar changes in each step."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deepchest_utils.weighting.base import Adam, EpochReport, LossWeighting, Scalarization, check_options, has_label

EPSILON = 1e-8  # DB-MTL's and FAMO's


class DWA(LossWeighting):
    """w_k = K softmax_k(r_k / T) with r_k = L_k(t - 1) / L_k(t - 2), the ratio of the mean training losses in the last
    two epochs (equation 7): a task whose loss falls more slowly gets more. Ones in the first two epochs.

    A task without a loss in an epoch keeps its last two, and counts as r_k = 1 until it has two.

    Args:
        temperature: T, greater than 0; the larger, the more even the weights.
    """

    def __init__(self, num_tasks: int, temperature: float = 2.0):
        super().__init__(num_tasks)
        check_options("be greater than 0", temperature=temperature)
        self.temperature = temperature
        # the task's losses of the last epoch and the one before
        self.register_buffer("previous", torch.full((2, num_tasks), torch.nan, dtype=torch.float64))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        last, before = self.previous
        ratio = (last / before).nan_to_num(1.0, posinf=1.0)
        return self.num_tasks * torch.softmax(ratio / self.temperature, dim=0)

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        loss = report.train["loss"].to(self.previous)
        self.previous.copy_(torch.where(loss.isnan(), self.previous, torch.stack([loss, self.previous[0]])))


class Uncertainty(Scalarization):
    """Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10, for classification):
    sum_k exp(-s_k) L_k + s_k / 2, the log-variances s_k learned with the network from 0. At rest exp(-s_k) is
    1 / (2 L_k): a small loss gets a large weight. A task without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_variance
        return (s.neg().exp() * losses + has_label(losses) * s / 2).sum()


class IMTLL(Scalarization):
    """IMTL-L, the loss half of impartial multi-task learning (Liu et al., ICLR 2021, section 3.2):
    sum_k exp(s_k) L_k - s_k, the scales s_k learned with the network from 0. At rest every exp(s_k) L_k is 1. A task
    without a label in the batch keeps its s_k."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        s = self.log_scale
        return (s.exp() * losses - has_label(losses) * s).sum()


class GLS(Scalarization):
    """Geometric loss strategy (Chennupati et al. 2019, MultiNet++, arXiv 1904.08492, equation 2): the geometric mean of
    the losses of the tasks with a label in the batch. Each task's gradient is divided by its own loss."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        present = has_label(losses)
        # 1 in place of a missing loss, so that neither its logarithm nor its gradient is infinite
        logs = losses.where(present, 1.0).log()
        return (logs.sum() / present.sum().clamp(min=1)).exp()


class DBMTLL(Scalarization):
    """The loss half of DB-MTL, dual-balancing for multi-task learning (Lin et al. 2023, arXiv 2308.12029, section 3.1):
    sum_k log(L_k + 1e-8), which brings all losses to one scale. The paper's other half normalises gradients."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        return (losses.where(has_label(losses), 1.0) + EPSILON).log().sum()


class RLW(Scalarization):
    """Random loss weighting (Lin et al. 2022, arXiv 2111.10603), the litmus test for every clever rule: in each step
    w = K softmax(z), of mean 1, z standard normal (the paper's default), from torch's random state."""

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        z = torch.randn(self.num_tasks)  # on the CPU: the same weights on every device
        return losses @ (self.num_tasks * torch.softmax(z, dim=0)).to(losses)


class STCH(Scalarization):
    """Smooth Tchebycheff scalarisation (Lin et al. 2024, arXiv 2402.19078), in its form for multi-task learning.

    In the warm-up the loss of a step is sum_k log L_k. Then it is a smooth maximum over the tasks,
        K mu log sum_k exp(log(L_k / nadir_k) / mu),
    with nadir_k the mean training loss in the warm-up's last epoch. The task that lies worst against its nadir gets
    most. Tasks without a label in the batch are left out.

    Args:
        mu: Greater than 0; the smaller, the closer to the maximum.
        warmup: Epochs, at least 1.
    """

    def __init__(self, num_tasks: int, mu: float = 1.0, warmup: int = 4):
        super().__init__(num_tasks)
        check_options("be greater than 0", mu=mu)
        check_options("be at least 1", warmup=warmup)
        self.mu, self.warmup = mu, warmup
        self.register_buffer("nadir", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.register_buffer("warm", torch.tensor(False))

    def forward(self, losses: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        present = has_label(losses)
        # a task that the warm-up never saw has no nadir: its loss counts as it is
        nadir = self.nadir.nan_to_num(1.0).to(losses).where(self.warm, 1.0)
        logs = (losses.where(present, 1.0) / nadir.where(present, 1.0)).log()
        smooth = self.num_tasks * self.mu * torch.logsumexp((logs / self.mu).where(present, -torch.inf), dim=0)
        # all -inf, without a label in the whole batch: nothing to learn
        return torch.where(self.warm & present.any(), smooth.nan_to_num(0.0, neginf=0.0), logs.sum())

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if report.epoch <= self.warmup:
            self.nadir.copy_(report.train["loss"])
            self.warm.fill_(report.epoch == self.warmup)


class FAMO(Scalarization):
    """FAMO, fast adaptive multi-task optimisation (Liu et al. 2023, arXiv 2306.03792, algorithm 1).

    Lowers all losses at one rate without a task's gradient. The loss of a step is c sum_k z_k log L_k with
    z = softmax(xi) and c = 1 / sum_k (z_k / L_k). After it, xi takes an Adam step along how much less each task's
    log-loss has fallen on the same batch. A task without a label in it is left out, but for its decay.

    Args:
        lr: Learning rate of xi, not negative, the paper's.
        gamma: Decay of xi, not negative, the paper's.
    """

    needs_losses_after_step = True

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
