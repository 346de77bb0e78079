"""Everything that a run depends on, in one place, checked when it is made."""

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints, no_type_check

Architecture = Literal["hard_sharing", "single_task", "cross_stitch", "mtan"]
Optimizer = Literal["adamw", "adam", "rmsprop", "sgd"]
Schedule = Literal["cosine", "constant"]
Amp = Literal["off", "bf16", "fp16"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)
MAX_SIZE = 2048  # px: a batch of more fits into no memory


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run.

    The comment beside a field is its help on the command line.

    Raises:
        ValueError: if a field is not as it should be; the message names it.
    """

    dataset: str = "phantom"  # phantom, nih, chestmnist or csv
    data_root: str | None = None  # folder of its files; not needed for the phantom
    image_size: int = 64  # px, square
    split: str | None = None  # official, patient, or None for the data set's default
    data_seed: int = 0  # of the phantom and of our own splits
    data_options: dict[str, Any] = field(default_factory=dict)  # further options of load_dataset
    method: str = "deepchest"  # a name of make_method
    method_options: dict[str, Any] = field(default_factory=dict)  # its options
    architecture: Architecture = "hard_sharing"  # what the tasks share
    backbone: str = "resnet18_thin"  # resnet18_thin or a classifier of torchvision.models
    pretrained: bool = False  # start from ImageNet weights
    epochs: int = 12  # passes over the training set
    batch_size: int = 64  # images a step
    stratified: bool = False  # deal out positives so that each finding is in as many batches as it can be
    optimizer: Optimizer = "adamw"  # what takes the steps
    lr: float = 2e-3  # peak learning rate
    weight_decay: float = 0.05  # decoupled for adamw, L2 for the others
    schedule: Schedule = "cosine"  # cosine to zero, or constant
    augment: bool = True  # small rotation, shift, zoom and exposure, drawn for each image
    amp: Amp = "off"  # type of autocast
    channels_last: bool = True  # memory layout of the images
    device: str = "auto"  # auto takes cuda if there is one
    min_positives: int = 1  # on validation, for a finding to count in the macro AUROC that chooses the epoch
    seed: int = 0  # of the network, the order of the images and the augmentation
    run_dir: str | None = None  # where checkpoint and tables go; None writes nothing

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, hint, getattr(self, name)))
        for name in ("image_size", "epochs", "batch_size", "lr", "min_positives"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} should be greater than 0. Found {getattr(self, name)}.")
        for name in ("weight_decay", "seed", "data_seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} should not be negative. Found {getattr(self, name)}.")
        if self.image_size > MAX_SIZE:
            raise ValueError(f"image_size should be at most {MAX_SIZE}. Found {self.image_size}.")

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued: all but where it runs and where files lie."""
        fields = dataclasses.asdict(self)
        for name in ("data_root", "device", "run_dir"):
            del fields[name]
        # as plain numbers: options may be tensors and arrays, which have no single answer to ==
        plain: dict[str, Any] = json.loads(json.dumps(fields, default=lambda value: value.tolist()))
        return plain


no_type_check(TrainConfig.__init__)  # by the tests: it checks its values itself, and takes NumPy's numbers too


def _checked(name: str, hint: Any, value: object) -> object:
    """The value as the type that the field declares; integers and floats may be NumPy's, a float may be an integer."""
    if get_origin(hint) is Literal:
        check_choice(name, value, get_args(hint))
        return value
    optional = NoneType in get_args(hint)
    kind = get_args(hint)[0] if optional else get_origin(hint) or hint
    if optional and value is None:
        return None
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
    raise ValueError(f"{name} should be of type {hint if optional else kind.__name__}. Found {value!r}.")


def check_choice(name: str, value: object, allowed: Collection[str], error: type[ValueError] = ValueError) -> None:
    """Raise the error, with a hint for a misspelt one, unless the value is one of the names that are allowed."""
    if not isinstance(value, str) or value not in allowed:
        names, hint = ", ".join(allowed), did_you_mean(value, allowed)
        raise error(f"{name} should be one of {names}. Found {value!r}.{hint}")


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """The end of an error message: " Did you mean 'equal'?" for a misspelt name, "" if nothing is close."""
    close = difflib.get_close_matches(str(name), [*allowed], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
