"""Sweeps over controlled phantoms: one factor is changed, on one half of the findings and then on the other."""

import json

import numpy as np
import pandas as pd

from deepchest_utils.results.statistics import paired_differences
from deepchest_utils.results.store import RunTable


def controlled_runs(tables: RunTable) -> pd.DataFrame:
    """The finished runs of a sweep over controlled phantoms, a row a run and finding: method, seed, factor ("" if none), half
    (the first finding that was changed), finding, changed (bool), auroc (on test) and weight (the last; NaN for a method
    whose weights do not move)."""
    keys, rows = ["cell", "task"], tables.rows
    auroc = rows[(rows.split == "test") & (rows.metric == "auroc")].set_index(keys).value
    weights = rows[rows.metric == "weight"].sort_values("epoch").groupby(keys).value.last()
    all_findings = set(rows.task[rows.metric == "prevalence"])
    runs = []
    for trial in tables.cells[tables.cells.status == "done"].itertuples():
        controlled = json.loads(trial.settings).get("data_options", {}).get("controlled")
        if controlled is None or len(controlled) > 1:
            raise ValueError(f"{tables.out}: every run should have one controlled factor or none. Found {controlled}.")
        factor, changed = next(iter(controlled.items()), ("", {}))
        findings = [task for task in auroc[trial.cell].index if task in all_findings]
        run = pd.DataFrame({"finding": findings, "auroc": auroc[trial.cell][findings].to_numpy()})
        run["weight"] = weights.reindex([(trial.cell, finding) for finding in findings]).to_numpy()
        run["changed"] = run.finding.isin(list(changed))
        runs.append(run.assign(method=trial.method, seed=trial.seed, factor=factor, half=next(iter(changed), "")))
    return pd.concat(runs, ignore_index=True)


def controlled_effects(runs: pd.DataFrame) -> pd.DataFrame:
    """`paired_differences` to Equal's AUROC by factor and changed (bool), paired by half and seed. A value is the mean over
    the findings that were changed, or over the others."""
    keys = ["factor", "changed", "half", "seed", "method"]
    means = runs[runs.factor != ""].groupby(keys, sort=False).auroc.mean().rename("value").reset_index()
    return paired_differences(means, "equal", by=["factor", "changed"], pair=["half", "seed"])


def weight_ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """The last weight of the changed findings over that of the others, both geometric means over findings, halves and seeds:
    a row a method whose weights move, a column a factor."""
    moving = runs[(runs.factor != "") & runs.weight.notna()]
    means = np.log(moving.weight).groupby([moving.method, moving.factor, moving.changed], sort=False).mean().unstack()
    ratios: pd.DataFrame = np.exp(means[True] - means[False]).unstack()
    return ratios
