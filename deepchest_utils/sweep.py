"""Many runs, each in a folder of its own, in parallel on this machine or a Dask cluster, and one table of them all."""

import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy.stats import qmc

from deepchest_utils.config import ARCHITECTURES, LOSSES, TrainConfig, check_choice, did_you_mean, split_spec, to_plain
from deepchest_utils.datasets import Splits, load_dataset
from deepchest_utils.files import exclusive_lock
from deepchest_utils.progress import log_line, progress
from deepchest_utils.results import store
from deepchest_utils.results.checkpoint import CHECKPOINT, DAMAGED, PREVIOUS
from deepchest_utils.results.metrics import CALIBRATION
from deepchest_utils.results.statistics import BOOTSTRAP_METRICS, bootstrap_metric
from deepchest_utils.results.store import RunTable
from deepchest_utils.training import Run, train
from deepchest_utils.weighting import check_method

PATIENTS_SEED = 20_250_523  # of the bootstrap: every trial draws the same patients, so that trials can be compared
REPLICATES = 100
ONE_AT_A_TIME = threading.Lock()  # in a process: threads, as a Dask worker may have, share PyTorch's random state


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    method: str  # as the user wrote it, with options and architecture
    config: TrainConfig
    tune: bool = False  # keep macro AUROC on validation alone, for `best_lr`: what is chosen with must not see the test
    history: bool = True  # the table gets weights and validation AUROC of every epoch, beside the test scores
    resamplings: int = REPLICATES  # of the test patients; 0 where each run has patients of its own

    @property
    def settings(self) -> dict[str, object]:
        """The settings that differ from TrainConfig's defaults, except the machine and the folders."""
        default = TrainConfig().identity()
        return {name: value for name, value in self.config.identity().items() if value != default[name]}

    @property
    def id(self) -> str:
        """A short hash of the settings: the same run has the same id, also when TrainConfig gets another field."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def files(self) -> tuple[str, ...]:
        """What tells the folder of a finished run."""
        return (store.HISTORY,) if self.tune else (store.TEST, store.REPLICATES)

    def analyse(self, run: Run, data: Splits, folder: Path) -> None:
        """For a study to override: what it computes from the trained network and writes into the folder."""

    def rows(self, run: store.RunRecord, data: Splits) -> pd.DataFrame:
        """What the table gets of a finished run: test scores and prevalence, and, of the history, the weights that moved
        and validation AUROC. For a study to override, too."""
        auroc = run.rows[(run.rows.metric == "auroc") & (run.rows.split == "val")]
        if self.tune:  # over the findings that choose the epoch
            enough = np.array(data.findings)[(data.val.labels == 1).sum(0) >= self.config.min_positives]
            score = auroc[auroc.task.isin(enough)].groupby("epoch").value.mean()
            macro = auroc[auroc.task == "macro"]
            return (
                macro.assign(value=macro.epoch.map(score)) if self.config.min_positives > 1 and len(enough) else macro
            )
        weights = run.rows[run.rows.metric == "weight"]
        if weights.groupby("task").value.nunique().max() == 1:
            weights = weights[:0]
        base = {"seed": self.config.seed, "epoch": 0, "split": "train"}
        prevalence = store.task_rows(base, {"prevalence": data.train.prevalence}, data.findings, summarise=False)
        test = run.rows[run.rows.split == "test"]
        parts = [test, store.to_table(prevalence), *([weights, auroc] if self.history else [])]
        return pd.concat(parts, ignore_index=True)

    def failed(self, error: str) -> "TrialResult":
        """The result of a trial that ended with this error."""
        record = {"cell": self.id, "method": self.method, "seed": self.config.seed, "status": "failed", "error": error}
        record["settings"] = json.dumps(self.settings, sort_keys=True)
        return TrialResult(self, record, store.to_table([]), np.empty(0, dtype=np.float32))


@dataclass(frozen=True)
class TrialResult:
    """The part of a trial that goes into a `RunTable`: its record, its rows and its replicates, see `RunTable.add`."""

    trial: Trial
    record: dict[str, Any]
    rows: pd.DataFrame
    replicates: np.ndarray


def make_trials(
    base: TrainConfig,
    lists: dict[str, Sequence[Any]],
    lr: dict[str, float] | None = None,
    tune: bool = False,
    history: bool = True,
) -> list[Trial]:
    """The product of lists, seed by seed: the first trials are one whole comparison.

    Args:
        base: All that has no list.
        lists: Field of TrainConfig -> values. Those of "method" may carry options, an architecture and a loss, such as
            `deepchest(floor=0.25)`, `equal@single_task` or `equal@focal`; lists of these are written into their names.
        lr: A learning rate for each method, from `best_lr`, in place of the lists'. Another architecture or loss takes the
            method's unless it has its own.

    Raises:
        ValueError: An unknown field, a value that TrainConfig refuses, or a method without a learning rate.
    """
    # the method's own text has its options, and the sweep its folders
    allowed = {field.name for field in dataclasses.fields(TrainConfig)} - {"method_options", "loss_options", "run_dir"}
    for name in sorted(set(lists) - allowed):
        names, hint = ", ".join(sorted(allowed)), did_you_mean(name, allowed)
        raise ValueError(f"{name!r} is no setting of a run. There are {names}.{hint}")
    for name, example in (("method", "deepchest(floor=0.25)"), ("loss", "focal(gamma=3)")):
        if name in lists and (options := getattr(base, f"{name}_options")):
            advice = f"Found {options}: write them into the {name}'s text, as in {example}."
            raise ValueError(f"{name}_options belong to one {name}, and the sweep has its own. {advice}")
    fields = sorted(lists, key=lambda name: name != "seed")
    trials: dict[str, Trial] = {}
    for values in itertools.product(*(lists[name] for name in fields)):
        settings = dict(zip(fields, values, strict=True))
        spec = settings.get("method", base.method)
        method, architecture, loss = split_spec(spec)
        if "method" in lists:
            if "@" in method.rpartition(")")[2]:  # behind the options
                check_choice("architecture or loss", method.rpartition("@")[2], (*ARCHITECTURES, *LOSSES))
            settings["method"], settings["method_options"] = check_method(method)
            if architecture:
                settings["architecture"] = architecture
            if loss:
                settings["loss"], settings["loss_options"] = loss, {}
        for name, own, usual in (("architecture", architecture, ARCHITECTURES[0]), ("loss", loss, "bce")):
            spec += f"@{settings[name]}" if not own and settings.get(name, usual) != usual else ""
        if lr is not None:
            if not {spec, method} & set(lr):
                raise ValueError(f"lr should have every method's. Found none for {spec!r}, only {', '.join(lr)}.")
            settings["lr"] = lr[spec if spec in lr else method]
        trial = Trial(spec, dataclasses.replace(base, **settings), tune, history)
        if trials.setdefault(trial.id, trial).config != trial.config:
            raise ValueError("data_root and device should have one value each: they do not tell runs of a sweep apart.")
    return list(trials.values())


Setting = dict[str, float]  # "lr" and "weight_decay"


def draw_settings(first: int, last: int, rates: tuple[float, float], decays: tuple[float, float]) -> list[Setting]:
    """Learning rate and weight decay, log-uniform between their ends, of two digits: points number first to last - 1, up to
    32, of Sobol's sequence. Of the first 16 no two have a rate, or a decay, in the same sixteenth of its range."""
    low, high = np.array([rates, decays]).T
    values = low * (high / low) ** (qmc.Sobol(2, scramble=False).random_base2(5)[first:last] + 1 / 32)
    return [dict(zip(("lr", "weight_decay"), (float(f"{value:.2g}") for value in row), strict=True)) for row in values]


@lru_cache(maxsize=1)
def _load(arguments: str) -> Splits:
    name, root, size, seed, split, options = json.loads(arguments)
    return load_dataset(name, root, size, seed, split, **options)


def data_of(c: TrainConfig) -> Splits:
    """The run's data; those of the last run stay in memory."""
    given = [c.dataset, c.data_root, c.image_size, c.data_seed, c.split, c.data_options]
    return _load(json.dumps(given, default=to_plain))


def run_trial(trial: Trial, threads: int, folder: str | None = None) -> TrialResult:
    """Train and test with so many threads; an error becomes a failed result. Without a folder no files are kept."""
    with ONE_AT_A_TIME, tempfile.TemporaryDirectory() as scratch:
        torch.set_num_threads(threads)
        start, data, path = time.time(), None, Path(folder or scratch)
        try:
            data = data_of(trial.config)
            _train(trial, path, data)
            result = _read_trial(trial, path, data)
        except Exception as error:
            result = trial.failed(f"{type(error).__name__}: {error}")
            result.record.update(store.environment_report() | ({"data": data.fingerprint()} if data else {}))
        result.record["seconds"] = round(time.time() - start, 1)
        return result


def _train(trial: Trial, folder: Path, data: Splits) -> None:
    """Leave a finished run in the folder. A sweep that was stopped before it wrote the row may have left one."""
    complete = all((folder / name).exists() for name in trial.files) and not (folder / CHECKPOINT).exists()
    if complete and store.read_run(folder).environment["data"] == data.fingerprint():
        return
    (folder / store.FAILURE).unlink(missing_ok=True)
    run = train(dataclasses.replace(trial.config, run_dir=str(folder)), data)
    if trial.tune:
        for name in (store.TEST, CALIBRATION):
            (folder / name).unlink()
    else:
        test, rng = data.test, np.random.default_rng(PATIENTS_SEED)
        scored = (test.labels, [run.logits["test"]], test.patients, rng)
        values = [bootstrap_metric(*scored, metric, trial.resamplings) for metric in BOOTSTRAP_METRICS]
        store.write_arrays(folder / store.REPLICATES, {"replicates": np.concatenate(values).astype(np.float32)})
    trial.analyse(run, data, folder)
    for name in (DAMAGED, PREVIOUS, CHECKPOINT):  # the last says that the run is complete
        (folder / name).unlink(missing_ok=True)


def _read_trial(trial: Trial, folder: Path, data: Splits) -> TrialResult:
    run = store.read_run(folder)
    record = {"cell": trial.id, "method": trial.method, "seed": trial.config.seed, "status": "done", "error": ""}
    record |= {"data": "", "settings": json.dumps(trial.settings, sort_keys=True), "seconds": 0.0} | run.environment
    rows = trial.rows(run, data).assign(method=trial.method)
    if trial.tune or not trial.resamplings:
        return TrialResult(trial, record, rows, np.empty(0, dtype=np.float32))
    with np.load(folder / store.REPLICATES) as arrays:
        return TrialResult(trial, record, rows, arrays["replicates"])


def check_data(finished: pd.DataFrame, out: Path, trials: Sequence[Trial]) -> None:
    """Raise ValueError if a finished trial, a row of `finished`, ran on other data than it would now: its id does not say
    where data lie. A row without `data`, as in tables of before, is let be."""
    done = finished.reindex(columns=["cell", "data"]).dropna().set_index("cell")
    as_text = partial(json.dumps, sort_keys=True, default=to_plain)
    for trial in sorted(trials, key=lambda trial: as_text(trial.config.data_options)):
        if trial.id in done.index and done.data[trial.id] != data_of(trial.config).fingerprint():
            run = f"{trial.method} seed {trial.config.seed}"
            now = f"{trial.config.dataset} in {trial.config.data_root} now"
            raise ValueError(f"{out} has {run} on other data than {now}. Choose another out.")


def run_sweep(
    trials: Sequence[Trial],
    out: str | Path,
    jobs: int | None = None,
    backend: str = "joblib",
    scheduler: str | None = None,
    threads: int | None = None,
) -> RunTable:
    """Run every trial that has not finished yet. A stop loses the epoch under way; a trial that fails does not stop the
    others, and is tried again by the next call.

    Args:
        trials: Of `make_trials`.
        out: The long table, a .csv. The folders of the runs lie in a folder of its name, except those of Dask.
        jobs: Processes at a time, default one a core.
        threads: Of each process, default an even share of the cores. A run's numbers depend on it in their last digits.
        backend: "joblib", or "dask" with the address of its scheduler.

    Raises:
        ValueError: An argument is wrong, a finished trial is of other data, or another sweep is at work on the table.
    """
    check_choice("backend", backend, ("joblib", "dask"))
    if (backend == "dask") != (scheduler is not None):
        raise ValueError(f"scheduler goes with backend dask, and dask with it. Found {backend!r}, {scheduler!r}.")
    cores = os.cpu_count() or 1
    jobs = cores if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs should be at least 1. Found {jobs}.")
    threads = threads or max(1, cores // jobs)
    trials = list({trial.id: trial for trial in trials}.values())  # the same one twice would share a folder
    with exclusive_lock(RunTable(out).folder.with_suffix(".lock"), "sweep"):
        tables = RunTable(out)  # read under the lock: another sweep may have ended just now
        if backend == "joblib":  # a cluster may have data that are not here
            check_data(tables.cells[tables.cells.status == "done"], tables.out, trials)
        finished = tables.finished()
        tested, validated = (set(tables.rows.cell[tables.rows.split == split]) for split in ("test", "val"))
        for trial in trials:
            if trial.tune and trial.id in tested - validated:
                run = f"{trial.method} seed {trial.config.seed}, lr {trial.config.lr:g},"
                raise ValueError(
                    f"{tables.out} has {run} without its validation scores. Choose another out to tune it."
                )
        waiting = [trial for trial in trials if trial.id not in finished or not (trial.tune or trial.id in tested)]
        joblib = with_joblib(waiting, jobs, threads, tables.folder)
        results = joblib if scheduler is None else with_dask(waiting, scheduler, threads)
        bar = progress(results, "sweep", len(trials), initial=len(trials) - len(waiting), unit="run")
        for done, result in enumerate(bar, len(trials) - len(waiting) + 1):
            if result.record["status"] == "failed":
                store.write_json(tables.folder / result.trial.id / store.FAILURE, result.record)
            tables.add(result.record, result.rows, result.replicates)
            state = f"{result.trial.method} seed {result.trial.config.seed}: {result.record['status']}"
            bar.set_postfix_str(state)
            log_line(f"{done} of {len(trials)}, {state}", "sweep", "localize")
    return tables


def with_joblib(trials: list[Trial], jobs: int, threads: int, folder: Path) -> Iterator[TrialResult]:
    """In `jobs` processes of this machine, or in this one with one job. A trial whose process dies is tried once more
    and then noted as failed."""
    if jobs == 1:
        yield from (run_trial(trial, threads, str(folder / trial.id)) for trial in trials)
        return
    from joblib.externals.loky import ProcessPoolExecutor

    libraries = ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR", "VECLIB_MAXIMUM")
    env = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
    processes, local = list[Any](), threading.local()

    def run(trial: Trial) -> TrialResult:
        """In a process of this thread's own: one that dies takes no other trial along."""
        error = ""
        for _ in range(2):
            try:
                if not hasattr(local, "process"):
                    local.process = ProcessPoolExecutor(1, env=env, initializer=_end_with, initargs=(os.getpid(),))
                    processes.append(local.process)
                future = local.process.submit(run_trial, trial, threads, str(folder / trial.id))
                return cast(TrialResult, future.result())
            except BrokenProcessPool as broken:
                del local.process
                error = f"its process died twice ({type(broken).__name__}): too little memory?"
        return trial.failed(error)

    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(run, trial) for trial in trials]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.shutdown(kill_workers=True)


def _end_with(parent: int) -> None:
    """End this process when the sweep's ends, even a killed one: the next sweep would find it at work in its folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_dask(trials: list[Trial], scheduler: str, threads: int) -> Iterator[TrialResult]:
    """On a Dask cluster; a trial whose worker is lost goes to another one."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError("backend dask needs the extra `cluster`: pip install 'deepchest-utils[cluster]'.") from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as silent:
        raise ValueError(f"scheduler {scheduler!r} does not answer: {silent}.") from None
    with client:
        futures = {client.submit(run_trial, trial, threads, pure=False): trial for trial in trials}
        for future in as_completed(futures):
            # released: the cluster would run it again if it lost the worker that holds the result
            trial, error = futures.pop(future), future.exception()
            result = trial.failed(f"{type(error).__name__}: {error}") if error else future.result()
            future.release()
            yield result


def tuning_scores(tables: RunTable, fields: Sequence[str] = ("lr",)) -> pd.DataFrame:
    """Macro AUROC on validation in the epoch of each run that would be tested, the best, or the last by `select`: mean, std
    and count over seeds of each method and the fields of its TrainConfig."""
    rows = tables.rows.query("split == 'val' and task == 'macro' and metric == 'auroc'").sort_values("epoch")
    best = rows.groupby("cell").value.max()
    cells = tables.cells[tables.cells.cell.isin(best.index)]
    if cells.empty:
        return pd.DataFrame(columns=["mean", "std", "count"])
    settings = [json.loads(text) for text in cells.settings]
    last = cells.cell[[given.get("select") == "last" for given in settings]]
    best.update(rows[rows.cell.isin(last)].groupby("cell").value.last())
    values = {name: [given.get(name, getattr(TrainConfig, name)) for given in settings] for name in fields}
    scores = cells.assign(**values, auroc=cells.cell.map(best))
    return scores.groupby(["method", *fields], dropna=False).auroc.agg(["mean", "std", "count"])


def best_lr(out: str | Path) -> dict[str, float]:
    """The learning rate of each method with the best mean in `tuning_scores` of the sweep whose long table is `out`. A rate
    at which more runs failed than at another does not count. Raises ValueError if more than the rate was tuned."""
    tables = RunTable(out, "lr_from")
    if not Path(out).exists():
        raise ValueError(f"{out}: no such file. lr_from should be the table of a sweep with --tune.")
    apart = ["method", "method_options", "loss", "loss_options", "architecture", "lr", "seed", "data_seed"]
    settings = pd.DataFrame(map(json.loads, tables.cells.settings)).drop(columns=apart, errors="ignore").astype(str)
    if both := [name for name, values in settings.items() if values.nunique(dropna=False) > 1]:
        raise ValueError(f"{out} has several values of {', '.join(both)}: lr_from chooses among learning rates alone.")
    scores = tuning_scores(tables)
    if scores.empty:
        raise ValueError(f"{out} holds no finished run: nothing to choose a learning rate from.")
    scores = scores[scores["count"] == scores["count"].groupby("method").transform("max")]
    return {method: group.idxmax()[1] for method, group in scores["mean"].groupby("method")}
