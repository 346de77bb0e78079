"""DeepChest: after each epoch, tasks behind the mean gain weight and the others lose it (arXiv 2505.23595)."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from deepchest_utils.config import check_choice, did_you_mean
from deepchest_utils.distributed import gather_objects, world_size
from deepchest_utils.weighting.base import EpochReport, LossWeighting, check_options
from deepchest_utils.weighting.static import PUBLISHED_INITIAL_WEIGHTS, as_weights

SIGNALS = ("accuracy", "loss_trend", "relative_loss", "auroc", "balanced_accuracy")  # what a training tells


class DeepChest(LossWeighting):
    """Dynamic, gradient-free task weights (arXiv 2505.23595).

    With scores s_k (higher is better) and tau their mean over the scored tasks:
        s_k < tau:  w_k <- min(step_up * w_k, cap)        otherwise:  w_k <- max(w_k / step_down, floor)
    The loss of a step is sum_k w_k L_k. The defaults are the published rule exactly: the training accuracy as the
    signal, no floor, no normalisation. In your own loop: `loss = w(losses)` in a step, `w.update(scores)` per epoch.
    With one task, or equal scores, none is behind: all weights fall, unless normalize=True. `eval()` changes nothing; in
    `no_grad` nothing is learned. The state is float64; keep the module on a device that has it (Apple's mps has not).

    Args:
        signal: What `end_epoch` takes as the score of task k in epoch t; `update` is given the scores.
            "accuracy", "auroc", "balanced_accuracy": as measured.
            "loss_trend": -L_k(t) / L_k(t - 1), so that a loss that falls slowly is behind; no score in the first epoch.
            "relative_loss": -L_k(t) / H_k, H_k the loss of the best constant predictor (of binary cross-entropy: the entropy
            of the prevalence). L_k is the loss that is trained, also where it is another one.
            "prevalence": one minus the training prevalence, the accuracy of always saying "absent", without a network.
        step_up: At least 1, as is `step_down`.
        cap: Upper bound of the raw weights, finite, greater than 0; `floor` is the lower one, 0 <= floor <= cap.
        normalize: Scale the weights in force to mean 1; the raw ones go on by the rule.
        initial: (K,) raw weights in [floor, cap], or the name of those published for the 14 findings ("resnet",
            "cnnmodel1"); by default ones, cut to the bounds.
        scores_from: "train" or "val".

    Raises:
        ValueError: An argument is out of bounds.
    """

    _raw_weights: Tensor

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
        check_choice("signal", signal, (*SIGNALS, "prevalence"))
        check_choice("scores_from", scores_from, ("train", "val"))
        check_options("be at least 1", step_up=step_up, step_down=step_down)
        if not 0 <= floor <= cap or not 0 < cap < float("inf"):
            raise ValueError(f"floor and cap should hold 0 <= floor <= cap, 0 < cap. Found {floor} and {cap}.")
        self.signal, self.scores_from, self.normalize = signal, scores_from, normalize
        self.step_up, self.step_down, self.cap, self.floor = step_up, step_down, cap, floor
        if initial is None:
            initial = torch.ones(num_tasks, dtype=torch.float64).clamp(floor, cap)
        elif isinstance(initial, str):
            if initial not in PUBLISHED_INITIAL_WEIGHTS:
                names, hint = ", ".join(PUBLISHED_INITIAL_WEIGHTS), did_you_mean(initial, PUBLISHED_INITIAL_WEIGHTS)
                raise ValueError(f"initial should be numbers, or one of {names}. Found {initial!r}.{hint}")
            initial = PUBLISHED_INITIAL_WEIGHTS[initial]
        raw = as_weights("initial", initial, num_tasks)
        if not ((raw >= floor) & (raw <= cap)).all():
            raise ValueError(f"initial should lie in [{floor}, {cap}]. Found {raw.tolist()}.")
        if normalize and raw.sum() == 0:
            raise ValueError("initial should not be all zero with normalize=True.")
        self.register_buffer("_raw_weights", raw)
        self.register_buffer("previous_loss", torch.full((num_tasks,), torch.nan, dtype=torch.float64))

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        return self._raw_weights

    @property
    def weights(self) -> Float[Tensor, " k"]:
        raw = self._raw_weights
        return raw / raw.mean() if self.normalize else raw

    def update(self, scores: Any, counts: Any = None) -> None:
        """One step of the rule on the scores of an epoch, (K,), higher is better, in any sequence; a task with NaN or
        None is not scored, and its weight stays. ValueError for another shape, an infinite score, or if `signal` is no
        score as measured.

        Collective if torch.distributed is at work: each process gives the scores of its own images, and all step by
        their mean, weighed by `counts` (K,), the number of labels of each score, or all alike."""
        if self.signal in ("loss_trend", "relative_loss", "prevalence"):
            call = "end_epoch(EpochReport(epoch, prevalence, train={'loss': losses}))"
            raise ValueError(f"signal {self.signal!r} is no score that update could take. Call {call}.")
        s = self._numbers("scores", scores)
        n = torch.ones_like(s) if counts is None else self._numbers("counts", counts)
        if world_size() > 1:
            parts = torch.tensor(gather_objects([s.tolist(), n.tolist()]), dtype=s.dtype, device=s.device)
            s, n = parts.unbind(1)
            n = n.where(~s.isnan(), 0)
            s = (s.nan_to_num(0.0) * n).sum(0) / n.sum(0)  # NaN, not scored, where no process has a score
        self._learn(s)

    def _numbers(self, name: str, values: Any) -> Float[Tensor, " k"]:
        """(K,) float64 of any sequence of K numbers, NaN for None; ValueError for anything else."""
        try:
            if isinstance(values, Mapping | Set | str):  # its keys, in any order, or its digits
                raise TypeError
            if not isinstance(values, Tensor):
                values = [math.nan if value is None else float(value) for value in values]
        except (TypeError, ValueError):
            raise ValueError(
                f"{name} should be {self.num_tasks} numbers, one a task in order. Found {values!r}."
            ) from None
        numbers = torch.as_tensor(values, dtype=torch.float64, device=self._raw_weights.device).detach()
        if numbers.shape != (self.num_tasks,):
            raise ValueError(f"{name} should have shape ({self.num_tasks},). Found {tuple(numbers.shape)}.")
        return numbers

    @torch.inference_mode(False)  # in which new weights could be neither loaded into nor trained with
    @torch.no_grad()
    def _learn(self, s: Float[Tensor, " k"]) -> None:
        if s.isinf().any():
            raise ValueError(f"scores should be finite, or NaN if there is none. Found {s.tolist()}.")
        # summed from the lowest up: the rule knows no order of tasks, and equal scores have exactly their value as mean
        ranked = s.sort().values
        behind = s < ranked[0] + (ranked - ranked[0]).nanmean()
        up = (self._raw_weights * self.step_up).clamp(max=self.cap)
        # a tensor, since CUDA divides by a number by multiplying with its reciprocal, one bit off
        down = (self._raw_weights / torch.full_like(s, self.step_down)).clamp(min=self.floor)
        # a new tensor, not the old one overwritten: weights that were read before stay what they were
        self._raw_weights = torch.where(s.isnan(), self._raw_weights, torch.where(behind, up, down))

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self._learn(self._numbers("scores", self.scores(report)))

    @torch.no_grad()
    def scores(self, report: EpochReport) -> Float[Tensor, " k"]:
        """The signal of an epoch, (K,), higher is better; remembers the loss for the next epoch's trend."""
        if self.signal == "prevalence":
            return 1 - report.prevalence
        if self.signal == "relative_loss":
            return -report.relative_loss(self.scores_from, self)
        if self.signal != "loss_trend":
            return report.score(self.signal, self.scores_from, self)
        loss = report.score("loss", self.scores_from, self).to(self.previous_loss)
        self.check_positive(loss)
        trend = torch.where(self.previous_loss > 0, -loss / self.previous_loss, torch.nan)
        # a task without a loss this time keeps its last one to compare with
        self.previous_loss.copy_(torch.where(loss.isnan(), self.previous_loss, loss))
        return trend
