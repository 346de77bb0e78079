"""The commands and their options, as `python -m deepchest_utils` reads them."""

import argparse
import dataclasses
import inspect
import re
from typing import Any

DESCRIPTION = "What the notebooks do, from a shell."
LR_FROM: dict[str, Any] = {"metavar": "CSV", "help": "each method's lr: the best on validation in that sweep"}
PAIRS: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}


def _config_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """An option a field of TrainConfig, its help the comment beside the field. several: takes a list of values, and
    methods with options of their own."""
    from deepchest_utils.config import TrainConfig

    comments = dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", inspect.getsource(TrainConfig), re.MULTILINE))
    for field in dataclasses.fields(TrainConfig):
        if several and field.name in ("run_dir", "method_options"):
            continue
        default = "" if field.default is dataclasses.MISSING else f" (default: {field.default})"
        name, words = "--" + field.name.replace("_", "-"), comments[field.name] + default
        kind: Any = str if field.default is None else type(field.default)
        if field.name.endswith("_options"):
            parser.add_argument(name, **PAIRS, help=comments[field.name])
        elif several:
            kind = _truth if kind is bool else kind
            parser.add_argument(name, type=kind, nargs="+", default=[field.default], help=words)
        elif kind is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default, help=words)
        else:
            parser.add_argument(name, type=kind, default=field.default, help=words)


def _truth(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"should be true or false. Found {text!r}.") from None


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser; the options of `command` "train", "sweep" and "localize" come from TrainConfig, and that from torch:
    only where they are needed."""
    parser = argparse.ArgumentParser(prog="python -m deepchest_utils", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="one run; with --run-dir it can be stopped and continued")
    if command == "train":
        _config_arguments(train)

    sweep = commands.add_parser(
        "sweep", help="many runs, the product of the values given; a finished one is not run again"
    )
    if command == "sweep":
        _config_arguments(sweep, several=True)
        sweep.add_argument("--out", default="runs/sweep.csv", help="the long table (default: runs/sweep.csv)")
        sweep.add_argument("--jobs", type=int, help="runs at a time (default: one a core)")
        sweep.add_argument("--backend", default="joblib", help="joblib, or dask for a cluster")
        sweep.add_argument("--scheduler", help="address of the Dask cluster, e.g. tcp://host:8786")
        sweep.add_argument(
            "--baseline", nargs="+", default=[], help="methods that the others are compared with, in <out>_summary.csv"
        )
        sweep.add_argument(
            "--tune", action="store_true", help="keep the validation score alone, for --lr-from of a later sweep"
        )
        sweep.add_argument("--no-history", dest="history", action="store_false", help="keep the test scores alone")
        sweep.add_argument("--lr-from", **LR_FROM)

    localize = commands.add_parser(
        "localize", help="many runs, as sweep, and how well the heat maps of each point at the findings"
    )
    if command == "localize":
        _config_arguments(localize, several=True)
        localize.add_argument(
            "--out", default="runs/localization.csv", help="the table (default: runs/localization.csv)"
        )
        localize.add_argument("--lr-from", **LR_FROM)
        localize.add_argument("--cam", default="layercam", help="method of the maps (default: layercam)")
        localize.add_argument("--per-finding", type=int, default=60, help="images of each finding (default: 60)")

    predict = commands.add_parser("predict", help="what a trained network says of an image file")
    predict.add_argument("image", help="a chest radiograph, frontal: PNG, JPEG, ...")
    predict.add_argument("--checkpoint", required=True, help="checkpoint.pt of a run with --run-dir, or its folder")
    predict.add_argument("--out", help="draw the heat maps into this file, .png or .svg")
    predict.add_argument("--findings", nargs="+", help="of the maps (default: the three most probable)")
    predict.add_argument("--cam", default="layercam", help="method of the maps (default: layercam)")
    predict.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")

    report = commands.add_parser("report", help="the runs below a folder in one table and picture")
    report.add_argument("folder", nargs="?", default="runs", help="holds runs, however deep (default: runs)")
    report.add_argument("--out", help="the table, the picture beside it (default: report.csv in the folder)")

    books = commands.add_parser("notebooks", help="run notebooks headless through papermill")
    books.add_argument("names", nargs="*", metavar="NN", help="which ones, e.g. 01 03 (default: all)")
    books.add_argument("-p", "--parameter", **PAIRS, help="set a parameter")
    books.add_argument("-l", "--list", action="store_true", help="list the parameters with their help, run nothing")
    books.add_argument("--solutions", action="store_true", help="the solutions to their exercises instead")
    books.add_argument("-o", "--output", help="folder of the executed copies (default: runs/notebooks[/solutions])")

    bench = commands.add_parser("bench", help="what weighting costs on this machine: time, memory, input")
    extent = bench.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="the default network alone, in under a minute")
    extent.add_argument("--part", nargs="+", metavar="NAME", help="only these parts of the whole (default: all)")
    bench.add_argument("--out", default="runs/bench.csv", help="table of the whole (default: runs/bench.csv)")
    bench.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")

    data = commands.add_parser("data", help="load a data set, print its splits, keep the decoded images for later runs")
    data.add_argument(
        "dataset", nargs="?", default="phantom", help="phantom, nih, chestmnist or csv (default: phantom)"
    )
    data.add_argument("--data-root", help="folder of its files")
    data.add_argument("--image-size", type=int, default=64, help="px, square (default: 64)")
    data.add_argument("--split", help="official, patient, or the data set's default")
    data.add_argument("--data-seed", type=int, default=0, help="of the phantom and of our own splits")
    data.add_argument("--data-options", **PAIRS, help="further options of load_dataset")
    return parser
