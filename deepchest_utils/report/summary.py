"""What runs say together: means over seeds, paired differences to equal weighting, one table and one picture."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from deepchest_utils.files import write_atomic
from deepchest_utils.labels import family_color, method_label, method_order
from deepchest_utils.plotting import forest_plot, use_style
from deepchest_utils.records import write_table
from deepchest_utils.report.collect import Reruns, collect_runs
from deepchest_utils.statistics import holm, mean_interval

BASELINE = "equal"
WORDS = {"auroc": "AUROC", "average_precision": "AP"}
COLUMNS = [
    "group", "method", "seeds", "findings", "auroc", "auroc_low", "auroc_high", "average_precision",
    "average_precision_low", "average_precision_high", "difference", "difference_low", "difference_high", "difference_p",
    "pairs", "worst", "worst_auroc",
]  # fmt: skip


@dataclass(frozen=True)
class Report(Reruns):
    """`Reruns` with what `summarise` makes of them."""

    summary: pd.DataFrame


def report(folder: str | Path = "runs", out: str | Path | None = None) -> Report:
    """Collect the runs below a folder and summarise them; see `collect_runs` for what is read and what may share a mean.

    out: a .csv, which gets the long table; the picture goes beside it, as .png. None writes nothing. Raises ValueError if
    there is no tested run, or `out` is no name for a new table.
    """
    if out is not None and (
        Path(out).suffix != ".csv" or Path(out).with_name(f"{Path(out).stem}_cells.csv").exists()
    ):
        raise ValueError(f"out should be the name of a .csv, and not that of a sweep. Found {str(out)!r}.")
    found = collect_runs(folder)
    summary = summarise(found)
    if out is not None:
        write_table(out, found.rows)
        buffer, fig = BytesIO(), draw_summary(summary)
        fig.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(fig)
        write_atomic(Path(out).with_suffix(".png"), buffer.getvalue())
    return Report(found.runs, found.rows, found.remarks, summary)


def summarise(reruns: Reruns) -> pd.DataFrame:
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
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _over_seeds(name: str, values: Float[np.ndarray, " s"]) -> dict[str, float]:
    found = mean_interval(values)
    return {name: found["mean"], **{f"{name}_{part}": found[part] for part in ("low", "high", "p")}}


def describe(summary: pd.DataFrame) -> str:
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
    headed = pd.concat(
        [part for rows in blocks for part in (rows[:1].assign(method=""), rows)], ignore_index=True
    )
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
