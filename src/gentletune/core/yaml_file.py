"""The one reader of YAML files: YAML 1.2's core schema, where only `true` and `false` are booleans.

PyYAML reads YAML 1.1, which takes `yes`, `no`, `on` and `off` for booleans, `5e-6` for text, `010` for 8, `1:30` for 90
and `2024-01-01` for a date. Source: https://yaml.org/spec/1.2.2/#103-core-schema.
`Keyed` and `validated` check what such a file's keys hold.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gentletune.core.errors import UserError, plainly, unknown
from gentletune.core.paths import user_path

M = TypeVar("M", bound=BaseModel)

# The scalars that are no text, with the characters they may begin with ("": an empty value).
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
    "merge": (r"<<", ["<"]),  # of YAML 1.1: `<<: *base`
}


class _Reader(yaml.SafeLoader):
    """PyYAML's safe reader with the scalars above."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """As PyYAML, which keeps the last of a key that is given twice; here that is refused."""
        node = super().compose_mapping_node(anchor)
        known = set[tuple[str, str]]()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in known:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is given twice; take one out", problem_mark=key.start_mark
                )
            known |= {name} if name else set()
        return node


def _whole_number(reader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = reader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _function_name(reader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """A function in a task file of lm-eval's form, which resolves it itself."""
    return str(reader.construct_scalar(node))


_Reader.yaml_implicit_resolvers = {}  # its own table: subclasses share PyYAML's otherwise
for _name, (_pattern, _first) in _SCALARS.items():
    _Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)
_Reader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Reader.add_constructor("!function", _function_name)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from `path`. Raises `UserError` with the line of a syntax error, or of a key given twice.

    >>> yaml.load("choices: [yes, no, on, true]", Loader=_Reader)
    {'choices': ['yes', 'no', 'on', True]}
    """
    path = user_path(str(path))
    if not path.is_file():
        raise UserError(f"no such file: {path}; give a YAML file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}: line {line}: broken YAML: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{path}: broken YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML does not allow; `!!int text`
        raise UserError(f"{path}: broken YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: give a mapping of keys to values, such as `model: smollm2-135m`")
    return {str(key): value for key, value in values.items()}


class Keyed(BaseModel):
    """A frozen mapping of a YAML file; of a key that it does not know, the nearest that it does is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                raise ValueError(str(unknown("key", str(key), cls.model_fields)))
        return values


def validated(model: type[M], values: Any, where: str, flags: Collection[str] = ()) -> M:
    """A pydantic model of `values`; every mistake becomes one `UserError` line that begins with `where`.

    Where the key is one of `flags`, given on the command line, the line begins with the flag instead.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # Among the keys pydantic names what it tried, too: space.lr.function-after[_check(), Range].
        keys = [key for part in first["loc"] if not (key := str(part)).startswith(("function-", "[key]"))]
        message, place = plainly(first), [where]
        if keys:
            key, message = ".".join(keys), f"{message} (got {first['input']!r})"
            place = [f"--{key.replace('_', '-')}"] if keys[0] in flags else [where, key]
        raise UserError(": ".join([*place, message])) from error
