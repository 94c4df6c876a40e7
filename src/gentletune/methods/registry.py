"""Methods by name: `register` adds one, `parse_method` builds any composition of them from its text."""

from __future__ import annotations

import ast
import inspect
import keyword
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

from gentletune.core.errors import UserError, unknown
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

    Parts are joined by `+` in any order; the name is canonical (token weights first, merge last). Plain `sft`
    beside another method says nothing and is left out. Raises `UserError` for an unknown method or argument,
    a value the method refuses, or a part named twice.

    >>> parse_method("lora + talr").name
    'talr+lora'
    """
    try:
        return reduce(compose, _parts(text) or [Method()])
    except ValueError as error:
        raise UserError(f"method '{text}': {error}") from error


def training_part(text: str) -> str:
    """Label of the method without its merge: runs that share it share their training.

    >>> training_part("talr+wise_ft(alpha=0.5)")
    'talr'
    """
    kept = [part for part in _parts(text) if part.merge is None or replace(part, merge=None).rank() >= 0]
    return "+".join(part.label for part in kept) or Method().label


def _parts(text: str) -> list[Method]:
    """The methods that `text` names, without `sft`, in canonical order: by slot, then by name."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _malformed(text) from error
    parts = [_build(node, text) for node in _addends(tree)]
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise UserError(f"method '{text}': each part may be named once")
    return sorted((part for part in parts if part.name != "sft"), key=lambda part: (part.rank(), part.name))


def _malformed(text: str) -> UserError:
    return UserError(f"method '{text}': write names joined by +, with arguments as name(key=value)")


def _addends(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_addends(node.left), *_addends(node.right)]
    return [node]


def _build(node: ast.expr, text: str) -> Method:
    arguments: dict[str, Any] = {}
    name, positional, given = (node.func, node.args, node.keywords) if isinstance(node, ast.Call) else (node, [], [])
    if not isinstance(name, ast.Name) or positional:
        raise _malformed(text)
    if name.id not in _FACTORIES:
        raise unknown("method", name.id, _FACTORIES)
    factory = _FACTORIES[name.id]
    defaults = {p.name: p.default for p in inspect.signature(factory).parameters.values()}
    for argument in given:
        if argument.arg is None:  # name(**more)
            raise _malformed(text)
        if argument.arg not in defaults:
            raise unknown(f"argument of {name.id}", argument.arg, defaults)
        if argument.arg in arguments:
            raise UserError(f"method '{text}': argument '{argument.arg}' may be given once")
        arguments[argument.arg] = _value(argument.value, text)
    try:
        method = factory(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"method '{name.id}': {error}") from error
    changed = [f"{k}={_show(arguments[k])}" for k in defaults if k in arguments and arguments[k] != defaults[k]]
    label = f"{name.id}({', '.join(changed)})" if changed else name.id
    return replace(method, name=name.id, label=label)


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):  # tau=median needs no quotes
        return node.id
    if isinstance(node, ast.List):
        return [_value(element, text) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise UserError(f"method '{text}': arguments are numbers, names or lists of them") from error


def _show(value: Any) -> str:
    bare = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    return value if bare else repr(value)


def check_number(name: str, value: Any, *, low: float, high: float = float("inf"), open_low: bool = False) -> float:
    """`value` as a float within [low, high] ((low, high] with `open_low`). Raises ValueError otherwise."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not (low < number if open_low else low <= number) or not number <= high:
        bound = f"in [{low:g}, {high:g}]" if high != float("inf") else f"{'>' if open_low else '>='} {low:g}"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")
    return float(number)
