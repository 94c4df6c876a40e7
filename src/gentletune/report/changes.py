"""What a setting changed: against its initial model, and against plain SFT at the same learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gentletune.records import RunRecord
from gentletune.report.axes import Axis
from gentletune.report.settings import Setting, plain_twin, seed_pool
from gentletune.statistics import Change


def of_run(record: RunRecord, axis: Axis) -> Change | None:
    """A run minus its initial model, item by item where both have items; None where a score is missing."""
    return from_initial(Setting((record,), (0,)), (), axis)


def from_initial(setting: Setting, settings: Sequence[Setting], axis: Axis) -> Change | None:
    """A setting minus its initial model; the variance between seeds is pooled over `settings`."""
    mine, start = setting.reading(axis), setting.reading(axis, initial=True)
    return mine.pooled(*seed_pool(settings, axis)).change(start) if mine and start else None


def from_plain(setting: Setting, settings: Sequence[Setting], axis: Axis) -> Change | None:
    """A setting minus plain SFT that differs in nothing but the method, over the seeds that both have.

    Where they have no seed in common, over those that each has. None for plain SFT itself, and where there is none.
    """
    place = None if setting.plain else plain_twin(setting, settings)
    if place is None:
        return None
    seeds = {r.seed for r in setting.records} & {r.seed for r in settings[place].records}
    pool = seed_pool(settings, axis)
    mine, base = (_only(one, seeds).reading(axis) for one in (setting, settings[place]))
    return mine.pooled(*pool).change(base.pooled(*pool)) if mine and base else None


def _only(setting: Setting, seeds: set[int]) -> Setting:
    kept = [k for k, record in enumerate(setting.records) if record.seed in seeds]
    if not kept or len(kept) == setting.seeds:
        return setting
    return replace(
        setting, records=tuple(setting.records[k] for k in kept), indices=tuple(setting.indices[k] for k in kept)
    )
