"""A method with its options in one text, as tables and the command line name it."""

import json
from typing import Any

from deepchest_utils.config import parse_method


def format_method(name: str, options: dict[str, Any]) -> str:
    """The text that `parse_method` reads as this name and these options."""
    outer, plus, inner = name.partition("+")
    own_options = {option: value for option, value in options.items() if option != "inner_options"}
    texts = [f"{option}={json.dumps(v) if isinstance(v, str) else repr(v)}" for option, v in own_options.items()]
    word = outer + (f"({', '.join(texts)})" if texts else "")
    return word + plus + format_method(inner, options.get("inner_options", {})) if plus else word


__all__ = ["format_method", "parse_method"]
