"""What the study's tables say: methods against Equal, the paper's claims, single findings, tuning, and the better rule."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from deepchest_utils.datasets.findings import FINDINGS
from deepchest_utils.results.labels import method_family, method_label
from deepchest_utils.results.metrics import METRICS
from deepchest_utils.results.statistics import GROUPS, format_interval, judge_differences, paired_differences
from deepchest_utils.studies.replication import ENDPOINT, study_rows

HEADLINE = {"auroc": "macro AUROC", "average_precision": "macro average precision"}


def is_one_net(method: str) -> bool:
    """Whether a method is one weighting of one shared network: no composition, no other architecture."""
    return method_family(method) not in ("composed", "architecture")


def study_summaries(table: Path, baselines: Sequence[str] = ("equal",)) -> dict[str, pd.DataFrame]:
    """The summary of `compare_methods` for each phantom of the study, by title: the unit, its `seeds`, is the replicate."""
    rows, by = study_rows(table), ["phantom", "metric", "task"]
    rows = rows[(rows.split == "test") & rows.task.isin([ENDPOINT, *FINDINGS])]
    parts = [judge_differences(paired_differences(rows, name, by), by).assign(baseline=name) for name in baselines]
    both = pd.concat(parts, ignore_index=True).rename(columns={"pairs": "seeds"})
    titles = {"default": "default phantom", "nih": "NIH phantom"}
    return {title: both[both.phantom == phantom].drop(columns="phantom") for phantom, title in titles.items()}


def macro_differences(summary: pd.DataFrame, baseline: str = "equal") -> pd.DataFrame:
    """Each method minus a baseline in macro AUROC and AP, judged; Holm over the methods of one network.

    Args:
        summary: Of `compare_methods`, or of one phantom in `study_summaries`.
    """
    means = summary.task.isin(["macro", ENDPOINT]) & summary.metric.isin(list(HEADLINE))
    rows = summary[(summary.baseline == baseline) & means & summary.method.map(is_one_net)]
    return judge_differences(rows, ["metric"])


def headline(summaries: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The columns of the main table and forest: title -> `macro_differences` in AUROC or AP, of each data set."""
    judged = {name: macro_differences(summary) for name, summary in summaries.items()}
    return {
        f"{words}, {name}" if len(judged) > 1 else words: table[table.metric == metric]
        for name, table in judged.items()
        for metric, words in HEADLINE.items()
    }


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


def over_another(summary: pd.DataFrame) -> pd.DataFrame:
    """DeepChest over another method minus that method alone, judged; from a summary with those baselines."""
    composed = [m for m in summary.method.unique() if method_family(m) == "composed"]
    rows = [summary[(summary.method == m) & (summary.baseline == m.partition("+")[2])] for m in composed]
    return judge_differences(pd.concat([summary.iloc[:0], *rows]).query("task == 'macro'"), ["metric"])


def best_peer(rows: pd.DataFrame, task: str) -> str:
    """The loss-weighting or gradient method with the best mean AUROC on validation, in the runs that all methods have."""
    val = rows[(rows.split == "val") & (rows.task == task) & (rows.metric == "auroc")]
    val = val[val.groupby("seed").method.transform("nunique") == val.method.nunique()]
    best = val.groupby(["method", "cell"]).value.max().groupby("method").mean()
    return str(best[[m for m in best.index if method_family(m) in ("loss", "gradient")]].idxmax())


def six_claims(
    tables: Mapping[str, pd.DataFrame], steps: pd.Series, composed: pd.DataFrame, task: str = "macro"
) -> pd.DataFrame:
    """The paper's claims C1 to C6 with what was measured and the verdict.

    Args:
        tables: Data set -> long table of a sweep or of the study, with equal, deepchest and their peers.
        steps: Method -> training step over the bare one.
        composed: Of `over_another`.
        task: The mean over findings: "macro" in the table of a sweep, `ENDPOINT` in that of the study.
    """
    to_peer, of_losses, verdicts = [], [], {}
    for name, rows in tables.items():
        peer, scores = best_peer(rows, task), ["accuracy", *HEADLINE]
        differences = seed_differences(rows[rows.method.isin(["deepchest", peer])], scores, peer, [task])
        said = [f"{METRICS[row.metric][0]} {in_words(row)}" for _, row in differences.iterrows()]
        chosen = (rows.method == peer) & (rows.split == "test") & (rows.task == task) & (rows.metric == "accuracy")
        ceiling = 1 - rows[chosen].value.mean()
        to_peer.append(
            f"{name}, minus {method_label(peer)}: {', '.join(said)}; at most {ceiling:+.3f} accuracy is possible"
        )
        findings = sorted(
            set(rows.task[(rows.metric == "loss") & (rows.split == "test")]) - {*GROUPS, "worst", ENDPOINT}
        )
        losses = seed_differences(rows[rows.method.isin(["deepchest", "equal"])], ["loss"], tasks=findings)
        losses = judge_differences(losses, ["metric"])  # one method: Holm over the findings
        lower, higher = (losses.task[losses.verdict.str.startswith(word)].tolist() for word in ("lower", "higher"))
        of_losses.append(
            f"{name}, test loss minus Equal's, {len(losses)} findings: lower {', '.join(lower) or 'none'}; "
            f"higher {', '.join(higher) or 'none'}"
        )
        verdicts[name] = "mixed" if lower and higher else "shown" if lower else "not shown"
    same = len(set(verdicts.values())) == 1
    of_tasks = verdicts[name] if same else ", ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
    auroc = composed[composed.metric == "auroc"]
    words = [f"{row.verdict} over {method_label(row.method.partition('+')[2])}" for row in auroc.itertuples()]
    only = "shown against methods that balance gradients on the parameters, not against others"
    ratios = ", ".join(f"{method_label(m)} {ratio:.2f}" for m, ratio in steps.items())
    text = {
        "C1 +7% accuracy over the best method": ("; ".join(to_peer), "not testable in accuracy"),
        "C2 three times the training speed": (
            f"one step over the bare one: {ratios} (steps, not steps to a score)",
            only,
        ),
        "C3 much less memory": ("DeepChest keeps one number a task (notebook 06 measures)", only),
        "C4 lower losses of single tasks": ("; ".join(of_losses), of_tasks),
        "C5 no gradients, any architecture": ("the rule reads one accuracy a task and epoch", "holds by construction"),
        "C6 improves what it is applied on top of": (
            f"macro AUROC of DeepChest over {len(words)} methods, minus theirs",
            ", ".join(words) or "not tested here",
        ),
    }
    return pd.DataFrame.from_dict(text, orient="index", columns=["measured here", "verdict"])
