"""Does sharing help? One network for all findings against one each, and what training with another finding does to one.

data/results/study.sh calls `main`; data/results/PROTOCOL_SHARING.md says what is compared. A stage may be stopped and
called again: a finished cell is not run twice.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from deepchest_utils.datasets import Splits
from deepchest_utils.datasets.findings import FINDINGS, NIH_COOCCURRENCE, NIH_IMAGES
from deepchest_utils.datasets.phantom.population import latent_correlation
from deepchest_utils.models.trunks import BACKBONES, thin_resnet18
from deepchest_utils.results import store
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, holm, judge_differences, paired_differences
from deepchest_utils.results.store import RunTable
from deepchest_utils.studies import replication
from deepchest_utils.studies.gradients import GradientStatistics, gradient_statistics
from deepchest_utils.studies.levers import Rounds, Timed
from deepchest_utils.studies.replication import ENDPOINT, PHANTOMS, endpoint_findings, replicate, run_rounds, study_rows
from deepchest_utils.sweep import Setting, Trial, draw_settings
from deepchest_utils.training import Run, setup

Matrix = Float[np.ndarray, "k k"]  # a row the finding that gains or loses, a column the one that it is trained with

NARROW, CHANNELS = "resnet18_narrow", (4, 7, 15, 36)  # fourteen have the size of one resnet18_thin, see the protocol
BACKBONES[NARROW] = partial(thin_resnet18, channels=CHANNELS)
ARMS: dict[str, dict[str, Any]] = {"shared": {}, "single": {"architecture": "single_task", "backbone": NARROW}}
LENGTHS = {250: 96, 1000: 96, 4000: 24, 16000: 6}  # training images -> epochs
SETTINGS = draw_settings(0, 4, (2e-3, 2e-2), (0.05, 1.0))
TUNING, MAIN = 4001, range(4101, 4106)  # replicates, used for nothing else
SIZE, EARLY, EPOCHS = 4000, 3, 10  # of the transfer matrix: training images, epochs until cosines are taken, of a pair
UNUSED, MEASURED = 100, 4000  # validation images where nothing is chosen, and where gradients are measured
ALL, AND, PRODUCT = "all", " + ", "gradient product with "
SLOWER = 5.2  # an epoch of fourteen narrow networks over one of the shared network, on one thread
EQUAL_SIZE, FULL_SIZE, PAIRS = "equal size", "fourteen times the size", "in pairs"


class Arm(Timed):
    """All findings in one network, or each in a narrow one of its own."""

    def seconds(self) -> float:
        return super().seconds() * (SLOWER if self.config.backbone == NARROW else 1.0)


class Together(Trial):
    """The usual network trained on some findings for so many epochs, the others with a weight of 0."""

    @property
    def findings(self) -> list[str]:
        return [f for f, weight in zip(FINDINGS, self.config.method_options["values"], strict=True) if weight]

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        """Of the network of all findings, add the inner products of its gradients on validation to the test scores."""
        if self.tune or self.method != ALL:
            return
        order = np.arange(len(data.val) // 64 * 64).reshape(-1, 64)
        images = setup.inputs(data.val.images, order, torch.device("cpu"), torch.contiguous_format)
        found = gradient_statistics(
            run.model.train(), zip(images, torch.from_numpy(data.val.labels[order]), strict=True)
        )
        products = {PRODUCT + f: row for f, row in zip(data.findings, found.products.tolist(), strict=True)}
        base = {"method": self.config.method, "seed": self.config.seed, "epoch": run.best_epoch, "split": "test"}
        rows = store.to_table(store.task_rows(base, products, data.findings, summarise=False))
        store.write_table(folder / store.TEST, pd.concat([run.test, rows], ignore_index=True))

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """Scores of the findings that were trained, after the last epoch, and products of gradients."""
        table = run.rows[run.rows.task.isin(self.findings) & (run.rows.epoch == self.config.epochs)]
        table = table[table.split == ("val" if self.tune else "test")]
        wanted = table.metric.isin(BOOTSTRAP_METRICS) | table.metric.str.startswith(PRODUCT)
        return table[wanted].reindex(columns=store.COLUMNS)

    def seconds(self) -> float:
        """As those of a replicate; of the network of all findings with the gradients of fourteen losses."""
        c = self.config
        of_gradients = 20.0 if self.method == ALL and not self.tune else 0.0
        return (
            float(c.epochs * (0.9 * c.data_options["num_train"] / 4000 + c.data_options["num_val"] / 20000))
            + 1.5
            + of_gradients
        )


def counted() -> list[str]:
    """The findings of the endpoint."""
    return endpoint_findings(replicate("equal", TUNING, {}).config)


def best_setting(rows: pd.DataFrame) -> Setting:
    """The setting with the highest AUROC on validation, a mean over cells and findings of the best epoch that the table
    has of each; the first of SETTINGS before there is one. Settings with which a cell diverged do not count."""
    best = rows[rows.metric == "auroc"].groupby(["lr", "weight_decay", "cell", "task"]).value.max()
    found = best.groupby(["lr", "weight_decay"]).agg(["mean", "size"])
    if found.empty:
        return SETTINGS[0]
    lr, decay = found["mean"][found["size"] == found["size"].max()].idxmax()
    return {"lr": float(lr), "weight_decay": float(decay)}


def sizes(out: Path) -> Rounds:
    """Both arms at each number of images: four settings for half the epochs, then the best on `MAIN`."""

    def cell(arm: str, size: int, number: int, setting: Setting, epochs: int, tune: bool = False) -> Arm:
        options = {**PHANTOMS["nih"], "num_train": size}
        made = replicate("equal", number, setting, tune, data_options=options, epochs=epochs, **ARMS[arm])
        return Arm(arm, made.config, tune=tune, resamplings=0)

    table, each = "sharing_sizes", [(size, arm) for size in LENGTHS for arm in ARMS]
    yield f"{table}_tuning", [cell(arm, n, TUNING, s, LENGTHS[n] // 2, True) for n, arm in each for s in SETTINGS]
    rows = study_rows(out / f"{table}_tuning.csv")
    best = {(n, arm): best_setting(rows[(rows.num_train == n) & (rows.method == arm)]) for n, arm in each}
    yield table, [cell(arm, n, number, best[n, arm], LENGTHS[n]) for number in MAIN for n, arm in each]


def transfer(out: Path) -> Rounds:
    """Each finding alone, each pair, and all: one setting for the networks of one and two findings, one for that of all."""
    findings = counted()
    alone = {f: [f] for f in findings}
    pairs = {AND.join(pair): list(pair) for pair in combinations(findings, 2)}
    groups = {**alone, **pairs, ALL: list(FINDINGS)}

    def cell(name: str, number: int, setting: Setting, epochs: int, tune: bool = False, **images: int) -> Together:
        spec = f"static(values={[float(f in groups[name]) for f in FINDINGS]})"
        options = {**PHANTOMS["nih"], "num_train": SIZE, **images}
        made = replicate(spec, number, setting, tune, data_options=options, epochs=epochs, select="last")
        return Together(name, made.config, tune=tune, resamplings=0)

    table = "sharing_transfer"
    yield f"{table}_tuning", [cell(name, TUNING, s, EPOCHS, True) for name in (*alone, ALL) for s in SETTINGS]
    rows = study_rows(out / f"{table}_tuning.csv")
    rows = rows[rows.task.isin(findings)]
    few, every = (best_setting(rows[(rows.method == ALL) == whole]) for whole in (False, True))
    cells = []
    for number in MAIN:
        cells += [cell(name, number, few, EPOCHS, num_val=UNUSED) for name in (*alone, *pairs)]
        cells += [cell(ALL, number, every, epochs, num_val=MEASURED) for epochs in (EARLY, EPOCHS)]
    yield table, cells


STAGES: dict[str, Callable[[Path], Rounds]] = {"sizes": sizes, "transfer": transfer}


def sharing_rows(out: Path) -> pd.DataFrame:
    """Endpoints on test of what was trained together ("shared") and apart ("single"), in a row each: kind, num_train, method,
    seed, metric and value. kind is `EQUAL_SIZE`; `FULL_SIZE`, where all share one network or each finding has such a network
    alone; or `PAIRS`, where it has it alone or with another finding."""
    rows = study_rows(out / "sharing_sizes.csv").query(f"split == 'test' and task == '{ENDPOINT}'")
    parts = [rows[rows.metric.isin(BOOTSTRAP_METRICS)].assign(kind=EQUAL_SIZE)]
    rows = study_rows(out / "sharing_transfer.csv")
    rows = rows[rows.task.isin(counted()) & rows.metric.isin(BOOTSTRAP_METRICS) & (rows.epochs == EPOCHS)]
    single, paired = rows.method.isin(FINDINGS), rows.method.str.contains(AND, regex=False)
    for kind, shared in ((FULL_SIZE, rows.method == ALL), (PAIRS, paired)):
        for method, chosen in (("shared", shared), ("single", single)):
            means = rows[chosen].groupby(["num_train", "seed", "metric"]).value.mean().reset_index()
            parts.append(means.assign(kind=kind, method=method))
    return pd.concat(parts, ignore_index=True)[["kind", "num_train", "method", "seed", "metric", "value"]]


def compare_sharing(rows: pd.DataFrame) -> pd.DataFrame:
    """Shared minus single, paired by replicate and judged; Holm over the numbers of images of one kind and metric."""
    return judge_differences(paired_differences(rows, "single", ["kind", "num_train", "metric"]), ["kind", "metric"])


def transfers(out: Path) -> Float[np.ndarray, "r k k"]:
    """Of R replicates whose networks are all there, the AUROC of each of the K `counted` findings when it is trained with
    another one, minus that alone. NaN on the diagonal."""
    rows = RunTable(out / "sharing_transfer.csv").rows
    rows = rows[(rows.metric == "auroc") & (rows.method != ALL)]
    partners = [
        next((f for f in m.split(AND) if f != task), task) for m, task in zip(rows.method, rows.task, strict=True)
    ]
    findings, seeds = counted(), sorted(rows.seed.unique())
    table = rows.assign(partner=partners).pivot(index=["seed", "task"], columns="partner", values="value")
    table = table.reindex(pd.MultiIndex.from_product([seeds, findings]), columns=findings)
    scores = table.to_numpy().reshape(len(seeds), len(findings), len(findings))
    scores = scores[~np.isnan(scores).any((1, 2))]
    own = np.diagonal(scores, axis1=1, axis2=2)[:, :, None]
    return np.where(np.eye(len(findings), dtype=bool), np.nan, scores - own)


def predictors(out: Path, epochs: int = EARLY) -> dict[str, Matrix]:
    """What might tell, for each pair of the `counted` findings, which transfer: the cosine of their gradients on the trunk
    after so many epochs, from inner products that are means over replicates; how much more often than by chance they
    come together; and the latent correlation that the phantom draws them with."""
    rows = study_rows(out / "sharing_transfer.csv").query("epochs == @epochs")
    means = rows[rows.metric.str.startswith(PRODUCT)].pivot_table(index="task", columns="metric", values="value")
    products = means.reindex([*FINDINGS], columns=[PRODUCT + f for f in FINDINGS]).to_numpy()
    number = NIH_COOCCURRENCE.diagonal()
    found = {
        "gradient cosine": GradientStatistics(torch.tensor(products), torch.zeros(len(FINDINGS))).cosines().numpy(),
        "label lift": NIH_COOCCURRENCE * NIH_IMAGES / np.outer(number, number),
        "drawn correlation": latent_correlation(),
    }
    k = [FINDINGS.index(finding) for finding in counted()]
    return {name: np.where(np.eye(len(k), dtype=bool), np.nan, m[np.ix_(k, k)]) for name, m in found.items()}


def _row_ranks(matrix: Matrix) -> Matrix:
    """Ranks within each row, centred and of length 1; 0 for what is NaN."""
    ranks = stats.rankdata(matrix, axis=1, nan_policy="omit")
    known = ~np.isnan(ranks)
    ranks = np.where(known, ranks - (known.sum(1, keepdims=True) + 1) / 2, 0.0)
    length = np.sqrt((ranks**2).sum(1, keepdims=True))
    return np.asarray(np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0))


def agreement(a: Matrix, b: Matrix) -> float:
    """Spearman's correlation over the partners of a finding, a mean over findings: what a finding gains from any partner,
    and the luck of its network alone, play no part. A finding that has less than two partners with a value is left out."""
    unknown = np.isnan(a) | np.isnan(b)
    ranks = [_row_ranks(np.where(unknown, np.nan, m)) for m in (a, b)]
    rows = (~unknown).sum(1) > 1
    return float((ranks[0] * ranks[1]).sum(1)[rows].mean())


def repeatability(transfer: Float[np.ndarray, "r k k"]) -> float:
    """Agreement of the mean over half of the replicates with that over the others, a mean over all ways to halve them."""
    every = set(range(len(transfer)))
    halves = [[*half] for half in combinations(sorted(every), len(every) // 2)]
    return float(np.mean([agreement(transfer[h].mean(0), transfer[[*every - {*h}]].mean(0)) for h in halves]))


def judge_predictors(transfer: Float[np.ndarray, "r k k"], named: dict[str, Matrix], draws: int = 2000) -> pd.DataFrame:
    """How well each predictor tells which partners a finding gains from.

    Returns:
        A row a predictor, best first: agreement with the mean transfer; low and high, 95% over replicates and findings that
        are drawn with replacement; p, two-sided, from permutations of the findings of the predictor (Mantel's test, since
        entries share findings); p_holm; behind, how far its agreement lies below the best one's, with behind_low and behind_high.
    """
    rng, (r, k, _), mean = np.random.default_rng(0), transfer.shape, transfer.mean(0)
    rows, drawn = [], np.empty((draws, len(named)))
    for name, values in named.items():
        known = np.flatnonzero(~np.isnan(values).all(1))  # without the findings whose gradient has no signal
        own, ranks = _row_ranks(mean[np.ix_(known, known)]), _row_ranks(values[np.ix_(known, known)])
        orders = rng.permuted(np.tile(np.arange(len(known)), (draws, 1)), axis=1)
        chance = np.abs((ranks[orders[:, :, None], orders[:, None, :]] * own).sum((1, 2)))
        observed = (own * ranks).sum()
        p = (1 + (chance >= abs(observed) - 1e-9).sum()) / (1 + draws)
        rows.append({"predictor": name, "agreement": observed / len(known), "p": p})
    for draw in drawn:
        who, which = np.asarray(rng.integers(k, size=k)), rng.integers(r, size=r)
        sample = np.where(who[:, None] == who, np.nan, transfer[which].mean(0)[np.ix_(who, who)])
        draw[:] = [agreement(sample, values[np.ix_(who, who)]) for values in named.values()]
    table = pd.DataFrame(rows)
    best = int(table.agreement.to_numpy().argmax())
    table["low"], table["high"] = np.nanquantile(drawn, (0.025, 0.975), axis=0)
    table["p_holm"], table["behind"] = holm(table.p.to_numpy()), table.agreement.max() - table.agreement
    table["behind_low"], table["behind_high"] = np.nanquantile(drawn[:, [best]] - drawn, (0.025, 0.975), axis=0)
    return table.sort_values("agreement", ascending=False, ignore_index=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """sizes or transfer: --out FOLDER [--jobs N] [--plan]."""
    given = replication.stage_parser(main.__doc__, STAGES).parse_args(arguments)
    run_rounds(STAGES[given.stage](given.out), given.out, given.jobs, given.plan)
