"""Controlled phantoms: effects are differences to the baseline within a half and a seed, whatever findings differ in otherwise."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from deepchest_utils.results.store import COLUMNS, RunTable
from deepchest_utils.studies.controlled import controlled_effects, controlled_runs, weight_ratios

FINDINGS = ["A", "B", "C", "D"]
BASE = {"A": 0.9, "B": 0.5, "C": 0.7, "D": 0.6}


def tables(folder, gain=0.03, cost=0.01, settings=None) -> RunTable:
    """Two methods, two seeds, two halves: `rule` gains on the changed findings and pays on the others."""
    cells, rows = [], []
    halves = [{}, *({"prevalence": dict.fromkeys(FINDINGS[i::2], 0.02)} for i in (0, 1))]
    for n, (seed, controlled, method) in enumerate(itertools.product((0, 1), halves, ("equal", "rule"))):
        cell = f"{n:02d}"
        chosen = {"data_options": {"controlled": controlled}} if settings is None else settings
        cells.append({"cell": cell, "method": method, "seed": seed, "status": "done", "settings": json.dumps(chosen)})
        changed = set(controlled.get("prevalence", ()))
        for f in FINDINGS:
            value = BASE[f] + 0.01 * seed - 0.2 * (f in changed)
            if method == "rule":
                value += (gain if f in changed else -cost) + (0.001 if seed else -0.001)
                rows += [
                    (cell, e, "train", f, "weight", 1.0 if e == 1 else 3.0 if f in changed else 0.5) for e in (1, 2)
                ]
            rows += [(cell, 2, "test", f, "auroc", value), (cell, 0, "train", f, "prevalence", 0.1)]
        rows.append((cell, 2, "test", "macro", "auroc", 0.99))
    table = pd.DataFrame(rows, columns=["cell", "epoch", "split", "task", "metric", "value"]).assign(method="", seed=0)
    table[["cell", *COLUMNS]].to_csv(folder / "x.csv", index=False)
    pd.DataFrame(cells).to_csv(folder / "x_cells.csv", index=False)
    return RunTable(folder / "x.csv")


def test_effects_are_paired_within_half_and_seed(tmp_path):
    runs = controlled_runs(tables(tmp_path))
    assert len(runs) == 12 * 4
    assert runs[runs.changed].groupby("half").finding.agg(set).to_dict() == {"A": {"A", "C"}, "B": {"B", "D"}}
    found = controlled_effects(runs).set_index("changed")
    assert set(found.method) == {"rule"}
    assert found["mean"].to_dict() == pytest.approx({True: 0.03, False: -0.01})
    # four values, two of each sign around the mean
    reach = 3.182446 * np.std([0.001, 0.001, -0.001, -0.001], ddof=1) / 2
    assert found.high[True] - found["mean"][True] == pytest.approx(reach, rel=1e-5)


def test_weight_ratio_is_that_of_the_last_epoch(tmp_path):
    ratios = weight_ratios(controlled_runs(tables(tmp_path)))
    assert list(ratios.index) == ["rule"]
    assert ratios.loc["rule", "prevalence"] == pytest.approx(6.0)


@pytest.mark.parametrize("settings", [{}, {"data_options": {"controlled": {"prevalence": {}, "loading": {}}}}])
def test_other_runs_are_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=r"x\.csv.*one controlled factor or none"):
        controlled_runs(tables(tmp_path, settings=settings))
