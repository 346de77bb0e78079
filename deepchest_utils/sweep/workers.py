"""Where the cells of a sweep run: processes of this machine, or a Dask cluster."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from deepchest_utils.sweep.cells import Cell, Outcome, died, run_cell


def with_joblib(cells: list[Cell], jobs: int, threads: int, folder: Path) -> Iterator[Outcome]:
    """In processes of this machine. One that dies takes its pool along: the cells that were in it are tried once more,
    then noted as failed."""
    from joblib import Parallel, delayed, parallel_config

    waiting, deaths = list(cells), Counter()
    while waiting:
        started, finished = [], set()

        def start(waiting=waiting, started=started):
            for cell in waiting:
                started.append(cell)
                yield delayed(run_cell)(cell, threads, str(folder / cell.id))

        pool = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
        try:
            with parallel_config(backend="loky", inner_max_num_threads=threads):
                for outcome in pool(start()):
                    finished.add(outcome.cell.id)
                    yield outcome
        except BrokenProcessPool as error:
            in_it = [cell for cell in started if cell.id not in finished]
            deaths.update(cell.id for cell in in_it)
            for cell in in_it:
                if deaths[cell.id] > 1:
                    finished.add(cell.id)
                    yield died(cell, error)
        waiting = [cell for cell in waiting if cell.id not in finished]


def with_dask(cells: list[Cell], scheduler: str, threads: int) -> Iterator[Outcome]:
    """On a Dask cluster; a cell whose worker is lost goes to another one."""
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise ValueError(
            "backend dask needs the extra `cluster`: pip install 'deepchest-utils[cluster]'."
        ) from None
    with Client(scheduler) as client:
        futures = {client.submit(run_cell, cell, threads, pure=False): cell for cell in cells}
        for future in as_completed(futures):
            error = future.exception()
            yield died(futures[future], error) if error else future.result()
