"""What may be compared: the runs of one base model on one data set, with their axes and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gentletune.core.records import RunRecord
from gentletune.reporting.axes import Axis, axis_keys, both_axes, is_own
from gentletune.reporting.findings import Findings
from gentletune.reporting.recommend import find
from gentletune.reporting.settings import Setting, settings_of
from gentletune.reporting.words import answer

_DATA = ("data", "data_path", "data_config", "data_split", "test_path", "cot")  # a mixture makes a setting


@dataclass(frozen=True)
class Section:
    """The runs of one base model on one data set.

    `places` are those of `records` among all the report's; the indices of `findings` are places in `records`.
    """

    name: str
    records: list[RunRecord]
    places: list[int]
    domain: Axis | None
    general: Axis | None
    findings: Findings

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The domain and the general axis, as far as there are any."""
        return tuple(axis for axis in (self.domain, self.general) if axis is not None)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings that have a score on every axis."""
        return settings_of(self.records, *self.axes)

    @property
    def answer(self) -> list[str]:
        """The safe choice, the most domain gain and what must be known of the data, a sentence each."""
        return answer(self.findings)


def split(
    records: Sequence[RunRecord], domain: str | None = None, general: str | None = None, margin: float | None = None
) -> list[Section]:
    """One section for each base model and data set, in order of first appearance; at least one.

    A score asked for (`domain`, `general`) that a section does not have gives way there to the section's own choice.
    Raises `UserError` where no run has it or, for `general`, it is the domain's own, and on a bad margin.
    """
    both_axes(records, domain, general)
    groups: dict[tuple[Any, ...], list[int]] = {(): []} if not records else {}
    for place, key in enumerate(_keys(records)):
        groups.setdefault(key, []).append(place)
    names = _names([records[places[0]] if places else None for places in groups.values()])
    return [
        _section(records, places, name, domain, general, margin)
        for name, places in zip(names, groups.values(), strict=True)
    ]


def _section(
    records: Sequence[RunRecord], places: list[int], name: str, domain: str | None, general: str | None,
    margin: float | None,
) -> Section:  # fmt: skip
    mine = [records[i] for i in places]
    here = axis_keys(mine)
    own = general not in axis_keys(mine, "general") and is_own(mine, str(general))
    keys = domain if domain in here else None, general if general in here and not own else None
    return Section(name, mine, places, *both_axes(mine, *keys), find(mine, *keys, margin))


def _keys(records: Sequence[RunRecord]) -> list[tuple[Any, ...]]:
    """What a run must share with another to be compared: the base model's weights, and the data."""
    weights: dict[Any, str] = {}
    for record in records:
        if "model" in record.hashes:
            weights.setdefault(record.recipe.get("model"), record.hashes["model"])
    return [
        # A run that crashed early has no hashes, but it has the name of its model.
        (
            record.hashes.get("model") or weights.get(record.recipe.get("model")) or record.recipe.get("model"),
            *(record.recipe.get(name) for name in _DATA),
        )
        for record in records
    ]


def _names(firsts: Sequence[RunRecord | None]) -> list[str]:
    """`smollm2-135m on clinic, label only`, with the start of the weights' hash where that alone tells two apart."""
    names = [_name(record) for record in firsts]
    return [
        f"{name} (weights {record.hashes.get('model', 'unknown')[:8]})" if record and names.count(name) > 1 else name
        for name, record in zip(names, firsts, strict=True)
    ]


def _name(record: RunRecord | None) -> str:
    if record is None:
        return "no runs"
    recipe = record.recipe
    data = (
        " ".join(str(recipe[name]) for name in ("data", "data_path", "data_config") if recipe.get(name))
        or "unnamed data"
    )
    tested = f", tested on {recipe['test_path']}" if recipe.get("test_path") else ""
    how = ", label only" if recipe.get("cot") is False else ""
    return f"{recipe.get('model') or 'unnamed model'} on {data}{tested}{how}"
