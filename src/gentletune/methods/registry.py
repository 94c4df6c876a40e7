"""Methods by name: `register` adds one, `parse_method` builds any composition of them from its text.

`described` and `method_parts` say what they are: for a model card, for tables.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

from gentletune.core.errors import UserError, unknown
from gentletune.core.provenance import Described
from gentletune.methods.base import Method, compose

Factory = Callable[..., Method]


@dataclass(frozen=True)
class _Entry:
    factory: Factory
    title: str
    reference: str
    url: str


class _Part(NamedTuple):
    method: Method
    described: Described


_METHODS: dict[str, _Entry] = {}
_RANGE = re.compile(r"\d+ ?- ?\d+")
_LARGEST = sys.float_info.max


def register(name: str, title: str, reference: str, url: str) -> Callable[[Factory], Factory]:
    """Make a factory known as `name`; its keyword parameters and defaults are the method's arguments.

    Args:
        name: what a recipe calls it.
        title: what it is called in full.
        reference: where it was published, as one would cite it.
        url: where that can be read.

    The last three go into the model card of what was trained with it.

    >>> from gentletune.methods.base import Method
    >>> @register("mine", "A method of mine", "Notes, 2026", "https://example.org/mine")
    ... def mine(strength: float = 1.0) -> Method:
    ...     return Method()
    >>> parse_method("mine(strength=2.0)").label
    'mine(strength=2.0)'
    """

    def add(factory: Factory) -> Factory:
        _METHODS[name] = _Entry(factory, title, reference, url)
        return factory

    return add


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def described(name: str) -> Described:
    """Title, reference, URL and parameters of one method, `talr` or with arguments `talr(tau=1.0)`.

    Raises `UserError` where `parse_method` does, and where `name` names several.

    >>> described("wise_ft").parameters
    {'alpha': 0.5}
    """
    parts = method_parts(name)
    if len(parts) > 1:
        raise UserError(f"method '{name}' has {len(parts)} parts; name one, or take method_parts")
    return parts[0]


def method_parts(text: str) -> list[Described]:
    """What each method that `text` names is, in canonical order. Raises `UserError` where `parse_method` does.

    >>> [part.name for part in method_parts("lora + talr")]
    ['talr', 'lora']
    """
    return [part.described for part in _parts(text) or _parts_as_given("sft")]


def parse_method(text: str) -> Method:
    """The Method that `text` names, such as `talr`, `talr(tau=1.0)+lora(r=8)+wise_ft(alpha=0.5)`.

    Parts are joined by `+` in any order; the name is canonical (token weights first, merge last). Plain `sft`
    beside another method says nothing and is left out. Raises `UserError` for an unknown method or argument,
    a value the method refuses, or a part named twice.

    >>> parse_method("lora + talr").name
    'talr+lora'
    """
    try:
        return reduce(compose, [part.method for part in _parts(text)] or [Method()])
    except ValueError as error:
        raise UserError(f"method '{text}': {error}") from error


def training_part(text: str) -> str:
    """Label of the method without its merge: runs that share it share their training.

    >>> training_part("talr+wise_ft(alpha=0.5)")
    'talr'
    """
    methods = [part.method for part in _parts(text)]
    kept = [method for method in methods if method.merge is None or replace(method, merge=None).rank() >= 0]
    return "+".join(method.label for method in kept) or Method().label


def _parts(text: str) -> list[_Part]:
    """The methods that `text` names, without `sft`, in canonical order: by slot, then by name."""
    parts = [part for part in _parts_as_given(text) if part.method.name != "sft"]
    return sorted(parts, key=lambda part: (part.method.rank(), part.method.name))


def _parts_as_given(text: str) -> list[_Part]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _malformed(text) from error
    parts = [_build(node, text) for node in _addends(tree)]
    names = [part.method.name for part in parts]
    if len(set(names)) < len(names):
        raise UserError(f"method '{text}': each part may be named once")
    return parts


def _malformed(text: str) -> UserError:
    return UserError(f"method '{text}': write names joined by +, with arguments as name(key=value)")


def _addends(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_addends(node.left), *_addends(node.right)]
    return [node]


def _build(node: ast.expr, text: str) -> _Part:
    arguments: dict[str, Any] = {}
    name, positional, given = (node.func, node.args, node.keywords) if isinstance(node, ast.Call) else (node, [], [])
    if not isinstance(name, ast.Name) or positional:
        raise _malformed(text)
    if name.id not in _METHODS:
        raise unknown("method", name.id, _METHODS)
    entry = _METHODS[name.id]
    defaults = {p.name: p.default for p in inspect.signature(entry.factory).parameters.values()}
    for argument in given:
        if argument.arg is None:  # name(**more)
            raise _malformed(text)
        if argument.arg not in defaults:
            raise unknown(f"argument of {name.id}", argument.arg, defaults)
        if argument.arg in arguments:
            raise UserError(f"method '{text}': argument '{argument.arg}' may be given once")
        arguments[argument.arg] = _value(argument.value, text)
    try:
        method = entry.factory(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"method '{name.id}': {error}") from error
    changed = [f"{k}={_show(arguments[k])}" for k in defaults if k in arguments and arguments[k] != defaults[k]]
    label = f"{name.id}({', '.join(changed)})" if changed else name.id
    told = {key: value for key, value in {**defaults, **arguments}.items() if value is not None}
    return _Part(
        replace(method, name=name.id, label=label), Described(name.id, entry.title, entry.reference, entry.url, told)
    )


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):  # tau=median needs no quotes
        return node.id
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and _RANGE.fullmatch(ast.unparse(node)):
        return ast.unparse(node).replace(" ", "")  # layers=0-11
    if isinstance(node, ast.List):
        return [_value(element, text) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise UserError(f"method '{text}': arguments are numbers, names or lists of them") from error


def _show(value: Any) -> str:
    bare = isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)
    bare = bare or (isinstance(value, str) and _RANGE.fullmatch(value) is not None)
    return value if bare else repr(value)


def check_number(name: str, value: Any, *, low: float, high: float = _LARGEST, open_low: bool = False) -> float:
    """`value` as a finite float within [low, high] ((low, high] with `open_low`). Raises ValueError otherwise."""
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not (low < number if open_low else low <= number) or not number <= high:
        bound = f"above {low:g}, up to {high:g}" if open_low else f"in [{low:g}, {high:g}]"
        if high == _LARGEST:
            finite = "" if number is None or number <= high else " and finite"
            bound = f"{'>' if open_low else '>='} {low:g}{finite}"
        raise ValueError(f"{name} must be a number {bound}, got {value!r}")
    return float(number)


def check_whole(name: str, value: Any, *, low: int) -> int:
    """`value` as a whole number of at least `low`. Raises ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")
    return value
