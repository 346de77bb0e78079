"""Every weighting method by name: `make_method("deepchest", num_tasks=14, **options)`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from deepchest_utils.weighting.anneal import Anneal
from deepchest_utils.weighting.base import EpochReport, LossWeighting, Method
from deepchest_utils.weighting.composed import Composed
from deepchest_utils.weighting.dbmtl_l import DBMTLL
from deepchest_utils.weighting.deepchest import SIGNALS, DeepChest, PrevalenceOracle
from deepchest_utils.weighting.dwa import DWA
from deepchest_utils.weighting.famo import FAMO
from deepchest_utils.weighting.gls import GLS
from deepchest_utils.weighting.gradnorm import GradNorm
from deepchest_utils.weighting.hedge import Hedge
from deepchest_utils.weighting.imtl_l import IMTLL
from deepchest_utils.weighting.rlw import RLW
from deepchest_utils.weighting.static import PREVALENCE_RULES, PUBLISHED_INITIAL_WEIGHTS, Equal, Static, initial_weights
from deepchest_utils.weighting.stch import STCH
from deepchest_utils.weighting.torchjd_adapter import (
    IMTLG,
    MGDA,
    RGW,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
)
from deepchest_utils.weighting.uncertainty import Uncertainty
from deepchest_utils.weighting.val_discount import ValDiscount

METHODS: dict[str, Callable[..., Method]] = {
    "equal": Equal,
    "static": Static,
    **{name: partial(Static, values=name) for name in PREVALENCE_RULES},
    "deepchest": DeepChest,
    **{f"deepchest_{s}": partial(DeepChest, signal=s) for s in SIGNALS if s != "accuracy"},
    "prevalence_oracle": PrevalenceOracle,
    "anneal": Anneal,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "rlw": RLW,
    "gls": GLS,
    "imtl_l": IMTLL,
    "stch": STCH,
    "famo": FAMO,
    "dbmtl_l": DBMTLL,
    "hedge": Hedge,
    "val_discount": ValDiscount,
    "gradnorm": GradNorm,
    "mgda": MGDA,
    "pcgrad": PCGrad,
    "graddrop": GradDrop,
    "gradvac": GradVac,
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "nash_mtl": NashMTL,
    "aligned_mtl": AlignedMTL,
    "fairgrad": FairGrad,
    "config": ConFIG,
    "dualproj": DualProj,
    "upgrad": UPGrad,
    "rgw": RGW,
}


def check_names(name: str) -> None:
    """Raise ValueError, with the names that there are, unless `name` is one or some of them joined by "+"."""
    if not set(name.split("+")) <= set(METHODS):
        raise ValueError(f"method should be one of {', '.join(METHODS)}, or two of them as A+B. Found {name!r}.")


def make_method(name: str, num_tasks: int, inner_options: dict[str, Any] | None = None, **options: Any) -> Method:
    """A method by name, for K tasks.

    name: one of `METHODS`, or "A+B": loss weighting A composed over any method B (A's weights multiply the
    losses before B sees them).
    options: of the method (of A); inner_options: of B. Raises ValueError for an unknown name or option,
    naming those there are.
    """
    check_names(name)
    outer, plus, inner = name.partition("+")
    fixed = getattr(METHODS[outer], "keywords", {})  # of a partial: what its name promises
    if given := set(fixed) & set(options):
        raise ValueError(f"{min(given)} of method {outer!r} is fixed to {fixed[min(given)]!r}. Leave it out.")
    try:
        method = METHODS[outer](num_tasks, **options)
    except TypeError as error:
        known = ", ".join(name for name in inspect.signature(METHODS[outer]).parameters if name != "num_tasks")
        raise ValueError(
            f"method {outer!r} cannot be made with options {sorted(options)}: {error}. It has {known or 'none'}."
        ) from None
    if not plus:
        if inner_options:
            raise ValueError(f"inner_options goes with a method A+B. Found {name!r}.")
        return method
    outer_method = cast(LossWeighting, method)  # any other is refused by Composed
    return Composed(outer_method, make_method(inner, num_tasks, **(inner_options or {})))


__all__ = [
    "METHODS",
    "PUBLISHED_INITIAL_WEIGHTS",
    "SIGNALS",
    "Composed",
    "DeepChest",
    "EpochReport",
    "Equal",
    "LossWeighting",
    "Method",
    "Static",
    "check_names",
    "initial_weights",
    "make_method",
]
