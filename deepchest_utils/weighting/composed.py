"""One method over another, A+B."""

from jaxtyping import Float
from torch import Tensor

from deepchest_utils.weighting.base import EpochReport, LossWeighting, Method
from deepchest_utils.weighting.scalarization import Scalarization


class Composed(Method):
    """A step of `inner`, any method, on the losses times the weights of `outer`, a loss weighting that holds them over
    an epoch. Both learn from every epoch. Raises ValueError for another `outer`, or another number of tasks."""

    def __init__(self, outer: LossWeighting, inner: Method):
        super().__init__(outer.num_tasks)
        if not isinstance(outer, LossWeighting) or isinstance(outer, Scalarization):
            raise ValueError(
                f"outer should be a loss weighting that holds its weights over an epoch. Found {type(outer).__name__}."
            )
        if outer.num_tasks != inner.num_tasks:
            raise ValueError(
                f"outer and inner should have the same num_tasks. Found {outer.num_tasks} and {inner.num_tasks}."
            )
        self.outer, self.inner = outer, inner
        self.needs_losses_after_step = inner.needs_losses_after_step

    @property
    def weights(self) -> Float[Tensor, " k"]:
        return self.outer.weights * self.inner.weights.to(self.outer.weights)

    @property
    def raw_weights(self) -> Float[Tensor, " k"]:
        return self.outer.raw_weights * self.inner.raw_weights.to(self.outer.raw_weights)

    def backward(self, losses: Float[Tensor, " k"], features: Float[Tensor, "b *f"] | None = None) -> None:
        self.inner.backward(losses * self.outer.weights.to(losses), features)

    def begin(self, prevalence: Float[Tensor, " k"]) -> None:
        self.outer.begin(prevalence)
        self.inner.begin(prevalence)

    def after_step(self, losses: Float[Tensor, " k"]) -> None:
        self.inner.after_step(losses * self.outer.weights.to(losses))

    def end_epoch(self, report: EpochReport) -> None:
        self.outer.end_epoch(report)
        self.inner.end_epoch(report)
