"""`python -m deepchest_utils train | sweep | bench | notebooks | data`: what the notebooks do, from a shell."""

import argparse
import dataclasses
import inspect
import re
import sys

BENCH_COLUMNS = (
    "backbone", "num_tasks", "method", "seconds", "ratio", "low", "high", "spread", "rounds", "passes", "first_step", "mib",
    "images_per_second", "epoch", "auroc",
)  # fmt: skip
PAIRS = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}


def _config_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """An option a field of TrainConfig, its help the comment beside the field. several: takes a list of values, and
    methods with options of their own."""
    from deepchest_utils.training.config import TrainConfig

    comments = dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", inspect.getsource(TrainConfig), re.MULTILINE))
    for field in dataclasses.fields(TrainConfig):
        if several and field.name in ("run_dir", "method_options"):
            continue
        default = "" if field.default is dataclasses.MISSING else f" (default: {field.default})"
        name, words = "--" + field.name.replace("_", "-"), comments[field.name] + default
        kind = str if field.default is None else type(field.default)
        if field.name.endswith("_options"):
            parser.add_argument(name, **PAIRS, help=comments[field.name])
        elif several:
            kind = _truth if kind is bool else kind
            parser.add_argument(name, type=kind, nargs="+", default=[field.default], help=words)
        elif kind is bool:
            parser.add_argument(
                name, action=argparse.BooleanOptionalAction, default=field.default, help=words
            )
        else:
            parser.add_argument(name, type=kind, default=field.default, help=words)


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"should be true or false. Found {text!r}.") from None


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser; the options of `command` "train" and "sweep" come from TrainConfig, and that from torch:
    only where they are needed."""
    parser = argparse.ArgumentParser(prog="python -m deepchest_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="one run; with --run-dir it can be stopped and continued")
    train.set_defaults(function=_train)
    if command == "train":
        _config_arguments(train)

    sweep = commands.add_parser(
        "sweep", help="many runs, the product of the values given; a finished one is not run again"
    )
    sweep.set_defaults(function=_sweep)
    if command == "sweep":
        _config_arguments(sweep, several=True)
        sweep.add_argument("--out", default="runs/sweep.csv", help="the long table (default: runs/sweep.csv)")
        sweep.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
        sweep.add_argument("--backend", default="joblib", help="joblib, or dask for a cluster")
        sweep.add_argument("--scheduler", help="address of the Dask cluster, e.g. tcp://host:8786")
        sweep.add_argument(
            "--baseline",
            nargs="+",
            default=[],
            help="methods that the others are compared with, in <out>_summary.csv",
        )
        sweep.add_argument(
            "--tune",
            action="store_true",
            help="keep the validation score alone, for --lr-from of a later sweep",
        )
        sweep.add_argument(
            "--lr-from", metavar="CSV", help="each method's lr: the best on validation in that sweep"
        )

    books = commands.add_parser("notebooks", help="run notebooks headless through papermill")
    books.add_argument("names", nargs="*", metavar="NN", help="which ones, e.g. 01 03 (default: all)")
    books.add_argument("-p", "--parameter", **PAIRS, help="set a parameter")
    books.add_argument(
        "-l", "--list", action="store_true", help="list the parameters with their help, run nothing"
    )
    books.add_argument("-o", "--output", help="folder of the executed copies (default: runs/notebooks)")
    books.set_defaults(function=_notebooks)

    bench = commands.add_parser("bench", help="what weighting costs on this machine: time, memory, input")
    bench.add_argument("--quick", action="store_true", help="the default network alone, in under a minute")
    bench.add_argument("--out", default="runs/bench.csv", help="table of the whole (default: runs/bench.csv)")
    bench.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    bench.set_defaults(function=_bench)

    data = commands.add_parser(
        "data", help="load a data set, print its splits, keep the decoded images for later runs"
    )
    data.add_argument(
        "dataset", nargs="?", default="phantom", help="phantom, nih, chestmnist or csv (default: phantom)"
    )
    data.add_argument("--data-root", help="folder of its files")
    data.add_argument("--image-size", type=int, default=64, help="px, square (default: 64)")
    data.add_argument("--split", help="official, patient, or the data set's default")
    data.add_argument("--data-seed", type=int, default=0, help="of the phantom and of our own splits")
    data.add_argument("--data-options", **PAIRS, help="further options of load_dataset")
    data.set_defaults(function=_data)
    return parser


def _pairs(pairs: list[list[str]]) -> dict[str, object]:
    from deepchest_utils.notebooks import parse_value

    return {name: parse_value(value) for name, value in pairs}


def _train(args: argparse.Namespace) -> int:
    from deepchest_utils.training import TrainConfig, train

    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig)}
    given = {name: _pairs(value) if name.endswith("_options") else value for name, value in given.items()}
    run = train(TrainConfig(**given))
    table = run.test.pivot(index="task", columns="metric", values="value")
    shown = table[["auroc", "average_precision", "brier", "loss"]].reindex([*dict.fromkeys(run.test.task)])
    print(f"\ntest, epoch {run.best_epoch} of {run.config.epochs}\n{shown.round(4).to_string(na_rep='-')}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from deepchest_utils.sweep import best_lr, compare_methods, make_cells, run_sweep, tuning_scores
    from deepchest_utils.training import TrainConfig

    names = [f.name for f in dataclasses.fields(TrainConfig) if hasattr(args, f.name)]
    base = TrainConfig(data_options=_pairs(args.data_options))
    lists = {name: getattr(args, name) for name in names if name != "data_options"}
    lr = best_lr(args.lr_from) if args.lr_from else None
    cells = make_cells(base, lists, lr, args.tune)
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


def _bench(args: argparse.Namespace) -> int:
    from deepchest_utils.bench import full_bench, quick_bench

    table = quick_bench(args.device) if args.quick else full_bench(args.out, args.device)
    columns = [c for c in BENCH_COLUMNS if c in table]
    for part, rows in table.groupby("part", sort=False):
        print(
            f"\n{part}\n{rows[columns].dropna(axis=1, how='all').to_string(index=False, float_format='%.4g')}"
        )
    if not args.quick:
        print(f"\n{len(table)} measurements in {args.out}")
    return 0


def _notebooks(args: argparse.Namespace) -> int:
    from pathlib import Path

    from deepchest_utils import notebooks

    paths = notebooks.find_notebooks(args.names)
    if args.list:
        print("\n\n".join(map(notebooks.describe_parameters, paths)))
        return 0
    output = Path(args.output).resolve() if args.output else notebooks.OUTPUT
    return 1 if notebooks.run_notebooks(paths, _pairs(args.parameter), output) else 0


def _data(args: argparse.Namespace) -> int:
    from deepchest_utils.datasets import load_dataset

    options = _pairs(args.data_options)
    data = load_dataset(args.dataset, args.data_root, args.image_size, args.data_seed, args.split, **options)
    print(f"{data.name}, {args.image_size} px, split={data.split}\n{data.summary().to_string()}")
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(argv[0] if argv else "").parse_args(argv)
    try:
        return args.function(args)
    except (ValueError, FloatingPointError) as error:  # the project's own, each one clear line
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here (train: with --run-dir)", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
