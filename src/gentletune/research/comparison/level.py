"""Methods at an equal score: each read off its own line over the learning rates, with an honest error.

At equal rate a method that learns less also forgets less, which is no merit. So each method's settings are joined, base
model first, then rate by rate, and read where the line first reaches the score in question: the domain's, or KL from
base, or how far the weights have moved. Between two settings the scores of each item are averaged with weights t and
1 - t, which is what answering with the one model in t of the cases and with the other in the rest would score. That is
an average of runs like any other, and compared by the one comparison, paired by seed and item.

The place t comes from measured scores. An error δ there moves another score by slope · δ, so the interval is widened by
both sides' errors times their slopes (the delta method; the two errors taken as independent, which is cautious: seeds
that learn more forget more). The half widths add as squares (MOVER; Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import special

from gentletune.core.records import RunRecord, Score
from gentletune.reporting.axes import ACCURACIES, Axis
from gentletune.reporting.settings import Setting
from gentletune.stats import Change, Pool, Run, compare, mean_of, zero_of

MOVED = Axis("update/norm", "general", "distance that the weights moved", "norm of the update", False, ("update/norm",))


def moved(setting: Setting) -> Setting:
    """The setting with its runs' `update_norm` as a score among the others, 0 of the base model."""
    return replace(setting, records=tuple(map(_moved, setting.records)))


def _moved(record: RunRecord) -> RunRecord:
    if (norm := record.training.get("update_norm")) is None:
        return record
    score = Score(
        task="update", metric="norm", side="general", value=norm, stderr=None, n=1, higher_is_better=False
    )  # fmt: skip
    both = {"scores": [*record.scores, score], "base_scores": [*record.base_scores, zero_of(score)]}
    return record.model_copy(update=both)


@dataclass(frozen=True)
class Place:
    """A place on a method's line: `share` of the way from `below` (None: the base model) to `above`."""

    below: Setting | None
    above: Setting
    share: float

    def runs(self, axis: Axis) -> tuple[Run, ...]:
        """The runs of both settings averaged, seed by seed; none where a score is missing."""
        above = self.above.runs(axis)
        if self.share == 1:
            return above
        if self.below is None:
            start = {run.sample: run for run in self.above.runs(axis, base=True)}
            pairs = [(run, start.get(run.sample)) for run in above]
        else:
            seeds = {run.seed: run for run in self.below.runs(axis)}
            pairs = [(run, seeds.get(run.seed)) for run in above]
        return tuple(_mixed(low, run, self.share) for run, low in pairs if low and low.sample == run.sample)

    def value(self, axis: Axis) -> float | None:
        """The score here, on the straight line; None where one is missing."""
        if self.share == 1:
            return value_of(self.above, axis)
        ends = _ends(self, axis)
        return None if ends is None else (1 - self.share) * ends[0] + self.share * ends[1]

    def slope(self, axis: Axis, by: Axis) -> float:
        """How much the score changes for one of the score that the place is found by, along this piece of the line."""
        (low, high), (start, end) = _ends(self, axis) or (0.0, 0.0), _ends(self, by) or (0.0, 0.0)
        return (high - low) / (end - start) if end != start else 0.0


def value_of(setting: Setting, axis: Axis, base: bool = False) -> float | None:
    """The mean over a setting's seeds (of its base model if `base`), without the error that `Setting.reading` finds."""
    runs = setting.runs(axis, base)
    return math.fsum(run.value for run in runs) / len(runs) if runs else None


def upward(by: Axis) -> bool:
    """Which way training takes a score: a domain score to its better side, a distance from the base model up."""
    return by.higher_is_better or by.side == "general"


def place_at(line: Sequence[Setting], by: Axis, target: float) -> Place | None:
    """Where a method's settings, by rate, first reach a score; None where they never do."""
    sign = 1.0 if upward(by) else -1.0
    start = next((v for s in line if (v := value_of(s, by, base=True)) is not None), None)
    known: list[tuple[Setting | None, float]] = [] if start is None else [(None, sign * start)]
    for setting in sorted(line, key=lambda s: s.learning_rate):
        if (reading := value_of(setting, by)) is None:
            continue
        value = sign * reading
        if value >= sign * target:
            if not known:
                return Place(None, setting, 1.0)
            below, low = known[-1]
            if below is None and low >= sign * target:
                return None  # the base model is there already: the line leads away from it
            return Place(below, setting, 1.0 if value == low else (sign * target - low) / (value - low))
        known.append((setting, value))
    return None


def change_at(
    ours: Place, base: Place, by: Axis, axis: Axis, pools: Mapping[str, Pool | None]
) -> Change | None:  # fmt: skip
    """`ours` minus `base` on an axis, both at the same score `by`; None where a score is missing or says nothing.

    An accuracy's difference says nothing where the error of the place makes its interval wider than 1, with 0 in it:
    the line is too flat to read a place off.
    `pools` are the variances between seeds, by axis key.
    """
    mine, other = ours.runs(axis), base.runs(axis)
    if not mine or not other:
        return None
    found = compare(mine, other, pool=pools[axis.key])
    errors = [
        place.slope(axis, by) * (mean_of(runs, pools[by.key]).stderr or 0.0) if (runs := place.runs(by)) else 0.0
        for place in (ours, base)
    ]
    told = widened(found, math.hypot(*errors))
    flat = _width(found) <= 1 < _width(told) and not told.excludes_zero
    if not axis.key.endswith(ACCURACIES) or told.low is None or told.high is None:
        return told
    return None if flat else replace(told, low=max(told.low, -1.0), high=min(told.high, 1.0))


def _width(change: Change) -> float:
    return 0.0 if change.low is None or change.high is None else change.high - change.low


def widened(change: Change, error: float) -> Change:
    """The change with a further standard error, independent of its own.

    >>> one = Change(1.0, 0.3, 0.4, 1.6, 100, True, p=1e-3)
    >>> more = widened(one, 0.4)
    >>> round(more.stderr, 3), round(more.low, 3), round(more.p, 3)
    (0.5, 0.0, 0.046)
    """
    if change.stderr is None or change.low is None or change.high is None or not error:
        return change
    stderr = math.hypot(change.stderr, error)
    reach = (change.high - change.low) / 2 / change.stderr if change.stderr else 2.0
    low, high = (math.hypot(end - change.value, reach * error) for end in (change.low, change.high))
    p = float(2 * special.stdtr(change.df or 1e9, -abs(change.value) / stderr))
    p = max(p, change.p or 0.0)
    cautious = max(p, change.p_cautious or 0.0)
    return replace(change, stderr=stderr, low=change.value - low, high=change.value + high, p=p, p_cautious=cautious)


def _ends(place: Place, axis: Axis) -> tuple[float, float] | None:
    low = value_of(place.above, axis, base=True) if place.below is None else value_of(place.below, axis)
    high = value_of(place.above, axis)
    return None if low is None or high is None else (low, high)


def _mixed(low: Run, high: Run, share: float) -> Run:
    scores = tuple(_mixed_score(a, b, share) for a, b in zip(low.scores, high.scores, strict=True))
    return Run(scores, high.seed, high.sample)


def _mixed_score(low: Score, high: Score, share: float) -> Score:
    """Each item's scores averaged; without items on both sides the values, and the errors as if they moved together."""
    alike = len(low.items) == len(high.items) and low.clusters == high.clusters
    items = tuple((1 - share) * a + share * b for a, b in zip(low.items, high.items, strict=True)) if alike else ()
    errors = [low.stderr, high.stderr]
    stderr = None if None in errors else (1 - share) * (low.stderr or 0.0) + share * (high.stderr or 0.0)
    return high.model_copy(
        update={
            "value": (1 - share) * low.value + share * high.value,
            "stderr": stderr,
            "items": items,
            "clusters": high.clusters if items else (),
            "details": {k: v for k, v in high.details.items() if k == "class_counts"},
        }
    )
