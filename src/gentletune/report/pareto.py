"""The trade-off: which points nothing else beats on both axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gentletune.core.records import RunRecord
from gentletune.report.axes import Axis, Point, complete
from gentletune.report.numbers import rate
from gentletune.report.settings import Reading, Setting, read_all, settings_of, told_apart

INITIAL_LABEL = "initial model"


@dataclass(frozen=True)
class Candidate:
    """One option in the plane: a setting, or the initial model (`setting` None), since doing nothing is an option.

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
        """How many runs it is the mean of; 0 for the initial model."""
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
    """The settings that have both scores, in order, led by the initial model where its scores are known."""
    settings = in_order(settings_of(records, domain, general))
    found: list[Candidate] = []
    for setting, x, y in zip(settings, read_all(settings, domain), read_all(settings, general), strict=True):
        if x is not None and y is not None:
            found.append(Candidate(setting, setting.label, short_name(setting, settings), x.point, y.point, (x, y)))
    x, y = initial_reading(settings, domain), initial_reading(settings, general)
    if x is not None and y is not None:
        found.insert(0, Candidate(None, INITIAL_LABEL, INITIAL_LABEL, x.point, y.point, (x, y)))
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


def initial_reading(settings: Sequence[Setting], axis: Axis) -> Reading | None:
    """The initial model's scores on an axis, from the first setting that measured them."""
    readings = (setting.reading(axis, initial=True) for setting in settings)
    return next((reading for reading in readings if reading is not None), None)


def initial_of(records: Sequence[RunRecord], axis: Axis) -> Point | None:
    """The initial model's point, from the first complete run that measured it."""
    points = (axis.point(record, initial=True) for record in complete(records))
    return next((p for p in points if p is not None), None)


def initials_differ(records: Sequence[RunRecord], axis: Axis) -> bool:
    """Whether runs disagree on their initial model by more than a standard error: not one comparison then."""
    first = initial_of(records, axis)
    others = [p for p in (axis.point(r, initial=True) for r in complete(records)) if p is not None]
    if first is None:
        return False
    slack = max(first.stderr or 0.0, 1e-3 * abs(first.value))
    return any(abs(p.value - first.value) > slack for p in others)
