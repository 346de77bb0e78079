"""Learning rates chosen on validation, from a sweep that was run for it."""

import json
from pathlib import Path

import pandas as pd

from deepchest_utils.sweep.run import Tables
from deepchest_utils.training import TrainConfig


def tuning_scores(tables: Tables) -> pd.DataFrame:
    """Macro AUROC on validation, each run's best epoch: mean, std and count over seeds, a row a method and lr."""
    rows = tables.rows.query("split == 'val' and task == 'macro' and metric == 'auroc'")
    best = rows.groupby("cell").value.max()
    cells = tables.cells[tables.cells.cell.isin(best.index)]
    if cells.empty:
        return pd.DataFrame(columns=["mean", "std", "count"])
    lr = [json.loads(settings).get("lr", TrainConfig.lr) for settings in cells.settings]
    scores = cells.assign(lr=lr, auroc=cells.cell.map(best))
    return scores.groupby(["method", "lr"]).auroc.agg(["mean", "std", "count"])


def best_lr(out: str | Path) -> dict[str, float]:
    """The learning rate of each method with the best mean in `tuning_scores`, of the sweep whose long table is `out`.
    Raises ValueError if no finished run is there."""
    scores = tuning_scores(Tables(out))
    if scores.empty:
        raise ValueError(f"{out} holds no finished run: nothing to choose a learning rate from.")
    return {method: group.idxmax()[1] for method, group in scores["mean"].groupby("method")}
