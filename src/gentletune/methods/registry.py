"""Methods by name: `register` adds one, `parse_method` builds any composition of them from its text."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

from gentletune.errors import UserError, unknown
from gentletune.methods.base import Method, compose

Factory = Callable[..., Method]
_FACTORIES: dict[str, Factory] = {}


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a factory known as `name`; its keyword parameters and defaults are the method's arguments.

    >>> from gentletune.methods.base import Method
    >>> @register("mine")
    ... def mine(strength: float = 1.0) -> Method:
    ...     return Method()
    >>> parse_method("mine(strength=2.0)").label
    'mine(strength=2.0)'
    """

    def add(factory: Factory) -> Factory:
        _FACTORIES[name] = factory
        return factory

    return add


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_FACTORIES)


def parse_method(text: str) -> Method:
    """The Method that `text` names, such as `talr`, `talr(tau=1.0)+lora(r=8)+wise_ft(alpha=0.5)`.

    Parts are joined by `+` in any order; the name is canonical (token weights first, finish last). Plain `sft`
    beside another method says nothing and is left out. Raises `UserError` for an unknown method or argument,
    a value the method refuses, or a part named twice.

    >>> parse_method("lora + talr").name
    'talr+lora'
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"method '{text}': write names joined by +, with arguments as name(key=value)") from error
    parts = [_build(node, text) for node in _addends(tree)]
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise UserError(f"method '{text}': each part may be named once")
    parts = [part for part in parts if part.name != "sft"] or [Method()]
    try:
        return reduce(compose, sorted(parts, key=Method.rank))
    except ValueError as error:
        raise UserError(f"method '{text}': {error}") from error


def training_part(text: str) -> str:
    """Label of the method without its finish: runs that share it share their training.

    >>> training_part("talr+wise_ft(alpha=0.5)")
    'talr'
    """
    parts = [_build(node, text) for node in _addends(ast.parse(text.strip(), mode="eval").body)]
    kept = [part for part in parts if part.finish is None and part.name != "sft"] or [Method()]
    return reduce(compose, sorted(kept, key=Method.rank)).label


def _addends(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_addends(node.left), *_addends(node.right)]
    return [node]


def _build(node: ast.expr, text: str) -> Method:
    arguments: dict[str, Any] = {}
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name) or (isinstance(node, ast.Call) and node.args):
        raise UserError(f"method '{text}': write names joined by +, with arguments as name(key=value)")
    if name.id not in _FACTORIES:
        raise unknown("method", name.id, _FACTORIES)
    factory = _FACTORIES[name.id]
    defaults = {p.name: p.default for p in inspect.signature(factory).parameters.values()}
    for keyword in node.keywords if isinstance(node, ast.Call) else []:
        if keyword.arg not in defaults:
            raise unknown(f"argument of {name.id}", str(keyword.arg), defaults)
        arguments[keyword.arg] = _value(keyword.value, text)
    try:
        method = factory(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"method '{name.id}': {error}") from error
    changed = [f"{key}={_show(value)}" for key, value in arguments.items() if value != defaults[key]]
    label = f"{name.id}({', '.join(changed)})" if changed else name.id
    return replace(method, name=name.id, label=label)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):  # tau=median needs no quotes
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UserError(f"method '{text}': arguments are numbers, names or lists of them") from error


def _show(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def check_number(name: str, value: Any, *, low: float, high: float = float("inf"), open_low: bool = False) -> float:
    """`value` as a float within [low, high] ((low, high] with `open_low`). Raises ValueError otherwise."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not (low < number if open_low else low <= number) or not number <= high:
        bound = f"in [{low:g}, {high:g}]" if high != float("inf") else f"{'>' if open_low else '>='} {low:g}"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")
    return float(number)
