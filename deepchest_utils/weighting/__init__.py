"""Every weighting method by name: `make_method("deepchest", num_tasks=14, **options)`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from deepchest_utils.config import did_you_mean
from deepchest_utils.weighting.amtl import AMTL
from deepchest_utils.weighting.base import Composed, EpochReport, LossWeighting, Method
from deepchest_utils.weighting.candidates import Anneal, Hedge, ValDiscount
from deepchest_utils.weighting.deepchest import SIGNALS, DeepChest
from deepchest_utils.weighting.dtp import DTP
from deepchest_utils.weighting.ldc_mtl import LDCMTL
from deepchest_utils.weighting.loss_ratio import IGB, LBTW
from deepchest_utils.weighting.scalarization import DBMTLL, DWA, FAMO, GLS, IMTLL, RLW, STCH, GradNorm, Uncertainty
from deepchest_utils.weighting.slaw import SLAW
from deepchest_utils.weighting.static import PREVALENCE_RULES, PUBLISHED_INITIAL_WEIGHTS, Equal, Static, initial_weights
from deepchest_utils.weighting.torchjd_adapter import ADAPTERS
from deepchest_utils.weighting.uw_so import UWSO

METHODS: dict[str, Callable[..., Method]] = {
    "equal": Equal,
    "static": Static,
    **{name: partial(Static, values=name) for name in PREVALENCE_RULES},
    "deepchest": DeepChest,
    **{f"deepchest_{signal}": partial(DeepChest, signal=signal) for signal in SIGNALS if signal != "accuracy"},
    # a control: what DeepChest gains beyond it, it gains by listening to the training
    "prevalence_oracle": partial(DeepChest, signal="prevalence", scores_from="train"),
    "anneal": Anneal,
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "rlw": RLW,
    "gls": GLS,
    "imtl_l": IMTLL,
    "stch": STCH,
    "famo": FAMO,
    "dbmtl_l": DBMTLL,
    "dtp": DTP,
    "amtl": AMTL,
    "uw_so": UWSO,
    "ldc_mtl": LDCMTL,
    "slaw": SLAW,
    "lbtw": LBTW,
    "igb": IGB,
    "hedge": Hedge,
    "val_discount": ValDiscount,
    "gradnorm": GradNorm,
    **ADAPTERS,
}


def check_names(name: str) -> None:
    """Raise ValueError, with the names there are, unless `name` is one of METHODS or several joined by "+"."""
    for term in name.split("+"):
        if term not in METHODS:
            names, hint = ", ".join(METHODS), did_you_mean(term, METHODS)
            raise ValueError(f"method should be one of {names}, or two of them as A+B. Found {name!r}.{hint}")


def make_method(name: str, num_tasks: int, inner_options: dict[str, Any] | None = None, **options: Any) -> Method:
    """A method by name. Its class in METHODS has its rule, its source and its options.

    Args:
        name: One of METHODS, or "A+B", a loss weighting A over any method B: A's weights multiply B's losses.
        inner_options: Options of B.
        options: Options of the method, or of A.

    Raises:
        ValueError: For an unknown name or option, with those there are, or an option out of bounds.
    """
    check_names(name)
    outer, plus, inner = name.partition("+")
    fixed = getattr(METHODS[outer], "keywords", {})  # of a partial: what its name promises
    for option in sorted(set(fixed) & set(options)):
        raise ValueError(f"{option} of method {outer!r} is fixed to {fixed[option]!r}. Leave it out.")
    allowed = [option for option in inspect.signature(METHODS[outer]).parameters if option not in ("num_tasks", *fixed)]
    try:
        method = METHODS[outer](num_tasks, **options)
    except TypeError as error:
        hint = "".join(did_you_mean(option, allowed) for option in options if option not in allowed)
        raise ValueError(
            f"method {outer!r} cannot be made with options {sorted(options)}: {error}. "
            f"It has {', '.join(allowed) or 'none'}.{hint}"
        ) from None
    if not plus:
        if inner_options:
            raise ValueError(f"inner_options goes with a method A+B. Found {name!r}.")
        return method
    # Composed refuses a method that is no loss weighting
    return Composed(cast(LossWeighting, method), make_method(inner, num_tasks, **(inner_options or {})))


__all__ = [
    "METHODS", "PUBLISHED_INITIAL_WEIGHTS", "SIGNALS", "Composed", "DeepChest", "EpochReport", "Equal", "LossWeighting",
    "Method", "Static", "check_names", "initial_weights", "make_method",
]  # fmt: skip
