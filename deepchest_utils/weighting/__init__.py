"""Every weighting method by name: `make_method("deepchest", num_tasks=14, **options)`."""

import inspect
from collections.abc import Callable, Sized
from functools import partial
from typing import Any, cast

from deepchest_utils.config import check_type, did_you_mean, parse_method
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
    terms = name.split("+")
    for term in terms:
        if term not in METHODS:
            names, hint = ", ".join(METHODS), did_you_mean(term, METHODS)
            raise ValueError(f"method should be one of {names}, or two of them as A+B. Found {name[:200]!r}.{hint}")
    if len(terms) > 10:
        raise ValueError(f"method should be at most ten names joined by +. Found {len(terms)}.")


def check_method(text: str, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The name and the options of a method, with or without options in its text, before there are data.

    Raises ValueError, as `make_method` would, for what is wrong with any number of tasks: an unknown name or option, or
    an option out of bounds."""
    name, options = parse_method(text, options) if "(" in text else (text, options or {})
    check_names(name)
    classes = [getattr(METHODS[term], "func", METHODS[term]) for term in name.split("+")]
    if all(method.__module__.startswith(f"{__name__}.") for method in classes):  # others may ask for a number of tasks
        make_method(name, _num_tasks(options), **options)
    return name, options


def _num_tasks(options: dict[str, Any]) -> int:
    """That which the options are for: the length of one that has a value a task, or that of the published ones."""
    own = {name: value for name, value in options.items() if name != "inner_options"}
    lengths = [len(value) for value in own.values() if isinstance(value, Sized) and not isinstance(value, str)]
    if not lengths and isinstance(options.get("inner_options"), dict):
        return _num_tasks(options["inner_options"])
    return lengths[0] if lengths else len(PUBLISHED_INITIAL_WEIGHTS["resnet"])


def make_method(name: str, num_tasks: int, inner_options: Any = None, **options: Any) -> Method:
    """A method by name. Its class in METHODS has its rule, its source and its options.

    Args:
        name: One of METHODS, or "A+B", a loss weighting A over any method B: A's weights multiply B's losses. Options
            may stand in brackets: "deepchest(floor=0.25)".
        inner_options: Options of B, a dictionary.
        options: Options of the method, or of A.

    Raises:
        ValueError: For an unknown name or option, with those there are, or an option out of bounds.
    """
    if "(" in check_type("name", str, name):
        given = {**options, **({"inner_options": inner_options} if inner_options else {})}
        name, options = parse_method(name, given)
        return make_method(name, num_tasks, **options)
    check_names(name)
    if not isinstance(inner_options or {}, dict):
        raise ValueError(f"inner_options should be of type dict. Found {inner_options!r}.")
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
    "Method", "Static", "check_method", "check_names", "initial_weights", "make_method",
]  # fmt: skip
