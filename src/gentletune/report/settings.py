"""Settings (method × learning rate, over their seeds) and the paired changes between them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gentletune.recipe import Recipe
from gentletune.records import RunRecord, Score
from gentletune.report.axes import Axis, Point, Verdict
from gentletune.report.numbers import rate
from gentletune.statistics import Change, mean_change, over_seeds, t_quantile

# Recipe fields in which two runs of one setting may differ: none changes what is compared but for chance.
_APART = frozenset({
    "seed", "output", "report_to", "log_every", "save_every", "keep_checkpoints", "probe_every", "probe_rows",
})  # fmt: skip
_ASKED = ("general_prompts", "general_tokens", "general_rows", "limit")  # what decides the general items


@dataclass(frozen=True)
class Reading:
    """An axis's scores of one setting averaged over its seeds, one for each of the axis's sources.

    The scores' errors are over items alone. `sample` says which items they are on: only readings with equal ones are
    compared item by item. `between` is the variance of the mean over the sources from seed to seed, with `df` degrees
    of freedom; an initial model has no seeds, and no such variance.
    """

    scores: tuple[Score, ...]
    sample: tuple[Any, ...]
    seeds: int = 0
    between: float = 0.0
    df: int = 0

    @property
    def seed_variance(self) -> float:
        """What the seeds add to the variance of the mean; 0 where no setting has several seeds to see it by."""
        return self.between / self.seeds if self.seeds else 0.0

    def pooled(self, variance: float, df: int) -> Reading:
        """With the variance between seeds of all settings, or its own if that is larger (ours, cautious)."""
        return replace(self, between=max(self.between, variance), df=df) if self.seeds else self

    @property
    def point(self) -> Point:
        """Mean over the sources, with its standard error over items and seeds."""
        k = len(self.scores)
        errors = [s.stderr for s in self.scores if s.stderr is not None]
        stderr = math.sqrt(math.fsum(e * e for e in errors) / k**2 + self.seed_variance) if len(errors) == k else None
        return Point(math.fsum(s.value for s in self.scores) / k, stderr, sum(s.n for s in self.scores))

    def change(self, base: Reading, level: float = 0.95) -> Change:
        """This reading minus `base`, item by item where both are on the same items, else from their errors.

        The interval's half-width is the root of the sum of squares of the items' and the seeds', each with its own
        Student's t (ours; exact where one of them is all, or both have many degrees of freedom).
        """
        same = self.sample == base.sample
        pairs = [(a, b) if same else (_bare(a), _bare(b)) for a, b in zip(self.scores, base.scores, strict=True)]
        found, variance = mean_change(pairs, level=level), self.seed_variance + base.seed_variance
        if not variance or found.stderr is None or found.low is None or found.high is None:
            return found
        middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
        half = math.hypot(half, t_quantile(level, max(self.df, base.df)) * math.sqrt(variance))
        stderr = math.hypot(found.stderr, math.sqrt(variance))
        return Change(found.value, stderr, middle - half, middle + half, found.n, found.paired)


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

    @cached_property
    def _read(self) -> dict[tuple[str, bool], Reading | None]:
        return {}

    def reading(self, axis: Axis, initial: bool = False) -> Reading | None:
        """Its scores on the axis (of its initial model if `initial`), None where one is missing."""
        key = axis.key, initial
        if key not in self._read:
            self._read[key] = self._initial(axis) if initial else self._tuned(axis)
        return self._read[key]

    def _tuned(self, axis: Axis) -> Reading | None:
        rows = [[record.score(key) for key in axis.sources] for record in self.records]
        scores = [[s for s in row if s is not None] for row in rows]
        if any(len(row) < len(axis.sources) for row in scores):
            return None
        samples = [_sample(record, axis) for record in self.records]
        same = all(sample == samples[0] for sample in samples)
        means = [math.fsum(s.value for s in row) / len(row) for row in scores]
        centre, seeds = math.fsum(means) / len(means), len(means)
        between = math.fsum((m - centre) ** 2 for m in means) / (seeds - 1) if seeds > 1 else 0.0
        columns = zip(*scores, strict=True)
        return Reading(tuple(_seeds(column, same) for column in columns), samples[0], seeds, between, seeds - 1)

    def _initial(self, axis: Axis) -> Reading | None:
        for record in self.records:
            found = [record.score(key, initial=True) or _undrifted(record, key) for key in axis.sources]
            scores = tuple(s for s in found if s is not None)
            if len(scores) == len(found):
                return Reading(scores, _sample(record, axis))
        return None

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
    """What of the recipe makes a setting, beside method and rate; a field younger than the record has its default."""
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    return {key: value for key, value in {**defaults, **record.recipe}.items() if key not in _APART}


def plain_twin(setting: Setting, others: Sequence[Setting]) -> int | None:
    """Place of the plain SFT setting that differs in nothing but the method; None where there is none."""

    def rest(one: Setting) -> dict[str, Any]:
        return {k: v for k, v in _rest(one.records[0]).items() if k != "method"}

    same = (i for i, s in enumerate(others) if s.plain and s.learning_rate == setting.learning_rate)
    return next((i for i in same if rest(others[i]) == rest(setting)), None)


def verdict(axis: Axis, change: Change | None) -> Verdict:
    """What a change means: tied where its interval holds 0, unknown where there is none."""
    if change is None or change.low is None or change.high is None:
        return "unknown"
    if change.low <= 0 <= change.high:
        return "tied"
    return "better" if (change.value > 0) == axis.higher_is_better else "worse"


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


def read_all(settings: Sequence[Setting], axis: Axis) -> list[Reading | None]:
    """Every setting's reading, with the variance between seeds pooled over the settings.

    Pooled, because the variance of two seeds alone is hardly known, and because a setting of one seed has it, too.
    """
    pool = seed_pool(settings, axis)
    return [reading and reading.pooled(*pool) for reading in (setting.reading(axis) for setting in settings)]


def seed_pool(settings: Sequence[Setting], axis: Axis) -> tuple[float, int]:
    """The variance between seeds pooled over the settings, and its degrees of freedom."""
    known = [reading for setting in settings if (reading := setting.reading(axis)) is not None]
    df = sum(reading.df for reading in known)
    return math.fsum(reading.df * reading.between for reading in known) / df if df else 0.0, df


def _seeds(scores: Sequence[Score], same: bool) -> Score:
    """Average over the seeds, with the error over items alone."""
    try:
        found = over_seeds(scores if same else [_bare(s) for s in scores])
    except ValueError:  # other items for each seed: only the values and their errors can be averaged
        least = min(s.n for s in scores)
        found = over_seeds([_bare(s).model_copy(update={"n": least, "details": {}}) for s in scores])
    if found.stderr is None or len(scores) == 1:
        return found
    between = found.details["between_seed_sd"] ** 2 / found.details["seeds"]
    within = math.sqrt(max(found.stderr**2 - between, 0.0))
    return found.model_copy(update={"stderr": within, "details": found.details | {"between_seed_sd": 0.0}})


def _bare(score: Score) -> Score:
    return score.model_copy(update={"items": (), "clusters": ()})


def _sample(record: RunRecord, axis: Axis) -> tuple[Any, ...]:
    asked = tuple(record.recipe.get(name) for name in _ASKED) if axis.side == "general" else ()
    # What is measured on the initial model's own answers is on the same items only where that model is the same.
    return (record.hashes.get("test" if axis.side == "domain" else "model"), *asked)


def _undrifted(record: RunRecord, key: str) -> Score | None:
    """The initial model is at no distance from itself."""
    tuned = record.score(key) if key.startswith("drift_") else None
    if tuned is None:
        return None
    zeros = {"value": 0.0, "stderr": 0.0, "items": (0.0,) * len(tuned.items), "details": {}}
    return tuned.model_copy(update=zeros)
