"""Where the cells of a sweep run: processes of this machine, or a Dask cluster."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

from deepchest_utils.sweep.cells import Cell, Outcome, lost, run_cell


def _beside(sweep: int, run: Callable[..., Outcome], *arguments: object) -> Outcome:
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


def with_joblib(cells: list[Cell], jobs: int, threads: int, folder: Path) -> Iterator[Outcome]:
    """In `jobs` processes of this machine; with one job in this process. A process that dies takes its pool along: the
    cells that were in it are tried once more at the end, one at a time, and noted as failed if they die alone."""
    from joblib import Parallel, delayed, parallel_config

    waiting, suspects = list(cells), list[Cell]()
    # a pool of one would be this process, which no cell should take along
    processes = 1 if jobs == 1 else max(2, min(jobs, len(cells)))
    while waiting or suspects:
        batch = waiting or suspects[:1]
        started, finished, error = list[Cell](), set[str](), ""

        def start(batch: list[Cell] = batch, started: list[Cell] = started) -> Iterator[object]:
            for cell in batch:
                started.append(cell)
                yield delayed(_beside)(os.getpid(), run_cell, cell, threads, str(folder / cell.id))

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
            yield from (lost(cell, error) for cell in dead)


def with_dask(cells: list[Cell], scheduler: str, threads: int) -> Iterator[Outcome]:
    """On a Dask cluster; a cell whose worker is lost goes to another one."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError(
            "backend dask needs the extra `cluster`: pip install 'deepchest-utils[cluster]'."
        ) from None
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as silent:
        raise ValueError(f"scheduler {scheduler!r} does not answer: {silent}.") from None
    with client:
        futures = {client.submit(run_cell, cell, threads, pure=False): cell for cell in cells}
        for future in as_completed(futures):
            # let go of, lest the cluster runs it again when it loses the worker that holds the outcome
            cell, error = futures.pop(future), future.exception()
            outcome = lost(cell, f"{type(error).__name__}: {error}") if error else future.result()
            future.release()
            yield outcome
