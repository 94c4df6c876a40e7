"""The recipe's keys as flags of a command: in groups, typed, with defaults as a shell would write them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from gentletune.core.recipe import ALIASES, Recipe, groups

_TYPES = {str: "<text>", int: "<int>", float: "<float>"}
_REAL = {"output": "runs/DATA-METHOD-LR-HASH"}  # what None stands for, where that can be said beforehand


def recipe_command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`app.command(name)` for a function whose parameter `given` gets the recipe keys of the command line.

    A key that is also a parameter of the function's own is the function's.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True)
        flags = {
            key: _flag(key, Recipe.model_fields[key], group)
            for group, keys in groups().items()
            for key in keys
            if key not in own.parameters and key != "mixture"  # which data is written as
        }

        @functools.wraps(function)
        def command(**values: Any) -> None:
            said = {key: values.pop(key) for key in flags}
            function(given={key: _read(key, value) for key, value in said.items() if value is not None}, **values)

        parameters = [*(p for key, p in own.parameters.items() if key != "given"), *flags.values()]
        shown: Any = command  # typer goes by the signature
        shown.__signature__ = own.replace(parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in parameters])
        shown.__annotations__ = {p.name: p.annotation for p in parameters}
        # Keys may be written as in YAML, too: --learning_rate.
        app.command(name, context_settings={"token_normalize_func": lambda token: token.replace("_", "-")})(shown)
        return command

    return add


def _flag(key: str, field: FieldInfo, group: str) -> inspect.Parameter:
    name, switch, default = key.replace("_", "-"), _is_switch(field), default_text(key, field)
    about = re.sub(r"\bNone\b", "none", field.description or "").replace("[", "\\[")
    option = typer.Option(
        *([f"--{name}/--no-{name}"] if switch else [f"--{name}", *(f"--{a}" for a, k in ALIASES.items() if k == key)]),
        help=about + (f" [dim]\\[default: {default}][/dim]" if default else ""),
        show_default=False,
        callback=_no_flag,
        metavar=None if switch else metavar(field.annotation),
        rich_help_panel=f"Recipe: {group}",
    )
    kind: Any = bool if switch else str
    shown = Annotated[kind | None, option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=shown)


def _no_flag(context: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Refuse another flag of the command as a value: it was forgotten."""
    if any(value in known.opts for known in context.command.params):
        raise typer.BadParameter(f"{param.opts[0]} needs a value, and {value} is a flag")
    return value


def _is_switch(field: FieldInfo) -> bool:
    return field.annotation in (bool, bool | None)


def default_text(key: str, field: FieldInfo) -> str:
    """The default as it would be typed; of a switch that is neither on nor off, nothing."""
    value = field.default
    if _is_switch(field):
        return {None: "", True: "on", False: "off"}[value]
    if isinstance(value, tuple):
        return ",".join(value) or '""'
    if value is None:
        return _REAL.get(key, "none")
    return f"{value:g}" if isinstance(value, float) else str(value)


def metavar(annotation: Any) -> str:
    """The values of a field as help shows them, such as `auto|fp32|bf16`."""
    if get_origin(annotation) is Annotated:
        return metavar(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return "<text>,…" if Ellipsis in parts else ",".join(map(metavar, parts))
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return "|".join(map(metavar, kinds)) if kinds else _TYPES[annotation]


def _read(key: str, value: Any) -> Any:
    """Comma-separated lists, numbers and `none`, as the field's type wants them; pydantic checks, and parses the rest.

    Numbers are made here, since a study's file is written from what was given.
    """
    annotation = Recipe.model_fields[key].annotation
    kinds = (annotation, *get_args(annotation))
    if value == "none" and NoneType in kinds:
        return None
    listed = next((kind for kind in kinds if get_origin(kind) is tuple), None)
    if listed is not None:
        return tuple(_number(part, get_args(listed)) for part in value.split(",") if part)
    return _number(value, kinds)


def _number(text: Any, kinds: Sequence[Any]) -> Any:
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    for kind in (int, float):
        if kind in plain and isinstance(text, str):
            with suppress(ValueError):
                return kind(text)
    return text
