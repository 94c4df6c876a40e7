"""Settings: a method at a learning rate, over its seeds, what it scored on an axis, and what that changed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gentletune.core.recipe import groups
from gentletune.core.records import RunRecord, Score
from gentletune.reporting.axes import Axis, Point, Verdict, is_distance
from gentletune.stats import (
    Change,
    Family,
    Pool,
    Run,
    average,
    benjamini_hochberg,
    compare,
    holm,
    mean_of,
    seed_pool,
    zero_of,
)
from gentletune.stats.numbers import rate

# Recipe fields in which runs of one setting may differ: the seed, and what changes neither weights nor scores.
_FREE = frozenset({"seed", "gradient_checkpointing", "eval_batch_tokens", "allow_unsafe_code", *groups()["output"]})
_SPREAD = frozenset(
    {"batch_size", "gradient_accumulation", "global_batch", "processes", "strategy"}
)  # how the rows of a step are spread
_ASKED = ("general_prompts", "general_tokens", "general_rows", "limit")  # what decides the general items


@dataclass(frozen=True)
class Reading:
    """What a setting, or a base model, scored on an axis: a run for each seed, each with a score of every source.

    `pool` is the variance between seeds of all the study's settings.
    """

    runs: tuple[Run, ...]
    pool: Pool | None = None

    @cached_property
    def point(self) -> Point:
        """Mean over sources and seeds, with its standard error over items and seeds."""
        found = mean_of(self.runs, self.pool)
        return Point(found.value, found.stderr, found.n)

    def change(self, base: Reading) -> Change:
        """This reading minus another setting's."""
        return compare(self.runs, base.runs, pool=self.pool)

    @property
    def sample(self) -> Any:
        """Which items the scores are on: only readings on equal ones move together."""
        return self.runs[0].sample

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """A score of each source, averaged over the seeds, with the error over items alone."""
        columns = zip(*(run.scores for run in self.runs), strict=True)
        if len({run.sample for run in self.runs}) == 1:
            return tuple(average(column) for column in columns)
        bare = [[s.model_copy(update={"items": (), "clusters": ()}) for s in column] for column in columns]
        return tuple(average(column) for column in bare)

    @cached_property
    def seed_variance(self) -> float:
        """What the seeds add to the variance of the mean, beside the items."""
        errors = [s.stderr or 0.0 for s in self.scores]
        return max((self.point.stderr or 0.0) ** 2 - math.fsum(e * e for e in errors) / len(errors) ** 2, 0.0)


@dataclass(frozen=True)
class Setting:
    """Complete runs that differ in their seed only; `indices` are their places in the records."""

    records: tuple[RunRecord, ...]
    indices: tuple[int, ...]

    @property
    def label(self) -> str:
        """Name of the method."""
        return self.records[0].label

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return self.records[0].learning_rate

    @property
    def seeds(self) -> int:
        """How many seeds it was run with."""
        return len(self.records)

    @property
    def plain(self) -> bool:
        """Whether it is SFT without anything else."""
        return self.records[0].method == self.label == "sft"

    @property
    def parts(self) -> int:
        """How many parts its method has: 2 for `talr+lora`."""
        return re.sub(r"\(.*?\)", "", self.label).count("+") + 1

    @cached_property
    def _runs(self) -> dict[tuple[str, bool], tuple[Run, ...]]:
        return {}

    def runs(self, axis: Axis, base: bool = False) -> tuple[Run, ...]:
        """Its runs' scores on the axis (those of its base model if `base`), none where one is missing.

        A base model has a run for each set of items that it was measured on.
        """
        key = axis.key, base
        if key not in self._runs:
            self._runs[key] = self._base(axis) if base else self._tuned(axis)
        return self._runs[key]

    def reading(self, axis: Axis, base: bool = False) -> Reading | None:
        """Its scores on the axis (of its base model if `base`), None where one is missing."""
        runs = self.runs(axis, base)
        return Reading(runs) if runs else None

    def _tuned(self, axis: Axis) -> tuple[Run, ...]:
        runs = []
        for record in self.records:
            scores = tuple(s for key in axis.sources if (s := record.score(key)) is not None)
            runs.append(Run(scores, record.seed, _sample(record, axis)))
        return tuple(runs) if all(len(run.scores) == len(axis.sources) for run in runs) else ()

    def _base(self, axis: Axis) -> tuple[Run, ...]:
        found: dict[Any, Run] = {}
        for record in self.records:
            known = (record.score(key, base=True) or _at_base(record, key) for key in axis.sources)
            scores = tuple(s for s in known if s is not None)
            sample = _sample(record, axis)
            if len(scores) == len(axis.sources) and sample not in found:
                found[sample] = Run(scores, None, sample)
        return tuple(found.values())

    def nearest(self, axes: Sequence[Axis]) -> int:
        """Place in the records of the run nearest to the mean over the seeds, each axis in its own spread."""
        if self.seeds == 1:
            return self.indices[0]
        far = [0.0] * self.seeds
        for axis in axes:
            values = [p.value for p in (axis.point(record) for record in self.records) if p is not None]
            mean, spread = math.fsum(values) / len(values), (max(values) - min(values)) or 1.0
            far = [f + ((v - mean) / spread) ** 2 for f, v in zip(far, values, strict=True)]
        return self.indices[min(range(self.seeds), key=far.__getitem__)]


def settings_of(records: Sequence[RunRecord], *axes: Axis) -> list[Setting]:
    """The complete runs that have all these scores, by setting, in order of first appearance; one run of each seed."""
    groups: dict[str, dict[int, int]] = {}
    for index, record in enumerate(records):
        if record.status != "complete" or any(axis.point(record) is None for axis in axes):
            continue
        key = json.dumps([record.label, record.learning_rate, _rest(record)], sort_keys=True, default=str)
        groups.setdefault(key, {}).setdefault(record.seed, index)
    return [Setting(tuple(records[i] for i in by.values()), tuple(by.values())) for by in groups.values()]


def _rest(record: RunRecord) -> dict[str, Any]:
    """What of the recipe makes a setting, beside method and rate.

    The rows of an optimiser step count, not how they are spread over processes and micro-batches. `precision` counts:
    bf16 rounds what small rates add up, so its runs are named by it and are no seeds of the fp32 ones. Where a score
    may end a training, how often it is looked at decides the weights.
    """
    recipe = record.recipe
    free = _FREE - {"probe_every", "evaluate_every"} if recipe.get("early_stop") else _FREE
    rest = {key: value for key, value in recipe.items() if key not in free | _SPREAD}
    if "batch_size" in recipe:
        ranks = int(record.training.get("processes", 1))
        spread = (recipe["batch_size"], recipe.get("gradient_accumulation", 1), ranks)
        rest["rows_per_step"] = recipe.get("global_batch") or math.prod(spread)
    return rest


def plain_twin(setting: Setting, others: Sequence[Setting]) -> int | None:
    """Place of the plain SFT setting that differs in nothing but the method; None where there is none."""

    def rest(one: Setting) -> dict[str, Any]:
        return {k: v for k, v in _rest(one.records[0]).items() if k != "method"}

    same = (i for i, s in enumerate(others) if s.plain and s.learning_rate == setting.learning_rate)
    return next((i for i in same if rest(others[i]) == rest(setting)), None)


def verdict(axis: Axis, change: Change | None) -> Verdict:
    """What a change means: `no_difference` where it is not significant, `unknown` where nothing can be said.

    What speaks for a setting must hold among all the comparisons of its family; what speaks against it need only
    leave 0 out of its own 95 % interval, since a warning missed costs more than one too many (ours).
    """
    if change is None or change.excludes_zero is None:
        return "unknown"
    if (change.value > 0) == axis.higher_is_better:
        return "better" if change.significant else "no_difference"
    return "worse" if change.excludes_zero else "no_difference"


def setting_name(setting: Setting, others: Sequence[Setting]) -> str:
    """`sft at learning rate 1e-5`, with the recipe's other fields where they alone tell it from another setting."""
    told = told_apart(setting, others)
    return f"{setting.label} at learning rate {rate(setting.learning_rate)}" + (f" ({told})" if told else "")


def told_apart(setting: Setting, others: Sequence[Setting]) -> str:
    """What of the recipe tells it from other settings of its method and rate: `max_steps=20`; empty without such."""
    twins = [s for s in others if (s.label, s.learning_rate) == (setting.label, setting.learning_rate)]
    mine = _rest(setting.records[0])
    told = {k for s in twins for k, v in _rest(s.records[0]).items() if v != mine.get(k)}
    return ", ".join(f"{key}={mine.get(key)}" for key in sorted(told))


def apart(settings: Sequence[Setting]) -> tuple[str, ...]:
    """Recipe fields in which settings of the same method and rate differ, such as `precision`: nothing else tells them.

    They are kept apart since each of these fields changes the weights or the scores, if by ever so little.
    """
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for setting in settings:
        groups.setdefault((setting.label, setting.learning_rate), []).append(_rest(setting.records[0]))
    return tuple(sorted({k for g in groups.values() for one in g for k in one | g[0] if one.get(k) != g[0].get(k)}))


def read_all(settings: Sequence[Setting], axis: Axis) -> list[Reading | None]:
    """Every setting's reading, with the variance between seeds of all: a setting of one seed has it, too."""
    pool = seed_pool([setting.runs(axis) for setting in settings])
    return [Reading(runs, pool) if (runs := setting.runs(axis)) else None for setting in settings]


def _sample(record: RunRecord, axis: Axis) -> tuple[Any, ...]:
    asked = tuple(record.recipe.get(name) for name in _ASKED) if axis.side == "general" else ()
    # What is measured on the base model's own answers is on the same items only where that model is the same.
    return (record.hashes.get("test" if axis.side == "domain" else "model"), *asked)


def _at_base(record: RunRecord, key: str) -> Score | None:
    """The base model is at no distance from itself."""
    tuned = record.score(key) if is_distance(key) else None
    return None if tuned is None else zero_of(tuned)


# ------------------------------------------------------------------------------------------ what settings changed
# Each function answers for a whole family of comparisons. Against the base model settings are screened for what they
# changed (Benjamini and Hochberg); a claim that one is better than another must stand among all such claims (Holm).


def of_runs(records: Sequence[RunRecord], axis: Axis) -> list[Change | None]:
    """Each run minus its base model; None where a score is missing."""
    settings = [Setting((record,), (place,)) for place, record in enumerate(records)]
    return benjamini_hochberg([_from_base(setting, setting.reading(axis), axis) for setting in settings])


def from_base(
    settings: Sequence[Setting], axis: Axis, readings: Sequence[Reading | None] | None = None, *, null: float = 0.0
) -> list[Change | None]:
    """Each setting minus the base model; None where a score is missing. The p-values are of that change being `null`.

    `readings` are the settings' scores where they are known already; those that are None there are left out.
    """
    known = read_all(settings, axis) if readings is None else readings
    return benjamini_hochberg([_from_base(s, reading, axis, null) for s, reading in zip(settings, known, strict=True)])


def from_plain(settings: Sequence[Setting], axis: Axis) -> list[Change | None]:
    """Each setting minus plain SFT that differs in nothing but the method; None for SFT itself, and without such."""
    twins = [None if setting.plain else plain_twin(setting, settings) for setting in settings]
    pairs = [(place, twin) for place, twin in enumerate(twins) if twin is not None]
    found = dict(zip(pairs, between(read_all(settings, axis), pairs), strict=True))
    return [None if twin is None else found[place, twin] for place, twin in enumerate(twins)]


def between(
    readings: Sequence[Reading | None], pairs: Sequence[tuple[int, int]], family: Family = holm
) -> list[Change | None]:
    """The first reading of each pair minus the second, by their places; None where one is missing."""
    found = [(readings[a], readings[b]) for a, b in pairs]
    return family([mine.change(other) if mine and other else None for mine, other in found])


def _from_base(setting: Setting, reading: Reading | None, axis: Axis, null: float = 0.0) -> Change | None:
    start = setting.runs(axis, base=True)
    return compare(reading.runs, start, pool=reading.pool, null=null) if reading and start else None
