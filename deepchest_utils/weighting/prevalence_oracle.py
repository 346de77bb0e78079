"""The control for DeepChest: its rule, listening to prevalence alone."""

from deepchest_utils.weighting.base import EpochReport
from deepchest_utils.weighting.deepchest import DeepChest


class PrevalenceOracle(DeepChest):
    """DeepChest's rule fed the accuracy of the predictor that always says "absent", 1 - prevalence: no network,
    no training, no loss takes part. Whatever DeepChest gains beyond this, it gains by listening.

    Takes DeepChest's step_up, step_down, cap, floor, normalize and initial.
    """

    def __init__(self, num_tasks: int, **options):
        if given := {"signal", "scores_from"} & set(options):
            raise TypeError(f"{min(given)} is not the oracle's: it listens to prevalence")
        super().__init__(num_tasks, **options)

    def end_epoch(self, report: EpochReport) -> None:
        super(DeepChest, self).end_epoch(report)
        self.update(1 - report.prevalence)
