"""DeepChest: after each epoch, tasks behind the mean gain weight, the others lose it (arXiv 2505.23595)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import SOURCES, EpochReport, LossWeighting
from deepchest_utils.weighting.static import as_weights, published

SIGNALS = ("accuracy", "loss_trend", "relative_loss", "auroc", "balanced_accuracy")


class DeepChest(LossWeighting):
    """Dynamic, gradient-free task weights.

    With scores s_k (higher is better) and tau their mean over the scored tasks:
        s_k < tau:  w_k <- min(step_up * w_k, cap)        otherwise:  w_k <- max(w_k / step_down, floor)
    The loss of a step is sum_k w_k L_k. The defaults are the published rule exactly: the training accuracy as
    the signal, no floor, no normalisation. In one's own loop: `loss = w(losses)` in a step,
    `w.update(scores)` after an epoch.

    num_tasks: K. signal: what `end_epoch` takes as the score of task k in epoch t:
        "accuracy", "auroc", "balanced_accuracy"    as measured;
        "loss_trend"       -L_k(t) / L_k(t - 1): a loss that falls more slowly than the mean is behind
                           (no score in the first epoch);
        "relative_loss"    -L_k(t) / H_k, H_k the entropy of the training prevalence, i.e. the loss of the
                           best constant predictor.
    scores_from: "train" or "val". step_up, step_down: at least 1. floor, cap: 0 <= floor <= cap, bounds of
    the raw weights.
    normalize: scale the weights in force to mean 1; the raw ones go on by the rule. initial: (K,) raw weights
    in [floor, cap], or the name of those that the authors published for the 14 findings ("resnet",
    "cnnmodel1"); default ones, cut to the bounds.
    Raises ValueError naming the argument. State (`raw_weights`, `previous_loss`) is float64; keep the module
    on a device that has it.
    """

    _raw_weights: Tensor
    previous_loss: Tensor

    def __init__(
        self,
        num_tasks: int,
        signal: str = "accuracy",
        step_up: float = 1.1,
        step_down: float = 1.05,
        cap: float = 1.5,
        floor: float = 0.0,
        normalize: bool = False,
        initial: Sequence[float] | Tensor | str | None = None,
        scores_from: str = "train",
    ):
        super().__init__(num_tasks)
        if signal not in SIGNALS:
            raise ValueError(f"signal should be one of {', '.join(SIGNALS)}. Found {signal!r}.")
        if scores_from not in SOURCES:
            raise ValueError(f"scores_from should be one of {', '.join(SOURCES)}. Found {scores_from!r}.")
        for name, value in (("step_up", step_up), ("step_down", step_down)):
            if not 1 <= value < float("inf"):
                raise ValueError(f"{name} should be at least 1. Found {value}.")
        if not 0 <= floor <= cap or not 0 < cap < float("inf"):
            raise ValueError(f"floor and cap should hold 0 <= floor <= cap, 0 < cap. Found {floor} and {cap}.")
        self.signal, self.scores_from, self.normalize = signal, scores_from, normalize
        self.step_up, self.step_down, self.cap, self.floor = step_up, step_down, cap, floor
        if initial is None:
            raw = torch.ones(num_tasks, dtype=torch.float64).clamp(floor, cap)
        else:
            raw = as_weights("initial", published(initial), num_tasks)
            if not ((raw >= floor) & (raw <= cap)).all():
                raise ValueError(f"initial should lie in [{floor}, {cap}]. Found {raw.tolist()}.")
            if normalize and raw.sum() == 0:
                raise ValueError("initial should not be all zero with normalize=True.")
        self.register_buffer("_raw_weights", raw)
        self.register_buffer("previous_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        """(K,) float64, each in [floor, cap]; the sum is not preserved."""
        return self._raw_weights

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) float64 in force: the raw weights, or with `normalize` the same scaled to mean 1."""
        raw = self._raw_weights
        return raw / raw.mean() if self.normalize else raw

    @torch.no_grad()
    def update(self, scores: Sequence[float] | Tensor) -> None:
        """One step of the rule. scores: (K,), higher is better; NaN = task not scored this time, its weight
        stays.

        Raises ValueError for another shape, or a score that is infinite.
        """
        s = torch.as_tensor(scores, dtype=torch.float64, device=self._raw_weights.device).detach()
        if s.shape != (self.num_tasks,):
            raise ValueError(f"scores should have shape ({self.num_tasks},). Found {tuple(s.shape)}.")
        if s.isinf().any():
            raise ValueError(f"scores should be finite, or NaN if there is none. Found {s.tolist()}.")
        # summed in one order and from the lowest up: the rule knows no order of tasks, and equal scores have
        # exactly their value as the mean
        ranked = s.sort().values
        behind = s < ranked[0] + (ranked - ranked[0]).nanmean()
        up = (self._raw_weights * self.step_up).clamp(max=self.cap)
        # a tensor, since CUDA divides by a number by multiplying with its reciprocal, one bit off
        down = (self._raw_weights / torch.full_like(s, self.step_down)).clamp(min=self.floor)
        new = torch.where(behind, up, down)
        # a new tensor, not the old one overwritten: weights that were read before stay what they were
        self._raw_weights = torch.where(s.isnan(), self._raw_weights, new)

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self.update(self.scores(report))

    @torch.no_grad()
    def scores(self, report: EpochReport) -> Float[Tensor, " k"]:
        """The signal of an epoch, (K,), higher is better; remembers the loss for the next one's trend."""
        source = report.train if self.scores_from == "train" else report.val
        if self.signal not in ("loss_trend", "relative_loss"):
            return source[self.signal]
        if self.signal == "relative_loss":
            return -report.relative_loss(self.scores_from)
        loss = source["loss"].to(self.previous_loss)
        trend = torch.where(self.previous_loss > 0, -loss / self.previous_loss, torch.nan)
        # a task without a loss this time keeps its last one to compare with
        self.previous_loss.copy_(torch.where(loss.isnan(), self.previous_loss, loss))
        return trend


class PrevalenceOracle(DeepChest):
    """DeepChest's rule fed the accuracy of the predictor that always says "absent", 1 - prevalence: no network,
    no training, no loss takes part. Whatever DeepChest gains beyond this, it gains by listening.

    The options are DeepChest's.
    """

    def __init__(
        self,
        num_tasks: int,
        step_up: float = 1.1,
        step_down: float = 1.05,
        cap: float = 1.5,
        floor: float = 0.0,
        normalize: bool = False,
        initial: Sequence[float] | Tensor | str | None = None,
    ):
        super().__init__(
            num_tasks, step_up=step_up, step_down=step_down, cap=cap, floor=floor, normalize=normalize, initial=initial
        )

    def end_epoch(self, report: EpochReport) -> None:
        super(DeepChest, self).end_epoch(report)
        self.update(1 - report.prevalence)
