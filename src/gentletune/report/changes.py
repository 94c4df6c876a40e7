"""What settings changed: against the base model, against plain SFT, and against each other.

Each function answers for a whole family of comparisons, which Holm's correction holds together.
"""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.core.records import RunRecord
from gentletune.report.axes import Axis
from gentletune.report.settings import Reading, Setting, plain_twin, read_all
from gentletune.stats import Change, compare, holm


def of_runs(records: Sequence[RunRecord], axis: Axis) -> list[Change | None]:
    """Each run minus its base model; None where a score is missing."""
    settings = [Setting((record,), (place,)) for place, record in enumerate(records)]
    return holm([_from_initial(setting, setting.reading(axis), axis) for setting in settings])


def from_initial(
    settings: Sequence[Setting], axis: Axis, readings: Sequence[Reading | None] | None = None, *, null: float = 0.0
) -> list[Change | None]:
    """Each setting minus the base model; None where a score is missing. The p-values are of that change being `null`.

    `readings` are the settings' scores where they are known already; those that are None there are left out.
    """
    known = read_all(settings, axis) if readings is None else readings
    return holm([_from_initial(s, reading, axis, null) for s, reading in zip(settings, known, strict=True)])


def from_plain(settings: Sequence[Setting], axis: Axis) -> list[Change | None]:
    """Each setting minus plain SFT that differs in nothing but the method; None for SFT itself, and without such."""
    twins = [None if setting.plain else plain_twin(setting, settings) for setting in settings]
    pairs = [(place, twin) for place, twin in enumerate(twins) if twin is not None]
    found = dict(zip(pairs, between(read_all(settings, axis), pairs), strict=True))
    return [None if twin is None else found[place, twin] for place, twin in enumerate(twins)]


def between(readings: Sequence[Reading | None], pairs: Sequence[tuple[int, int]]) -> list[Change | None]:
    """The first reading of each pair minus the second, by their places; None where one is missing."""
    found = [(readings[a], readings[b]) for a, b in pairs]
    return holm([mine.change(other) if mine and other else None for mine, other in found])


def _from_initial(setting: Setting, reading: Reading | None, axis: Axis, null: float = 0.0) -> Change | None:
    start = setting.runs(axis, initial=True)
    return compare(reading.runs, start, pool=reading.pool, null=null) if reading and start else None
