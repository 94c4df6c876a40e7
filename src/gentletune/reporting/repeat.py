"""What it takes to repeat a run: its command, and what it ran on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from gentletune.core.recipe import Recipe
from gentletune.core.records import RunRecord
from gentletune.core.sources import SOURCE_KEYS

_ALWAYS = ("model", "data", "data_path", "method", "learning_rate", "seed")
_SHORT = {"learning_rate": "lr"}
_NAMED = 3  # runs named beside a value that not all share
_VALUES = 6  # distinct values shown of one entry


def command(record: RunRecord) -> str:
    """`gentletune train …` with every field of the recipe that is not the default; empty for a record without one.

    The run directory is left out: in the old one the same command would only return the record that is there.

    >>> from gentletune.core.records import RunRecord
    >>> recipe = {"data": "clinic", "method": "talr", "learning_rate": 1e-5, "seed": 1, "cot": False}
    >>> command(RunRecord(status="complete", method="talr", label="talr", learning_rate=1e-5, seed=1, recipe=recipe))
    'gentletune train --model smollm2-135m --data clinic --method talr --lr 1e-05 --seed 1 --no-cot'
    """
    if not record.recipe:
        return ""
    words, recipe = ["gentletune", "train"], record.recipe
    if mixture := recipe.get("mixture"):  # data is written so
        recipe = {key: value for key, value in recipe.items() if key not in SOURCE_KEYS} | {"data": mixture}
    names = [*_ALWAYS, *(name for name in Recipe.model_fields if name not in (*_ALWAYS, "output"))]
    for name in names:
        default = Recipe.model_fields[name].get_default(call_default_factory=True)
        value = recipe.get(name, default)
        if value is None and default is None:
            continue
        if name in ("model", "method", "learning_rate") or _plain(value) != _plain(default):
            words += _flag(name, value)
    text = " ".join(map(_quoted, words))
    ranks = record.training.get("processes", 1)
    return f"{text}  # on {ranks:.0f} processes" if ranks > 1 else text


def commands(records: Sequence[RunRecord]) -> list[str]:
    """The distinct commands of the runs that have a recipe, in order."""
    return list(dict.fromkeys(text for record in records if (text := command(record))))


def provenance(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Sections of (name, distinct values): each value with the runs that have it, where not all do."""
    origin = [(name.replace("_", " "), _values(records, name)) for name in ("created", "git_commit", "sandbox")]
    sections = [("Origin", origin)]
    groups = [("Versions", "versions"), ("Hardware", "hardware"), ("Content hashes", "hashes"), ("Data", "data")]
    for heading, name in groups:
        keys = dict.fromkeys(key for record in records for key in getattr(record, name))
        sections.append((heading, [(key.replace("_", " "), _values(records, name, key)) for key in keys]))
    kept = [(heading, [(name, values) for name, values in rows if values]) for heading, rows in sections]
    return [(heading, rows) for heading, rows in kept if rows]


def _values(records: Sequence[RunRecord], name: str, key: str | None = None) -> list[str]:
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        value = getattr(record, name)
        value = value if key is None else value.get(key)
        if value not in (None, "", [], {}):
            found.setdefault(value if isinstance(value, str) else json.dumps(value, default=str), []).append(record)
    if name == "created" and len(found) > 2:
        return [f"{min(found)} to {max(found)}"]
    if len(found) == 1 and len(next(iter(found.values()))) == len(records):
        return list(found)
    told = [f"{value} ({_who(runs)})" for value, runs in found.items()]
    return told if len(told) <= _VALUES else [*told[:_VALUES], f"and {len(told) - _VALUES} more values"]


def _who(runs: Sequence[RunRecord]) -> str:
    names = ", ".join(f"{r.label} {r.learning_rate:g} seed {r.seed}" for r in runs[:_NAMED])
    return f"{len(runs)} runs" if len(runs) > _NAMED else names


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{_SHORT.get(name, name).replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = "none" if value is None else str(value)
    return [f"{flag}={text}"] if not text or text.startswith("-") else [flag, text]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quoted(word: str) -> str:
    """Quoted for the shell on one line: a newline would need a form that not every shell knows."""
    return shlex.quote(" ".join(word.splitlines()))
