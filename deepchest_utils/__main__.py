"""`python -m deepchest_utils train | sweep | report | localize | predict | bench | notebooks | data`: what the notebooks do, from a shell."""

import argparse
import dataclasses
import os
import signal
import sys
from types import FrameType
from typing import Any

from deepchest_utils.parser import build_parser

BENCH_COLUMNS = (
    "backbone", "num_tasks", "method", "seconds", "ratio", "low", "high", "spread", "rounds", "passes", "first_step", "mib",
    "images_per_second", "epoch", "auroc",
)  # fmt: skip


def _pairs(pairs: list[list[str]]) -> dict[str, Any]:
    from deepchest_utils.notebook.runner import parse_value

    return {name: parse_value(value) for name, value in pairs}


def _train(args: argparse.Namespace) -> int:
    from deepchest_utils.config import TrainConfig
    from deepchest_utils.training import train

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig)}
    given = {name: _pairs(value) if name.endswith("_options") else value for name, value in given.items()}
    run = train(TrainConfig(**given))
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first process speaks for all
        return 0
    table = run.test.pivot(index="task", columns="metric", values="value")
    shown = table[["auroc", "average_precision", "brier", "loss"]].reindex([*dict.fromkeys(run.test.task)])
    print(f"\ntest, epoch {run.best_epoch} of {run.config.epochs}\n{shown.round(4).to_string(na_rep='-')}")
    return 0


def _cells(args: argparse.Namespace, tune: bool = False, history: bool = True) -> list[Any]:
    """The runs that the options of a sweep ask for."""
    from deepchest_utils.config import TrainConfig
    from deepchest_utils.sweep import best_lr, make_trials

    names = [f.name for f in dataclasses.fields(TrainConfig) if hasattr(args, f.name)]
    base = TrainConfig(data_options=_pairs(args.data_options))
    lists = {name: getattr(args, name) for name in names if name != "data_options"}
    return make_trials(base, lists, best_lr(args.lr_from) if args.lr_from else None, tune, history)


def _sweep(args: argparse.Namespace) -> int:
    from deepchest_utils.results.statistics import compare_methods
    from deepchest_utils.sweep import run_sweep, tuning_scores

    cells = _cells(args, args.tune, args.history)
    tables = run_sweep(cells, args.out, args.jobs, args.backend, args.scheduler)
    mine = tables.cells[tables.cells.cell.isin([cell.id for cell in cells])]
    for row in mine[mine.status == "failed"].itertuples():
        print(f"failed: {row.method} seed {row.seed}: {row.error}", file=sys.stderr)
    if args.tune:
        table = tuning_scores(tables)
    else:
        done = tables.rows[tables.rows.cell.isin(mine.cell[mine.status == "done"])]
        test = done.query("split == 'test' and task == 'macro' and metric in ['auroc', 'average_precision']")
        table = test.pivot_table("value", "method", "metric", aggfunc=["mean", "std", "count"])
    print(f"{len(mine)} runs in {tables.out}, {'validation' if args.tune else 'test'}, macro")
    print(table.round(4).to_string(na_rep="-"))
    if args.baseline:
        tables.write_summary(compare_methods(tables, args.baseline))
        print(f"compared with {', '.join(args.baseline)}: {tables.summary_path}")
    return 1 if (mine.status == "failed").any() else 0


def _report(args: argparse.Namespace) -> int:
    from pathlib import Path

    from deepchest_utils.results.report import format_summary, report

    out = Path(args.out or Path(args.folder, "report.csv"))
    found = report(args.folder, out)
    print(
        f"{len(found.runs)} tested runs below {args.folder}, means over seeds [95%]\n\n{format_summary(found.summary)}\n"
    )
    print(f"table in {out}, picture in {out.with_suffix('.png')}")
    print("\n".join(found.remarks), file=sys.stderr, end="\n" if found.remarks else "")
    return 1 if any(line.startswith("damaged") for line in found.remarks) else 0


def _localize(args: argparse.Namespace) -> int:
    from deepchest_utils.explain.scores import SCORES
    from deepchest_utils.studies.localization import localize_runs

    cells = _cells(args)
    rows = localize_runs(cells, args.out, args.cam, args.per_finding)
    table = rows.groupby(["method", "seed", "finding"])[[*SCORES]].mean().groupby("method").mean()
    print(f"{len(cells)} runs in {args.out}, mean over findings and seeds\n{table.round(3).to_string()}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from pathlib import Path

    from deepchest_utils.datasets.cache import decode
    from deepchest_utils.explain.predict import NOTE, draw_maps, load_trained, predict_image

    path, trained = Path(args.image), load_trained(args.checkpoint, args.device)
    if unknown := set(args.findings or ()) - set(trained.findings):
        raise ValueError(f"findings should be among {', '.join(trained.findings)}. Found {min(unknown)!r}.")
    found = predict_image(trained, decode(path, trained.image_size))
    words = "not calibrated: the run has no calibration.json" if trained.calibration is None else "calibrated"
    print(f"{path.name}, {words}\n{found.round(3).to_string()}\n{NOTE}")
    if args.out:
        draw_maps(trained, path, Path(args.out), args.findings or [*found.index[:3]], args.cam)
        print(f"heat maps in {args.out}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from deepchest_utils.studies.bench import full_bench, quick_bench

    table = quick_bench(args.device) if args.quick else full_bench(args.out, args.device, only=args.part)
    columns = [c for c in BENCH_COLUMNS if c in table]
    for part, rows in table.groupby("part", sort=False):
        print(f"\n{part}\n{rows[columns].dropna(axis=1, how='all').to_string(index=False, float_format='%.4g')}")
    if not args.quick:
        print(f"\n{len(table)} measurements in {args.out}")
    return 0


def _notebooks(args: argparse.Namespace) -> int:
    from pathlib import Path

    from deepchest_utils.notebook import runner as notebooks

    paths = notebooks.find_notebooks(args.names, args.solutions)
    if args.list:
        print("\n\n".join(map(notebooks.describe_parameters, paths)))
        return 0
    usual = notebooks.OUTPUT / "solutions" if args.solutions else notebooks.OUTPUT  # they share their names
    output = Path(args.output).resolve() if args.output else usual
    return 1 if notebooks.run_notebooks(paths, _pairs(args.parameter), output) else 0


def _data(args: argparse.Namespace) -> int:
    from deepchest_utils.datasets import load_dataset

    options = _pairs(args.data_options)
    data = load_dataset(args.dataset, args.data_root, args.image_size, args.data_seed, args.split, **options)
    print(f"{data.name}, {args.image_size} px, split={data.split}\n{data.summary().to_string()}")
    return 0


COMMANDS = {
    "train": _train, "sweep": _sweep, "report": _report, "localize": _localize, "predict": _predict,
    "bench": _bench, "notebooks": _notebooks, "data": _data,
}  # fmt: skip


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM as SIGINT: what is open is closed, and how to go on is said."""
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv[0] if argv else "").parse_args(argv)
    several, number = int(os.environ.get("WORLD_SIZE", "1")) > 1, os.environ.get("RANK", "0")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if several and args.command != "train":
            raise ValueError(f"command should be train under torchrun. Found {args.command!r}.")
        return COMMANDS[args.command](args)
    except (ValueError, FloatingPointError) as error:  # the project's own, each one clear line
        print(f"error{f' in process {number}' if several else ''}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        words = str(stopped) or "stopped; the same command goes on from here (train: with --run-dir)"
        print(words, file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
