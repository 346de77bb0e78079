"""The picture and the numbers of the README's first screen, from the committed tables alone.

`python -m deepchest_utils.studies.figures.readme` draws figures/readme.png anew.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from deepchest_utils.notebook.figures import save_figure, use_style, zero_line
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.labels import GREY, VERMILION
from deepchest_utils.results.statistics import MARGIN
from deepchest_utils.studies import judgement, real

STUDY = ("all drawn anew, default phantom", "all drawn anew, NIH phantom")
TABLES = {  # committed table of one training set -> its row
    "judge_1000": "1,000 drawn images",
    "judge_4000": "4,000 drawn images",
    "judge_16000": "16,000 drawn images",
    "judge_noise": "4,000, a fifth mislabelled",
    "judge_nih": "real radiographs (NIH sample)",
}
FROZEN = "real radiographs, frozen encoder"
LOWEST = -0.07  # methods further left are counted, not drawn


def macro_differences() -> dict[str, pd.DataFrame]:
    """Each method minus Equal, macro AUROC and AP, by `judgement.macro_differences` or, over folds, `real.compare_folds`: a
    table a row of the picture."""
    results = PROJECT / "data" / "results"
    summaries = dict(zip(STUDY, judgement.study_summaries(results / "study_main.csv").values(), strict=True))
    summaries |= {row: pd.read_csv(results / f"{name}_summary.csv") for name, row in TABLES.items()}
    tables = {row: judgement.macro_differences(summary) for row, summary in summaries.items()}
    folds = real.compare_folds(real.choose(real.fold_rows(results / "real_main.csv")))
    return {**tables, FROZEN: folds.assign(seeds=folds.pairs)}


def draw() -> Figure:
    """DeepChest with its interval, and the other weightings as dots, against Equal: a row a data set."""
    tables = macro_differences()
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.0), sharey=True)
    for ax, (metric, label) in zip(axes, judgement.HEADLINE.items(), strict=True):
        zero_line(ax, MARGIN)
        for y, table in zip(reversed(range(len(tables))), tables.values(), strict=True):
            table = table[table.metric == metric].set_index("method")
            ours, others = table.loc["deepchest"], table.drop(index="deepchest")
            near = others["mean"][others["mean"] > LOWEST]
            ax.plot(near, [y] * len(near), "o", color=GREY, markersize=4, markerfacecolor="white", zorder=4)
            if len(near) < len(others):
                ax.text(LOWEST, y, f"← {len(others) - len(near)} more", ha="right", va="center", fontsize=8, color=GREY)
            ax.hlines(y, ours.low, ours.high, color=VERMILION, linewidth=2.5)
            ax.plot(ours["mean"], y, "D", color=VERMILION, markersize=6, zorder=5)
        ax.set_xlabel(f"{label}, minus Equal's")
        ax.grid(axis="y", visible=False)
        ax.set_xlim(LOWEST - 0.03, 0.035)
        ax.locator_params(axis="x", nbins=5)
        ax.text(-0.013, len(tables) - 0.4, "← worse", ha="right", fontsize=8)
        ax.text(0.013, len(tables) - 0.4, "better →", ha="left", fontsize=8)
        ax.text(0, len(tables) - 0.4, "too small", ha="center", fontsize=7.5, color="#555555")
    axes[0].set_yticks(range(len(tables)), [*reversed(tables)])
    axes[0].set_ylim(-0.5, len(tables) - 0.1)
    axes[1].plot([], [], "D-", color=VERMILION, markersize=6, label="DeepChest, 95% interval")
    axes[1].plot([], [], "o", color=GREY, markersize=4, markerfacecolor="white", label="other weightings")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    return fig


if __name__ == "__main__":
    use_style()
    save_figure(draw(), "readme")
