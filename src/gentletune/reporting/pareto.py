"""The trade-off: options in the plane, which of them nothing else beats, and how sure that is.

Of the front and what it encloses a bootstrap over test items tells, joint over what shares them. Each draw resamples
the groups of items (the items, where they are not grouped) of every score, the same ones for all settings measured on
them, so that what is hard for one is hard for all (Efron and Tibshirani 1993, §8). A score moves by the mean of its
drawn items less its own, scaled to its standard error, which knows pseudo-observations; where it has no items, or
items that do not vary, by a normal draw with that error. The variance between seeds, which two or three seeds cannot
be resampled for, is added as a normal draw, too.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gentletune.core.records import RunRecord, Score
from gentletune.reporting.axes import Axis, Point, complete
from gentletune.reporting.settings import Reading, Setting, read_all, settings_of, told_apart
from gentletune.stats.numbers import rate

BASE_LABEL = "base model"
Array = NDArray[np.float64]
SEED, DRAWS = 20250920, 1000
_CHUNK = 4_000_000  # numbers of one block of drawn counts: 32 MB
_FLAT = 1e-12


@dataclass(frozen=True)
class Candidate:
    """One option in the plane: a setting, or the base model (`setting` None), since doing nothing is an option.

    `x` is the domain score and `y` the general one, in their axes' units, both averaged over the setting's seeds;
    `readings` are what they come from.
    """

    setting: Setting | None
    method: str
    name: str
    x: Point
    y: Point
    readings: tuple[Reading, Reading]

    @property
    def seeds(self) -> int:
        """How many runs it is the mean of; 0 for the base model."""
        return self.setting.seeds if self.setting else 0

    @property
    def indices(self) -> tuple[int, ...]:
        """Its runs' places in the records."""
        return self.setting.indices if self.setting else ()


def pareto_front(points: Sequence[tuple[float, float]], *, x_higher: bool = True, y_higher: bool = True) -> list[int]:
    """Indices of the points that no other point beats, from the worst x to the best.

    A point is beaten by one at least as good on both axes and better on one; equal points are all kept.

    >>> pareto_front([(1, 5), (3, 2), (2, 1)])
    [0, 1]
    """
    oriented = [(x if x_higher else -x, y if y_higher else -y) for x, y in points]
    order = sorted(range(len(oriented)), key=lambda i: (oriented[i], i), reverse=True)
    front: list[int] = []
    best: tuple[float, float] | None = None
    # From the best x down, a point is unbeaten exactly if its y is above every y seen (or it is a tie).
    for i in order:
        if best is None or oriented[i][1] > best[1] or oriented[i] == best:
            front.append(i)
            best = oriented[i]
    return front[::-1]


def labels_of(records: Sequence[RunRecord]) -> list[str]:
    """The distinct labels: plain SFT, which all else is held against, then the others as they appear."""
    return sorted(dict.fromkeys(r.label for r in records), key=lambda label: label != "sft")


def in_order(settings: Sequence[Setting]) -> list[Setting]:
    """Settings by method, then by learning rate, then by what else tells them apart (numbers as numbers)."""
    labels = labels_of([s.records[0] for s in settings])

    def told(setting: Setting) -> list[str | int]:
        parts = re.split(r"(\d+)", told_apart(setting, settings))
        return [int(part) if part.isdigit() else part for part in parts]

    return sorted(settings, key=lambda s: (labels.index(s.label), s.learning_rate, told(s)))


def candidates(records: Sequence[RunRecord], domain: Axis, general: Axis) -> list[Candidate]:
    """The settings that have both scores, in order, led by the base model where its scores are known."""
    settings = in_order(settings_of(records, domain, general))
    found: list[Candidate] = []
    for setting, x, y in zip(settings, read_all(settings, domain), read_all(settings, general), strict=True):
        if x is not None and y is not None:
            found.append(Candidate(setting, setting.label, short_name(setting, settings), x.point, y.point, (x, y)))
    x, y = base_reading(settings, domain), base_reading(settings, general)
    if x is not None and y is not None:
        found.insert(0, Candidate(None, BASE_LABEL, BASE_LABEL, x.point, y.point, (x, y)))
    return found


def short_name(setting: Setting, others: Sequence[Setting]) -> str:
    """`sft 1e-5`, with what alone tells it from another setting of its method and rate."""
    told = told_apart(setting, others)
    return f"{setting.label} {rate(setting.learning_rate)}" + (f" ({told})" if told else "")


def front_of(options: Sequence[Candidate], domain: Axis, general: Axis) -> list[int]:
    """Places in `options` of the Pareto front, from the worst domain score to the best."""
    return pareto_front(
        [(c.x.value, c.y.value) for c in options],
        x_higher=domain.higher_is_better,
        y_higher=general.higher_is_better,
    )


def base_reading(settings: Sequence[Setting], axis: Axis) -> Reading | None:
    """The base model's scores on an axis, from the first setting that measured them."""
    readings = (setting.reading(axis, base=True) for setting in settings)
    return next((reading for reading in readings if reading is not None), None)


def base_point(records: Sequence[RunRecord], axis: Axis) -> Point | None:
    """The base model's point, from the first complete run that measured it."""
    points = (axis.point(record, base=True) for record in complete(records))
    return next((p for p in points if p is not None), None)


def bases_differ(records: Sequence[RunRecord], axis: Axis) -> bool:
    """Whether runs disagree on their base model by more than a standard error: not one comparison then."""
    first = base_point(records, axis)
    others = [p for p in (axis.point(r, base=True) for r in complete(records)) if p is not None]
    if first is None:
        return False
    slack = max(first.stderr or 0.0, 1e-3 * abs(first.value))
    return any(abs(p.value - first.value) > slack for p in others)


# ------------------------------------------------------------------------------------------ the bootstrap


@dataclass(frozen=True)
class Draws:
    """Values of every option, turned so that larger is better: `x` and `y` as seen, and drawn (draws × options)."""

    x: Array
    y: Array
    xs: Array
    ys: Array

    def on_front(self) -> list[float]:
        """Share of the draws in which each option is on the front."""
        x, y = self.xs[:, :, None], self.ys[:, :, None]
        other_x, other_y = self.xs[:, None, :], self.ys[:, None, :]
        beaten = (other_x >= x) & (other_y >= y) & ((other_x > x) | (other_y > y))
        return [float(share) for share in 1 - beaten.any(axis=2).mean(axis=0)]

    def band(self, grid: Sequence[float], level: float = 0.95) -> tuple[Array, Array]:
        """At each x of `grid`, bounds of the best y to be had there or further right, pointwise; -inf where none is.

        Plain percentiles, which fall from left to right as every front does. They lie a little high, since the best of
        redrawn points does.
        """
        reached = np.where(self.xs[:, :, None] >= np.asarray(grid), self.ys[:, :, None], -np.inf).max(axis=1)
        # nearest, since nothing lies between a number and -inf
        low, high = np.quantile(reached, [(1 - level) / 2, (1 + level) / 2], axis=0, method="nearest")
        return low, high


@dataclass(frozen=True)
class Estimate:
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def draw(options: Sequence[Candidate], domain: Axis, general: Axis, *, count: int = DRAWS, seed: int = SEED) -> Draws:
    """`count` joint draws of all options on both axes.

    A missing standard error counts as 0: such a point does not move.
    """
    rng = np.random.default_rng(seed)
    seen: list[Array] = []
    drawn: list[Array] = []
    for side, axis in enumerate((domain, general)):
        sign = 1.0 if axis.higher_is_better else -1.0
        readings = [option.readings[side] for option in options]
        values = sign * np.array([reading.point.value for reading in readings])
        seen.append(values)
        drawn.append(values + sign * _moves(readings, rng, count))
    return Draws(seen[0], seen[1], drawn[0], drawn[1])


def hypervolume(x: Array, y: Array, corner: tuple[float, float]) -> Array:
    """Area between the points (along the last axis) and a corner worse than all that counts; larger is better.

    >>> hypervolume(np.array([1.0, 2.0]), np.array([2.0, 1.0]), (0.0, 0.0))
    array(3.)
    """
    order = np.argsort(-x, axis=-1)
    wide = np.clip(np.take_along_axis(x, order, -1) - corner[0], 0, None)
    high = np.clip(np.take_along_axis(y, order, -1) - corner[1], 0, None)
    best = np.maximum.accumulate(np.where(wide > 0, high, 0.0), axis=-1)
    gained = np.diff(best, axis=-1, prepend=np.zeros_like(best[..., :1]))
    return np.asarray((wide * gained).sum(axis=-1))


def interval(value: float, drawn: Array, level: float = 0.95) -> Estimate:
    """Basic bootstrap interval (Davison and Hinkley 1997, §5.2): the drawn errors, mirrored about the value.

    Mirrored, because the best of noisy points is above the truth, and that of redrawn points further above it. Of 95 %
    intervals for the area of four equally good points 90 to 96 % held it, of plain percentiles 64 to 73 %; where the
    points are spread out 93 to 97 % of both (simulated).
    """
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, 2 * value - float(high), 2 * value - float(low))


def _moves(readings: Sequence[Reading], rng: np.random.Generator, count: int) -> Array:
    """How far each reading moves in each draw (draws × readings), in its own unit."""
    moves = np.zeros((count, len(readings)))
    shared: dict[Hashable, list[tuple[int, int, Score]]] = {}
    for place, reading in enumerate(readings):
        for score in reading.scores:
            key = (score.key, repr(reading.sample), len(score.items), score.clusters)
            shared.setdefault(key, []).append((place, len(reading.scores), score))
        if reading.seed_variance:
            moves[:, place] += rng.normal(0.0, reading.seed_variance**0.5, count)
    for members in shared.values():
        found = _score_moves([score for _, _, score in members], rng, count)
        for column, (place, sources, _) in enumerate(members):
            moves[:, place] += found[:, column] / sources
    return moves


def _score_moves(scores: Sequence[Score], rng: np.random.Generator, count: int) -> Array:
    """Moves of scores on the same items."""
    errors = np.array([score.stderr or 0.0 for score in scores])
    n = len(scores[0].items)
    if not n:
        return np.asarray(rng.normal(0.0, 1.0, (count, len(scores))) * errors)
    items = np.array([score.items for score in scores])
    _, group = np.unique(scores[0].clusters or np.arange(n), return_inverse=True)
    sizes = np.bincount(group).astype(float)
    sums = np.stack([np.bincount(group, weights=row - row.mean()) for row in items], axis=1)  # groups × scores
    spread = np.sqrt((sums**2).sum(axis=0)) / n
    moves = np.empty((count, len(scores)))
    step = max(_CHUNK // len(sizes), 1)
    for start in range(0, count, step):
        times = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=min(step, count - start))
        moves[start : start + step] = (times @ sums) / (times @ sizes)[:, None]
    still = spread <= _FLAT
    scaled = moves * np.where(still, 0.0, errors / np.where(still, 1.0, spread))
    return np.where(still, rng.normal(0.0, 1.0, moves.shape) * errors, scaled)
