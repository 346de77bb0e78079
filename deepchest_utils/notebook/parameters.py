"""Parameters of a notebook: of the type that their cell declares and with names that there are, whatever way they came."""

import ast
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from deepchest_utils.config import check_choice, check_type

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict}


def parse_value(text: str) -> object:
    """A parameter from the command line: true, false, null, a Python literal (3, 1e-3, [1, 2]), JSON, or else a text."""
    constants = {"true": "True", "false": "False", "null": "None", "none": "None"}
    with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # {[]: 1}, or too deep
        return ast.literal_eval(constants.get(text.lower(), text))
    if text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def split_methods(text: str) -> list[str]:
    """Methods with spaces between them; those in brackets part the options of one."""
    return re.split(r"\s+(?![^()]*\))", text.strip()) if text.strip() else []


def declared_types(source: str) -> dict[str, Any]:
    """The type of each parameter in a cell of lines `name: type = default`; with the default None, it may be None."""
    types: dict[str, Any] = {}
    for line in ast.parse(source).body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as default):
                if kind in TYPES:
                    types[name] = TYPES[kind] | None if ast.unparse(default) == "None" else TYPES[kind]
    return types


def check_values(types: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as their types: an integer for a float is fine, and the text of a dictionary is read by `parse_value`.

    Raises ValueError for any other type, and for a data set, method or the like that does not exist.
    """
    from deepchest_utils.datasets import DATASETS  # these with torch, which a list of notebooks need not wait for
    from deepchest_utils.datasets.base import fold_of
    from deepchest_utils.explain import CAM_METHODS
    from deepchest_utils.models.trunks import check_backbone
    from deepchest_utils.weighting import check_method

    checked = {}
    for name, value in values.items():
        if types[name] is dict and isinstance(value, str):
            value = parse_value(value)
        checked[name] = check_type(name, types[name], value)
    choices: dict[str, Collection[str]] = {"dataset": DATASETS, "cam": CAM_METHODS, "study": ("committed", "rerun")}
    for name, allowed in choices.items():
        if checked.get(name) is not None:
            check_choice(name, checked[name], allowed)
    if checked.get("backbone") is not None:
        check_backbone(checked["backbone"])
    if checked.get("split") is not None:
        fold_of(checked["split"])
    for name in ("num_seeds", "num_methods", "num_rates"):
        if checked.get(name, 1) < 1:
            raise ValueError(f"{name} should be at least 1. Found {checked[name]}.")
    asked = split_methods(checked.get("methods") or "")
    for method in [*([checked["method"]] if "method" in checked else []), *asked]:
        if "@" in method and "study" not in types:
            raise ValueError(f"method should have no @, which goes with a sweep. Found {method!r}.")
        check_method(method.partition("@")[0])  # a sweep's method@architecture
    if checked.get("methods") is not None and ("equal" not in asked or len({*asked}) < 2):
        raise ValueError(f"methods should have equal and one more. Found {checked['methods']!r}.")
    return checked


def check_parameters(namespace: dict[str, Any]) -> None:
    """Check the parameters in the `globals()` of a notebook, in the cell below theirs. Raises ValueError as `check_values`."""
    types: dict[str, Any] = {}
    for source in namespace.get("In", ()):  # the cells that ran so far
        with suppress(SyntaxError):  # of IPython's own: %magic
            types |= declared_types(source)
    namespace |= check_values(types, {name: namespace[name] for name in types if name in namespace})
