"""Groups of runs, and how two of them are set against each other: by seed, and within a seed by item."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gentletune.core.records import Score


@dataclass(frozen=True)
class Run:
    """What one training, or a base model, scored: `scores` are averaged, one for each task.

    `seed` is the training's; None is a model that was not trained here, so that no chance of a seed is in it. `sample`
    says which items the scores are on: runs with equal samples are compared item by item, as far as their scores have
    as many items in the same groups.
    """

    scores: tuple[Score, ...]
    seed: int | None = 0
    sample: Hashable = None

    @property
    def value(self) -> float:
        """Mean over the tasks."""
        return math.fsum(s.value for s in self.scores) / len(self.scores)


def measured(values: Mapping[int, float]) -> list[Run]:
    """Runs by seed that have no items, only a number each: what can be known is how it differs from seed to seed."""
    kind: dict[str, Any] = {"task": "number", "side": "general", "metric": "value", "higher_is_better": True}
    return [Run((Score(value=value, stderr=None, n=1, **kind),), seed, seed) for seed, value in values.items()]


@dataclass(frozen=True)
class Part:
    """A run's part in a mean difference: its weight, and which unit (a seed) of which arm it belongs to, if any."""

    run: Run
    weight: float
    arm: int | None = None
    unit: int = 0


@dataclass(frozen=True)
class Design:
    """A weighted sum of runs. `arms` gives the number of seeds that each arm is averaged over.

    An arm is a sample of seeds: the differences of runs paired by seed, or one side's runs where they are not.
    """

    parts: tuple[Part, ...]
    arms: tuple[int, ...] = ()
    paired_by_seed: bool = False

    def unit_values(self, arm: int) -> list[float]:
        """The value of each unit of an arm: a seed's difference, or a run's own mean with its side's sign."""
        found: dict[int, float] = {}
        for part in self.parts:
            if part.arm == arm:
                found[part.unit] = found.get(part.unit, 0.0) + part.weight * self.arms[arm] * part.run.value
        return list(found.values())


def design(ours: Sequence[Run], base: Sequence[Run]) -> Design:
    """`ours` minus `base`; without a base, the mean of `ours`.

    Two trained sides are paired by the seeds that both have, where those are at least two (or a side has but one):
    others are left out. Without such, all seeds of each side count. A side that was not trained is taken from each run
    of the other on the same sample, where there is one.
    Raises `ValueError` on a seed that is twice on a side.
    """
    mine, other = ({r.seed: r for r in side if r.seed is not None} for side in (ours, base))
    if any(sum(r.seed is not None for r in side) > len(by) for side, by in ((ours, mine), (base, other))):
        raise ValueError("a seed is there twice in one group of runs")
    if mine and other:
        both = [seed for seed in mine if seed in other]
        if len(both) > 1 or (both and min(len(mine), len(other)) == 1):
            share = 1 / len(both)
            found = [Part(mine[seed], share, 0, u) for u, seed in enumerate(both)]
            found += [Part(other[seed], -share, 0, u) for u, seed in enumerate(both)]
            return Design(tuple(found), (len(both),), paired_by_seed=True)
        parts = [*_side(ours, 1.0, 0), *_side(base, -1.0, 1)]
        return Design(tuple(parts), (len(mine), len(other)))
    if mine:
        return Design((*_side(ours, 1.0, 0), *_fixed(base, ours, -1.0)), (len(mine),))
    if other:
        return Design((*_fixed(ours, base, 1.0), *_side(base, -1.0, 0)), (len(other),))
    return Design((*_side(ours, 1.0, None), *_side(base, -1.0, None)))


def _side(runs: Sequence[Run], sign: float, arm: int | None) -> list[Part]:
    return [Part(run, sign / len(runs), arm, u) for u, run in enumerate(runs)]


def _fixed(fixed: Sequence[Run], trained: Sequence[Run], sign: float) -> list[Part]:
    """The model that was not trained, from each trained run's own sample where it was measured on that."""
    weights = dict.fromkeys(range(len(fixed)), 0.0)
    for run in trained:
        same = [i for i, other in enumerate(fixed) if other.sample == run.sample] or list(weights)
        for i in same:
            weights[i] += sign / len(trained) / len(same)
    return [Part(fixed[i], weight) for i, weight in weights.items() if weight]
