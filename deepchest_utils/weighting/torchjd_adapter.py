"""Gradient balancing through TorchJD (Quinton and Rey 2024, arXiv 2406.16232): one adapter for all that it has."""

import warnings
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.distributed import all_gather, all_reduce_sum, only_on_rank_zero, shard
from deepchest_utils.weighting.autograd_graph import trainable_leaves
from deepchest_utils.weighting.base import Method, has_label

LEVELS = ("parameters", "features")
_STATE = ("_phi_t", "prvs_alpha", "step")  # what GradVac and Nash-MTL keep from step to step


class GradientBalancing(Method):
    """The tasks' gradients on what they share are combined by an aggregator of TorchJD; each head gets its own
    gradient.

    aggregator: its name in `torchjd.aggregation`. options: its own. level: whose gradients are combined:
        "parameters"   the trunk's parameters, as in the papers: a Jacobian with a row a task, for which each
                       task takes a backward pass through the trunk;
        "features"     the trunk's output: each task takes a backward pass through the heads, and one goes through
                       the trunk, at about the cost of equal weighting. Conflict is judged where trunk and heads
                       meet, which is not where the papers judge it. Features with a row a task never conflict.
    `weights` are the factors that the aggregator gave the tasks' gradients, averaged over the epoch's steps; ones
    where it has none (GradDrop, ConFIG). A task without a label in the batch has no gradient and is left out.
    Raises ValueError for an unknown level, and where a solver is not installed.
    """

    def __init__(self, num_tasks: int, aggregator: str, level: str = "parameters", **options: Any):
        super().__init__(num_tasks)
        if level not in LEVELS:
            raise ValueError(f"level should be one of {', '.join(LEVELS)}. Found {level!r}.")
        self.level = level
        made = make_aggregator(aggregator, **options)
        # in a list, so that torch does not take it for a submodule: its buffers come and go, and a state_dict
        # that had them could not be loaded. What it must remember is in get_extra_state
        self._aggregator: list[Any] = [made]

    @property
    def _memory(self) -> torch.nn.Module | None:
        """The part of the aggregator that keeps something from step to step, if it has one."""
        made = self._aggregator[0]
        inner = getattr(made, "gramian_weighting", getattr(made, "weighting", None))
        return inner if any(hasattr(inner, name) for name in _STATE) else None

    def combine(self, jacobian: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, " p"]:
        """The aggregator's vector for a Jacobian with a row a task. here: the tasks in the batch."""
        matrix, aggregator = jacobian.float(), self._aggregator[0]
        if (
            not matrix.isfinite().all()
        ):  # solvers would fail, or never end: a loss of NaN is to be seen in the gradients
            return jacobian.sum(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy warns of an inexact solution, and of how TorchJD calls it
            if not isinstance(aggregator, import_module("torchjd.aggregation").WeightedAggregator):
                vector: Tensor = aggregator(rows_of(matrix, here))
                return vector.to(jacobian)
            found = self.factors(matrix, here)
        used = matrix.new_zeros(self.num_tasks)
        used[here] = found.to(matrix)
        self.record(used)
        return (used @ matrix).to(jacobian)

    def factors(self, matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        """What the aggregator gives the gradients of the N tasks in the batch."""
        found: Tensor = self._aggregator[0].weighting(rows_of(matrix, here))
        return found

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        if features is None:
            raise ValueError("features should be the trunk's output: there is where the tasks part.")
        if not features.requires_grad:
            raise ValueError("features should come from a trunk that is trained. Found it frozen.")
        here = has_label(losses)
        if not here.any():
            losses.sum().backward()  # zeros, as for any method
        elif self.level == "features":
            self._at_features(losses, features, here)
        else:
            self._at_parameters(losses, features, here)

    def _at_features(self, losses: Tensor, features: Tensor, here: Tensor) -> None:
        one_a_task = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        (jacobian,) = torch.autograd.grad(losses, features, one_a_task, retain_graph=True, is_grads_batched=True)
        # each image has columns of its own: of those of all processes, ours come back
        combined = self.combine(all_gather(jacobian, dim=1).flatten(1), here)
        combined = shard(combined.view(-1, *features.shape[1:]))
        # one pass for all: the heads get their own gradients, and below the features the combined one goes on
        handle = features.register_hook(lambda _: combined)
        losses.sum().backward()
        handle.remove()

    def _at_parameters(self, losses: Tensor, features: Tensor, here: Tensor) -> None:
        trunk = trainable_leaves(features)
        shared = set(map(id, trunk))
        heads = [p for p in trainable_leaves(losses) if id(p) not in shared]
        # filled row by row: rows stacked at the end would need twice the memory for a moment
        jacobian = trunk[0].new_empty(len(losses), sum(p.numel() for p in trunk))
        for row, loss in zip(jacobian, losses.unbind(), strict=True):
            # one after the other: all at once is no faster and keeps every task's maps
            gradients = torch.autograd.grad(loss, trunk, retain_graph=True)
            torch.cat([g.flatten() for g in gradients], out=row)
        combined = only_on_rank_zero(self.combine(all_reduce_sum(jacobian), here))
        if heads:
            losses.sum().backward(inputs=heads)
        for parameter, gradient in zip(trunk, combined.split([p.numel() for p in trunk]), strict=True):
            if parameter.grad is None:
                # laid out as the parameter: fused optimisers go through both as they lie in memory, unlooked
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad += gradient.view_as(parameter)

    def get_extra_state(self) -> dict[str, Tensor | float]:
        """What TorchJD keeps, and its own state_dict leaves out."""
        found = {name: getattr(self._memory, name, None) for name in _STATE}
        arrays = {name: torch.tensor(v) for name, v in found.items() if isinstance(v, np.ndarray)}
        return {name: v for name, v in {**found, **arrays}.items() if v is not None}

    def set_extra_state(self, state: dict[str, Tensor | float]) -> None:
        memory: Any = self._memory  # its type depends on the aggregator
        if memory is None:
            return
        memory.reset()
        if "_phi_t" in state:
            memory._phi_t = cast(Tensor, state["_phi_t"]).clone().cpu()
        if state.get("step"):  # Nash-MTL sets its problem up in its first step only
            alpha = cast(Tensor, state["prvs_alpha"])
            memory.step, memory.prvs_alpha = state["step"], alpha.cpu().numpy().copy()
            memory._init_optim_problem()


def rows_of(matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, "n p"]:
    """The rows of the tasks in the batch. With all of them there, which is the rule, no copy: a Jacobian may be most of
    what is in memory."""
    return matrix if here.all() else matrix[here]


def make_aggregator(name: str, **options: Any) -> torch.nn.Module:
    """An aggregator of TorchJD. It and its solvers are imported here, not with the package: cvxpy alone takes a
    second.

    Raises ValueError for an option out of bounds, or a solver that is not installed, with what to install.
    """
    try:
        made: torch.nn.Module = getattr(import_module("torchjd.aggregation"), name)(**options)
        return made
    except ImportError as error:
        raise ValueError(
            f"{name} needs a solver that is not installed ({error}). Install the extra `solvers`: "
            "pip install 'deepchest-utils[solvers]', in a checkout: pip install -e '.[solvers]'."
        ) from None


class PCGrad(GradientBalancing):
    """Projecting conflicting gradients (Yu et al. 2020, arXiv 2001.06782). From each task's gradient the part
    that points against another task's is removed, the others taken in random order; then all are summed
    (algorithm 1)."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "PCGrad", level)


class GradDrop(GradientBalancing):
    """Gradient sign dropout (Chen et al. 2020, arXiv 2010.06808). In each coordinate one sign is drawn, with
    the probability that the tasks' gradients give it there, and the gradients of the other sign are dropped
    (algorithm 1). The paper does it on activations: `level="features"`."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "GradDrop", level)


class GradVac(GradientBalancing):
    """Gradient vaccine (Wang et al. 2021, arXiv 2010.05874). As PCGrad, but two gradients are turned towards
    each other whenever their cosine is below its own running mean, not below zero (algorithm 1).

    beta: in [0, 1], how fast that mean follows; TorchJD's, the paper's being 0.01 for a far longer training.
    """

    def __init__(self, num_tasks: int, beta: float = 0.5, level: str = "parameters"):
        super().__init__(num_tasks, "GradVac", level, beta=beta)

    def factors(self, matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        memory: Any = self._memory  # its type depends on the aggregator; GradVac's always has one
        rows = here.nonzero().flatten().cpu()
        means = torch.zeros(len(here), len(here)) if memory._phi_t is None else memory._phi_t
        # the running means of the pairs in the batch take part, the others wait; without its key it would start anew
        memory._phi_t, memory._state_key = means[rows][:, rows], (len(rows), matrix.dtype)
        found = super().factors(matrix, here)
        means[rows[:, None], rows] = memory._phi_t
        memory._phi_t = means
        return found


class CAGrad(GradientBalancing):
    """Conflict-averse gradient descent (Liu et al. 2021, arXiv 2110.14048). Within a ball around the mean
    gradient, the direction that serves the worst-off task best (algorithm 1). Needs the extra `solvers`.

    c: in [0, 1), the ball's radius as a share of the mean gradient's length; the paper's for its largest experiment.
    """

    def __init__(self, num_tasks: int, c: float = 0.4, level: str = "parameters"):
        if not 0 <= c < 1:
            raise ValueError(f"c should lie in [0, 1). Found {c}.")
        super().__init__(num_tasks, "CAGrad", level, c=c)


class ConFIG(GradientBalancing):
    """Conflict-free inverse gradients (Liu et al. 2024, arXiv 2408.11104). The direction with the same cosine to
    every task's gradient, from the pseudo-inverse of the unit gradients, with the length of their projections
    (equations 2 and 3)."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "ConFIG", level)


class DualProj(GradientBalancing):
    """Gradient episodic memory's projection (Lopez-Paz and Ranzato 2017, arXiv 1706.08840), as TorchJD puts it for
    tasks. The mean gradient is projected onto the directions that conflict with no task. Needs the extra
    `solvers`."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "DualProj", level)


class UPGrad(GradientBalancing):
    """Unconflicting projection of gradients (Quinton and Rey 2024, arXiv 2406.16232). Each task's gradient is
    projected onto the directions that conflict with no task; then the mean is taken (equation 4). Needs the extra
    `solvers`."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "UPGrad", level)


class MGDA(GradientBalancing):
    """Multiple-gradient descent (Sener and Koltun 2018, arXiv 1810.04650). The shortest vector in the convex hull
    of the tasks' gradients, by Frank-Wolfe steps (algorithm 2): it falls for every task, and the task with the
    smallest gradient rules. At `level="features"` it is the paper's MGDA-UB."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "MGDA", level)


class IMTLG(GradientBalancing):
    """IMTL-G, the gradient half of impartial multi-task learning (Liu et al., ICLR 2021). The combination that
    has the same projection onto every task's gradient, in closed form (equation 6). The authors take the gradient
    at the features."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "IMTLG", level)


class NashMTL(GradientBalancing):
    """Multi-task learning as a bargaining game (Navon et al. 2022, arXiv 2202.01017). The Nash bargaining solution:
    weights a with (G a)_k = 1 / a_k, G the tasks' Gramian, by a sequence of convex problems (algorithm 1). Needs
    the extra `solvers`.

    update_every: steps between two solutions, >= 1; the paper's 1, its 10 to 100 being as good and faster. iterations:
    convex problems a solution. max_norm: of the combined gradient.
    """

    def __init__(
        self,
        num_tasks: int,
        update_every: int = 1,
        iterations: int = 20,
        max_norm: float = 1.0,
        level: str = "parameters",
    ):
        for name, value in (("update_every", update_every), ("iterations", iterations)):
            if value < 1:
                raise ValueError(f"{name} should be at least 1. Found {value}.")
        options = {"update_weights_every": update_every, "optim_niter": iterations, "max_norm": max_norm}
        super().__init__(num_tasks, "NashMTL", level, n_tasks=num_tasks, **options)
        self.max_norm = max_norm

    def factors(self, matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        lengths: Tensor = rows_of(matrix, here).norm(dim=1)
        if self.num_tasks == 1:  # cvxpy cannot put such a problem: G a = 1 / a, within the limit if there is one
            length = min(1.0, self.max_norm) if self.max_norm > 0 else 1.0
            return length / lengths.clamp(min=1e-12)
        # its problem has room for all tasks: a missing one stands at right angles to the others, as long as their
        # mean, and leaves their solution as it is
        beside = torch.diag(lengths.mean() * ~here)
        found: Tensor = self._aggregator[0].weighting(torch.cat([matrix, beside], dim=1))
        return found[here]


class AlignedMTL(GradientBalancing):
    """Independent component alignment (Senushkin et al. 2023, arXiv 2305.19000). The Jacobian's singular values are
    all set to the smallest, so that no task's direction dominates; then the mean is taken (algorithm 1)."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "AlignedMTL", level)


class FairGrad(GradientBalancing):
    """Fair resource allocation (Ban and Ji 2024, arXiv 2402.15638). Weights w with (G w)_k = w_k^(-1 / alpha), G the
    tasks' Gramian: alpha-fairness of the tasks' progress (equation 8).

    alpha: > 0; 0 would be equal weighting, larger is closer to the worst-off task.
    """

    def __init__(self, num_tasks: int, alpha: float = 2.0, level: str = "parameters"):
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha should be greater than 0. Found {alpha}.")
        super().__init__(num_tasks, "FairGrad", level, alpha=alpha)


class RGW(GradientBalancing):
    """Random gradient weighting (Lin et al. 2022, arXiv 2111.10603). In each step the tasks' gradients are averaged
    with the weights softmax(z), z standard normal: the litmus test for gradient balancing."""

    def __init__(self, num_tasks: int, level: str = "parameters"):
        super().__init__(num_tasks, "Random", level)
