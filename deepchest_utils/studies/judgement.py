"""What the study's tables say: methods against Equal, the paper's claims, single findings, tuning, and the better rule."""

from collections.abc import Mapping, Sequence

import pandas as pd

from deepchest_utils.results.labels import method_family, method_label
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import format_interval, judge_differences, paired_differences
from deepchest_utils.results.store import RunTable

HEADLINE = {"auroc": "macro AUROC", "average_precision": "macro average precision"}


def is_one_net(method: str) -> bool:
    """Whether a method is one weighting of one shared network: no composition, no other architecture."""
    return method_family(method) not in ("composed", "architecture")


def macro_differences(summary: pd.DataFrame, baseline: str = "equal") -> pd.DataFrame:
    """Each method minus a baseline in macro AUROC and AP, judged; Holm over the methods of one network.

    Args:
        summary: Of `compare_methods`. The tables of a study with replicates go through `replication.compare` instead;
            both have the columns method, metric, mean, low, high and those of `judge_differences`.
    """
    rows = summary[(summary.baseline == baseline) & (summary.task == "macro") & summary.method.map(is_one_net)]
    return judge_differences(rows[rows.metric.isin(list(HEADLINE))], ["metric"])


def headline(differences: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The columns of the main table and forest: title -> differences in AUROC or AP, of each phantom if there are two."""
    tables = {words: differences[differences.metric == metric] for metric, words in HEADLINE.items()}
    if "phantom" not in differences:
        return tables
    phantoms = {"NIH" if phantom == "nih" else phantom: phantom for phantom in differences.phantom.unique()}
    return {f"{w}, {n} phantom": t[t.phantom == p] for n, p in phantoms.items() for w, t in tables.items()}


def seed_differences(
    rows: pd.DataFrame, metrics: Sequence[str], baseline: str = "equal", tasks: Sequence[str] = ("macro",)
) -> pd.DataFrame:
    """Each method minus the baseline in test scores, paired by seed and judged; Holm over the methods of each metric and
    task. The interval is for another seed on the same training set and patients."""
    chosen = rows[(rows.split == "test") & rows.metric.isin(metrics) & rows.task.isin(tasks)]
    return judge_differences(paired_differences(chosen, baseline), ["metric", "task"])


def in_words(row: pd.Series) -> str:
    """A judged difference as "+0.0041 [-0.0076, +0.0158], open"."""
    return f"{format_interval(row)}, {row.verdict}"


def verdict_table(differences: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a method, best first by the first table; of each title -> table the difference in words and the smallest
    difference that would have been found with 80% power."""
    columns = {}
    for title, table in differences.items():
        judged = table.set_index("method").sort_values("mean", ascending=False)
        columns[title] = judged.apply(in_words, axis=1)
        columns[f"findable, {title}"] = judged.smallest.map("{:.3f}".format)
    found = pd.DataFrame(columns).loc[lambda rows: list(next(iter(columns.values())).index)]
    return found.rename(index=method_label).rename_axis(None)


def six_claims(tables: RunTable, summary: pd.DataFrame, steps: pd.Series) -> pd.DataFrame:
    """The paper's claims C1 to C6 with what was measured and the verdict.

    Args:
        tables: With deepchest, its oracle, and peers of the families loss and gradient.
        summary: Of `compare_methods`, with the baselines equal and deepchest.
        steps: Method -> training step over the bare one.
    """
    rows = tables.rows
    done = [m for m in tables.cells.method[tables.cells.status == "done"].unique() if is_one_net(m)]
    val = rows[(rows.split == "val") & (rows.task == "macro") & (rows.metric == "auroc")]
    best = val.groupby(["method", "cell"]).value.max().groupby("method").mean()
    peer = best[[m for m in done if method_family(m) in ("loss", "gradient")]].idxmax()
    accuracy = seed_differences(rows, ["accuracy"], peer).set_index("method").loc["deepchest"]
    macro = rows[(rows.split == "test") & (rows.task == "macro") & (rows.metric == "accuracy")]
    ceiling = 1 - macro[macro.method == peer].value.mean()
    to_peer = macro_differences(summary, peer) if peer in set(summary.baseline) else None
    if to_peer is None:  # the summary has the peer minus DeepChest
        turned = summary[(summary.baseline == "deepchest") & (summary.method == peer) & (summary.task == "macro")]
        to_peer = judge_differences(turned.assign(mean=-turned["mean"], method="deepchest"), ["metric"])
    of_peer = {row.metric: in_words(row) for _, row in to_peer[to_peer.method == "deepchest"].iterrows()}
    findings = sorted(set(rows.task[rows.metric == "prevalence"]))
    losses = seed_differences(rows[rows.method.isin(["deepchest", "equal"])], ["loss"], tasks=findings)
    losses = judge_differences(losses, ["metric"])  # one method: Holm over the findings
    lower, higher = (losses.task[losses.verdict.str.startswith(word)].tolist() for word in ("lower", "higher"))
    mixed = "mixed" if lower and higher else "shown" if lower else "not shown"
    over = [
        summary[(summary.method == m) & (summary.baseline == m.partition("+")[2]) & (summary.task == "macro")]
        for m in tables.cells.method.unique()
        if method_family(m) == "composed"
    ]
    composed = pd.DataFrame({"metric": [], "method": [], "verdict": []})
    if over:
        composed = judge_differences(pd.concat(over), ["metric"]).query("metric == 'auroc'")
    words = [f"{r.verdict} over {method_label(r.method.partition('+')[2])}" for r in composed.itertuples()]
    only = "shown against methods that balance gradients on the parameters, not against others"
    text = {
        "C1 +7% accuracy over the best method": (
            f"accuracy minus {method_label(peer)} {in_words(accuracy)}; at most {ceiling:+.3f} is possible; "
            + "; ".join(f"{METRICS[m][0]} {said}" for m, said in of_peer.items()),
            "not testable in accuracy",
        ),
        "C2 three times the training speed": (
            "one step over the bare one: "
            + ", ".join(f"{method_label(m)} {ratio:.2f}" for m, ratio in steps.items())
            + " (steps, not steps to a score)",
            only,
        ),
        "C3 much less memory": ("DeepChest keeps one number a task (notebook 06 measures)", only),
        "C4 lower losses of single tasks": (
            f"test loss minus Equal's, {len(losses)} findings: lower {', '.join(lower) or 'none'}; higher "
            f"{', '.join(higher) or 'none'}; the others open or equivalent",
            mixed,
        ),
        "C5 no gradients, any architecture": ("the rule reads one accuracy a task and epoch", "holds by construction"),
        "C6 improves what it is applied on top of": (
            f"macro AUROC of DeepChest over {len(words)} methods, minus theirs",
            ", ".join(words) or "not tested here",
        ),
    }
    return pd.DataFrame.from_dict(text, orient="index", columns=["measured here", "verdict"])
