"""A finished run's epochs once more, for methods that did not train in it: what would they have made of its scores?"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from deepchest_utils.weighting import EpochReport, Method


def epoch_reports(
    history: pd.DataFrame, findings: tuple[str, ...], prevalence: Float[torch.Tensor, " k"]
) -> list[EpochReport]:
    """The training scores of each epoch of `Run.history`, as the loop told its method; float64, NaN where undefined.

    `prevalence` is that of the training labels, (K,), in the order of `findings`."""
    rows = history[(history.split == "train") & history.task.isin(findings)]
    table = rows.pivot(index=["epoch", "metric"], columns="task", values="value")[list(findings)]
    reports = []
    for epoch, scores in table.groupby(level="epoch"):
        train = {metric: torch.tensor(row.to_numpy(float)) for (_, metric), row in scores.iterrows()}
        reports.append(EpochReport(int(epoch), prevalence, train))
    return reports


def replay(method: Method, reports: list[EpochReport]) -> Float[np.ndarray, "t k"]:
    """The weights before the first epoch and after each, had the method been told these scores: epochs + 1 rows.

    The network stays as it was trained. With other weights it would have had other scores."""
    path = [method.weights.numpy()]
    for report in reports:
        method.end_epoch(report)
        path.append(method.weights.numpy())
    return np.array(path)
