"""Tables of a study's stage, written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deepchest_utils import FINDINGS
from deepchest_utils.results.store import COLUMNS
from deepchest_utils.studies import sharing
from deepchest_utils.studies.replication import ENDPOINT
from deepchest_utils.sweep import Trial

Cell = tuple[Trial, float, list[tuple[str, str, float]]]  # trial, seconds of training, rows: split, metric, value


def write_table(table: Path, cells: Sequence[Cell]) -> None:
    """The files that a sweep leaves, with the endpoint alone."""
    write_tasks(table, [(t, seconds, [(ENDPOINT, *row) for row in own]) for t, seconds, own in cells])


def write_tasks(table: Path, cells: Sequence[tuple[Trial, float, list[tuple[str, str, str, float]]]]) -> None:
    """The same with rows of any task: task, split, metric, value."""
    records, rows = [], []
    for trial, seconds, own in cells:
        base = {"cell": trial.id, "method": trial.method, "seed": trial.config.seed}
        settings = json.dumps(trial.settings, sort_keys=True)
        records.append({**base, "status": "done", "error": "", "settings": settings, "training_seconds": seconds})
        rows += [{**base, "epoch": 5, "task": t, "split": s, "metric": m, "value": v} for t, s, m, v in own]
    pd.DataFrame(rows)[["cell", *COLUMNS]].to_csv(table, index=False)
    pd.DataFrame(records).to_csv(table.with_name(f"{table.stem}_cells.csv"), index=False)


def write_sharing(
    out: Path, gain: np.ndarray, products: np.ndarray, gaps: Sequence[float], noise: float = 0.002
) -> None:
    """Tables of the study of sharing, as its two last rounds leave them.

    Args:
        gain: (14, 14) that a finding has with a partner, beside 0.8 alone.
        products: (14, 14) inner products of gradients.
        gaps: Shared minus single, a number a size.
        noise: Standard deviation of each AUROC.
    """
    rng = np.random.default_rng(0)
    _, (name, cells) = sharing.sizes(out)
    table = []
    for cell in cells:
        gap = gaps[list(sharing.LENGTHS).index(cell.config.data_options["num_train"])]
        value = 0.8 + gap * (cell.method == "shared") + rng.normal(0, noise)
        seconds = 20.0 if cell.method == "shared" else 100.0
        table.append((cell, seconds, [("test", m, value) for m in ("auroc", "average_precision")]))
    write_table(out / f"{name}.csv", table)
    _, (name, cells) = sharing.transfer(out)
    tasks = []
    for cell in cells:
        k = [FINDINGS.index(finding) for finding in cell.findings]
        rows = []
        for i in k:
            value = 0.8 + sum(gain[i, j] for j in k if j != i) / max(len(k) - 1, 1) + rng.normal(0, noise)
            rows += [(FINDINGS[i], "test", m, value) for m in ("auroc", "average_precision")]
            if cell.method == sharing.ALL:
                rows += [(FINDINGS[i], "test", sharing.PRODUCT + f, products[i, j]) for j, f in enumerate(FINDINGS)]
        tasks.append((cell, 10.0, rows))
    write_tasks(out / f"{name}.csv", tasks)
