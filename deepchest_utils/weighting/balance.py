"""Gradient balance: methods that give the tasks' gradients weights, so that each has its share of the step. Each
takes `level`, see `GradientBalancing`; hyper-parameters have the papers' values."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from deepchest_utils.weighting.gradient_balancing import GradientBalancing, present


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
        lengths: Tensor = present(matrix, here).norm(dim=1)
        if (
            self.num_tasks == 1
        ):  # cvxpy cannot put such a problem: G a = 1 / a, within the limit if there is one
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
