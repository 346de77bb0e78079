"""Everything that a run depends on, in one place, checked when it is made."""

import ast
import dataclasses
import difflib
import json
import math
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints, no_type_check

Architecture = Literal["hard_sharing", "single_task", "cross_stitch", "mtan"]
Optimizer = Literal["adamw", "adam", "rmsprop", "sgd"]
Schedule = Literal["cosine", "constant"]
Amp = Literal["off", "bf16", "fp16"]
Head = Literal["linear", "two_way"]
Augmentation = Literal["small", "resized_crop"]
Select = Literal["best", "last"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
LOSSES = ("bce", "balanced", "focal", "asymmetric", "logit_adjusted", "ldam")
MAX_SIZE = 2048  # px: a batch of more fits into no memory


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run.

    The comment beside a field is its help on the command line.

    Raises:
        ValueError: if a field is not as it should be; the message names it.
    """

    dataset: str = "phantom"  # phantom, nih, chestmnist, csv, chexpert, mimic, padchest, vindr or embeddings
    data_root: str | None = None  # folder of its files, or the file of embeddings; not needed for the phantom
    image_size: int = 64  # px, square
    split: str | None = None  # official, patient, a fold such as 2/5, or, left out, the data set's default
    data_seed: int = 0  # of the phantom and of our own splits
    data_options: dict[str, Any] = field(default_factory=dict)  # further options of load_dataset
    method: str = "deepchest"  # with its options, as in deepchest(floor=0.25); A+B; deepchest_utils/README.md lists all
    method_options: dict[str, Any] = field(default_factory=dict)  # its options, apart
    loss: str = "bce"  # bce, balanced, focal, asymmetric, logit_adjusted or ldam; with options, as in focal(gamma=3)
    loss_options: dict[str, Any] = field(default_factory=dict)  # its options, apart
    architecture: Architecture = "hard_sharing"  # what the tasks share
    backbone: str = "resnet18_thin"  # resnet18_thin, lite0, timm:NAME or a classifier of torchvision.models
    pretrained: bool = False  # start from ImageNet weights; those of lite0 come with the extra encoders
    hidden: int = 0  # units of a layer with ReLU between trunk and heads, which the tasks share; 0 is none
    head: Head = "linear"  # linear, one output a finding; two_way, two outputs and a softmax
    prior_bias: bool = True  # heads start as the best constant predictor, otherwise at 0
    epochs: int = 12  # passes over the training set
    batch_size: int = 64  # images a step
    stratified: bool = False  # deal out positives so that each finding is in as many batches as it can be
    oversample: float = 0.0  # draw images of findings rarer than this share more often; 0 is each image once an epoch
    optimizer: Optimizer = "adamw"  # what takes the steps
    lr: float = 2e-3  # peak learning rate
    weight_decay: float = 0.05  # decoupled for adamw, L2 for the others
    schedule: Schedule = "cosine"  # cosine to zero, or constant
    augment: bool = True  # change each training image at random; embeddings stay as they are
    augmentation: Augmentation = "small"  # small: shift, turn, zoom, exposure; resized_crop: turn, crop, mirror
    augment_test: bool = False  # change validation and test images at random, too
    ema: float = 0.0  # decay, as 0.999, of a moving average of the weights, which is tested in their place; 0 is none
    select: Select = "best"  # epoch that is tested: best on validation, or last
    amp: Amp = "off"  # type of autocast
    channels_last: bool = True  # memory layout of the images
    device: str = "auto"  # auto takes cuda if there is one
    min_positives: int = 1  # on validation, for a finding to count in the macro AUROC that chooses the epoch
    seed: int = 0  # of the network, the order of the images and the augmentation
    run_dir: str | None = None  # where checkpoint and tables go; left out, nothing is written

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, check_type(name, hint, getattr(self, name)))
        for name, own in (("method", {"name", "num_tasks"}), ("loss", {"name", "labels"})):
            spec, options = getattr(self, name), getattr(self, f"{name}_options")
            if "(" in spec:
                spec, options = parse_method(spec, options)
                object.__setattr__(self, name, spec)
                object.__setattr__(self, f"{name}_options", options)
            if taken := own & options.keys():
                raise ValueError(f"{name}_options should not have {' and '.join(taken)}: the run decides.")
        check_choice("loss", self.loss, LOSSES)
        if taken := {"name", "root", "image_size", "seed", "split"} & self.data_options.keys():
            raise ValueError(f"data_options should not have {min(taken)}: it has an option of its own.")
        for name in ("data_root", "run_dir"):
            if "\0" in (getattr(self, name) or ""):
                raise ValueError(f"{name} should be the path of a folder. Found {getattr(self, name)!r}.")
        if self.run_dir == "":  # a variable of the shell that is not set
            raise ValueError("run_dir should be the path of a folder, or left out. Found an empty text.")
        for name in ("image_size", "epochs", "batch_size", "lr", "min_positives"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} should be greater than 0. Found {getattr(self, name)}.")
        for name in ("weight_decay", "seed", "data_seed", "hidden", "oversample", "ema"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} should not be negative. Found {getattr(self, name)}.")
        for name in ("oversample", "ema"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} should be less than 1. Found {getattr(self, name)}.")
        for name in ("hidden", "head"):
            if self.architecture != "hard_sharing" and getattr(self, name) not in (0, "linear"):
                raise ValueError(f"{name} goes with architecture 'hard_sharing'. Found {self.architecture!r}.")
        if self.dataset == "embeddings":  # vectors: one network is made for them, and nothing turns or shifts them
            if self.backbone == type(self).backbone:
                object.__setattr__(self, "backbone", "mlp")
            object.__setattr__(self, "augment", False)
            if self.augment_test:
                raise ValueError("augment_test should be False for dataset 'embeddings': it changes images.")
        if (self.dataset == "embeddings") != (self.backbone == "mlp"):
            found = f"{self.backbone!r} and {self.dataset!r}"
            raise ValueError(f"backbone 'mlp' and dataset 'embeddings' go together. Found {found}.")
        if self.image_size > MAX_SIZE:
            raise ValueError(f"image_size should be at most {MAX_SIZE}. Found {self.image_size}.")

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same for a run to go on: all but the machine and the folders."""
        fields = dataclasses.asdict(self)
        for name in ("data_root", "device", "run_dir"):
            del fields[name]
        return cast("dict[str, Any]", json.loads(json.dumps(fields, default=to_plain)))


# what the authors' code does (commit 0c45bdd, its README's commands for radiographs), on EfficientNet-Lite0 in place of
# ResNet-50: TrainConfig(**PUBLISHED_RECIPE, dataset="nih", ...). Each field that goes is a step towards our defaults.
# Its split has 80, 10 and 10% of the images, ours 70, 10 and 20%.
PUBLISHED_RECIPE: dict[str, Any] = {
    "method": "deepchest", "method_options": {"initial": "resnet"}, "split": "image", "image_size": 128,
    "backbone": "lite0", "pretrained": True, "hidden": 512, "head": "two_way", "prior_bias": False,
    "optimizer": "rmsprop", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant", "batch_size": 128, "epochs": 15,
    "augmentation": "resized_crop", "augment_test": True, "select": "last",
}  # fmt: skip


def to_plain(value: Any) -> Any:
    """What JSON can hold in place of an option: a list of numbers for a tensor or array, which `==` takes too, else text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


no_type_check(TrainConfig.__init__)  # by the tests: it checks its values itself, and takes NumPy's numbers too


def parse_method(spec: str, given: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the options, for `make_method`, of a text like `deepchest(normalize=True)+pcgrad(level="features")`.

    Raises ValueError for anything but names joined by "+", at most ten, each with options that are literals; or if
    `given`, further options that stand apart, has one of the text's."""
    try:
        terms = [_parse_term(tree) for tree in _split_sum(ast.parse(spec, mode="eval").body)]
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):  # TypeError: a literal like {[]: 1}
        form = "NAME, NAME(option=value, ...) or A+B of these, at most ten"
        raise ValueError(f"a method or loss should read {form}. Found {spec[:200]!r}.") from None
    options: dict[str, Any] = {}
    for _, term_options in reversed(terms):  # each term's options hold those of the terms after it
        options = {**term_options, **({"inner_options": options} if options else {})}
    return "+".join(name for name, _ in terms), _merged(options, given or {}, spec)


def split_spec(spec: str) -> tuple[str, str, str]:
    """Method, architecture and loss of a text such as `deepchest(floor=0.25)@mtan@focal`, "" where it names none."""
    architecture = loss = ""
    while True:
        method, _, last = spec.rpartition("@")
        if last in ARCHITECTURES and not architecture:
            spec, architecture = method, last
        elif method and not loss and _names_loss(last):
            spec, loss = method, last
        else:
            return spec, architecture, loss


def _names_loss(text: str) -> bool:
    try:
        return parse_method(text)[0] in LOSSES
    except ValueError:
        return False


def format_method(name: str, options: dict[str, Any]) -> str:
    """The text that `parse_method` reads as this name and these options."""
    outer, plus, inner = name.partition("+")
    own_options = {option: value for option, value in options.items() if option != "inner_options"}
    texts = [f"{option}={json.dumps(v) if isinstance(v, str) else repr(v)}" for option, v in own_options.items()]
    word = outer + (f"({', '.join(texts)})" if texts else "")
    return word + plus + format_method(inner, options.get("inner_options", {})) if plus else word


def _merged(options: dict[str, Any], given: dict[str, Any], spec: str) -> dict[str, Any]:
    merged = {**options, **given}
    for name in options.keys() & given.keys():
        if name != "inner_options" or not isinstance(given[name], dict):
            raise ValueError(f"option {name} stands in {spec!r} and again apart, {given[name]!r}. Leave one out.")
        merged[name] = _merged(options[name], given[name], spec)
    return merged


def _split_sum(tree: ast.expr) -> list[ast.expr]:
    terms = [tree]
    while isinstance(terms[0], ast.BinOp) and isinstance(terms[0].op, ast.Add):
        terms[:1] = [terms[0].left, terms[0].right]
        if len(terms) > 10:
            raise ValueError
    return terms


def _parse_term(tree: ast.expr) -> tuple[str, dict[str, Any]]:
    match tree:
        case ast.Name(id=name):
            return name, {}
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            options = {k.arg: ast.literal_eval(k.value) for k in keywords}
            if len(options) == len(keywords) and None not in options:  # no option twice, no **
                return name, cast("dict[str, Any]", options)
    raise ValueError


def check_type(name: str, hint: Any, value: object, error: type[ValueError] = ValueError) -> Any:
    """The value as the type that is declared; integers and floats may be NumPy's, a float may be an integer, but not the
    other way round. Else raise the error."""
    if get_origin(hint) is Literal:
        check_choice(name, value, get_args(hint), error)
        return value
    if get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            with suppress(error):
                return check_type(name, member, value, error)
        raise error(f"{name} should be of type {hint}. Found {value!r}.")
    kind = get_origin(hint) or hint
    if kind in (int, float):
        if not isinstance(value, bool):
            if kind is float and isinstance(value, Real) and math.isfinite(value):
                return float(value)
            if kind is int and isinstance(value, Integral) and abs(int(value)) < 2**63:
                return int(value)
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, kind):
        return value
    finite = "a finite number" if isinstance(value, float) and not math.isfinite(value) else f"of type {kind.__name__}"
    raise error(f"{name} should be {finite}. Found {value!r}.")


def check_choice(name: str, value: object, allowed: Collection[str], error: type[ValueError] = ValueError) -> None:
    """Raise the error, with a hint for a misspelt one, unless the value is one of the names that are allowed."""
    if not isinstance(value, str) or value not in allowed:
        names, hint = ", ".join(allowed), did_you_mean(value, allowed)
        raise error(f"{name} should be one of {names}. Found {value!r}.{hint}")


def count_of(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: " Did you mean 'equal'?" for a misspelt name, "" if nothing is close."""
    close = difflib.get_close_matches(str(name), [*allowed], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
