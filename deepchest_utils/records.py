"""The long table of every result, and where it came from.

Columns: method, seed, epoch, split, task, metric, value. A task is a finding, or "macro" (the mean over the
findings where the metric is defined; "<metric>_tasks" counts them) or "worst" (the lowest AUROC), or "run"
for what belongs to no task (seconds).
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepchest_utils.files import write_atomic
from deepchest_utils.metrics import macro

COLUMNS = ["method", "seed", "epoch", "split", "task", "metric", "value"]
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn")


def task_rows(
    base: Mapping[str, object],
    metrics: Mapping[str, Iterable[float]],
    tasks: Iterable[str],
    summarise: bool = True,
) -> list[dict[str, Any]]:
    """Rows of the long table: one a task and metric and, with `summarise`, macro and worst.

    base: method, seed, epoch and split. metrics: name -> (K,) values.
    """
    rows, tasks = [], list(tasks)
    for metric, values in metrics.items():
        values = np.asarray(values, dtype=float)
        rows += [
            {**base, "task": task, "metric": metric, "value": float(value)}
            for task, value in zip(tasks, values, strict=True)
        ]
        if summarise:
            mean, count = macro(values)
            rows.append({**base, "task": "macro", "metric": metric, "value": mean})
            if metric == "auroc":
                rows.append({**base, "task": "macro", "metric": "auroc_tasks", "value": float(count)})
                worst = float(np.nanmin(values)) if count else float("nan")
                rows.append({**base, "task": "worst", "metric": "auroc", "value": worst})
    return rows


def to_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def environment_report() -> dict[str, object]:
    """Versions, commit and hardware: what a result depends on beside its configuration."""
    import torch

    from deepchest_utils.distributed import ranks

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": ranks(),
        "gpu": gpu,
        "system": sys.platform,
    }


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with "+" if files differ from it; None outside
    one."""
    folder = Path(__file__).resolve().parent
    with suppress(OSError, subprocess.CalledProcessError):
        run: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "check": True}
        commit: str = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "."], **run).stdout.strip()
        return commit + ("+" if changed else "")
    return None


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """A CSV with enough digits to get the same numbers back."""
    write_atomic(path, table.to_csv(index=False))


def write_json(path: str | Path, value: object) -> None:
    write_atomic(path, json.dumps(value, indent=1, default=str) + "\n")
