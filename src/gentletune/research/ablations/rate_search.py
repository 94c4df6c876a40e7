"""The learning rate whose training moves the weights by a given norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOLERANCE = 0.02
_STEP = 30.0  # largest factor between one rate and the next
Known = tuple[float, float]  # a learning rate and the update norm ‖θ - θ⁰‖ it gave


@dataclass(frozen=True)
class Match:
    """The nearest rate found, the norm it gave, the one wanted, and how many trainings were tried."""

    rate: float
    norm: float
    target: float
    tries: int

    @property
    def error(self) -> float:
        """Relative distance of the norm from the one wanted, signed."""
        return self.norm / self.target - 1


def match_rate(
    norm_at: Callable[[float], float | None],
    target: float,
    known: Sequence[Known],
    *,
    start: float | None = None,
    tries: int = 4,
    tolerance: float = TOLERANCE,
) -> Match | None:
    """Search for the rate at which `norm_at` gives `target`, to within `tolerance` of it (relative).

    Under Adam the norm is nearly proportional to the rate, so the first step is proportional, later ones are secants
    in the logarithms (ours). Rates have four significant digits.

    Args:
        norm_at: trains at a rate; None where that diverged.
        target: norm wanted, > 0.
        known: rates and norms of trainings that are there already; they cost no try.
        start: the first rate to try where nothing is known.
        tries: most trainings to make.

    Returns:
        The nearest there is if it is within the tolerance, else the nearest that moves no further than `target`: past
        it a training may be about to break. The nearest where all move further; None where every training diverged.

    Raises:
        ValueError: a target that is not above 0, or neither `known` nor `start`.

    >>> found = match_rate(lambda rate: 50 * rate, 0.002, [(1e-5, 0.0005)])
    >>> found.rate, found.tries
    (4e-05, 1)
    """
    if not (target > 0 and math.isfinite(target)):
        raise ValueError(f"no rate moves the weights by {target}")
    if not known and start is None:
        raise ValueError("give a known rate with its norm, or one to start with")
    points, broken, tried, made = [k for k in known if k[1] > 0], list[float](), {rate for rate, _ in known}, 0
    while made < tries and not (points and abs(_nearest(points, target)[1] / target - 1) <= tolerance):
        rate = float(f"{_next(points, broken, target, start):.4g}")
        if rate in tried:
            break
        tried.add(rate)
        made += 1
        norm = norm_at(rate)
        if norm is None or not math.isfinite(norm) or norm <= 0:
            broken.append(rate)
        else:
            points.append((rate, norm))
    if not points:
        return None
    nearest = _nearest(points, target)
    if abs(nearest[1] / target - 1) > tolerance:
        nearest = _nearest([p for p in points if p[1] <= target] or points, target)
    return Match(*nearest, target, made)


def _nearest(points: Sequence[Known], target: float) -> Known:
    return min(points, key=lambda p: abs(math.log(p[1] / target)))


def _next(points: Sequence[Known], broken: Sequence[float], target: float, start: float | None) -> float:
    if not points:
        return min(broken) / 10 if broken else (start or 0.0)
    rate, norm = _nearest(points, target)
    wanted = math.log(target / norm)
    step = max(min(wanted / _slope(points, target), math.log(_STEP)), -math.log(_STEP))
    proposed = rate * math.exp(step)
    ceiling = min((b for b in broken if b > rate), default=math.inf)
    return math.sqrt(rate * ceiling) if proposed >= ceiling else proposed


def _slope(points: Sequence[Known], target: float) -> float:
    """d log norm / d log rate at the two points that stand best: one on either side, else the two nearest."""
    by_distance = sorted(points, key=lambda p: abs(math.log(p[1] / target)))
    first = by_distance[0]
    other = next((p for p in by_distance if (p[1] < target) != (first[1] < target)), None)
    second = other or (by_distance[1] if len(points) > 1 else None)
    if second is None or second[0] == first[0]:
        return 1.0
    slope = math.log(first[1] / second[1]) / math.log(first[0] / second[0])
    return min(max(slope, 0.25), 4.0)
