"""What a sweep over controlled phantoms says: one factor, changed on one half of the findings and then on the other."""

import json

import numpy as np
import pandas as pd

from deepchest_utils.results.statistics import mean_interval
from deepchest_utils.results.store import Tables


def controlled_runs(tables: Tables) -> pd.DataFrame:
    """A row a finished run, factor and finding: method, seed, factor ("" if none), half (the first finding that was changed),
    finding, changed (bool), auroc on test, and weight, the last (NaN for a method whose weights do not move).

    Raises ValueError for a run on no controlled phantom, or with more than one factor.
    """
    keys, rows = ["cell", "task"], tables.rows
    auroc = rows[(rows.split == "test") & (rows.metric == "auroc")].set_index(keys).value
    weights = rows[rows.metric == "weight"].sort_values("epoch").groupby(keys).value.last()
    parts = []
    for cell in tables.cells[tables.cells.status == "done"].itertuples():
        controlled = json.loads(cell.settings).get("data_options", {}).get("controlled")
        if controlled is None or len(controlled) > 1:
            raise ValueError(f"{tables.out}: every run should have one controlled factor or none. Found {controlled}.")
        factor, changed = next(iter(controlled.items()), ("", {}))
        findings = [task for task in auroc[cell.cell].index if task in set(rows.task[rows.metric == "prevalence"])]
        part = pd.DataFrame({"finding": findings, "auroc": auroc[cell.cell][findings].to_numpy()})
        part["weight"] = weights[cell.cell].reindex(findings).to_numpy() if cell.cell in weights.index else np.nan
        part["changed"] = part.finding.isin(list(changed))
        parts.append(part.assign(method=cell.method, seed=cell.seed, factor=factor, half=next(iter(changed), "")))
    return pd.concat(parts, ignore_index=True)


def controlled_effects(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a factor, method and changed (bool): mean, low, high and p of the AUROC minus Equal's, a mean over the
    findings that were changed, or the others; over halves and seeds."""
    means = (
        runs[runs.factor != ""]
        .groupby(["factor", "changed", "half", "seed", "method"], sort=False)
        .auroc.mean()
        .unstack()
    )
    gaps = means.drop(columns="equal").sub(means["equal"], axis=0).stack().dropna()
    rows = [
        {"factor": factor, "method": method, "changed": changed, **mean_interval(values.to_numpy())}
        for (factor, method, changed), values in gaps.groupby(["factor", "method", "changed"], sort=False)
    ]
    return pd.DataFrame(rows)


def weight_ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """Last weight of the changed findings over that of the others, geometric means over findings, halves and seeds: a row a
    method whose weights move, a column a factor."""
    logs = np.log(runs[(runs.factor != "") & runs.weight.notna()].set_index(["method", "factor", "changed"]).weight)
    means = logs.groupby(level=["method", "factor", "changed"], sort=False).mean().unstack()
    ratios: pd.DataFrame = np.exp(means[True] - means[False]).unstack()
    return ratios
