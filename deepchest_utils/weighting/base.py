"""The protocol between the training loop and a method: `begin`, a `backward` a step, `end_epoch`, `state_dict()`."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from deepchest_utils.config import check_type
from deepchest_utils.models.losses import prevalence_entropy

Losses = Tensor | Sequence[Tensor]  # (K,), or K of no dimension
Features = Float[Tensor, "b *f"] | None
Mask = Bool[Tensor, "..."] | None  # (K,)


@dataclass(frozen=True)
class EpochReport:
    """The scores and losses of an epoch, for a method to learn from. The first epoch has number 1.

    Args:
        prevalence: (K,) share of positives among the known training labels.
        train: Scores on the training set by name, and `val` on the validation set, each (K,), NaN where undefined:
            "loss" (nats, lower is better), "accuracy", "auroc" and "balanced_accuracy" (higher is better). The loss is the
            one that is trained, also where tables have binary cross-entropy beside it.
        constant_loss: (K,) the least expected loss of a constant; None is the entropy of the prevalence, which is that of
            binary cross-entropy.
    """

    epoch: int
    prevalence: Float[Tensor, " k"]
    train: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    val: dict[str, Float[Tensor, " k"]] = field(default_factory=dict)
    constant_loss: Float[Tensor, " k"] | None = None

    def __post_init__(self) -> None:
        check_options("be at least 1", epoch=self.epoch)
        shape = tuple(check_prevalence(self.prevalence).shape)
        for split, scores in (("train", self.train), ("val", self.val)):
            for name, values in scores.items():
                if not isinstance(values, Tensor) or tuple(values.shape) != shape:
                    wanted = f"be a tensor of the shape of prevalence, {shape}"
                    raise ValueError(f"{split}[{name!r}] should {wanted}. Found {' '.join(repr(values).splitlines())}.")

    def score(self, name: str, source: str = "train", learner: object = None) -> Float[Tensor, " k"]:
        """(K,) scores by their name, on "train" or "val". ValueError without them, which names the `learner` that asks."""
        scores = self.train if source == "train" else self.val
        if name not in scores:
            who, found = type(learner).__name__ if learner else "relative_loss", ", ".join(map(repr, scores)) or "none"
            raise ValueError(f"EpochReport should have {source}={{{name!r}: scores}} for {who}. Found {found}.")
        return scores[name]

    def relative_loss(self, source: str = "train", learner: object = None) -> Float[Tensor, " k"]:
        """L_k / H_k, (K,) float64: the loss of "train" or "val" over a constant's best loss, `constant_loss`. About 1 if
        nothing is learned, 0 if all is; NaN without a loss, or with one class only. With `oversample` the training loss is over
        the images that were drawn, so that of a rare finding starts above 1."""
        loss = self.score("loss", source, learner).double()
        constant = prevalence_entropy(self.prevalence.to(loss)) if self.constant_loss is None else self.constant_loss
        return torch.where(constant > 0, loss / constant, torch.nan)


def noting_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that checks its numbers, truth values and texts (ValueError), and notes its arguments for `repr`."""
    parameters = inspect.signature(init).parameters

    @functools.wraps(init)
    def noting(self: Any, *args: Any, **options: Any) -> None:
        named = dict(zip([*parameters][1:], args, strict=False)) | options
        if "arguments" not in vars(self):  # the outermost class's, not those that it hands on
            defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
            self.arguments = {n: (defaults | named)[n] for n in parameters if n in defaults | named} | named
        for name in parameters.keys() & named.keys():
            hint = parameters[name].annotation
            if {*(get_args(hint) or (hint,))} <= {bool, int, float, str, NoneType}:
                check_type(name, hint, named[name])
        init(self, *args, **options)

    return noting


def check_state(
    what: str, value: Tensor, shape: tuple[int, ...] = (), signed: bool = False, start: float = 0.0
) -> Tensor:
    """The value of a state to load; ValueError unless it begins with this shape and has numbers that training leaves: finite,
    and not negative unless `signed`. NaN or infinity passes if the `start` is it: it means "not known yet"."""
    if value.shape[: len(shape)] != shape:
        raise ValueError(f"{what} should begin with shape {shape} in a state to load. Found {tuple(value.shape)}.")
    good = value.isfinite() & (signed | (value >= 0))
    if not math.isfinite(start):
        good |= value.isnan() if math.isnan(start) else value == start
    if not good.all():
        wanted, found = "finite" if signed else "finite and not negative", value[~good][:5].tolist()
        raise ValueError(f"{what} should be {wanted} in a state to load. Found {found}. Load another, or start anew.")
    return value


class Stateful(nn.Module):
    """A module that refuses a state with numbers that no training leaves, by `check_state`, before it takes it over.
    Parameters and the buffers named in `signed` may be negative. A buffer that may be "not known yet" starts so for all
    tasks. Classes from outside this package take any state. The state keeps its types: `network.half()` of a network that
    holds the module moves it, and no more."""

    signed: tuple[str, ...] = ()

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        super().register_buffer(name, tensor, persistent)
        start = math.nan if tensor is None or tensor.is_meta else float(tensor.flatten()[:1].sum())
        vars(self).setdefault("_starts", {})[name] = start

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Stateful":
        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return cast(Stateful, super()._apply(keep_type, recurse))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        ours = type(self).__module__.startswith("deepchest_utils.")
        for name in (*self._parameters, *self._buffers):
            if ours and isinstance(value := state_dict.get(prefix + name), Tensor):
                signed, what = name in self._parameters or name in self.signed, f"{name} of {type(self).__name__}"
                check_state(what.lstrip("_"), value, (), signed, vars(self).get("_starts", {}).get(name, 0.0))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Method(Stateful):
    """A way to train K tasks together. Buffers and parameters are its state.

    The optimiser trains its parameters beside the network's, without weight decay. `needs_losses_after_step` asks the
    loop for one more forward pass: the losses of the batch after the optimiser's step, for `after_step` (FAMO alone).
    """

    needs_losses_after_step = False
    gradient_scale: Tensor | float = 1.0  # of fp16: the loop sets it, and divides the step by it
    signed: tuple[str, ...] = ("_used",)

    if TYPE_CHECKING:  # to mypy, what is registered is a tensor

        def __getattr__(self, name: str) -> Tensor: ...

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", noting_arguments(cls.__init__))  # noqa: B010

    @noting_arguments
    def __init__(self, num_tasks: int):
        super().__init__()
        check_options("be at least 1", num_tasks=num_tasks)
        self.num_tasks = num_tasks
        # the sum of the weights that this epoch's steps have used, and the number of these steps
        self.register_buffer("_used", torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("_steps", torch.zeros((), dtype=torch.float64))

    def extra_repr(self) -> str:
        given = getattr(self, "arguments", {})
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if not isinstance(value, Method))

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights in force, for the log; by default the mean of those recorded in this epoch, or ones. Where they
        change in each step a backward pass records them, except under torch.compile."""
        return torch.where(self._steps > 0, self._used / self._steps.clamp(min=1), 1.0)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        """(K,) task weights before any normalisation."""
        return self.weights

    def record(self, weights: Float[Tensor, " k"]) -> None:
        """Note the weights of one step for the log; they stay on the device."""
        self._used += weights.detach().double()
        self._steps += 1

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        """Called before the first step, with the share of positives among the known training labels, (K,)."""
        if len(check_prevalence(prevalence)) != self.num_tasks:
            raise ValueError(f"prevalence should have shape ({self.num_tasks},). Found {tuple(prevalence.shape)}.")

    def backward(self, losses: Losses, features: Features = None, mask: Mask = None) -> None:
        """Add to `.grad` of trunk and heads.

        Args:
            losses: (K,), or a list of K. A loss of NaN makes the gradients NaN.
            features: The trunk's output, (B, F) or (B, K, F). An input that requires a gradient would count as a parameter.
            mask: (K,), True where the batch has a label of the task; None: everywhere. The loss of a task without one
                counts as 0, whatever it is; but 0 / 0 has a gradient of NaN, so divide by `known.sum(0).clamp(min=1)`.
        """
        raise NotImplementedError

    def checked(self, losses: Losses, mask: Mask) -> tuple[Float[Tensor, " k"], Bool[Tensor, " k"]]:
        """The losses as one tensor (K,), 0 where the mask is False, float32 if they were of less; with their gradient,
        and the mask, True everywhere for None. ValueError for another shape."""
        if not isinstance(losses, Tensor):
            if isinstance(losses, Mapping | Set | str) or not isinstance(losses, Iterable):
                kind = type(losses).__name__
                raise ValueError(f"losses should be a tensor or a list, one loss a task in order. Found a {kind}.")
            each = [torch.as_tensor(loss) for loss in losses]
            if len({loss.shape for loss in each}) > 1:
                raise ValueError(
                    f"losses should be one number a task. Found shapes {[tuple(loss.shape) for loss in each]}."
                )
            losses = torch.stack(each) if each else torch.empty(0)
        shape = (self.num_tasks,)
        if losses.shape != shape:
            of_images = losses.ndim == 0 or (losses.ndim == 2 and losses.shape[1:] == shape)
            hint = ": take reduction='none' and the mean over images, losses.mean(0)" if of_images else ""
            found = f"Found shape {tuple(losses.shape)}{hint}."
            raise ValueError(f"losses should have shape {shape}, one loss a task. {found}")
        if not losses.is_floating_point():
            raise ValueError(f"losses should be of a floating type. Found {losses.dtype}.")
        if losses.dtype in (torch.float16, torch.bfloat16):
            losses = losses.float()
        if mask is None:
            return losses, torch.ones_like(losses, dtype=torch.bool)
        mask = torch.as_tensor(mask, device=losses.device)
        if mask.shape != shape or mask.dtype != torch.bool:
            found = f"{tuple(mask.shape)} and {mask.dtype}"
            raise ValueError(f"mask should have shape {shape} and type torch.bool. Found {found}.")
        return losses.where(mask, 0.0), mask

    def check_positive(self, losses: Float[Tensor, " k"]) -> None:
        """ValueError for a loss below 0, for a method whose formula has no sense there. Not on an accelerator, where a
        check would have each step wait for the device; there a logarithm becomes NaN, and other formulas go on."""
        if losses.device.type == "cpu" and not torch.compiler.is_compiling() and (losses < 0).any():
            name, found = type(self).__name__, losses.detach().tolist()
            raise ValueError(f"{name} needs losses that are not negative, by its formula. Found {found}.")

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        """Called with the losses of the same batch after the optimiser's step, without gradient."""

    def forward(self, *losses: Any, **options: Any) -> Tensor:
        name = type(self).__name__
        raise NotImplementedError(f"{name} has no loss to differentiate. Call backward(losses, features, mask).")

    def update(self, scores: Any, counts: Any = None) -> None:
        """DeepChest's alone."""
        name, call = type(self).__name__, "end_epoch(EpochReport(epoch, prevalence, train, val))"
        raise NotImplementedError(f"{name} takes no scores. Call {call}.")

    def end_epoch(self, report: EpochReport) -> None:
        """Learn from the epoch. An override calls this one too, which starts the log of the next epoch. ValueError for a
        report of another number of tasks."""
        if not isinstance(report, EpochReport):
            raise ValueError(
                f"end_epoch takes an EpochReport; a score a task goes to update. Found {type(report).__name__}."
            )
        if (found := len(report.prevalence)) != self.num_tasks:
            raise ValueError(f"the report should be of {self.num_tasks} tasks. Found {found}.")
        self._used.zero_()
        self._steps.zero_()


class LossWeighting(Method):
    """A method whose step is one scalar and one backward pass. Called, it checks the losses and turns autocast off,
    under which a dot product of float32 would be one of bfloat16. Called in `no_grad`, for validation, it learns nothing."""

    def __call__(self, losses: Losses, mask: Mask = None) -> Float[Tensor, ""]:
        return self.scalar(*self.checked(losses, mask))

    def scalar(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        """The loss to differentiate, of losses that are checked."""
        rule = self if torch.is_grad_enabled() else copy.deepcopy(self)
        with without_autocast(losses):
            return cast(Tensor, super(LossWeighting, rule).__call__(losses, present))

    def forward(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        """sum_k w_k L_k, differentiable; losses: (K,), 0 where `present`, (K,), is False: no label in the batch."""
        return losses @ self.weights.to(losses)

    def backward(self, losses: Losses, features: Features = None, mask: Mask = None) -> None:
        losses, present = self.checked(losses, mask)
        check_gradient(losses, features)
        self.scalar(losses, present).backward()


class Scalarization(LossWeighting):
    """A loss weighting whose scalar changes from step to step. Its weights are the scalar's derivatives by each loss,
    averaged over the epoch's steps."""

    def scalar(self, losses: Float[Tensor, " k"], present: Bool[Tensor, " k"]) -> Float[Tensor, ""]:
        losses = losses.view_as(losses)  # a tensor of our own, so that the caller's keeps no hook
        loss = super().scalar(losses, present)
        if loss.requires_grad and losses.requires_grad and not torch.compiler.is_compiling():
            above: list[Tensor] = []  # what the scalar is multiplied with before its backward pass
            loss.register_hook(above.append)
            losses.register_hook(lambda gradient: self.record(gradient / above.pop()))
        return loss


class Composed(Method):
    """A step of `inner`, any method, on the losses times the weights of `outer`, a loss weighting that holds them over
    an epoch. Both learn from every epoch. Raises ValueError for another `outer`, or another number of tasks."""

    def __init__(self, outer: LossWeighting, inner: Method):
        super().__init__(outer.num_tasks)
        by_weights = isinstance(outer, LossWeighting) and type(outer).forward is LossWeighting.forward
        if not by_weights or type(outer).backward is not LossWeighting.backward:
            kind = type(outer).__name__
            raise ValueError(f"outer should be a loss weighting that holds its weights over an epoch. Found {kind}.")
        if outer.num_tasks != inner.num_tasks:
            found = f"{outer.num_tasks} and {inner.num_tasks}"
            raise ValueError(f"outer and inner should have the same num_tasks. Found {found}.")
        self.outer, self.inner = outer, inner
        self.needs_losses_after_step = inner.needs_losses_after_step

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.outer.weights * self.inner.weights.to(self.outer.weights)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        return self.outer.raw_weights * self.inner.raw_weights.to(self.outer.raw_weights)

    def backward(self, losses: Losses, features: Features = None, mask: Mask = None) -> None:
        losses, mask = self.checked(losses, mask)
        self.inner.backward(losses * self.outer.weights.to(losses), features, mask)

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.outer.begin(prevalence)
        self.inner.begin(prevalence)

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        self.inner.after_step(losses * self.outer.weights.to(losses))

    def end_epoch(self, report: EpochReport) -> None:
        self.outer.end_epoch(report)
        self.inner.end_epoch(report)


def check_prevalence(prevalence: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The shares of positives, (K,); ValueError unless they are between 0 and 1, or NaN for a task without a label."""
    good = isinstance(prevalence, Tensor) and prevalence.ndim == 1
    if not good or not ((prevalence >= 0) & (prevalence <= 1) | prevalence.isnan()).all():
        found = " ".join(repr(prevalence).split())
        raise ValueError(f"prevalence should be a tensor of shape (K,), shares between 0 and 1. Found {found}.")
    return prevalence


def check_gradient(losses: Float[Tensor, " k"], features: Any) -> None:
    """ValueError for losses that are detached, or made in `no_grad`, and for features that are no tensor."""
    if features is not None and not isinstance(features, Tensor):
        raise ValueError(
            f"features should be one tensor, (B, F). Found a {type(features).__name__}: take its last part."
        )
    if not losses.requires_grad:
        raise ValueError("losses should have a gradient. Found none: they are detached, or made in no_grad.")


def without_autocast(losses: Float[Tensor, " k"]) -> AbstractContextManager[Any]:
    """Off for what follows, if it is on."""
    kind = losses.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


def check_options(bound: str, **options: Any) -> None:
    """Raise ValueError for an option that is infinite, NaN or below the bound, one of those here."""
    lowest = {"be greater than 0": math.ulp(0.0), "be at least 1": 1.0, "not be negative": 0.0}[bound]
    for name, value in options.items():
        if not lowest <= value < math.inf:
            raise ValueError(f"{name} should {bound}. Found {value}.")
