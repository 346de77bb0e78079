"""A method with its options in one word, as tables and the command line name it."""

import ast
import json
from typing import Any, cast


def parse_method(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options, for `make_method`, of `deepchest`, `deepchest(floor=0.25)`, or
    `deepchest(normalize=True)+pcgrad(level="features")`.

    Options are literals. Raises ValueError for anything else.
    """
    try:
        terms = [_term(tree) for tree in _terms(ast.parse(spec, mode="eval").body)]
    except (SyntaxError, TypeError, ValueError):  # TypeError: a literal like {[]: 1}
        raise ValueError(
            f"a method should read NAME, NAME(option=value, ...) or A+B of these. Found {spec!r}."
        ) from None
    options: dict[str, Any] = {}
    for _, own in reversed(terms):  # each term's options hold those of the terms after it
        options = {**own, **({"inner_options": options} if options else {})}
    return "+".join(name for name, _ in terms), options


def format_method(name: str, options: dict[str, Any]) -> str:
    """The word that `parse_method` reads as this name and these options."""
    terms = []
    for part in name.split("+"):
        own = {key: value for key, value in options.items() if key != "inner_options"}
        options = options.get("inner_options", {})
        texts = [f"{key}={json.dumps(v) if isinstance(v, str) else repr(v)}" for key, v in own.items()]
        terms.append(part + (f"({', '.join(texts)})" if texts else ""))
    return "+".join(terms)


def _terms(tree: ast.expr) -> list[ast.expr]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        return [*_terms(tree.left), *_terms(tree.right)]
    return [tree]


def _term(tree: ast.expr) -> tuple[str, dict[str, Any]]:
    match tree:
        case ast.Name(id=name):
            return name, {}
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            options = {k.arg: ast.literal_eval(k.value) for k in keywords}
            if len(options) == len(keywords) and None not in options:  # no option twice, no **
                return name, cast("dict[str, Any]", options)
    raise ValueError
