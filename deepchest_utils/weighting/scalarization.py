"""Published loss weightings: DWA, which holds its weights over an epoch, and those that change them in each step."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils.config import check_choice
from deepchest_utils.distributed import all_reduce_sum
from deepchest_utils.models.losses import prevalence_entropy
from deepchest_utils.weighting.autograd_graph import last_shared_layer
from deepchest_utils.weighting.base import (
    EpochReport,
    Features,
    Losses,
    LossWeighting,
    Mask,
    Method,
    Scalarization,
    Stateful,
    check_gradient,
    check_options,
    without_autocast,
)
from deepchest_utils.weighting.static import clamped_prevalence

EPSILON = 1e-8  # DB-MTL's and FAMO's


def finite_log(losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, " k"]:
    """log L_k, (K,), with a finite gradient: 0 for a task that is not in the batch. A loss that has underflowed to 0, as
    that of a logit below -17 without a finding in float32, becomes log(1e-8), which teaches nothing."""
    positive = losses.where(present, 1.0)
    return positive.where(positive != 0, EPSILON).log()


class DWA(LossWeighting):
    """Dynamic weight averaging (Liu, Johns and Davison 2019, arXiv 1803.10704, equation 7):
    w_k = K softmax_k(r_k / T) with r_k = L_k(t - 1) / L_k(t - 2), the ratio of the mean training losses in the last
    two epochs: a task whose loss falls more slowly gets more. Ones in the first two epochs. A task without a loss in an
    epoch keeps its last two, and counts as r_k = 1 until it has two. The temperature T > 0 evens the weights out."""

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
        loss = report.score("loss", learner=self).to(self.previous)
        self.check_positive(loss)
        self.previous.copy_(torch.where(loss.isnan(), self.previous, torch.stack([loss, self.previous[0]])))


class Uncertainty(Scalarization):
    """Uncertainty weighting (Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equation 10, for classification):
    sum_k exp(-s_k) L_k + s_k / 2, the log-variances s_k learned with the network from 0. At rest exp(-s_k) is
    1 / (2 L_k): a small loss gets a large weight. A task without a label in the batch gives its s_k no gradient."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        s = self.log_variance
        return (s.neg().exp() * losses + present * s / 2).sum()


class IMTLL(Scalarization):
    """IMTL-L, the loss half of impartial multi-task learning (Liu et al., ICLR 2021, section 3.2):
    sum_k exp(s_k) L_k - s_k, the scales s_k learned with the network from 0. At rest every exp(s_k) L_k is 1. A task
    without a label in the batch gives its s_k no gradient."""

    def __init__(self, num_tasks: int):
        super().__init__(num_tasks)
        self.log_scale = nn.Parameter(torch.zeros(num_tasks))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        s = self.log_scale
        return (s.exp() * losses - present * s).sum()


class GLS(Scalarization):
    """Geometric loss strategy (Chennupati et al. 2019, MultiNet++, arXiv 1904.08492, equation 2): the geometric mean of
    the losses of the tasks with a label in the batch. Each task's gradient is divided by its own loss."""

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        logs = finite_log(losses, present)
        return (logs.sum() / present.sum().clamp(min=1)).exp()


class DBMTLL(Scalarization):
    """The loss half of DB-MTL, dual-balancing for multi-task learning (Lin et al. 2023, arXiv 2308.12029, section 3.1):
    sum_k log(L_k + 1e-8), which brings all losses to one scale. The paper's other half normalises gradients."""

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        return (losses.where(present, 1.0) + EPSILON).log().sum()


class RLW(Scalarization):
    """Random loss weighting (Lin et al. 2022, arXiv 2111.10603), the litmus test for every clever rule. In each step
    w = K softmax(z), of mean 1. z is standard normal (the paper's default), from torch's random state."""

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        z = torch.randn(self.num_tasks)  # on the CPU: the same weights on every device
        return losses @ (self.num_tasks * torch.softmax(z, dim=0)).to(losses)


class STCH(Scalarization):
    """Smooth Tchebycheff scalarisation (Lin et al. 2024, arXiv 2402.19078), in its form for multi-task learning.

    In the warm-up the loss of a step is sum_k log L_k. Then it is a smooth maximum over the tasks,
        K mu log sum_k exp(log(L_k / nadir_k) / mu),
    with nadir_k the mean training loss in the warm-up's last epoch. The task that lies worst against its nadir gets
    most. Tasks without a label in the batch are left out. The smaller mu > 0, the closer to the maximum; the warm-up
    takes one epoch or more, by default the authors' five (their `STCH_warmup_epoch` of 4 counts from 0)."""

    def __init__(self, num_tasks: int, mu: float = 1.0, warmup: int = 5):
        super().__init__(num_tasks)
        check_options("be greater than 0", mu=mu)
        check_options("be at least 1", warmup=warmup)
        self.mu, self.warmup = mu, warmup
        self.register_buffer("nadir", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.register_buffer("warm", torch.tensor(False))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        # a task that the warm-up never saw, or only at 0, has no nadir: its loss counts as it is
        nadir = self.nadir.where(self.nadir > 0, 1.0).to(losses).where(self.warm, 1.0)
        logs = finite_log(losses / nadir.where(present, 1.0), present)
        smooth = self.num_tasks * self.mu * torch.logsumexp((logs / self.mu).where(present, -torch.inf), dim=0)
        # all -inf, without a label in the whole batch: nothing to learn
        return torch.where(self.warm & present.any(), smooth.nan_to_num(0.0, neginf=0.0), logs.sum())

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        if not self.warm:
            self.nadir.copy_(report.score("loss", learner=self))
            self.warm.fill_(report.epoch >= self.warmup)


class Adam(Stateful):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980) with its usual constants, for K numbers that no optimiser holds."""

    mean: Tensor
    square: Tensor
    count: Tensor
    signed = ("mean",)

    def __init__(self, num_tasks: int):
        super().__init__()
        for name in ("mean", "square"):
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, gradient: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """The step against this gradient, (K,), before the learning rate."""
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient**2, 0.001)
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        return mean / (square.sqrt() + 1e-8)


class FAMO(Scalarization):
    """FAMO, fast adaptive multi-task optimisation (Liu et al. 2023, arXiv 2306.03792, algorithm 1).

    Lowers all losses at one rate without a task's gradient. The loss of a step is c sum_k z_k log L_k with
    z = softmax(xi) and c = 1 / sum_k (z_k / L_k). After it, xi takes an Adam step along how much less each task's
    log-loss has fallen on the same batch: `after_step` wants these losses. A task without a label in it keeps its xi. The
    rate lr and the decay gamma of xi are not negative; the defaults are the paper's."""

    needs_losses_after_step = True
    signed = (*Method.signed, "xi")

    def __init__(self, num_tasks: int, lr: float = 0.025, gamma: float = 1e-3):
        super().__init__(num_tasks)
        check_options("not be negative", lr=lr, gamma=gamma)
        self.lr, self.gamma = lr, gamma
        self.register_buffer("xi", torch.zeros(num_tasks, dtype=torch.float64))  # the logits
        self.adam = Adam(num_tasks)
        self._before: tuple[Tensor, Tensor] | None = None  # the losses of the step, and which tasks have one

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        self.check_positive(losses)
        self._before = losses.detach(), present
        z = torch.softmax(self.xi, dim=0).to(losses) * present
        shifted = losses.where(present, 1.0) + EPSILON
        c = (z / shifted).sum().detach().clamp(min=EPSILON)
        return (z * shifted.log()).sum() / c

    @torch.no_grad()
    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        if self._before is None:
            raise ValueError("after_step should come after backward: there are no losses to compare with.")
        before, present = self._before
        losses, _ = self.checked(losses, present)
        self.check_positive(losses)
        fall = ((before + EPSILON).log() - (losses + EPSILON).log()).double() * present
        z = torch.softmax(self.xi, dim=0) * present
        z = z / z.sum().clamp(min=EPSILON)  # over the tasks in the batch, as the loss of the step has it
        # the derivative of sum_k z_k fall_k by xi, and the decay
        self.xi -= self.lr * self.adam(z * (fall - z @ fall) + self.gamma * self.xi) * present
        self._before = None

    def end_epoch(self, report: EpochReport) -> None:
        if self._steps > 0 and self.adam.count == 0:
            raise ValueError(
                "FAMO learns in after_step(losses), with the batch's losses after each step. Found no call."
            )
        super().end_epoch(report)


class GradNorm(Method):
    """GradNorm (Chen et al. 2018, arXiv 1711.02257, algorithm 1) trains the task weights w so that all tasks pull
    equally hard on W, the last shared layer.

    G_k = ||grad_W w_k L_k|| is a task's pull. r_k is L_k(t) / L_k(0), the share of its first loss that is left, over
    the mean of these shares. w goes down the gradient of sum_k |G_k - mean(G) r_k^alpha|, the target held constant, and
    is scaled to sum K. A task without a label in the batch takes no part but in this scaling. A step costs K backward
    passes more, down to W alone.

    Args:
        alpha: How much more a task that lags behind may pull, not negative; by default that of the paper's larger
            experiment.
        lr: Rate of the Adam of w, not negative, by default the paper's.
        initial_loss: L_k(0). "entropy": H_k, the entropy of the training prevalence from `begin`. It is the loss of a
            head that has learned nothing; the paper uses such a theoretical loss, log C for C classes, where the
            measured one depends on chance. "batch": the loss in the first batch with the task, which is also taken
            without a prevalence. A rare finding that this batch lacks starts near 0, and counts as far behind for ever.
    """

    def __init__(self, num_tasks: int, alpha: float = 1.5, lr: float = 0.025, initial_loss: str = "entropy"):
        super().__init__(num_tasks)
        check_options("not be negative", alpha=alpha, lr=lr)
        check_choice("initial_loss", initial_loss, ("entropy", "batch"))
        self.alpha, self.lr, self.initial_loss = alpha, lr, initial_loss
        self.register_buffer("current", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("first_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))
        self.adam = Adam(num_tasks)

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.current.clone()  # what was read stays what it was

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        super().begin(prevalence)
        if self.initial_loss == "entropy":
            self.first_loss.copy_(prevalence_entropy(clamped_prevalence(prevalence, self.first_loss)))

    def backward(self, losses: Losses, features: Features = None, mask: Mask = None) -> None:
        losses, present = self.checked(losses, mask)
        check_gradient(losses, features)
        self.check_positive(losses)
        if features is None:
            raise ValueError("features should be the trunk's output: GradNorm works on the last shared layer.")
        if features.ndim != 2:  # with a row a task, the last layer belongs to one of them
            found = f"Found shape {tuple(features.shape)}: pool maps first."
            raise ValueError(f"features should be shared by all tasks, (B, F). {found}")
        layer = last_shared_layer(features)
        with without_autocast(losses):
            pulls = (torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in losses)
            norms = [all_reduce_sum(pull).norm() for pull in pulls]
            (losses @ self.current.to(losses)).backward()
        self.learn(losses.detach().double(), torch.stack(norms).double() / self.gradient_scale, present)

    @torch.no_grad()
    def learn(self, losses: Float[Tensor, " k"], norms: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> None:
        """One step of the weights; norms: (K,), of the unweighted losses' gradients by W."""
        # a step that is not finite is skipped by whoever trains, as fp16's scaler does; nothing is learned from it
        present = present & (losses.isfinite() & norms.isfinite()).all()
        first = self.first_loss.isnan() & present & (losses > 0)  # a loss of 0 has nothing to fall from
        self.first_loss.copy_(torch.where(first, losses, self.first_loss))
        present = present & ~self.first_loss.isnan()
        n = present.sum().clamp(min=1)
        pull = self.current * norms
        rate = (losses / self.first_loss).where(present, 0.0)
        relative = rate / (rate.sum() / n).clamp(min=1e-12)
        target = pull.where(present, 0.0).sum() / n * relative**self.alpha
        gradient = (torch.sign(pull - target) * norms).where(present, 0.0)
        # the paper says nothing of weights below zero; a task is never turned against
        stepped = (self.current - self.lr * self.adam(gradient) * present).clamp(min=1e-3)
        self.current.copy_(stepped * (self.num_tasks / stepped.sum()))
