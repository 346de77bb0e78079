"""Everything that a run depends on, in one place, checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")
SCHEDULES = ("cosine", "constant")
AMP = ("off", "bf16", "fp16")
ARCHITECTURES = ("hard_sharing", "single_task", "cross_stitch", "mtan")
_ONE_OF = {"architecture": ARCHITECTURES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "amp": AMP}
MAX_SIZE = 2048  # px: a batch of more fits into no memory
_POSITIVE = ("image_size", "epochs", "batch_size", "lr")


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of a run. Raises ValueError naming the field that is not as it should be."""

    dataset: str = "phantom"  # phantom, nih, chestmnist or csv
    data_root: str | None = None  # folder of its files; not needed for the phantom
    image_size: int = 64  # px, square
    split: str | None = None  # official, patient, or None for the data set's default
    data_seed: int = 0  # of the phantom and of our own splits
    data_options: dict[str, Any] = field(default_factory=dict)  # further options of load_dataset
    method: str = "deepchest"  # a name of make_method
    method_options: dict[str, Any] = field(default_factory=dict)  # its options
    architecture: str = "hard_sharing"  # what tasks share: hard_sharing, single_task, cross_stitch or mtan
    backbone: str = "resnet18_thin"  # resnet18_thin or a classifier of torchvision.models
    pretrained: bool = False  # start from ImageNet weights
    epochs: int = 12  # passes over the training set
    batch_size: int = 64  # images a step
    optimizer: str = "adamw"  # adamw, adam, rmsprop or sgd
    lr: float = 2e-3  # peak learning rate
    weight_decay: float = 0.05  # decoupled for adamw, L2 for the others
    schedule: str = "cosine"  # cosine to zero, or constant
    augment: bool = True  # small rotation, shift, zoom and exposure, drawn for each image
    amp: str = "off"  # autocast: off, bf16 or fp16
    channels_last: bool = True  # memory layout of the images
    device: str = "auto"  # auto takes cuda if there is one
    seed: int = 0  # of the network, the order of the images and the augmentation
    run_dir: str | None = None  # where checkpoint and tables go; None writes nothing

    def __post_init__(self) -> None:
        for given in dataclasses.fields(self):
            object.__setattr__(self, given.name, _checked(given, getattr(self, given.name)))
        for name, allowed in _ONE_OF.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} should be one of {', '.join(allowed)}. Found {getattr(self, name)!r}.")
        for name in _POSITIVE:
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


def _checked(given: dataclasses.Field[Any], value: object) -> object:
    """The value as the field's type: a whole number may come as NumPy's, a number as a whole one."""
    # text here, but the type itself in a subclass elsewhere; a dict is one, whatever it holds
    declared = (given.type if isinstance(given.type, str) else given.type.__name__).partition("[")[0]
    kind = declared.removesuffix(" | None")
    if value is None and kind != declared:
        return None
    if kind == "float" and isinstance(value, Real) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif kind == "int" and isinstance(value, Integral) and not isinstance(value, bool):
        if abs(int(value)) < 2**63:
            return int(value)
    elif kind == "str" and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif isinstance(value, {"str": str, "bool": bool, "dict": dict}.get(kind, ())):
        return value
    raise ValueError(f"{given.name} should be of type {declared}. Found {value!r}.")


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """ " Did you mean 'equal'?" for a misspelt name, to append to an error message; "" if nothing is close."""
    close = difflib.get_close_matches(name, [*allowed], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
