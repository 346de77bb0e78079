"""Tables of a study's stage, written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deepchest_utils.results.store import COLUMNS
from deepchest_utils.studies.replication import ENDPOINT
from deepchest_utils.sweep import Trial

Cell = tuple[Trial, float, list[tuple[str, str, float]]]  # trial, seconds of training, rows: split, metric, value


def write_table(table: Path, cells: Sequence[Cell]) -> None:
    """The files that a sweep leaves, with the endpoint alone."""
    records, rows = [], []
    for trial, seconds, own in cells:
        base = {"cell": trial.id, "method": trial.method, "seed": trial.config.seed}
        settings = json.dumps(trial.settings, sort_keys=True)
        records.append({**base, "status": "done", "error": "", "settings": settings, "training_seconds": seconds})
        rows += [{**base, "epoch": 5, "task": ENDPOINT, "split": s, "metric": m, "value": v} for s, m, v in own]
    pd.DataFrame(rows)[["cell", *COLUMNS]].to_csv(table, index=False)
    pd.DataFrame(records).to_csv(table.with_name(f"{table.stem}_cells.csv"), index=False)
