"""From runs to a contrast: which items they share, what of the variance is theirs, and what the seeds'."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from gentletune.stats.contrast import Contrast, seed_noise
from gentletune.stats.items import SHARED, Array, Layout, layout_of, mean_error, pair_weight, share_error
from gentletune.stats.pool import Pool, variance
from gentletune.stats.runs import Design, Part
from gentletune.stats.scores import least_variance

_Place = tuple[Hashable, ...]  # what scores must share to be summed item by item


@dataclass(frozen=True)
class Found:
    """The contrast (None: an error is unknown), and what it rests on.

    `noise` is N by arm. `n` counts items, `units` their groups, over the tasks; `paired` is whether all were compared
    item by item, `shares` whether all are right or wrong answers. `unseen` is whether some arm's seeds are unknown,
    `borrowed` whether the pool speaks for them.
    """

    value: float
    contrast: Contrast | None
    noise: tuple[float, ...]
    n: int
    units: int
    paired: bool
    shares: bool
    unseen: bool
    borrowed: bool


def find(plan: Design, pool: Pool | None = None) -> Found:
    """The contrast of a design. Raises `ValueError` where the runs' scores differ in their keys, or there are none."""
    runs = [part.run for part in plan.parts]
    keys = [tuple(s.key for s in run.scores) for run in runs] or [()]
    odd = next((other for other in keys if other != keys[0]), None)
    if odd is not None:
        raise ValueError(f"'{', '.join(keys[0])}' and '{', '.join(odd)}' are not the same score")
    if not keys[0]:
        raise ValueError("no scores to compare")
    k = len(keys[0])
    tasks = [_task(plan, t) for t in range(k)]
    value = math.fsum(part.weight * part.run.value for part in plan.parts)
    noise = tuple(math.fsum(task.noise[arm] for task in tasks) / k**2 for arm in range(len(plan.arms)))
    seeds, df, unseen, borrowed = _seeds(plan, noise, pool)
    return Found(
        value,
        _contrast(value, tasks, noise, seeds, df),
        noise,
        n=sum(min(run.scores[t].n for run in runs) for t in range(k)),
        units=sum(min(run.scores[t].units for run in runs) for t in range(k)),
        paired=all(task.paired for task in tasks),
        shares=all(task.shares for task in tasks),
        unseen=unseen,
        borrowed=borrowed,
    )


@dataclass(frozen=True)
class _Error:
    """The error of a weighted sum of runs on the same items; `variance` None: unknown.

    `scale` and `widened` are what the correction for shares does to the noise: times, and plus.
    """

    centre: float
    variance: float | None
    df: float
    paired: bool
    shares: bool = False
    scale: float = 1.0
    widened: float = 0.0


@dataclass(frozen=True)
class _Task:
    """The same of one task, over all its items; `spread` is Σ V²/df, `noise` N by arm."""

    centre: float
    variance: float | None
    spread: float
    least_df: float
    noise: tuple[float, ...]
    paired: bool
    shares: bool


def _contrast(value: float, tasks: Sequence[_Task], noise: Sequence[float], seeds: float, df: float) -> Contrast | None:
    k, variances = len(tasks), [task.variance for task in tasks if task.variance is not None]
    if len(variances) < k:
        return None
    total, spread = math.fsum(variances) / k**2, math.fsum(task.spread for task in tasks) / k**4
    left = math.fsum(noise)
    numbers = (
        value,
        value + (math.fsum(task.centre for task in tasks) / k - value) / k,  # two pseudo-pairs in all, not in each task
        max(total - left, 0.0),
        total**2 / spread if spread else min(task.least_df for task in tasks),
        left,
        seeds,
        df,
    )
    return Contrast(*map(np.asarray, numbers))


def _seeds(plan: Design, noise: Sequence[float], pool: Pool | None) -> tuple[float, float, bool, bool]:
    """M over all arms with its degrees of freedom; whether an arm's seeds are unknown, and whether any is borrowed."""
    found, unseen, borrowed = list[tuple[float, float]](), False, False
    for arm, seeds in enumerate(plan.arms):
        seen = (variance(plan.unit_values(arm)) / seeds, seeds - 1.0) if seeds > 1 else (0.0, 0.0)
        known = pool.moderated(*seen, seeds, noise[arm], plan.paired_by_seed) if pool else seen
        borrowed |= known != seen
        unseen |= not known[1]
        found += [known] if known[1] else []
    total, spread = math.fsum(v for v, _ in found), math.fsum(v * v / df for v, df in found)
    df = total**2 / spread if spread else min((df for _, df in found), default=0.0)
    return total, df, unseen, borrowed


def _task(plan: Design, t: int) -> _Task:
    """One task's part: runs on the same items are summed item by item, sums on different items are independent."""
    places: dict[_Place, list[Part]] = {}
    for part in plan.parts:
        places.setdefault(_place(part, t), []).append(part)
    errors = {place: _error(parts, t) for place, parts in places.items()}
    noise, nested = list[float](), set[_Place]()
    for arm, seeds in enumerate(plan.arms):
        left, inside = _noise(arm, seeds, t, places, errors)
        noise.append(left)
        nested |= inside
    known = [0.0 if e.variance is None and place in nested else e.variance for place, e in errors.items()]
    return _Task(
        math.fsum(e.centre for e in errors.values()),
        None if None in known else math.fsum(v for v in known if v is not None),
        math.fsum(e.variance**2 / e.df for e in errors.values() if e.variance is not None),
        min(e.df for e in errors.values()),
        tuple(noise),
        all(e.paired for e in errors.values()),
        all(e.shares for e in errors.values()),
    )


def _place(part: Part, t: int) -> _Place:
    score = part.run.scores[t]
    if score.items:
        return "items", part.run.sample, score.n, score.clusters
    return "bare", part.run.sample, part.weight > 0


def _error(parts: Sequence[Part], t: int) -> _Error:
    scores = [part.run.scores[t] for part in parts]
    weights = [part.weight for part in parts]
    centre = math.fsum(w * s.value for w, s in zip(weights, scores, strict=True))
    size = math.fsum(abs(w) for w in weights)
    layout = layout_of(scores[0].n, scores[0].clusters)
    df = layout.degrees if layout.units > 1 else 1.0
    if len(parts) == 1 or not scores[0].items:
        # Runs without items are taken to be on the same ones, and so to err alike: no seed makes that smaller.
        squares = [abs(w) * s.stderr**2 for w, s in zip(weights, scores, strict=True) if s.stderr is not None]
        return _Error(centre, size * math.fsum(squares) if len(squares) == len(parts) else None, df, paired=False)
    both = min(weights) < 0 < max(weights)
    rows = np.asarray([s.items for s in scores])
    shares = bool(np.all((rows == 0) | (rows == 1)))
    if layout.units < 2:
        return _Error(centre, None, df, both, shares)
    summed = np.asarray(weights) @ rows
    least = least_variance(scores[0])
    if not both:
        plain = share_error(summed / size, layout) if shares else layout.variance(summed / size)
        return _Error(centre, size**2 * max(float(plain), least), df, paired=False)
    size /= 2
    counts = _seeds_of(parts)
    found = mean_error(summed / size, layout, pair_weight(*counts) if shares else None)
    return _Error(
        size * float(found.centre),
        size**2 * max(float(found.variance), least),
        df,
        paired=True,
        shares=shares,
        scale=float(found.scale),
        widened=(1 - SHARED) / len(counts) / float(found.total) ** 2 if shares else 0.0,
    )


def _seeds_of(parts: Sequence[Part]) -> list[int]:
    """How many seeds of each arm are there; one where there is no arm."""
    units: dict[int, set[int]] = {}
    for part in parts:
        if part.arm is not None:
            units.setdefault(part.arm, set()).add(part.unit)
    return [len(found) for found in units.values()] or [1]


def _noise(
    arm: int, seeds: int, t: int, places: dict[_Place, list[Part]], errors: dict[_Place, _Error]
) -> tuple[float, set[_Place]]:
    """N of an arm in one task, and the places whose whole error is noise: each seed has items of its own."""
    by_unit: dict[int, set[_Place]] = {}
    for place, parts in places.items():
        for part in parts:
            if part.arm == arm:
                by_unit.setdefault(part.unit, set()).add(place)
    mine = set[_Place]().union(*by_unit.values())
    if seeds < 2:
        return 0.0, set()
    if all(found == mine for found in by_unit.values()):
        if any(place[0] == "bare" for place in mine):
            return 0.0, set()
        return math.fsum(_crossed_noise(arm, seeds, t, places[place], errors[place]) for place in mine), set()
    alone = all(part.arm in (arm, None) for place in mine for part in places[place])
    if alone and sum(map(len, by_unit.values())) == len(mine):
        return math.fsum(errors[place].variance or 0.0 for place in mine), mine
    return 0.0, set()  # some seeds share items and some do not: all of the items' error is taken to be shared


def _crossed_noise(arm: int, seeds: int, t: int, parts: Sequence[Part], error: _Error) -> float:
    layout: Layout = layout_of(parts[0].run.scores[t].n, parts[0].run.scores[t].clusters)
    if layout.units < 2:
        return 0.0
    rows: dict[int, Array] = {}
    for part in parts:
        if part.arm == arm:
            items = part.weight * seeds * np.asarray(part.run.scores[t].items)
            rows[part.unit] = rows[part.unit] + items if part.unit in rows else items
    return float(seed_noise(np.asarray(list(rows.values())), layout)) * error.scale + error.widened / seeds
