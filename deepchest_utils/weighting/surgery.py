"""Gradient surgery: methods that look for tasks whose gradients conflict. Each takes `level`, see
`GradientBalancing`; hyper-parameters have the papers' values."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.gradient_balancing import GradientBalancing


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
