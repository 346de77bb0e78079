"""One loss a finding, over the labels that are known: binary cross-entropy, and five that weigh its labels otherwise.

A loss works inside a task, a method (`weighting`) between tasks: each method takes the losses of each of these. How hard
a finding is, its "relative loss", is the loss over that of the best constant predictor, both by the loss that is trained.
Methods whose own formula has the entropy of the prevalence (1/H, 1/sqrt(H), GradNorm, Anneal, LBTW if asked) keep it under
every loss. Tables report binary cross-entropy under every loss, so that runs can be compared.

A loss also decides what the logits mean. Under binary cross-entropy their sigmoid is the probability of the finding.
Under the others it is not: they favour positives, or push correct answers less far. Logits and tables have the network's
output as it was trained: AUROC, average precision and scores at a threshold from validation do not mind, loss, Brier
score, calibration error and accuracy at 0.5 do. The balanced accuracy of an epoch, from which methods may learn, is taken
at the output of the best constant predictor: under binary cross-entropy that is the prevalence. The calibration that a run keeps turns outputs into probabilities.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from deepchest_utils.config import LOSSES, check_choice, check_type, did_you_mean, parse_method
from deepchest_utils.distributed import all_reduce_sum, sum_over_ranks

PerLabel = Float[Tensor, "n k"]
PerTask = Float[Tensor, " k"]
Counts = Int[Tensor, " k"] | None  # known labels of each task
Labels = PerLabel | Float[np.ndarray, "n k"]
Terms = tuple[PerLabel, PerLabel]
MIN_SHARE = 1e-4  # of positives and of negatives, as in `prevalence_logit`: its logit is -9.2


def count_known(labels: PerLabel) -> Int[Tensor, " k"]:
    """(K,) the number of known labels of each task in the batch, that of all processes; NaN is unknown."""
    return all_reduce_sum((~labels.isnan()).sum(0))


def masked_bce(logits: PerLabel, labels: PerLabel, counts: Counts = None) -> PerTask:
    """Mean binary cross-entropy of each task over its known labels, which are 1 or 0; NaN is unknown.

    (K,) in nats, at least 0, float32 also under autocast. A task without a known label in the batch has loss 0 and gets
    no gradient. With several processes (`distributed`), the mean is over the batch of all. `counts` are those of
    `count_known`, where the caller has them.
    """
    is_known = ~labels.isnan()
    counts = count_known(labels) if counts is None else counts
    # the label is replaced before the loss: NaN * 0 would still be NaN, in the gradient too
    target, weight = labels.nan_to_num(0.0), is_known / counts.clamp(min=1)
    return sum_over_ranks(binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="none").sum(0))


def prevalence_entropy(prevalence: PerTask) -> PerTask:
    """H_k = -p log p - (1 - p) log(1 - p), (K,) in nats, in [0, log 2]: the loss of the best constant predictor, for
    prevalences p (K,) in [0, 1]. NaN stays NaN."""
    p = prevalence
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


class Loss(nn.Module):
    """A loss a task, `loss(logits, labels, counts)` -> (K,), with the arguments and the properties of `masked_bce`.

    Args:
        labels: (N, K) of the training set, 1, 0 or NaN: its numbers of positives and negatives are what is rare.
    """

    positives: Tensor
    negatives: Tensor

    def __init__(self, labels: Labels):
        super().__init__()
        labels = torch.as_tensor(labels)
        _check_labels(labels)
        for name, value in (("positives", 1), ("negatives", 0)):
            self.register_buffer(name, (labels == value).sum(0).double())

    def __call__(self, logits: PerLabel, labels: PerLabel, counts: Counts = None) -> PerTask:
        shape = (len(logits), *self.positives.shape)
        if not labels.is_floating_point() or not logits.shape == labels.shape == shape:  # they would be broadcast
            found = f"Found logits {tuple(logits.shape)}, and labels {tuple(labels.shape)} of {labels.dtype}."
            raise ValueError(f"logits and labels should have shape {shape}, and be floating point. {found}")
        if counts is None and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_labels(labels)  # elsewhere a step would wait for it, and whoever has the counts knows the labels
        return cast(Tensor, super().__call__(logits, labels, counts))

    def terms(self, z: PerLabel) -> Terms:
        """The cost of each logit where the finding is present, and where it is absent; both (n, K), at least 0."""
        raise NotImplementedError

    def forward(self, logits: PerLabel, labels: PerLabel, counts: Counts = None) -> PerTask:
        return self.mean(self.terms(logits.float()), labels, counts)

    def mean(self, terms: Terms, labels: PerLabel, counts: Counts) -> PerTask:
        """Over the known labels of all processes."""
        counts, costs = count_known(labels) if counts is None else counts, torch.where(labels == 1, *terms)
        return sum_over_ranks((costs.float().where(~labels.isnan(), 0.0) / counts.clamp(min=1)).sum(0))

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, the first has number 1. It depends on nothing else, so there is no state to keep."""

    @torch.no_grad()
    def best_constant(self, prevalence: PerTask) -> tuple[PerTask, PerTask]:
        """The sigmoid of the constant logit with the least expected loss, and that loss, both (K,), at these shares of
        positives. Heads start there (`prior_bias`), and a relative loss is measured by it. By search, to 1e-7; the loss is
        0 where there is one class, and NaN where the share is.
        """
        p, width = prevalence.double().nan_to_num(0.5), 20.0
        best, least = torch.zeros_like(p), torch.zeros_like(p)
        for _ in range(4):
            z = best + torch.linspace(-width, width, 401, dtype=p.dtype)[:, None]
            present, absent = self.terms(z)
            least, index = (p * present + (1 - p) * absent).min(0)
            best, width = z.gather(0, index[None])[0], width / 100
        return best.sigmoid(), least.where((p > 0) & (p < 1), 0.0).where(~prevalence.isnan(), torch.nan)


class BCE(Loss):
    """Binary cross-entropy: `masked_bce`."""

    def forward(self, logits: PerLabel, labels: PerLabel, counts: Counts = None) -> PerTask:
        return masked_bce(logits, labels, counts)

    def best_constant(self, prevalence: PerTask) -> tuple[PerTask, PerTask]:
        return prevalence, prevalence_entropy(prevalence)


class Balanced(Loss):
    """W-CEL, of the paper that NIH's images came with (Wang et al. 2017, arXiv 1705.02315, equation 1):
    beta_P = (P + N) / P times the cross-entropy of a positive, beta_N = (P + N) / N times that of a negative.

    Args:
        over: P and N are the numbers of ones and zeros among all labels of the batch ("batch"), as published, or among
            the finding's own in training ("finding"), in CheXNet's ratio (Rajpurkar et al. 2017, arXiv 1711.05225).
    """

    def __init__(self, labels: Labels, over: str = "batch"):
        super().__init__(labels)
        check_choice("over", over, ("batch", "finding"))
        self.over = over

    def terms(self, z: PerLabel) -> Terms:
        ones, zeros = self.positives, self.negatives
        if self.over == "batch":  # in the mean over batches
            ones, zeros = ones.sum(), zeros.sum()
        return self._weighed(z, ones, zeros)

    def _weighed(self, z: PerLabel, ones: Tensor, zeros: Tensor) -> Terms:
        beta_p, beta_n = ((ones + zeros) / count.clamp(min=1) for count in (ones, zeros))
        return -logsigmoid(z) * beta_p.to(z), -logsigmoid(-z) * beta_n.to(z)

    def forward(self, logits: PerLabel, labels: PerLabel, counts: Counts = None) -> PerTask:
        if self.over == "finding":
            return super().forward(logits, labels, counts)
        ones, zeros = all_reduce_sum(torch.stack([(labels == 1).sum(), (labels == 0).sum()]))
        return self.mean(self._weighed(logits.float(), ones, zeros), labels, counts)


class Focal(Loss):
    """Focal loss (Lin et al. 2017, arXiv 1708.02002, equation 5): -alpha_t (1 - p_t)^gamma log p_t, with p_t the probability
    given to the label, alpha_t = alpha for a positive and 1 - alpha for a negative.

    Args:
        gamma: At least 0.
        alpha: In (0, 1), or None for no such factor (equation 4).
    """

    def __init__(self, labels: Labels, gamma: float = 2.0, alpha: float | None = 0.25):
        super().__init__(labels)
        _check("gamma", gamma, 0 <= gamma < math.inf, "be at least 0")
        _check("alpha", alpha, alpha is None or 0 < alpha < 1, "lie between 0 and 1, or be None")
        self.gamma, self.alpha = gamma, (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)

    def terms(self, z: PerLabel) -> Terms:
        log_p, log_q = logsigmoid(z), logsigmoid(-z)  # exp(gamma log q) has a gradient where q^gamma has none
        return (
            -self.alpha[0] * (self.gamma * log_q).exp() * log_p,
            -self.alpha[1] * (self.gamma * log_p).exp() * log_q,
        )


class Asymmetric(Loss):
    """ASL (Ridnik et al. 2021, arXiv 2009.14119): -(1 - p)^gamma_pos log p for a positive, -(p_m)^gamma_neg log(1 - p_m)
    for a negative, with p_m = max(p - margin, 0). Defaults are those of the authors' training. It stops the gradient of the
    focusing factors, by an option of their code. Here they have one, as the paper's equations say.

    Args:
        gamma_neg, gamma_pos: At least 0.
        margin: In [0, 1). A negative with a probability below it costs nothing.
    """

    log_margin: Tensor

    def __init__(self, labels: Labels, gamma_neg: float = 4.0, gamma_pos: float = 0.0, margin: float = 0.05):
        super().__init__(labels)
        _check("gamma_neg", gamma_neg, 0 <= gamma_neg < math.inf, "be at least 0")
        _check("gamma_pos", gamma_pos, 0 <= gamma_pos < math.inf, "be at least 0")
        _check("margin", margin, 0 <= margin < 1, "lie in [0, 1)")
        self.gamma_neg, self.gamma_pos = gamma_neg, gamma_pos
        self.register_buffer("log_margin", torch.tensor(margin, dtype=torch.float64).log().float())

    def terms(self, z: PerLabel) -> Terms:
        log_p, log_q = logsigmoid(z), logsigmoid(-z)
        log_q_m = torch.logaddexp(log_q, self.log_margin.to(z)).clamp(max=0)  # log(1 - p_m)
        p_m = -torch.expm1(log_q_m)
        absent = -(p_m.clamp(min=1e-8) ** self.gamma_neg) * log_q_m  # 0^gamma has an infinite slope for gamma < 1
        return -(self.gamma_pos * log_q).exp() * log_p, absent


class LogitAdjusted(Loss):
    """Logit-adjusted loss (Menon et al. 2021, arXiv 2007.07314, equation 10) for each finding's two classes: binary
    cross-entropy of z + tau log(pi / (1 - pi)), with z the network's output and pi the training prevalence.

    z then ranks by how much likelier the image is with the finding than without, whatever its prevalence; the sigmoid of z
    is the probability at prevalence one half, if tau is 1. A head with a bias of its own can learn the same under binary
    cross-entropy: what differs is where the bias starts and that weight decay pulls it elsewhere.

    Args:
        tau: At least 0; 0 is binary cross-entropy.
    """

    offset: Tensor

    def __init__(self, labels: Labels, tau: float = 1.0):
        super().__init__(labels)
        _check("tau", tau, 0 <= tau < math.inf, "be at least 0")
        prevalence = self.positives / (self.positives + self.negatives)
        self.register_buffer("offset", tau * prevalence.nan_to_num(0.5).logit(eps=MIN_SHARE))

    def terms(self, z: PerLabel) -> Terms:
        adjusted = z + self.offset.to(z)
        return -logsigmoid(adjusted), -logsigmoid(-adjusted)

    def best_constant(self, prevalence: PerTask) -> tuple[PerTask, PerTask]:
        """As `Loss.best_constant`, exactly: binary cross-entropy's, its logit shifted."""
        p = prevalence.double()
        return (p.nan_to_num(0.5).logit() - self.offset.to(p)).sigmoid(), prevalence_entropy(p)


class LDAM(Loss):
    """Label-distribution-aware margins with deferred re-weighting (Cao et al. 2019, arXiv 1906.07413, 3.2 and 3.3), for
    each finding's two classes.

    It is the cross-entropy of z - s Delta_1 for a positive and of z + s Delta_0 for a negative, with the network's
    output z. Delta_j = C / n_j^(1/4) for a class of n_j training labels; C makes the largest of all max_margin.
    The paper also bounds z / s to [-1, 1] by normalising features and weights, which is not done here. In the last
    epochs each class is weighed by (1 - beta) / (1 - beta^n_j) (Cui et al. 2019), as in the authors' code; algorithm 1 has
    1 / n_j. Scaled to mean 1 over the finding's training labels; `Loop` reports in the first epoch's unit. Defaults: the code's.

    Args:
        max_margin, scale: Greater than 0; scale is s.
        defer: In [0, 1], the share of the epochs before re-weighting begins; 160 of 200 in the code. 1 is never.
        beta: In [0, 1).
    """

    margins: Tensor
    class_weights: Tensor

    def __init__(
        self, labels: Labels, max_margin: float = 0.5, scale: float = 30.0, defer: float = 0.8, beta: float = 0.9999
    ):
        super().__init__(labels)
        _check("max_margin", max_margin, 0 < max_margin < math.inf, "be greater than 0")
        _check("scale", scale, 0 < scale < math.inf, "be greater than 0")
        _check("defer", defer, 0 <= defer <= 1, "lie in [0, 1]")
        _check("beta", beta, 0 <= beta < 1, "lie in [0, 1)")
        self.defer, self.is_reweighted = defer, False
        found = torch.stack([self.positives, self.negatives])
        n = found.clamp(min=1)  # a class without a label has no say in C
        margins = n**-0.25
        largest = margins.where(found > 0, 0).max().clamp(min=margins.min())
        self.register_buffer("margins", scale * max_margin * (margins / largest).clamp(max=1))
        weights = (1 - beta) / (1 - beta**n)
        mean = (weights * found).sum(0) / found.sum(0)
        self.register_buffer("class_weights", weights / mean.nan_to_num(1.0))

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.is_reweighted = epoch > self.defer * epochs

    def terms(self, z: PerLabel) -> Terms:
        margins = self.margins.to(z)
        present, absent = -logsigmoid(z - margins[0]), -logsigmoid(-z - margins[1])
        if self.is_reweighted:
            weights = self.class_weights.to(z)
            present, absent = weights[0] * present, weights[1] * absent
        return present, absent


_CLASSES: dict[str, Callable[..., Loss]] = dict(
    zip(LOSSES, (BCE, Balanced, Focal, Asymmetric, LogitAdjusted, LDAM), strict=True)
)


def make_loss(name: str, labels: Labels, **options: Any) -> Loss:
    """A loss by name, for `loss(logits, labels)` -> (K,) in any loop; its class here has its equation and its options.
    Collective: with several processes it is the loss of all their images, whose gradients are to be summed, not averaged.

    Args:
        name: bce, balanced, focal, asymmetric, logit_adjusted or ldam; options may stand in brackets: "focal(gamma=3)".
        labels: (N, K) of the training set.

    Raises:
        ValueError: For an unknown name or option, with those there are, or an option out of bounds.
    """
    if "(" in name:
        name, options = parse_method(name, options)
    check_choice("loss", name, LOSSES)
    parameters = {n: p for n, p in inspect.signature(_CLASSES[name]).parameters.items() if n != "labels"}
    for option, value in options.items():
        if option not in parameters:
            known, hint = ", ".join(parameters) or "none", did_you_mean(option, parameters)
            raise ValueError(f"loss {name!r} has no option {option!r}. It has {known}.{hint}")
        options[option] = check_type(option, parameters[option].annotation, value)
    return _CLASSES[name](labels, **options)


def _check_labels(labels: Tensor) -> None:
    if labels.ndim != 2 or not ((labels == 0) | (labels == 1) | labels.isnan()).all():
        found = f"shape {tuple(labels.shape)}, values {labels.unique()[:5].tolist()}"
        raise ValueError(f"labels should be 1, 0 or NaN for unknown, of shape (N, K). Found {found}.")


def _check(name: str, value: object, holds: bool, bound: str) -> None:
    if not holds:
        raise ValueError(f"{name} should {bound}. Found {value}.")
