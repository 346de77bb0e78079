"""A method with its options in one word, as tables and the command line name it."""

import ast
import json
from typing import Any, cast


def parse_method(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options, for `make_method`, of a word like `deepchest(normalize=True)+pcgrad(level="features")`.

    Raises ValueError for anything but names joined by "+", each with options that are literals."""
    try:
        terms = [_parse_term(tree) for tree in _split_sum(ast.parse(spec, mode="eval").body)]
    except (SyntaxError, TypeError, ValueError):  # TypeError: a literal like {[]: 1}
        form = "NAME, NAME(option=value, ...) or A+B of these"
        raise ValueError(f"a method should read {form}. Found {spec!r}.") from None
    options: dict[str, Any] = {}
    for _, term_options in reversed(terms):  # each term's options hold those of the terms after it
        options = {**term_options, **({"inner_options": options} if options else {})}
    return "+".join(name for name, _ in terms), options


def format_method(name: str, options: dict[str, Any]) -> str:
    """The word that `parse_method` reads as this name and these options."""
    outer, plus, inner = name.partition("+")
    own_options = {option: value for option, value in options.items() if option != "inner_options"}
    texts = [f"{option}={json.dumps(v) if isinstance(v, str) else repr(v)}" for option, v in own_options.items()]
    word = outer + (f"({', '.join(texts)})" if texts else "")
    return word + plus + format_method(inner, options.get("inner_options", {})) if plus else word


def _split_sum(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return [*_split_sum(tree.left), *_split_sum(tree.right)]
    return [tree]


def _parse_term(tree: ast.expr) -> tuple[str, dict[str, Any]]:
    match tree:
        case ast.Name(id=name):
            return name, {}
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            options = {k.arg: ast.literal_eval(k.value) for k in keywords}
            if len(options) == len(keywords) and None not in options:  # no option twice, no **
                return name, cast("dict[str, Any]", options)
    raise ValueError
