"""Data from several sources: what `data` as a list says, and the one text that a recipe keeps of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gentletune.core.errors import plainly

DOMAIN_NAME = re.compile(r"\w+(\(.*\))?")  # what is written otherwise (mine.jsonl, owner/name) is a file or the hub's
_SPLIT = ("data_split", "train")  # the default
_WEIGHED = re.compile(r"\s*(.+?):((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:,|$)")
SOURCE_KEYS = ("data", "data_path", "data_split", "data_config", "mixture")  # recipe keys that say where data are
_HINT = "give each as {path: mine.jsonl, weight: 0.7}"


class Source(BaseModel):
    """One of the sources of a data mixture: of the rows that are trained on, `weight` is its share beside the others'.

    `path` is a file, a data set of the hub or a domain; `domain` makes the rows of a file, where it needs one. A
    source that is `streaming` is read as far as the run needs, and no further.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    domain: str | None = Field(None, min_length=1)
    split: str = Field("train", min_length=1)
    config: str | None = Field(None, min_length=1)
    streaming: bool = False

    @property
    def generated(self) -> bool:
        """Whether `path` is the name of a domain, which makes its rows itself."""
        return self.domain is None and DOMAIN_NAME.fullmatch(self.path) is not None

    @property
    def fields(self) -> dict[str, Any]:
        """The recipe keys that name this source alone."""
        name, path = (self.path, None) if self.generated else (self.domain, self.path)
        return {"data": name, "data_path": path, "data_split": self.split, "data_config": self.config}


def sources_of(value: Any) -> tuple[Source, ...]:
    """The sources that a list, or its text, names; none where `value` is the name of a single one.

    Raises:
        ValueError: in one line, a mapping, a list that is empty, a source that is none, the same source twice.

    >>> [source.weight for source in sources_of("a.jsonl:0.7,b.jsonl:.3")], sources_of("a.jsonl")
    ([0.7, 0.3], ())
    """
    if isinstance(value, str):
        value = _read(value)
        if value is None:
            return ()
    if isinstance(value, Mapping):
        raise ValueError("data is a mapping; write the name or the file alone, or a list: [{path: mine.jsonl}]")
    if not isinstance(value, (list, tuple)):
        return ()
    if not value:
        raise ValueError(f"data is an empty list; {_HINT}")
    found = [_source(one, number) for number, one in enumerate(value, start=1)]
    places = [(source.path, source.split, source.config) for source in found]
    if twice := next((place[0] for place in places if places.count(place) > 1), None):
        raise ValueError(f"data names {twice} twice; give it once, with the sum of the weights")
    return tuple(found)


def names_several(value: Any) -> bool:
    """Whether `value` names sources as a list does, be it well or ill."""
    try:
        return bool(sources_of(value))
    except ValueError:
        return True


def keys_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe keys that `data` stands for where it names several sources; none where it names one.

    Raises:
        ValueError: as `sources_of`; a key that says of one source what the list says of each.
    """
    sources = sources_of(values.get("data"))
    if not sources:
        return {}
    said = [key for key in SOURCE_KEYS[1:] if values.get(key) is not None and (key, values[key]) != _SPLIT]
    if said:
        raise ValueError(f"data names its sources itself; leave out {said[0]}")
    return sources[0].fields | {"mixture": sources_text(sources)}


def check_sources(recipe: Any) -> None:
    """Raises `ValueError` where a recipe's `mixture` is none of its `data`, or streams without an end."""
    sources = sources_of(recipe.mixture)
    if recipe.mixture is None:
        return
    if not sources or sources[0].fields != {key: getattr(recipe, key) for key in sources[0].fields}:
        raise ValueError("mixture is what data becomes; give data, as a list of {path: …, weight: …}")
    if not any(source.streaming for source in sources):
        return
    if recipe.max_steps is None:
        raise ValueError("data: a streaming source is not counted; give max_steps")
    if recipe.processes == "auto":
        raise ValueError("data: a streaming source is read as far as the run needs; give processes as a number")
    if recipe.packing and recipe.train_rows is None:
        raise ValueError("data: how many rows of a streaming source fill packed rows is not known; give train_rows")


def sources_text(sources: Sequence[Source]) -> str:
    """The sources as `sources_of` reads them: `a.jsonl:0.7,b.jsonl:0.3` where that says it all, else JSON.

    >>> sources_text(sources_of([{"path": "a.jsonl", "weight": 7}, {"path": "b.jsonl", "weight": 3}]))
    'a.jsonl:7,b.jsonl:3'
    """
    short = ",".join(f"{source.path}:{source.weight:.12g}" for source in sources)
    if sources_of(short) == tuple(sources):
        return short
    return json.dumps([source.model_dump(exclude_defaults=True) for source in sources], ensure_ascii=False)


def _read(text: str) -> list[Any] | None:
    """The list that a text writes, as JSON or as `a.jsonl:0.7,b.jsonl:0.3`; None where it is one name."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: a list that is no JSON; {_HINT}") from error
        return found if isinstance(found, list) else None
    parts, end = [], 0
    while found := _WEIGHED.match(text, end):
        parts.append({"path": found[1], "weight": float(found[2])})
        end = found.end()
    if parts and end < len(text):
        raise ValueError(f"data: '{text[end:].strip()}' has no weight; write a.jsonl:0.7,b.jsonl:0.3")
    return parts or None


def _source(value: Any, number: int) -> Source:
    if isinstance(value, Source):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"data: source {number} is {value!r}; {_HINT}")
    try:
        return Source.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(Source.model_fields)
            raise ValueError(f"data: source {number}: unknown key '{key}'; known: {known}") from error
        raise ValueError(f"data: source {number}: {key}: {plainly(first)}") from error
