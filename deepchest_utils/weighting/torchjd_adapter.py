"""Gradient balancing through TorchJD (Quinton and Rey 2024, arXiv 2406.16232): one adapter for all its aggregators."""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.config import check_choice
from deepchest_utils.distributed import all_gather, all_reduce_sum, only_on_rank_zero, shard
from deepchest_utils.weighting.autograd_graph import check_apart, trainable_leaves
from deepchest_utils.weighting.base import (
    EpochReport,
    Features,
    Losses,
    Mask,
    Method,
    check_gradient,
    check_options,
    check_state,
    without_autocast,
)


class GradientBalancing(Method):
    """An aggregator of TorchJD combines the tasks' gradients on what they share; each head gets its own gradient.

    `weights` are the aggregator's, averaged over the epoch's steps; ones where it has none (GradDrop, ConFIG). A task
    without a label in the batch has no gradient and is left out. Raises ValueError for an unknown level, an option out
    of bounds, a missing solver, or an unsupported TorchJD.

    Args:
        level: Whose gradients are combined. "parameters": the trunk's parameters, as in the papers. Each task takes a
            backward pass through the trunk, for a Jacobian with a row a task. "features": the trunk's output. Each task
            takes a backward pass through the heads and one goes through the trunk, at about the cost of equal
            weighting. Conflict is judged where trunk and heads meet; features with a row a task never conflict.
    """

    aggregator: str  # its name in `torchjd.aggregation`
    private: tuple[str, ...] = ()  # attributes of its weighting that TorchJD does not promise; those of version 0.18

    def __init__(self, num_tasks: int, level: str = "parameters", **options: Any):
        super().__init__(num_tasks)
        check_choice("level", level, ("parameters", "features"))
        self.level = level
        try:  # imported here, not with the package: a solver like cvxpy takes a second
            aggregator = getattr(import_module("torchjd.aggregation"), self.aggregator)(**options)
        except ImportError as error:
            what, extra = ("TorchJD", "train") if "torchjd" in (error.name or "") else ("a solver", "solvers")
            raise ValueError(
                f"{type(self).__name__} needs {what}, which is not installed ({error}). Install the extra `{extra}`: "
                f"pip install 'deepchest-utils[{extra}]', in a checkout: pip install -e '.[{extra}]'."
            ) from None
        # in a list, so that torch does not take it for a submodule: its buffers come and go, and a state_dict that
        # had them could not be loaded. What must be remembered is in get_extra_state
        self._aggregator: list[Any] = [aggregator]
        if missing := [name for name in self.private if not hasattr(self._weighting, name)]:
            raise ValueError(
                f"torchjd should be of version 0.18: {self.aggregator} works with its private attribute "
                f"{missing[0]!r}. Found version {version('torchjd')}, which has none."
            )

    @property
    def _weighting(self) -> Any:  # the part of the aggregator that makes the weights, and that has a memory
        aggregator = self._aggregator[0]
        return getattr(aggregator, "gramian_weighting", None) or aggregator.weighting

    def aggregate(self, jacobian: Float[Tensor, "k p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " p"]:
        """The aggregator's vector for a Jacobian (K, P); present: (K,), the tasks in the batch."""
        matrix, aggregator = jacobian.float(), self._aggregator[0]
        if isinstance(self.gradient_scale, Tensor):  # NashMTL, FairGrad and ExcessMTL answer longer gradients otherwise
            matrix /= self.gradient_scale
        # solvers would fail, or never end; a loss of NaN should show in the gradients
        if not matrix.isfinite().all():
            return jacobian.sum(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy warns of an inexact solution, and of how TorchJD calls it
            rows = matrix if present.all() else matrix[present]  # no copy if it can be: a Jacobian may fill the memory
            if not isinstance(aggregator, import_module("torchjd.aggregation").WeightedAggregator):
                return cast(Tensor, aggregator(rows) * self.gradient_scale).to(jacobian)
            weights = self.aggregation_weights(rows, present)
        used = matrix.new_zeros(self.num_tasks)
        used[present] = weights.to(matrix)
        self.record(used)
        return (used @ matrix * self.gradient_scale).to(jacobian)

    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        """The aggregator's weights, (N,), of the gradients of the N tasks in the batch, rows (N, P)."""
        return cast(Tensor, self._aggregator[0].weighting(rows))

    def backward(self, losses: Losses, features: Features = None, mask: Mask = None) -> None:
        losses, present = self.checked(losses, mask)
        check_gradient(losses, features)
        if features is None:
            raise ValueError("features should be the trunk's output: there is where the tasks part.")
        if not features.requires_grad:
            raise ValueError("features should come from a trunk that is trained. Found it frozen.")
        check_apart(features, losses)
        with without_autocast(losses):
            if not present.any():
                losses.sum().backward()  # zeros, as for any method
            elif self.level == "features":
                self._balance_features(losses, features, present)
            else:
                self._balance_parameters(losses, features, present)

    def _balance_features(self, losses: Tensor, features: Tensor, present: Tensor) -> None:
        unit_rows = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        (jacobian,) = torch.autograd.grad(losses, features, unit_rows, retain_graph=True, is_grads_batched=True)
        # each image has columns of its own: those of all processes are combined, and this process gets its own back
        combined = self.aggregate(all_gather(jacobian, dim=1).flatten(1), present)
        combined = shard(combined.view(-1, *features.shape[1:]))
        # one pass for all: the heads get their own gradients, and below the features the combined one goes on
        handle = features.register_hook(lambda _: combined)
        losses.sum().backward()
        handle.remove()

    def _balance_parameters(self, losses: Tensor, features: Tensor, present: Tensor) -> None:
        trunk = trainable_leaves(features)
        shared = set(map(id, trunk))
        heads = [p for p in trainable_leaves(losses) if id(p) not in shared]
        # filled row by row: rows stacked at the end would need twice the memory for a moment
        jacobian = trunk[0].new_empty(len(losses), sum(p.numel() for p in trunk))
        for row, loss in zip(jacobian, losses.unbind(), strict=True):
            # one after the other: all at once is no faster and keeps every task's maps
            gradients = torch.autograd.grad(loss, trunk, retain_graph=True)
            torch.cat([g.flatten() for g in gradients], out=row)
        combined = only_on_rank_zero(self.aggregate(all_reduce_sum(jacobian), present))
        if heads:
            losses.sum().backward(inputs=heads)
        for parameter, gradient in zip(trunk, combined.split([p.numel() for p in trunk]), strict=True):
            if parameter.grad is None:
                # with the parameter's strides: fused optimisers read both in memory order and do not check
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad += gradient.view_as(parameter)

    def get_extra_state(self) -> dict[str, Tensor | float]:
        """TorchJD's memory from step to step; its own state_dict leaves it out."""
        return {}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        """Take over what `get_extra_state` gave."""


class MGDA(GradientBalancing):
    """Multiple-gradient descent (Sener and Koltun 2018, arXiv 1810.04650), algorithm 2: the shortest vector in the
    gradients' convex hull. Frank and Wolfe's steps end when one is shorter than `tolerance`, greater than 0, or after
    `iterations`, at least 1. The defaults are those of the authors' code (TorchJD's are 1e-3 and 100). With
    level="features" it is the paper's MGDA-UB."""

    aggregator = "MGDA"

    def __init__(self, num_tasks: int, tolerance: float = 1e-5, iterations: int = 250, level: str = "parameters"):
        check_options("be greater than 0", tolerance=tolerance)
        check_options("be at least 1", iterations=iterations)
        super().__init__(num_tasks, level, epsilon=tolerance, max_iters=iterations)


class GradVac(GradientBalancing):
    """Gradient vaccine (Wang et al. 2021, arXiv 2010.05874), algorithm 1. As PCGrad, but two gradients are turned
    towards each other whenever their cosine is below its own running mean, not below zero. That mean follows by the
    share beta, in [0, 1], a step: by default TorchJD's. The paper has 0.01, for a far longer training."""

    aggregator, private = "GradVac", ("_phi_t", "_state_key")

    def __init__(self, num_tasks: int, beta: float = 0.5, level: str = "parameters"):
        super().__init__(num_tasks, level, beta=beta)

    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        memory, tasks = self._weighting, present.nonzero().flatten().cpu()
        means = torch.zeros(len(present), len(present)) if memory._phi_t is None else memory._phi_t
        # the running means of the pairs in the batch take part, the others wait; without its key it would start anew
        memory._phi_t, memory._state_key = means[tasks][:, tasks], (len(tasks), rows.dtype)
        weights = super().aggregation_weights(rows, present)
        means[tasks[:, None], tasks] = memory._phi_t
        memory._phi_t = means
        return weights

    def get_extra_state(self) -> dict[str, Tensor | float]:
        return {} if self._weighting._phi_t is None else {"_phi_t": self._weighting._phi_t}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        means, shape = cast(Tensor | None, state.get("_phi_t")), (self.num_tasks, self.num_tasks)
        self._weighting._phi_t = None if means is None else check_state("GradVac", means, shape, True).clone().cpu()


class NashMTL(GradientBalancing):
    """Multi-task learning as a bargaining game (Navon et al. 2022, arXiv 2202.01017), algorithm 1. The Nash bargaining
    solution: weights a with (G a)_k = 1 / a_k, G the tasks' Gramian, by convex problems. Needs the extra `solvers`.

    Args:
        update_every: Steps between two solutions, at least 1, the paper's. Its 10 to 100 are as good and faster.
        iterations: Convex problems a solution, at least 1.
        max_norm: Largest length of the combined gradient; 0 for no limit.
    """

    aggregator, private = "NashMTL", ("prvs_alpha", "step", "_init_optim_problem")

    def __init__(
        self,
        num_tasks: int,
        update_every: int = 1,
        iterations: int = 20,
        max_norm: float = 1.0,
        level: str = "parameters",
    ):
        check_options("be at least 1", update_every=update_every, iterations=iterations)
        check_options("not be negative", max_norm=max_norm)
        # TorchJD would measure the length with the stand-ins of tasks that the batch lacks
        options = {"update_weights_every": update_every, "optim_niter": iterations, "max_norm": 0.0}
        super().__init__(num_tasks, level, n_tasks=num_tasks, **options)
        self.max_norm = max_norm

    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        lengths: Tensor = rows.norm(dim=1)
        if self.num_tasks == 1:  # cvxpy cannot put such a problem: G a = 1 / a
            weights = 1 / lengths.clamp(min=1e-12)
        else:
            # its problem has room for all tasks: a missing one stands at right angles to the others, as long as their
            # mean, and leaves their solution as it is
            width = rows.shape[1]
            matrix = rows.new_zeros(self.num_tasks, width + self.num_tasks)
            matrix[present, :width], matrix[:, width:] = rows, torch.diag(lengths.mean() * ~present)
            weights = cast(Tensor, self._weighting(matrix)[present])
        length = (weights @ rows).norm()
        return weights * (self.max_norm / length).clamp(max=1) if self.max_norm else weights

    def get_extra_state(self) -> dict[str, Tensor | float]:
        return {"prvs_alpha": torch.tensor(self._weighting.prvs_alpha), "step": self._weighting.step}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        memory = self._weighting
        memory.reset()
        if state.get("step"):  # it sets its problem up in its first step only
            # signed: a solver's 0 may be below it
            weights = check_state("NashMTL", cast(Tensor, state["prvs_alpha"]), (self.num_tasks,), signed=True)
            memory.step, memory.prvs_alpha = state["step"], weights.cpu().numpy().copy()
            memory._init_optim_problem()


class CAGrad(GradientBalancing):
    """Conflict-averse gradient descent (Liu et al. 2021, arXiv 2110.14048), algorithm 1. Within a ball around the mean
    gradient, the direction that serves the worst-off task best. The ball's radius is c times the mean's length, c in
    [0, 1), by default as in the authors' run on NYU-v2. Needs the extra `solvers`."""

    aggregator = "CAGrad"

    def __init__(self, num_tasks: int, c: float = 0.4, level: str = "parameters"):
        if not 0 <= c < 1:
            raise ValueError(f"c should lie in [0, 1). Found {c}.")
        super().__init__(num_tasks, level, c=c)


class FairGrad(GradientBalancing):
    """Fair resource allocation (Ban and Ji 2024, arXiv 2402.15638), as in TorchJD. Weights w with
    (G w)_k = w_k^(-1 / alpha), G the tasks' Gramian: alpha-fairness of the tasks' progress. Near alpha = 0 it is equal
    weighting; the larger alpha, the more the worst-off task counts."""

    aggregator = "FairGrad"

    def __init__(self, num_tasks: int, alpha: float = 2.0, level: str = "parameters"):
        check_options("be greater than 0", alpha=alpha)
        super().__init__(num_tasks, level, alpha=alpha)


class ExcessMTL(GradientBalancing):
    """Robust multi-task learning with excess risks (He et al. 2024, arXiv 2402.02009), equations 6, 7 and 9, as given
    in LibMTL and TorchJD, whose own class takes no task out of a batch. With g_k a task's gradient and S_k the sum of
    its squares so far,
        E_k = sum_j g_kj^2 / sqrt(S_kj + 1e-7),    w_k <- w_k exp(eta E_k / E_k(0)) / sum, of sum 1 over the batch,
    with E_k(0) the task's mean excess E_k in the warm-up, in which all weights are equal. The tasks furthest from their
    optimum, which label noise does not move, get most. A task without a label in the batch waits, its share of all
    weights with it. S has K rows as long as the network and goes into every checkpoint. With level="features" its
    columns are places in the batch, which must not change size.

    Args:
        eta: Step of the weights, greater than 0, by default LibMTL's.
        warmup: Epochs, not negative, by default the paper's (appendix C.1, as TorchJD says). 0: E_k(0) is that of the
            first step with the task, as in LibMTL; small by chance where that batch had no positive.
        level: As for the others.
    """

    aggregator = "Sum"  # its weights are replaced by those here
    signed = (*Method.signed, "logits")

    def __init__(self, num_tasks: int, eta: float = 0.01, warmup: int = 3, level: str = "parameters"):
        super().__init__(num_tasks, level)
        check_options("be greater than 0", eta=eta)
        check_options("not be negative", warmup=warmup)
        self.eta, self.warmup = eta, warmup
        for name in ("logits", "excess_sum", "excess_count"):  # logits: log w, up to a constant
            self.register_buffer(name, torch.zeros(num_tasks, dtype=torch.float64))
        self.register_buffer("epochs", torch.tensor(0))
        self._squares: Tensor | None = None  # S, (K, P), as long as the first Jacobian

    @torch.no_grad()
    def aggregation_weights(self, rows: Float[Tensor, "n p"], present: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        if self._squares is None or self._squares.shape[1] != rows.shape[1]:
            self._squares = rows.new_zeros(self.num_tasks, rows.shape[1])
        squares = self._squares = self._squares.to(rows)  # a checkpoint's may be on another device
        if present.all():  # no copy if it can be
            mine = squares.addcmul_(rows, rows)
        else:
            mine = squares[present] = squares[present].addcmul_(rows, rows)
        excess = rows.square().mul_((mine + 1e-7).rsqrt_()).sum(1).double()
        warm = (self.epochs < self.warmup) | (self.excess_count[present] == 0)
        self.excess_sum[present] += excess * warm
        self.excess_count[present] += warm
        growth = self.eta * excess / (self.excess_sum[present] / self.excess_count[present] + 1e-7)
        growth = growth.where(~warm, torch.nan)
        before = self.logits[present]
        after = before + growth.where(~warm, growth.nanmean().nan_to_num(0.0))  # one that is first seen: as the others
        self.logits[present] = after + before.logsumexp(0) - after.logsumexp(0)
        return torch.softmax(after, dim=0)

    def end_epoch(self, report: EpochReport) -> None:
        super().end_epoch(report)
        self.epochs += 1

    def get_extra_state(self) -> dict[str, Tensor | float]:
        return {} if self._squares is None else {"squares": self._squares}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        squares = cast(Tensor | None, state.get("squares"))
        self._squares = None if squares is None else check_state("ExcessMTL", squares, (self.num_tasks,)).clone()


def _adapter(aggregator: str, paper: str, rule: str, name: str = "") -> type[GradientBalancing]:
    """An adapter with `level` as its one option; `name` is the class's, where it is not the aggregator's."""

    class Adapter(GradientBalancing):
        def __init__(self, num_tasks: int, level: str = "parameters"):
            super().__init__(num_tasks, level)

    Adapter.aggregator, Adapter.__doc__ = aggregator, f"{paper}. {rule}"
    Adapter.__name__ = Adapter.__qualname__ = name or aggregator
    return Adapter


ADAPTERS: dict[str, type[GradientBalancing]] = {  # method: aggregator, paper, rule
    "mgda": MGDA,
    "pcgrad": _adapter("PCGrad", "Projecting conflicting gradients (Yu et al. 2020, arXiv 2001.06782), algorithm 1",
        "From each gradient the parts against the others are removed, in random order; then all are summed."),
    "graddrop": _adapter("GradDrop", "Gradient sign dropout (Chen et al. 2020, arXiv 2010.06808), algorithm 1",
        "lines 10 to 15, as in TorchJD: in each coordinate one sign is drawn, with the probability that the gradients give "
        "it, and those of the other are dropped. The paper does it on activations, with one draw a feature for the whole "
        "batch, from gradients times the activation's sign; level='features' draws for each image."),
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "imtl_g": _adapter("IMTLG", "Impartial multi-task learning, its gradient half (Liu et al., ICLR 2021), equation 6",
        "The combination with the same projection onto every gradient. The authors use level='features'."),
    "nash_mtl": NashMTL,
    "aligned_mtl": _adapter("AlignedMTL", "Independent component alignment (Senushkin et al. 2023, arXiv 2305.19000)",
        "The Jacobian's singular values are all set to the smallest; then the mean is taken (algorithm 1)."),
    "fairgrad": FairGrad,
    "config": _adapter("ConFIG", "Conflict-free inverse gradients (Liu et al. 2024, arXiv 2408.11104), equations 2, 3",
        "The direction with the same cosine to every gradient, with the length of their projections."),
    "dualproj": _adapter("DualProj", "Gradient episodic memory (Lopez-Paz and Ranzato 2017, arXiv 1706.08840)",
        "The mean gradient, projected onto the directions without conflict. Needs the extra `solvers`."),
    "upgrad": _adapter("UPGrad", "Unconflicting projection (Quinton and Rey 2024, arXiv 2406.16232), equation 4",
        "The mean of all gradients, each projected onto the directions without conflict. Needs the extra `solvers`."),
    "rgw": _adapter("Random", "Random gradient weighting (Lin et al. 2022, arXiv 2111.10603)",
        "The mean with weights softmax(z), z standard normal: the litmus test for gradient balancing.", name="RGW"),
    "excess_mtl": ExcessMTL,
}  # fmt: skip
globals().update({adapter.__name__: adapter for adapter in ADAPTERS.values()})  # where pickle looks a class up
