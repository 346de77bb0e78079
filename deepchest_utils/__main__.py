"""`python -m deepchest_utils COMMAND`: what the notebooks do, from a shell."""

import dataclasses
import inspect
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from deepchest_utils import missing_extra
from deepchest_utils.config import TrainConfig, check_choice, count_of, did_you_mean
from deepchest_utils.files import one_line
from deepchest_utils.notebook import runner
from deepchest_utils.notebook.parameters import parse_value

try:
    import tyro
    from tyro.conf import DisallowNone, Positional, UseAppendAction, arg

    from deepchest_utils import progress
except ModuleNotFoundError as missing:
    sys.exit(f"error: {missing_extra(missing)}")

PROGRAM = "python -m deepchest_utils"


def _literal(metavar: str) -> Any:
    """For an option whose value is a Python literal or a text."""
    return tyro.constructors.PrimitiveConstructorSpec[Any](
        1, metavar, lambda texts: parse_value(texts[0]), lambda value: True, lambda value: [str(value).lower()]
    )


def _options(several: bool) -> type:
    """An option a field of TrainConfig, its help the comment beside the field.

    several: each takes a list of values. Methods and losses have options in their text then, and the sweep its folders.
    """
    comments = dict(re.findall(r"^    (\w+): .*  # (.*)$", inspect.getsource(TrainConfig), re.MULTILINE))
    hints, options = get_type_hints(TrainConfig), list[tuple[str, Any, Any]]()
    for f in dataclasses.fields(TrainConfig):
        hint, default = hints[f.name], f.default
        if f.name.endswith("_options"):
            hint, default = Pairs, field(default_factory=dict)
        elif several:
            item: Any = Annotated[bool, _literal("{true,false}")] if hint is bool else hint
            hint, default = tuple[item, ...], (default,)
        if not several or f.name not in ("run_dir", "method_options", "loss_options"):
            options.append((f.name, Annotated[hint, arg(help=comments[f.name])], default))
    return dataclasses.make_dataclass("Options", options)


Pairs = Annotated[dict[str, Annotated[Any, _literal("VALUE")]], UseAppendAction, arg(metavar="NAME VALUE")]
Options = Annotated[Any, arg(name="", constructor=_options(several=False))]
ListOptions = Annotated[Any, arg(name="", constructor=_options(several=True))]
Names = Annotated[tuple[str, ...], arg(metavar="[NAME ...]", help_behavior_hint="")]
OneOf = tyro.conf.create_mutex_group(required=False)


@dataclass
class Train:
    """One run; with --run-dir it can be stopped and continued."""

    config: Options

    def run(self) -> None:
        from deepchest_utils.training import train

        run = train(TrainConfig(**vars(self.config)))
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first process speaks for all
            table = run.test.pivot(index="task", columns="metric", values="value")
            scores = table[["auroc", "average_precision", "brier", "loss"]].reindex([*dict.fromkeys(run.test.task)])
            print(f"\ntest, epoch {run.best_epoch} of {run.config.epochs}\n{scores.round(4).to_string(na_rep='-')}")


@dataclass
class _Many:
    """Options of many runs."""

    config: ListOptions
    lr_from: str | None = None  # table of a sweep with --tune: each method takes its lr that was best there

    def trials(self, **options: bool) -> list[Any]:
        from deepchest_utils.sweep import best_lr, make_trials

        values = dict(vars(self.config))
        if empty := [name for name, given in values.items() if given == ()]:
            raise ValueError(f"{empty[0]} should have at least one value. Found none.")
        base = TrainConfig(data_options=values.pop("data_options"))
        return make_trials(base, values, best_lr(self.lr_from) if self.lr_from else None, **options)


@dataclass
class Sweep(_Many):
    """Many runs, one for each combination of the values given; a finished one is not run again."""

    out: str = "runs/sweep.csv"  # the long table
    jobs: int | None = None  # runs at a time, one a core if not given
    backend: str = "joblib"  # joblib, or dask for a cluster
    scheduler: str | None = None  # address of the Dask cluster, e.g. tcp://host:8786
    baseline: Names = ()  # methods that the others are compared with, in <out>_summary.csv
    tune: bool = False  # keep the validation score alone, for --lr-from of a later sweep
    history: bool = True  # keep the weights and scores of each epoch beside the test scores

    def run(self) -> int:
        from deepchest_utils.results.statistics import compare_methods
        from deepchest_utils.results.store import RunTable
        from deepchest_utils.sweep import run_sweep, tuning_scores

        if self.tune and self.baseline:
            raise ValueError("baseline compares test scores, and tune keeps none. Leave one of them out.")
        trials = self.trials(tune=self.tune, history=self.history)
        for name in self.baseline:  # before anything is trained
            known = [*(trial.method for trial in trials), *RunTable(self.out).rows.query("split == 'test'").method]
            check_choice("baseline", name, dict.fromkeys(known))
        tables = run_sweep(trials, self.out, self.jobs, self.backend, self.scheduler)
        asked = tables.cells[tables.cells.cell.isin([trial.id for trial in trials])]
        named = ("data_options", "method", "loss", "architecture", "seed")  # in the method's text, or averaged over
        varied = [name for name, given in vars(self.config).items() if name not in named and len({*given}) > 1]
        for row in asked[asked.status == "failed"].itertuples():
            print(f"failed: {row.method} seed {row.seed}: {row.error}", file=sys.stderr)
        if self.tune:
            table = tuning_scores(tables, [*dict.fromkeys(["lr", *varied])])
        else:
            finished = tables.rows[tables.rows.cell.isin(asked.cell[asked.status == "done"])]
            test = finished.query("split == 'test' and task == 'macro' and metric in ['auroc', 'average_precision']")
            values = {name: test.cell.map({t.id: getattr(t.config, name) for t in trials}) for name in varied}
            groups = test.assign(**values).groupby(["method", *varied, "metric"], dropna=False)
            table = groups.value.agg(["mean", "std", "count"]).unstack()
        print(f"{count_of(len(asked), 'run')} in {tables.out}, {'validation' if self.tune else 'test'}, macro")
        print("no run finished" if table.empty else table.round(4).to_string(na_rep="-"))
        if self.baseline:
            tables.write_summary(compare_methods(tables, self.baseline))
            print(f"compared with {', '.join(self.baseline)}: {tables.summary_path}")
        return 1 if (asked.status == "failed").any() else 0


@dataclass
class Localize(_Many):
    """Many runs, as sweep, and how well the heat maps of each point at the findings."""

    out: str = "runs/localization.csv"  # the table
    cam: str = "layercam"  # method of the maps
    per_finding: int = 60  # images of each finding
    jobs: int | None = None  # runs at a time, one a core if not given

    def run(self) -> None:
        from deepchest_utils.studies.localization import SCORES, localize_runs
        from deepchest_utils.studies.overlap import write_box_tables

        trials = self.trials()
        scores = localize_runs(trials, self.out, self.cam, self.per_finding, self.jobs)
        table = scores.groupby(["method", "seed", "finding"])[[*SCORES]].mean().groupby("method").mean().round(3)
        print(f"{count_of(len(trials), 'run')} in {self.out}, mean over findings and seeds\n{table.to_string()}")
        boxes, path = write_box_tables(scores, self.out)
        print(f"share of images with an IoU of boxes above T, and mean IoU\n{boxes.round(3).to_string()}\nin {path}")


@dataclass
class Report:
    """The runs below a folder in one table and one picture."""

    folder: Positional[str] = "runs"  # holds runs, however deep
    out: str | None = None  # the table, the picture beside it; report.csv in the folder if not given

    def run(self) -> int:
        from deepchest_utils.notebook.figures import save_summary
        from deepchest_utils.results.report import format_summary, report

        out = Path(self.out or Path(self.folder, "report.csv"))
        made = report(self.folder, out)
        save_summary(made.summary, out.with_suffix(".png"))
        print(f"{count_of(len(made.runs), 'tested run')} below {self.folder}, means over seeds [95%]\n")
        print(f"{format_summary(made.summary)}\n\ntable in {out}, picture in {out.with_suffix('.png')}")
        print("\n".join(made.remarks), file=sys.stderr, end="\n" if made.remarks else "")
        return 1 if any(line.startswith("damaged") for line in made.remarks) else 0


@dataclass
class Predict:
    """What a trained network says of an image file."""

    image: Positional[str]  # a chest radiograph, frontal: PNG, JPEG, DICOM, ...
    checkpoint: str  # checkpoint.pt of a run with --run-dir, or its folder
    out: str | None = None  # draw the heat maps into this file, .png or .svg
    findings: Names = ()  # of the maps, the three most probable if not given
    cam: str = "layercam"  # method of the maps
    device: str = "auto"  # auto, cpu or cuda

    def run(self) -> None:
        from deepchest_utils.datasets.decode import MIN_LEVELS, decode, has_few_levels
        from deepchest_utils.explain import CAM_METHODS
        from deepchest_utils.explain.predict import NOTE, load_trained, predict_image

        if self.out and Path(self.out).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ValueError(f"out should end in .png, .svg or .pdf. Found {Path(self.out).name!r}.")
        check_choice("cam", self.cam, CAM_METHODS)
        path, trained = Path(self.image), load_trained(self.checkpoint, self.device)
        for name in set(self.findings) - set(trained.findings):
            suggestion = did_you_mean(name, trained.findings)
            raise ValueError(f"findings should be among {', '.join(trained.findings)}. Found {name!r}.{suggestion}")
        image = decode(path, trained.image_size)
        table = predict_image(trained, image)
        if self.out:  # before anything is printed: what is refused comes alone
            from deepchest_utils.notebook.figures import draw_maps

            draw_maps(trained, path, Path(self.out), self.findings or [*table.index[:3]], self.cam)
        print(f"{path.name}, {trained.about}\n{table.round(3).to_string()}\n{NOTE}")
        if has_few_levels(image):
            print(f"The picture has fewer than {MIN_LEVELS} grey levels: blank, or saved in a fraction of its depth.")
        if self.out:
            print(f"heat maps in {self.out}")


@dataclass
class Bench:
    """The cost of weighting on this machine: time, memory, input."""

    quick: Annotated[bool, OneOf] = False  # the default network alone, in under a minute
    part: Annotated[Names, OneOf] = ()  # only these parts of the whole
    out: str = "runs/bench.csv"  # table of the whole
    device: str = "auto"  # auto, cpu or cuda

    def run(self) -> None:
        from deepchest_utils.studies.bench import format_bench, full_bench, quick_bench

        table = quick_bench(self.device) if self.quick else full_bench(self.out, self.device, only=self.part or None)
        print(format_bench(table) + ("" if self.quick else f"\n\n{len(table)} measurements in {self.out}"))


@dataclass
class Notebooks:
    """Run notebooks headless through papermill."""

    names: Positional[Names] = ()  # which ones, e.g. 01 03; all if not given
    parameter: Annotated[Pairs, arg(aliases=["-p"])] = field(default_factory=dict)  # set a parameter
    show: Annotated[bool, arg(name="list", aliases=["-l"])] = False  # list the parameters with their help, run nothing
    solutions: bool = False  # the solutions to their exercises instead
    appendix: bool = False  # the appendix instead: A1 to A4
    student: str | None = None  # write copies of the solutions without the answers into this folder, run nothing
    again: bool = False  # run those, too, that the same code has run before
    output: Annotated[str | None, arg(aliases=["-o"])] = None  # folder of the executed copies, if not below runs

    def run(self) -> int:
        if self.solutions and self.appendix:
            raise runner.NotebookError("--solutions and --appendix are two folders: run one, then the other.")
        part = "solutions" if self.solutions or self.student else "appendix" if self.appendix else ""
        paths = runner.find_notebooks(self.names, part)
        if self.student:
            from deepchest_utils.notebook.student import write_student_copies

            print(*write_student_copies(paths, Path(self.student)), sep="\n")
            return 0
        if self.show:
            print("\n\n".join(map(runner.describe_parameters, paths)))
            return 0
        usual = runner.OUTPUT / part  # solutions share the names of the notebooks
        return 1 if runner.run_notebooks(paths, self.parameter, Path(self.output or usual).resolve(), self.again) else 0


@dataclass
class Data:
    """Load a data set, print its splits, keep the decoded images for later runs."""

    dataset: Positional[str] = "phantom"  # or nih, chestmnist, csv, chexpert, mimic, padchest, vindr, embeddings
    data_root: str | None = None  # folder of its files, or the file of embeddings
    image_size: int = 64  # px, square
    split: str | None = None  # official, patient, a fold such as 2/5, or the data set's default
    data_seed: int = 0  # of the phantom and of our own splits
    data_options: Pairs = field(default_factory=dict)  # further options of load_dataset

    def run(self) -> None:
        from deepchest_utils.datasets import load_dataset

        c = TrainConfig(**vars(self))  # which checks them
        data = load_dataset(c.dataset, c.data_root, c.image_size, c.data_seed, c.split, **c.data_options)
        source = f", read from {data.source}" if data.source else ""
        of = f"{data.train.images.shape[1]:,} features" if data.train.are_vectors else f"{self.image_size} px"
        print(f"{data.name}, {of}, split={data.split}{source}\n{data.summary().to_string()}")


@dataclass
class Embed:
    """The features of all images by a pretrained encoder, in a file that `--dataset embeddings` trains on."""

    backbone: str = "lite0"  # lite0, timm:NAME or a classifier of torchvision.models
    pretrained: bool = True  # with ImageNet weights
    dataset: str = "phantom"  # phantom, nih, chestmnist, csv, chexpert, mimic, padchest or vindr
    data_root: str | None = None  # folder of its files
    image_size: int | None = None  # px, square; that of the encoder's training if not given
    split: str | None = None  # official, patient, or the data set's default; --dataset embeddings can split anew
    data_seed: int = 0  # of the phantom and of our own splits
    data_options: Pairs = field(default_factory=dict)  # further options of load_dataset
    batch_size: int = 32  # images at a time
    device: str = "auto"  # auto, cpu or cuda
    out: str = "runs/features.npz"  # the file; a call that was stopped goes on

    def run(self) -> None:
        from deepchest_utils.datasets.embeddings import read_embeddings
        from deepchest_utils.models.trunks import check_backbone, native_size
        from deepchest_utils.training.embed import embed

        values = dict(vars(self))
        out, batch_size = values.pop("out"), values.pop("batch_size")
        check_backbone(self.backbone)
        values["image_size"] = self.image_size or native_size(self.backbone) or TrainConfig.image_size
        table = read_embeddings(embed(TrainConfig(**values), out, batch_size=batch_size))
        print(f"{count_of(len(table.ids), 'image')} with {table.width:,} features each in {table.origin}")


COMMANDS = {c.__name__.lower(): c for c in (Train, Sweep, Report, Localize, Predict, Bench, Notebooks, Data, Embed)}


def _pair_by_pair(argv: Sequence[str]) -> list[str]:
    """`--data-options A 1 B 2` as `--data-options A 1 --data-options B 2`."""
    option, values, made = "", 0, list[str]()
    for i, text in enumerate(argv):
        if text.startswith("--"):
            option, values = text, 0
        elif option.endswith("-options"):
            if values and values % 2 == 0 and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
                made.append(option)
            values += 1
        made.append(text)
    return made


def parse(argv: Sequence[str]) -> Any:
    """The command with its options."""
    if argv[0] not in COMMANDS:
        names = ", ".join(COMMANDS)
        raise ValueError(f"command should be one of {names}. Found {argv[0]!r}.{did_you_mean(argv[0], COMMANDS)}")
    args = _pair_by_pair(argv[1:])
    return tyro.cli(COMMANDS[argv[0]], prog=f"{PROGRAM} {argv[0]}", args=args, config=(DisallowNone,))


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what is open is closed, as after Ctrl-C."""


def _terminate(*_: object) -> None:
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:  # here, and not when Python ends, a closed pipe is noticed
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:  # of standard output: the reader has seen enough, as `head` does, or its disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to write
        if isinstance(error, BrokenPipeError):
            return 141  # 128 + SIGPIPE, which Windows has no name for
        print(f"error: standard output cannot be written ({error.strerror}).", file=sys.stderr)
        return 2


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        from importlib.metadata import version

        about = "\n".join(f"  {name:10} {command.__doc__}" for name, command in COMMANDS.items())
        usage = f"usage: {PROGRAM} [--help] [--version] COMMAND ...\n\n{about}\n\nCOMMAND --help lists its options."
        print(version("deepchest-utils") if "--version" in argv else usage, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    several, number = int(os.environ.get("WORLD_SIZE", "1")) > 1, os.environ.get("RANK", "0")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        if several and argv[0] != "train":
            raise ValueError(f"command should be train under torchrun. Found {argv[0]!r}.")
        progress.command = argv[0]
        return int(parse(argv).run() or 0)
    except BrokenPipeError:
        raise
    except OSError as error:  # of the system: too many open files, no rights
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (ValueError, FloatingPointError, ModuleNotFoundError) as error:  # the project's own, each one clear line
        message = missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
        print(f"error{f' in process {number}' if several else ''}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped; the same command goes on from here (train: with --run-dir)", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stopped, _Terminated) else signal.SIGINT)
    finally:
        progress.command = ""
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"  # without a line of source code
    sys.exit(main())
