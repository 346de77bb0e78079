"""A cell of a sweep: one run, what it is called, and what comes of it."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from deepchest_utils.config import TrainConfig
from deepchest_utils.datasets import Splits, load_dataset
from deepchest_utils.files import exclusive_lock
from deepchest_utils.paths import PROJECT
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, bootstrap_metric
from deepchest_utils.results.store import RunTable, environment_report, task_rows, to_table
from deepchest_utils.training import Run, train
from deepchest_utils.weighting import check_names
from deepchest_utils.weighting.spec import parse_method

PATIENTS_SEED = 20_250_523  # of the bootstrap: every cell draws the same patients, so that cells can be compared
REPLICATES = 100
ONE_AT_A_TIME = Lock()  # in a process: threads, as a Dask worker may have, share PyTorch's random state


@dataclass(frozen=True)
class Trial:
    """One run. method: as the user wrote it, options included. config: the run. tune: keep its macro AUROC on validation
    alone, for `best_lr`: what is chosen with must not see the test. history: keep the weights and the validation AUROC of every
    epoch too, beside the test scores."""

    method: str
    config: TrainConfig
    tune: bool = False
    history: bool = True

    @property
    def settings(self) -> dict[str, object]:
        """What differs from TrainConfig's defaults, where it runs aside."""
        found = self.config.identity()
        default = TrainConfig().identity()
        return {name: value for name, value in found.items() if value != default[name]}

    @property
    def id(self) -> str:
        """A short hash of the settings: the same run, the same id, also when TrainConfig grows."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class TrialResult:
    """What came of a cell. replicates: (M, R, K) of BOOTSTRAP_METRICS over test patients; empty if it failed."""

    cell: Trial
    record: dict[str, object]
    rows: pd.DataFrame
    replicates: np.ndarray


def make_trials(
    base: TrainConfig,
    lists: dict[str, Sequence[Any]],
    lr: dict[str, float] | None = None,
    tune: bool = False,
    history: bool = True,
) -> list[Trial]:
    """The product of the lists, seed by seed: the first cells are one whole comparison.

    lists: field of TrainConfig -> values; those of "method" may carry options and an architecture,
    `deepchest(floor=0.25)` or `equal@single_task`. lr: a learning rate for each method, as `best_lr` finds them, in
    place of the lists'; another architecture takes the method's unless it has its own. tune, history: see `Cell`. Raises
    ValueError for an unknown field, a value that TrainConfig refuses, or a method without a learning rate.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    known -= {"method_options", "run_dir"}  # the method's own text has its options, and the sweep its folders
    if unknown := set(lists) - known:
        raise ValueError(f"{min(unknown)!r} is no setting of a run. There are {', '.join(sorted(known))}.")
    if "method" in lists and base.method_options:
        raise ValueError(
            f"method_options belong to one method, and the sweep has its own. Found {base.method_options}: "
            "write them into the method's text, as in deepchest(floor=0.25)."
        )
    names = sorted(lists, key=lambda name: name != "seed")
    cells = {}
    for values in itertools.product(*(lists[name] for name in names)):
        given = dict(zip(names, values, strict=True))
        if "method" in given:
            spec = given["method"]
            method, _, architecture = spec.partition("@")
            given["method"], given["method_options"] = parse_method(method)
            check_names(given["method"])
            if architecture:
                given["architecture"] = architecture
        else:
            spec = method = base.method
        if lr is not None:
            if not {spec, method} & set(lr):
                raise ValueError(f"lr should have every method's. Found none for {spec!r}, only {', '.join(lr)}.")
            given["lr"] = lr[spec if spec in lr else method]
        cell = Trial(spec, dataclasses.replace(base, **given), tune, history)
        cells[cell.id] = cell
    return list(cells.values())


@lru_cache(maxsize=1)
def _load(described: str) -> Splits:
    name, root, size, seed, split, options = json.loads(described)
    return load_dataset(name, root, size, seed, split, **options)


def data_of(c: TrainConfig) -> Splits:
    """The run's data; those of the last run are kept at hand."""
    return _load(json.dumps([c.dataset, c.data_root, c.image_size, c.data_seed, c.split, c.data_options]))


def run_trial(cell: Trial, threads: int, folder: str | None = None) -> TrialResult:
    """Train and test; whatever goes wrong in it is noted. folder: keeps the run's checkpoint, from which a stopped
    cell goes on."""
    with ONE_AT_A_TIME:
        return _run_trial(cell, threads, folder)


def _run_trial(cell: Trial, threads: int, folder: str | None) -> TrialResult:
    import torch

    torch.set_num_threads(threads)
    start, rows, replicates = time.time(), to_table([]), np.empty(0, dtype=np.float32)
    record = {"cell": cell.id, "method": cell.method, "seed": cell.config.seed, "status": "done", "error": ""}
    try:
        c = dataclasses.replace(cell.config, run_dir=folder)
        data = data_of(c)
        record["data"] = data.fingerprint()
        run = train(c, data)
        rows = _kept_rows(run, data, cell).assign(method=cell.method)
        if not cell.tune:
            replicates = _replicates(run, data)
        if folder:  # its checkpoint has served
            shutil.rmtree(folder)
    except Exception as error:
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record |= {"settings": json.dumps(cell.settings, sort_keys=True), "seconds": round(time.time() - start, 1)}
    return TrialResult(cell, record | environment_report(), rows.assign(cell=cell.id), replicates)


def _kept_rows(run: Run, data: Splits, cell: Trial) -> pd.DataFrame:
    """The test table, the prevalence, and of the history what the study asks: weights that moved, the validation AUROC."""
    history = run.history
    auroc = history[(history.metric == "auroc") & (history.split == "val")]
    if cell.tune:
        return auroc[auroc.task == "macro"]
    weights = history[history.metric == "weight"]
    if weights.groupby("task").value.nunique().max() == 1:
        weights = weights[:0]
    base = {"method": "", "seed": run.config.seed, "epoch": 0, "split": "train"}
    known = to_table(task_rows(base, {"prevalence": data.train.prevalence}, data.findings, summarise=False))
    return pd.concat([run.test, known, *([weights, auroc] if cell.history else [])], ignore_index=True)


def _replicates(run: Run, data: Splits) -> np.ndarray:
    """(M, R, K) float32: the test scores in R resamplings of the patients."""
    rng, test = np.random.default_rng(PATIENTS_SEED), data.test
    each = [
        bootstrap_metric(test.labels, [run.logits["test"]], test.patients, rng, metric, REPLICATES)
        for metric in BOOTSTRAP_METRICS
    ]
    return np.concatenate(each).astype(np.float32)


def failed_trial(cell: Trial, error: str) -> TrialResult:
    """Of a cell whose process could not say what went wrong in it."""
    record = {"cell": cell.id, "method": cell.method, "seed": cell.config.seed, "status": "failed"}
    record |= {"error": error, "settings": json.dumps(cell.settings, sort_keys=True)}
    return TrialResult(cell, record, to_table([]).assign(cell=cell.id), np.empty(0, dtype=np.float32))


BACKENDS = ("joblib", "dask")


def check_data(tables: RunTable, cells: Sequence[Trial]) -> None:
    """Raise ValueError if a finished cell ran on other data than it would now: cells do not say where data lie."""
    known = tables.cells[tables.cells.status == "done"].set_index("cell")
    for cell in sorted(cells, key=lambda c: json.dumps(c.config.data_options, sort_keys=True)):
        if cell.id in known.index and known.data[cell.id] != data_of(cell.config).fingerprint():
            raise ValueError(
                f"{tables.out} has {cell.method} seed {cell.config.seed} on other data than "
                f"{cell.config.dataset} in {cell.config.data_root} now. Choose another out."
            )


def run_sweep(
    cells: Sequence[Trial],
    out: str | Path,
    jobs: int | None = None,
    backend: str = "joblib",
    scheduler: str | None = None,
    folder: str | Path | None = None,
) -> RunTable:
    """Run every cell that has not finished yet; a stop loses the epoch it is in, a failed cell does not stop the rest
    and is tried again by the next call.

    out: the long table, a .csv. jobs: processes at a time, default one a core; each has an even share of the cores.
    backend: "joblib", or "dask" with the address of its scheduler. folder: of the checkpoints of unfinished runs, default
    `runs/sweeps/<name of out>`. Raises ValueError for an argument that is not as it should be, for finished cells of
    other data, or while another sweep is at work on the same folder.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend should be one of {', '.join(BACKENDS)}. Found {backend!r}.")
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(f"scheduler goes with backend dask, and dask with it. Found {backend!r}, {scheduler!r}.")
    cores = os.cpu_count() or 1
    jobs = cores if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs should be at least 1. Found {jobs}.")
    threads = max(1, cores // jobs)
    cells = list({cell.id: cell for cell in cells}.values())  # the same one twice would share a checkpoint
    tables = RunTable(out)
    folder = Path(folder) if folder else PROJECT / "runs" / "sweeps" / tables.out.stem
    with exclusive_lock(tables.out.with_suffix(".lock"), "sweep"):
        tables = RunTable(out)  # once more: another sweep may have ended just now
        finished = tables.finished()
        if backend == "joblib":  # a cluster may have data that are not here
            check_data(tables, cells)
        tested = set(tables.rows.cell[tables.rows.split == "test"])  # not those that were there to tune
        waiting = [c for c in cells if c.id not in finished or not (c.tune or c.id in tested)]
        if scheduler is not None:  # of backend dask
            outcomes = with_dask(waiting, scheduler, threads)
        else:
            outcomes = with_joblib(waiting, jobs, threads, folder)
        bar = tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="sweep", unit="run", disable=None)
        with bar:
            for outcome in outcomes:
                tables.add(outcome)
                bar.set_postfix_str(
                    f"{outcome.cell.method} seed {outcome.cell.config.seed}: {outcome.record['status']}"
                )
                bar.update()
    return tables


def _beside(sweep: int, run: Callable[..., TrialResult], *arguments: object) -> TrialResult:
    """`run(*arguments)` in a process that ends with that of the sweep, even if that one is killed: the next sweep would find
    it at work in the cell's folder."""
    if os.getpid() != sweep:
        _end_with(sweep)
    return run(*arguments)


@cache  # once a process
def _end_with(parent: int) -> None:
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_joblib(cells: list[Trial], jobs: int, threads: int, folder: Path) -> Iterator[TrialResult]:
    """In `jobs` processes of this machine; with one job in this process. A process that dies takes its pool along: the
    cells that were in it are tried once more at the end, one at a time, and noted as failed if they die alone."""
    from joblib import Parallel, delayed, parallel_config

    waiting, suspects = list(cells), list[Trial]()
    # a pool of one would be this process, which no cell should take along
    processes = 1 if jobs == 1 else max(2, min(jobs, len(cells)))
    while waiting or suspects:
        batch = waiting or suspects[:1]
        started, finished, error = list[Trial](), set[str](), ""

        def start(batch: list[Trial] = batch, started: list[Trial] = started) -> Iterator[object]:
            for cell in batch:
                started.append(cell)
                yield delayed(_beside)(os.getpid(), run_trial, cell, threads, str(folder / cell.id))

        with parallel_config(backend="loky", inner_max_num_threads=threads):
            pool = Parallel(processes, return_as="generator_unordered", batch_size=1, pre_dispatch=processes)
        outcomes = pool(start())
        try:
            for outcome in outcomes:
                finished.add(outcome.cell.id)
                yield outcome
        except BrokenProcessPool as broken:
            error = f"its process died twice ({type(broken).__name__}): too little memory?"
        finally:
            with warnings.catch_warnings():  # joblib's advice to whoever stops early
                warnings.simplefilter("ignore")
                outcomes.close()
        dead = [cell for cell in started if cell.id not in finished]
        if waiting:
            waiting, suspects = waiting[len(started) :], suspects + dead
        else:
            suspects = suspects[1:]
            yield from (failed_trial(cell, error) for cell in dead)


def with_dask(cells: list[Trial], scheduler: str, threads: int) -> Iterator[TrialResult]:
    """On a Dask cluster; a cell whose worker is lost goes to another one."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError("backend dask needs the extra `cluster`: pip install 'deepchest-utils[cluster]'.") from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as silent:
        raise ValueError(f"scheduler {scheduler!r} does not answer: {silent}.") from None
    with client:
        futures = {client.submit(run_trial, cell, threads, pure=False): cell for cell in cells}
        for future in as_completed(futures):
            # let go of, lest the cluster runs it again when it loses the worker that holds the outcome
            cell, error = futures.pop(future), future.exception()
            outcome = failed_trial(cell, f"{type(error).__name__}: {error}") if error else future.result()
            future.release()
            yield outcome


def tuning_scores(tables: RunTable) -> pd.DataFrame:
    """Macro AUROC on validation, each run's best epoch: mean, std and count over seeds, a row a method and lr."""
    rows = tables.rows.query("split == 'val' and task == 'macro' and metric == 'auroc'")
    best = rows.groupby("cell").value.max()
    cells = tables.cells[tables.cells.cell.isin(best.index)]
    if cells.empty:
        return pd.DataFrame(columns=["mean", "std", "count"])
    lr = [json.loads(settings).get("lr", TrainConfig.lr) for settings in cells.settings]
    scores = cells.assign(lr=lr, auroc=cells.cell.map(best))
    return scores.groupby(["method", "lr"]).auroc.agg(["mean", "std", "count"])


def best_lr(out: str | Path) -> dict[str, float]:
    """The learning rate of each method with the best mean in `tuning_scores`, of the sweep whose long table is `out`.
    Raises ValueError if no finished run is there."""
    scores = tuning_scores(RunTable(out))
    if scores.empty:
        raise ValueError(f"{out} holds no finished run: nothing to choose a learning rate from.")
    return {method: group.idxmax()[1] for method, group in scores["mean"].groupby("method")}
