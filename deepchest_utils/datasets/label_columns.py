"""Columns of labels, by spelling and by what an empty cell and -1 mean.

Three values of a label are told apart: empty, -1 (uncertain), and 0 or 1. What the first two mean is an argument,
`blank` and `uncertain`: a text for all findings, or a dictionary from findings to texts in which "others" stands for
those that it does not name. A row with 1 for "No Finding" has its other empty cells, but for Support Devices, absent.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from deepchest_utils.config import check_choice
from deepchest_utils.datasets.base import DataError, warn
from deepchest_utils.datasets.findings import FINDINGS, our_name, spelling
from deepchest_utils.datasets.table import find_column, read_table

Names = Sequence[str] | str | None
Policy = str | Mapping[str, str] | None
MEANING = {"absent": 0.0, "present": 1.0, "unknown": np.nan}
CELLS = {"": np.nan, "true": 1.0, "false": 0.0, "-1": -1.0, "0": 0.0, "1": 1.0}
WRONG = 9.0


def _label(cell: object) -> float:
    """1, 0, -1, NaN for an empty cell; `WRONG` for anything else."""
    text = "" if pd.isna(cell) else str(cell).strip().lower()
    try:
        return CELLS[text] if text in CELLS else value if (value := float(text)) in (-1, 0, 1) else WRONG
    except ValueError:
        return WRONG


def _read_labels(source: Path, frame: pd.DataFrame, column: str) -> Float[np.ndarray, " n"]:
    """One column: 1 (True), 0 (False), -1, NaN for an empty cell. DataError for anything else."""
    codes, cells = pd.factorize(frame[column], use_na_sentinel=False)
    values = np.array([_label(cell) for cell in cells])[codes]
    if (wrong := values == WRONG).any():
        row = frame.index[wrong][0]
        text = read_table(source, [column], alone=True)[column][row]  # as it is written
        allowed = "Allowed are 1, 0, True, False, -1 for uncertain, and empty"
        raise DataError(f"{source}: column {column!r} says {text[:80]!r} in row {row}. {allowed}.")
    return np.asarray(values)


def _meaning(
    argument: str, policy: Policy, findings: Sequence[str], counts: Int[np.ndarray, " k"], allowed: Collection[str]
) -> Float[np.ndarray, " k"]:
    """The meaning of such cells, so many, for each finding: 0, 1 or NaN."""
    given = policy if isinstance(policy, Mapping) else {"others": "unknown" if policy is None else policy}
    for value in given.values():
        check_choice(argument, value, allowed, DataError)
    named = {spelling(our_name(str(name))): value for name, value in given.items()}
    keys = [spelling(our_name(name)) for name in findings]
    for name in given:
        if spelling(our_name(str(name))) not in (*keys, "others"):
            check_choice(f"finding of {argument}", name, [*findings, "others"], DataError)
    for key, name, count in zip(keys, findings, counts, strict=True):
        if count and not {key, "others"} & {*named}:
            raise DataError(f'{argument} should also say what {name} means in {count:,} cells, by name or as "others".')
    return np.array([MEANING[named.get(key, named.get("others", "unknown"))] for key in keys])


def finding_labels(
    source: Path, frame: pd.DataFrame, columns: Mapping[str, str], blank: Policy, uncertain: Policy
) -> Float[np.ndarray, "n k"]:
    """Labels of some findings, each with its column, by the two policies."""
    labels = np.column_stack([_read_labels(source, frame, column) for column in columns.values()])
    healthy = next((name for name in frame.columns if spelling(str(name)) == "nofinding"), None)
    if healthy is not None:
        rows = _read_labels(source, frame, healthy) == 1
        others = np.array([spelling(name) not in ("nofinding", "supportdevices") for name in columns])
        labels[rows[:, None] & others & np.isnan(labels)] = 0
        if (both := rows & ((labels == 1) & others).any(1)).any():
            example = f"e.g. row {frame.index[both][0]}"
            warn(f"{source}: {both.sum()} rows have both {healthy!r} and a finding, {example}; the finding is kept.")
    empty, unsure = np.isnan(labels), labels == -1
    if empty.any() and unsure.any() and (blank is None or uncertain is None):
        found = f"of the cells of its findings {empty.sum():,} are empty and {unsure.sum():,} are -1"
        say = 'Say blank="absent" or "unknown", and uncertain="unknown", "absent" or "present"'
        makers = "CheXpert's makers train empty (not mentioned) as absent, and tried all three for -1"
        raise DataError(f"{source}: {found}. {say}. {makers}.")
    absent = _meaning("blank", blank, [*columns], empty.sum(0), ("absent", "unknown"))
    doubtful = _meaning("uncertain", uncertain, [*columns], unsure.sum(0), MEANING)
    return np.where(empty, absent, np.where(unsure, doubtful, labels)).astype(np.float32)


def choose_columns(source: Path, header: Sequence[str], named: object) -> dict[str, str]:
    """finding -> column, of those that are named: a sequence, or a text with commas; none named: those of our 14."""
    if named is None:
        found = [(finding, name) for finding in FINDINGS for name in header if our_name(name) == finding]
        if not found:
            there = f"Found {', '.join(header[:40])}. Name them with finding_columns=[...]"
            raise DataError(f"{source}: no column has the name of a finding. {there}.")
    else:
        names: Any = [named] if named in header else named.split(",") if isinstance(named, str) else named
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"finding_columns should be names of columns. Found {named!r}.")
        found = [(name.strip(), header[find_column(source, header, name.strip())]) for name in names]
    for key, what in ((0, "finding"), (1, "column")):
        one = [pair[key] for pair in found]
        if twice := [pair for pair in found if one.count(pair[key]) > 1]:
            columns = " and ".join(repr(pair[1]) for pair in twice[:2])
            raise DataError(f"{source}: one {what} is there twice, {columns}. Name each once in finding_columns.")
    return dict(found)


def warn_of_unused(source: Path, frame: pd.DataFrame, used: Sequence[str]) -> None:
    """Say which further columns hold only 1, 0, -1 and nothing, and more than one of these."""

    def plain(cells: pd.Series) -> bool:
        return all(_label(cell) != WRONG for cell in cells.unique())

    others = [name for name in frame.columns if name not in used and spelling(name) != "nofinding"]
    others = [name for name in others if plain(frame[name].iloc[:200]) and plain(frame[name])]
    if unused := [name for name in others if frame[name].nunique(dropna=False) > 1]:
        names = ", ".join(unused)
        warn(f"{source}: columns that look like findings are not used: {names}. Name them in finding_columns.")
