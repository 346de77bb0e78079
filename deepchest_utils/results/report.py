"""All runs below a folder, put together: which of them may share a mean, and a line a method."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from deepchest_utils.config import TrainConfig, format_method
from deepchest_utils.files import FileError
from deepchest_utils.results.labels import method_label, method_order
from deepchest_utils.results.statistics import format_interval, paired_differences
from deepchest_utils.results.store import COLUMNS, HISTORY, SECONDS, TEST, RunRecord, collect, read_results, write_table

# no part of the settings that runs share: what a line of the summary is about, and what says which data they are
_LINE = ("method", "method_options", "architecture", "seed", "data_seed", "split")
_SAME = ["method", "seed", "data", "key"]  # columns that are the same in a run and its repetition
OWN_DATA = "each seed its own data"
BASELINE = "equal"
METRICS = {"auroc": "AUROC", "average_precision": "AP"}
SUMMARY_COLUMNS = [
    "group", "method", "seeds", "findings",
    *(metric + end for metric in METRICS for end in ("", "_low", "_high")),
    *("difference" + end for end in ("", "_low", "_high", "_p", "_p_holm")),
    "pairs", "worst", "worst_auroc",
]  # fmt: skip


@dataclass(frozen=True)
class RunCollection:
    """Runs that have been tested.

    Attributes:
        runs: A row a run: run (its folder, or table and id), method (options included), seed, data_seed, data
            (fingerprint), commit, settings (name -> value, method and seed apart), group (runs that may share a mean).
        rows: The long table of all epochs and splits, with run, group and the settings that differ.
        remarks: A line for each run that is not among them, and why.
    """

    runs: pd.DataFrame
    rows: pd.DataFrame
    remarks: list[str]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row a group and method, in the order of every table.

        Columns: group, method, seeds (how many), findings (how many have an AUROC, in the run with the fewest); auroc
        and average_precision (macro, test, mean over seeds) with _low and _high (95%, Student's over seeds; NaN for
        one); difference (macro AUROC minus that of `equal`, paired by seed and data) with _low, _high, _p and _p_holm
        (over the group), and pairs (how many); worst (the finding with the lowest mean AUROC) and worst_auroc.
        Intervals are for other seeds, and say nothing of other patients unless each seed has data of its own.
        """
        test = self.rows[self.rows.split == "test"].drop(columns=["group", "method", "seed"])
        test = test.merge(self.runs[["run", "group", "method", "seed", "data"]], on="run")
        line, macro = ["group", "method"], test[test.task == "macro"]
        by, pair = ["group", "metric"], ["seed", "data"]
        tables = [paired_differences(macro[macro.metric.isin(METRICS)], None, by, pair)]
        if BASELINE in set(macro.method):
            differences = paired_differences(macro[macro.metric == "auroc"], BASELINE, by, pair)
            tables.append(differences.assign(metric="difference"))
        numbers = ["mean", "low", "high", "p", "p_holm", "pairs"]
        summary = pd.concat(tables).pivot(index=line, columns="metric", values=numbers)
        summary.columns = pd.Index([f"{metric}_{number}".removesuffix("_mean") for number, metric in summary.columns])
        summary = summary.rename(columns={"auroc_pairs": "seeds", "difference_pairs": "pairs"})
        summary["findings"] = macro[macro.metric == "auroc_tasks"].groupby(line).value.min()
        findings = test[(test.metric == "auroc") & ~test.task.isin(["macro", "worst"])]
        auroc = findings.groupby([*line, "task"]).value.mean().unstack()
        summary["worst"] = auroc.dropna(how="all").idxmin(axis=1)
        summary["worst_auroc"] = auroc.min(axis=1)
        order = [
            (group, method)
            for group, rows in self.runs.groupby("group", sort=False)
            for method in method_order(rows.method.unique())
        ]
        summary = summary.loc[order].reset_index().reindex(columns=SUMMARY_COLUMNS).fillna({"pairs": 0, "worst": ""})
        return summary.astype({"seeds": int, "findings": int, "pairs": int})


def report(folder: str | Path = "runs", out: str | Path | None = None) -> RunCollection:
    """All tested runs below a folder, see `store.collect`, in groups that may share a mean. A repeated run counts once.

    A group has the same data and settings, method and seed apart. Phantoms that were drawn with the seed of the run, as
    in notebook 03, are a group too: independent draws, one a seed. `out` is a new .csv for the long table.
    Raises ValueError if there is no tested run, or if `out` is the name of something else.
    """
    if out is not None and not _is_new(Path(out)):
        raise ValueError(
            f"out should be the name of a .csv, and neither it nor its .png anything but a report's. Found {str(out)!r}."
        )
    if not Path(folder).is_dir():
        raise ValueError(f"folder should hold runs. Found no folder {str(folder)!r}.")
    records, remarks = collect(folder)
    if not records:
        listed = _listed(remarks, "; ") or "neither a folder of train nor a table of sweep"
        raise ValueError(f"folder should hold runs that have been tested. Found none in {str(folder)!r}: {listed}.")
    runs = pd.DataFrame([describe_run(record) for record in records])
    repeated = runs.duplicated(_SAME)
    if repeated.any():
        test = [record.rows.query("split == 'test' and task == 'macro' and metric == 'auroc'") for record in records]
        scores = runs.assign(score=[rows.value.iloc[0] for rows in test]).groupby(_SAME, dropna=False).score
        alike = (scores.max() - scores.min()).max() < 1e-5
        first = "" if alike else ", the first, although their scores are not the same"
        remarks.append(f"repeated: {_listed(runs.run[repeated])}: counted once{first}")
    if runs.commit.nunique() > 1:
        commits = runs.commit.dropna().unique()
        remarks.append(f"note: the runs are of {len(commits)} commits of the code: {_listed(commits)}")
    runs = runs[~repeated]
    differing = differing_settings(runs)
    runs = runs.assign(group=name_groups(runs, differing))
    parts = [
        records[run.Index].rows.assign(run=run.run, group=run.group, method=run.method, **differing.loc[run.Index])
        for run in runs.itertuples()
    ]
    rows = pd.concat(parts, ignore_index=True)[["run", "group", *differing.columns, *COLUMNS]]
    if out is not None:
        write_table(out, rows)
    return RunCollection(runs.drop(columns="key").reset_index(drop=True), rows, remarks)


def _is_new(out: Path) -> bool:
    """Whether a file may be written, or written again: not in the place of a run's, a sweep's, or anyone's table."""
    if out.suffix != ".csv" or out.name in (HISTORY, SECONDS, TEST) or out.with_name(f"{out.stem}_cells.csv").exists():
        return False
    if not out.exists():
        return not out.with_suffix(".png").exists()
    with suppress(FileError):
        return len(read_results(out, ["run", "group", *COLUMNS], "report", missing_ok=False)) > 0
    return False


def _listed(texts: Iterable[str], separator: str = ", ") -> str:
    """The first three, and how many more."""
    names = [*texts]
    return separator.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def describe_run(record: RunRecord) -> dict[str, Any]:
    """A row of `RunCollection.runs`, and key, a text of the settings."""
    config, data, commit = record.config, record.environment.get("data"), record.environment.get("commit")
    settings = {name: value for name, value in config.identity().items() if name not in _LINE}
    settings |= settings.pop("data_options")
    method = format_method(config.method, config.method_options)
    method += "" if config.architecture == TrainConfig.architecture else f"@{config.architecture}"
    if not isinstance(data, str):
        data = f"{config.data_root}, split {config.split}, seed {config.data_seed}"
    named = {"run": record.run, "method": method, "seed": config.seed, "data_seed": config.data_seed, "data": data}
    commit = commit if isinstance(commit, str) else None
    return {**named, "commit": commit, "settings": settings, "key": json.dumps(settings, sort_keys=True)}


def differing_settings(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that are not the same in all runs, a row a run; lists and the like as text."""
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for settings in runs.settings for name in settings):
        values = [settings.get(name) for settings in runs.settings]
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) > 1:
            columns[name] = [t if isinstance(v, dict | list) else v for v, t in zip(values, texts, strict=True)]
    return pd.DataFrame(columns, runs.index, dtype=object)


def name_groups(runs: pd.DataFrame, differing: pd.DataFrame) -> list[str]:
    """Each run's group, by a name that tells it from the others.

    Phantoms drawn with the seed of the run are independent draws. Other data differ from seed to seed in which patients
    are in which split, not in who they are: a mean over them would look surer than it is.
    """
    # drawn anew: the only seed on its data, which have its number, and not the only run of that kind
    phantom = runs.settings.map(lambda settings: settings["dataset"] == "phantom")
    same_data = runs.groupby(["key", "data"])
    drawn_anew = phantom & (runs.seed == runs.data_seed) & (same_data.seed.transform("nunique") == 1)
    drawn_anew &= runs.seed.where(drawn_anew).groupby(runs.key).transform("nunique") > 1
    data_seed = same_data.data_seed.transform("min")  # of official splits it says nothing
    num_data = runs[~drawn_anew].groupby(["key", data_seed]).data.transform("nunique").reindex(runs.index)
    several_seeds = drawn_anew.any() or data_seed.nunique() > 1
    names = []
    for i, run in runs.iterrows():
        parts = [f"{run.settings['dataset']}, {run.settings['image_size']} px"]
        settings = differing.loc[i].drop(["dataset", "image_size"], errors="ignore").dropna()
        parts += [f"{name} {value}" for name, value in settings.items()]
        if drawn_anew[i]:
            parts.append(OWN_DATA)
        elif num_data[i] > 1:
            parts.append(f"data seed {data_seed[i]} ({run.data if ' ' in run.data else run.data[:6]})")
        elif several_seeds:
            parts.append(f"data seed {data_seed[i]}")
        names.append("".join(filter(str.isprintable, ", ".join(parts))))
    return names


def format_summary(summary: pd.DataFrame) -> str:
    """The summary for a terminal: a group's name, then a line a method."""

    def intervals(rows: pd.DataFrame, name: str, sign: str) -> list[str]:
        numbers = rows[[name, f"{name}_low", f"{name}_high"]].set_axis(["mean", "low", "high"], axis=1)
        return [format_interval(row, sign=sign) for _, row in numbers.iterrows()]

    blocks = []
    for group, rows in summary.groupby("group", sort=False):
        table = rows[["seeds", "findings"]].set_index(rows.method.map(method_label).rename(None))
        for metric, label in METRICS.items():
            table[label] = intervals(rows, metric, "")
        table["worst finding"] = [f"{r.worst} {r.worst_auroc:.3f}" if r.worst else "-" for r in rows.itertuples()]
        if rows.pairs.any():
            table["AUROC minus Equal"] = intervals(rows, "difference", "+")
            table["pairs"] = rows.pairs.to_numpy()
        without = "" if BASELINE in set(rows.method) else " (no Equal with these settings)"
        blocks.append(f"{group}{without}\n{table.to_string()}")
    return "\n\n".join(blocks)
