"""Which runs may share a mean: the same data and settings, method and seed apart."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from deepchest_utils.config import TrainConfig
from deepchest_utils.files import one_line, write_file
from deepchest_utils.notebook.figures import forest_plot, use_style
from deepchest_utils.results.labels import family_color, method_label, method_order
from deepchest_utils.results.statistics import holm, mean_interval
from deepchest_utils.results.store import COLUMNS, NAME, PREVIOUS, TYPES, read_checkpoint, write_table
from deepchest_utils.weighting.spec import format_method

# no part of the settings that runs share: what a line of the summary is about, and what says which data they are
LINE = ("method", "method_options", "architecture", "seed", "data_seed", "split")
OWN_DATA = "each seed its own data"


def describe_run(run: str, config: TrainConfig, data: object, commit: object) -> dict[str, Any]:
    """A row of `Reruns.runs`. run: where it is; data: its fingerprint, and commit, if they are known, else no text."""
    settings = {name: value for name, value in config.identity().items() if name not in LINE}
    settings |= settings.pop("data_options")
    method = format_method(config.method, config.method_options)
    method += "" if config.architecture == TrainConfig.architecture else f"@{config.architecture}"
    if not isinstance(data, str):
        data = f"{config.data_root}, split {config.split}, seed {config.data_seed}"
    return {
        "run": run, "method": method, "seed": config.seed, "data_seed": config.data_seed, "data": data,
        "commit": commit if isinstance(commit, str) else None, "settings": settings,
        "key": json.dumps(settings, sort_keys=True),
    }  # fmt: skip


def differing_settings(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that are not the same in all runs, a row a run; lists and the like as text."""
    names = dict.fromkeys(name for settings in runs.settings for name in settings)
    columns: dict[str, list[Any]] = {}
    for name in names:
        values = [settings.get(name) for settings in runs.settings]
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if len(set(texts)) > 1:
            columns[name] = [t if isinstance(v, dict | list) else v for v, t in zip(values, texts, strict=True)]
    return pd.DataFrame(columns, runs.index, dtype=object)


def name_groups(runs: pd.DataFrame, differing: pd.DataFrame) -> list[str]:
    """Each run's group, in words that tell it from the others.

    Phantoms that were drawn with the seed of the run, as in notebook 03, are independent draws, and a group of their own.
    Other data differ from seed to seed in which patients are where, not in who they are: a mean over them would look
    surer than it is.
    """
    alone = runs.groupby(["key", "data"]).seed.transform("nunique") == 1
    phantom = pd.Series([settings["dataset"] == "phantom" for settings in runs.settings], runs.index)
    own = phantom & alone & (runs.seed == runs.data_seed)
    own &= runs.seed.where(own).groupby(runs.key).transform("nunique") > 1
    # of official splits the seed says nothing
    seeds = runs.groupby(["key", "data"]).data_seed.transform("min")
    several = runs[~own].groupby(["key", seeds]).data.transform("nunique").reindex(runs.index) > 1
    seeds_differ = own.any() or seeds.nunique() > 1
    names = []
    for place, run in runs.iterrows():
        words = [f"{run.settings['dataset']}, {run.settings['image_size']} px"]
        shown = differing.loc[place].drop(["dataset", "image_size"], errors="ignore").dropna()
        words += [f"{name} {value}" for name, value in shown.items()]
        if own[place]:
            words.append(OWN_DATA)
        elif several[place] or seeds_differ:
            which = run.data if " " in run.data else run.data[:6]
            words.append(f"data seed {seeds[place]}" + (f" ({which})" if several[place] else ""))
        names.append(", ".join(words))
    return names


CELLS = "_cells.csv"
SAME = ["method", "seed", "data", "key"]  # columns that are the same in a run and its repetition
RUN_FILES = {"config.json", "history.csv", "test.csv", "lock"}
Found = tuple[list[tuple[dict[str, Any], pd.DataFrame]], list[str]]


@dataclass(frozen=True)
class RunCollection:
    """Runs that have been tested.

    runs: a row a run: run (folder, or table and cell), method (options included), seed, data_seed, data, commit,
    settings (name -> value, method and seed apart), group (a text; what may share a mean). rows: `records`' long table of all
    epochs and splits, with run, group and the settings that differ before it. remarks: a line for each run that is
    not among them, and why.
    """

    runs: pd.DataFrame
    rows: pd.DataFrame
    remarks: list[str]


def collect_runs(folder: str | Path) -> RunCollection:
    """Read, however deep below `folder`: the folders of `train` (config.json, environment.json, history.csv, test.csv), as
    a notebook's `run_dir` has them, and the tables of `sweep` (X.csv with X_cells.csv). Those of `localize` are no scores
    of runs and are left alone.

    Two runs have the same group if they ran on the same data with the same settings, method and seed apart. Phantoms that
    were drawn with the seed of the run, as in notebook 03, are a group of their own: independent draws, one a seed. A run
    that is there twice counts once. Raises ValueError if there is no such folder, or no tested run below it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"folder should hold runs. Found no folder {str(folder)!r}.")
    found: list[tuple[dict[str, Any], pd.DataFrame]] = []
    remarks: list[str] = []
    for path in _sources(root):
        try:
            more, said = _read_sweep(path) if path.name.endswith(CELLS) else _read_run(path)
        except Exception as error:  # a damaged file raises one of several types
            more, said = [], [f"damaged: {path}: {one_line(error)}"]
        found, remarks = found + more, remarks + said
    if not found:
        listed = _listed(remarks, "; ") or "neither a folder of train nor a table of sweep"
        raise ValueError(f"folder should hold runs that have been tested. Found none in {str(folder)!r}: {listed}.")
    runs = pd.DataFrame([record for record, _ in found])
    again = runs.duplicated(SAME)
    if again.any():
        scores = runs.assign(score=[_macro(rows) for _, rows in found]).groupby([*SAME], dropna=False).score
        alike = (scores.max() - scores.min()).max() < 1e-5
        first = "" if alike else ", the first, although their scores are not the same"
        remarks.append(f"repeated: {_listed(runs.run[again])}: counted once{first}")
    if runs.commit.nunique() > 1:
        commits = runs.commit.dropna().unique()
        remarks.append(f"note: the runs are of {len(commits)} commits of the code: {_listed(commits)}")
    runs = runs[~again].reset_index(drop=True)
    tables = [rows for (_, rows), repeated in zip(found, again, strict=True) if not repeated]
    differing = differing_settings(runs)
    runs["group"] = name_groups(runs, differing)
    parts = [
        rows.assign(run=run.run, group=run.group, method=run.method, **differing.loc[run.Index])
        for run, rows in zip(runs.itertuples(), tables, strict=True)
    ]
    columns = ["run", "group", *differing.columns, *COLUMNS]
    return RunCollection(runs.drop(columns="key"), pd.concat(parts, ignore_index=True)[columns], remarks)


def _macro(rows: pd.DataFrame) -> float:
    return float(rows.query("split == 'test' and task == 'macro' and metric == 'auroc'").value.iloc[0])


def _listed(texts: Iterable[str], separator: str = ", ") -> str:
    """The first three, and how many more."""
    names = [*texts]
    return separator.join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _sources(root: Path) -> Iterator[Path]:
    """Folders of runs, finished or not, and tables of cells, in the order of their names."""
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        path, names = Path(here), set(files)
        # a sweep keeps a lock of its own where its cells are
        started = names == {"lock"} and not folders and path.parent.name != "sweeps"
        if started or names & {NAME, PREVIOUS} or len(names & RUN_FILES) > 1:
            yield path
        yield from (path / name for name in sorted(files) if name.endswith(CELLS))


def _read_run(path: Path) -> Found:
    """A folder of `train`."""
    if not (path / "test.csv").exists():
        return [], [_unfinished(path)]
    config = TrainConfig(**json.loads((path / "config.json").read_text()))
    known = json.loads((path / "environment.json").read_text())
    history, test = _read(path / "history.csv", COLUMNS), _read(path / "test.csv", COLUMNS)
    if {(config.method, config.seed)} != set(zip(test.method, test.seed, strict=True)):
        raise ValueError("test.csv is of another method or seed than config.json")
    if len(test.query("task == 'macro' and metric in ['auroc', 'average_precision']")) != 2:
        raise ValueError("test.csv should have one macro AUROC and one macro AP")
    record = describe_run(str(path), config, known.get("data"), known.get("commit"))
    return [(record, pd.concat([history, test], ignore_index=True))], []


def _unfinished(path: Path) -> str:
    checkpoint = next((path / name for name in (NAME, PREVIOUS) if (path / name).exists()), None)
    if checkpoint is None:
        return f"unfinished: {path}: neither test.csv nor a checkpoint"
    state = read_checkpoint(checkpoint)
    its = state["identity"]
    done = f"{state['epoch']} of {its.get('epochs')} epochs"
    return f"unfinished: {path}: {its.get('method')} seed {its.get('seed')}, {done}; its command goes on from there"


def _read_sweep(path: Path) -> Found:
    """The finished cells of a sweep. path: of the table of its cells."""
    cells = _read(path, ["cell"])
    if "status" not in cells:  # of `localize`
        return [], []
    out = path.with_name(path.name.removesuffix(CELLS) + ".csv")
    tables = dict(list(_read(out, ["cell", *COLUMNS]).groupby("cell")))
    failed, done = cells[cells.status == "failed"], cells[cells.status == "done"]
    remarks = [f"failed: {out}: {c.method} seed {c.seed}: {c.error}" for c in failed.itertuples()]
    tested = [cell in tables and bool((tables[cell].split == "test").any()) for cell in done.cell]
    if not all(tested):
        remarks.append(f"untested: {out}: validation scores alone of {tested.count(False)} runs")
    found = [
        (describe_run(f"{out}:{c.cell}", TrainConfig(**json.loads(c.settings)), c.data, c.commit), tables[c.cell])
        for c in done[tested].itertuples()
    ]
    return found, remarks


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table; ValueError if it is not whole."""
    text = path.read_text()
    if not text.endswith("\n"):
        raise ValueError(f"{path.name} breaks off")
    table = pd.read_csv(io.StringIO(text), dtype={**TYPES, "value": float})
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{path.name} has no column {missing[0]!r}")
    return table


BASELINE = "equal"
WORDS = {"auroc": "AUROC", "average_precision": "AP"}
SUMMARY_COLUMNS = [
    "group", "method", "seeds", "findings", "auroc", "auroc_low", "auroc_high", "average_precision",
    "average_precision_low", "average_precision_high", "difference", "difference_low", "difference_high", "difference_p",
    "pairs", "worst", "worst_auroc",
]  # fmt: skip


@dataclass(frozen=True)
class Report(RunCollection):
    """`Reruns` with what `summarise` makes of them."""

    summary: pd.DataFrame


def report(folder: str | Path = "runs", out: str | Path | None = None) -> Report:
    """Collect the runs below a folder and summarise them; see `collect_runs` for what is read and what may share a mean.

    out: a .csv, which gets the long table; the picture goes beside it, as .png. None writes nothing. Raises ValueError if
    there is no tested run, or `out` is no name for a new table.
    """
    if out is not None and (Path(out).suffix != ".csv" or Path(out).with_name(f"{Path(out).stem}_cells.csv").exists()):
        raise ValueError(f"out should be the name of a .csv, and not that of a sweep. Found {str(out)!r}.")
    found = collect_runs(folder)
    summary = summarise(found)
    if out is not None:
        write_table(out, found.rows)
        buffer, fig = BytesIO(), draw_summary(summary)
        fig.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(fig)
        write_file(Path(out).with_suffix(".png"), buffer.getvalue())
    return Report(found.runs, found.rows, found.remarks, summary)


def summarise(reruns: RunCollection) -> pd.DataFrame:
    """A row a group and method, in the order of every table.

    Columns: group, method, seeds (how many), findings (how many have an AUROC, in the run with the fewest); auroc and
    average_precision (macro, test, mean over seeds) with _low and _high (95%, Student's over seeds; NaN for one); difference
    (macro AUROC minus that of `equal`, paired by seed and data) with _low, _high and _p, and pairs (how many); worst (the
    finding with the lowest mean AUROC) and worst_auroc. Intervals are for other seeds, and say nothing of other patients
    unless each seed has data of its own.
    """
    test = reruns.rows[reruns.rows.split == "test"]
    macro = {name: part.set_index("run").value for name, part in test[test.task == "macro"].groupby("metric")}
    of_findings = test[(test.metric == "auroc") & ~test.task.isin(["macro", "worst"])]
    each = of_findings.pivot(index="run", columns="task", values="value")
    rows = []
    for group, members in reruns.runs.groupby("group", sort=False):
        runs = {method: part.set_index(["seed", "data"]).run for method, part in members.groupby("method")}
        baseline = runs.get(BASELINE)
        for method in method_order(runs):
            own = runs[method]
            row = {"group": group, "method": method, "seeds": len(own), "pairs": 0}
            row["findings"] = int(macro["auroc_tasks"][own].min())
            for metric in WORDS:
                row |= _over_seeds(metric, macro[metric][own].to_numpy())
            if baseline is not None and method != BASELINE:
                same = own.index.intersection(baseline.index)
                row["pairs"] = len(same)
                mine, its = (macro["auroc"][paths.loc[same]].to_numpy() for paths in (own, baseline))
                row |= _over_seeds("difference", mine - its) if len(same) else {}
            means = each.loc[own].mean().dropna()
            rows.append({**row, "worst": means.idxmin() if len(means) else "", "worst_auroc": means.min()})
    return pd.DataFrame(rows).reindex(columns=SUMMARY_COLUMNS)


def _over_seeds(name: str, values: Float[np.ndarray, " s"]) -> dict[str, float]:
    found = mean_interval(values)
    return {name: found["mean"], **{f"{name}_{part}": found[part] for part in ("low", "high", "p")}}


def format_summary(summary: pd.DataFrame) -> str:
    """The summary for a terminal: a group's name, then a line a method."""

    def said(row: pd.Series, name: str, sign: str = "") -> str:
        value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
        if np.isnan(value):
            return "-"
        return f"{value:{sign}.4f}" + ("" if np.isnan(low) else f" [{low:{sign}.4f}, {high:{sign}.4f}]")

    blocks = []
    for group, rows in summary.groupby("group", sort=False):
        shown = rows[["seeds", "findings"]].set_index(rows.method.map(method_label).rename(None))
        for name, words in WORDS.items():
            shown[words] = [said(row, name) for _, row in rows.iterrows()]
        shown["worst finding"] = [
            f"{row.worst} {row.worst_auroc:.3f}" if row.worst else "-" for row in rows.itertuples()
        ]
        if rows.pairs.any():
            shown["AUROC minus Equal"] = [said(row, "difference", "+") for _, row in rows.iterrows()]
            shown["pairs"] = rows.pairs.to_numpy()
        alone = "" if BASELINE in set(rows.method) else " (no Equal with these settings)"
        blocks.append(f"{group}{alone}\n{shown.to_string()}")
    return "\n\n".join(blocks)


def draw_summary(summary: pd.DataFrame) -> Figure:
    """The macro AUROC of each line, and its difference to `equal` where there is one: a row a line under its group's name,
    with its interval over seeds. Full dots: more than one seed; differences that stand Holm's correction in the group."""
    use_style()
    blocks = [rows for _, rows in summary.groupby("group", sort=False)]
    headed = pd.concat([part for rows in blocks for part in (rows[:1].assign(method=""), rows)], ignore_index=True)
    head = headed.method == ""
    stands = [p for rows in blocks for p in (np.nan, *holm(rows.difference_p.to_numpy()))]
    panels = {"auroc": ("macro AUROC, test", headed.seeds > 1)}
    if summary.pairs.any():
        panels["difference"] = ("macro AUROC minus Equal", pd.Series(stands) < 0.05)
    fig, axes = plt.subplots(
        1, len(panels), figsize=(1.5 + 4.5 * len(panels), 1 + 0.24 * len(headed)), sharey=True, squeeze=False
    )
    labels = [method_label(method) if method else "" for method in headed.method]
    colors = [family_color(method) if method else "none" for method in headed.method]
    for ax, (name, (words, filled)) in zip(axes[0], panels.items(), strict=True):
        columns = {"mean": headed[name], "low": headed[f"{name}_low"], "high": headed[f"{name}_high"]}
        forest_plot(ax, pd.DataFrame(columns).mask(head), labels, colors, list(filled))
        ax.set_xlabel(f"{words}, 95% over seeds")
        ax.tick_params(axis="x", labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=6)
    if len(panels) > 1:
        axes[0, 1].axvline(0, color="black", linewidth=1, linestyle=":")
    for place, group in zip(len(headed) - 1 - np.flatnonzero(head), headed.group[head], strict=True):
        where = {"xy": (0.01, place), "xycoords": axes[0, 0].get_yaxis_transform()}
        axes[0, 0].annotate(group, **where, fontsize=8, fontweight="bold", va="center", annotation_clip=False)
    return fig
