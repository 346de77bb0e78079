"""The control for DeepChest: its rule, listening to prevalence alone."""

from collections.abc import Sequence

from torch import Tensor

from deepchest_utils.weighting.base import EpochReport
from deepchest_utils.weighting.deepchest import DeepChest


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
            num_tasks,
            step_up=step_up,
            step_down=step_down,
            cap=cap,
            floor=floor,
            normalize=normalize,
            initial=initial,
        )

    def end_epoch(self, report: EpochReport) -> None:
        super(DeepChest, self).end_epoch(report)
        self.update(1 - report.prevalence)
