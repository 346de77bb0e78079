"""Gradient balancing through TorchJD (Quinton and Rey 2024, arXiv 2406.16232): one adapter for all that it has."""

import warnings
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.distributed import from_first, gathered, share, total
from deepchest_utils.weighting.base import Method, in_batch
from deepchest_utils.weighting.shared import parameters_below

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
                vector: Tensor = aggregator(present(matrix, here))
                return vector.to(jacobian)
            found = self.factors(matrix, here)
        used = matrix.new_zeros(self.num_tasks)
        used[here] = found.to(matrix)
        self.record(used)
        return (used @ matrix).to(jacobian)

    def factors(self, matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, " n"]:
        """What the aggregator gives the gradients of the N tasks in the batch."""
        found: Tensor = self._aggregator[0].weighting(present(matrix, here))
        return found

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        if features is None:
            raise ValueError("features should be the trunk's output: there is where the tasks part.")
        if not features.requires_grad:
            raise ValueError("features should come from a trunk that is trained. Found it frozen.")
        here = in_batch(losses)
        if not here.any():
            losses.sum().backward()  # zeros, as for any method
        elif self.level == "features":
            self._at_features(losses, features, here)
        else:
            self._at_parameters(losses, features, here)

    def _at_features(self, losses: Tensor, features: Tensor, here: Tensor) -> None:
        one_a_task = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
        (jacobian,) = torch.autograd.grad(
            losses, features, one_a_task, retain_graph=True, is_grads_batched=True
        )
        # each image has columns of its own: of those of all processes, ours come back
        combined = self.combine(gathered(jacobian, dim=1).flatten(1), here)
        combined = share(combined.view(-1, *features.shape[1:]))
        # one pass for all: the heads get their own gradients, and below the features the combined one goes on
        handle = features.register_hook(lambda _: combined)
        losses.sum().backward()
        handle.remove()

    def _at_parameters(self, losses: Tensor, features: Tensor, here: Tensor) -> None:
        trunk = parameters_below(features)
        shared = set(map(id, trunk))
        heads = [p for p in parameters_below(losses) if id(p) not in shared]
        # filled row by row: rows stacked at the end would need twice the memory for a moment
        jacobian = trunk[0].new_empty(len(losses), sum(p.numel() for p in trunk))
        for row, loss in zip(jacobian, losses.unbind(), strict=True):
            # one after the other: all at once is no faster and keeps every task's maps
            gradients = torch.autograd.grad(loss, trunk, retain_graph=True)
            torch.cat([g.flatten() for g in gradients], out=row)
        combined = from_first(self.combine(total(jacobian), here))
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


def present(matrix: Float[Tensor, "k p"], here: Bool[Tensor, " k"]) -> Float[Tensor, "n p"]:
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
