"""From short probes to a forecast of the full run, and the choice of a rate; numbers only.

The bridge is ours: under Adam a step moves every weight by about the learning rate, whatever the gradient's size, so a
run's *movement* is the sum of its rates over its steps. A probe of k steps at a large rate has moved as far as a full
run at a small one, and its gain and KL from base by then are read as those of that run. It sees no more data than the
k steps hold, and a full run of small steps is gentler than its probe, so both are approximations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, median
from typing import Literal

from gentletune.core.records import Score
from gentletune.core.schedule import Schedule
from gentletune.stats import LEVEL, Change, compare, holm, zero_of

PRIOR = (576, 1e-5)  # hidden size and a rate that is small there (docs/log.md); the paper's 1e-6 is at 2048 to 2560
_EXPONENT = -5 / 3  # through both: 1e-6 at about 2300
_STEPS = (1.0, 3.0)  # rates are proposed to half a decade; nothing here knows more
_WIDE = NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors of half an interval over many rows
SLACK = 0.05  # of the best gain: so much less counts as the same

End = Literal["smallest candidate", "largest candidate", "largest probe"]


@dataclass(frozen=True)
class ProbePoint:
    """What `steps` steps at one rate did, against the base model on the same sequences, paired.

    `movement` is the sum of the learning rates of the steps. `gain` is bits per domain token saved, `kl` from base
    in bits per token, on what the base model samples, each a `Score` by sequence.
    """

    method: str
    learning_rate: float
    steps: int
    movement: float
    gain: Score
    kl: Score


@dataclass(frozen=True)
class Forecast:
    """The full run at one rate, as the probes foretell it: bits per token gained, and KL from base.

    `beyond`: it moves further than any stable probe did, so that the gain is a floor and the KL extrapolated.
    """

    learning_rate: float
    movement: float
    gain: float
    kl: float
    beyond: bool


@dataclass(frozen=True)
class Choice:
    """The rate chosen, the forecasts it was chosen from, the rates as good as the best, within `tolerance`.

    `best` is the largest forecast gain among the rates allowed. `largest_stable` is the largest probed rate that did
    no worse than the smaller ones. `ends` are the ends of the grid that the choice lies at, so that a rate beyond may
    be better: the smallest or the largest candidate is chosen, or the gain still rose at the largest rate probed where
    the full run may go as far or further. What instability or a budget shuts out is no end of the grid.
    """

    learning_rate: float
    forecasts: tuple[Forecast, ...]
    alike: tuple[float, ...]
    tolerance: float
    largest_stable: float
    best: float
    ends: tuple[End, ...]


def prior_rate(hidden_size: int) -> float:
    """A small learning rate for full fine-tuning of a model of that width: ours, a starting point for the grid.

    A power law through 1e-5 for SmolLM2-135M (576) and 1e-6 for the paper's models of 3 to 4 billion (2048 to 2560).

    >>> prior_rate(576), prior_rate(2304)
    (1e-05, 1e-06)
    """
    return nearest_half_decade(PRIOR[1] * (hidden_size / PRIOR[0]) ** _EXPONENT)


def nearest_half_decade(rate: float) -> float:
    """The nearest of …, 1e-6, 3e-6, 1e-5, … on a logarithmic scale.

    >>> nearest_half_decade(2.5e-6)
    3e-06
    """
    power = math.floor(math.log10(rate))
    options = [float(f"{m:g}e{p}") for p in (power, power + 1) for m in _STEPS]
    return min(options, key=lambda option: abs(math.log(option / rate)))


def half_decades(low: float, high: float) -> tuple[float, ...]:
    """All half decades from `low` to `high`, both counted in.

    >>> half_decades(1e-6, 1e-5)
    (1e-06, 3e-06, 1e-05)
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    options = (float(f"{m:g}e{p}") for p in range(first, last + 1) for m in _STEPS)
    return tuple(option for option in options if low * 0.999 <= option <= high * 1.001)


def unit_movement(steps: int, total: int, warmup: float, schedule: str) -> float:
    """Sum of the schedule's factors over the first `steps` of `total` steps: the movement at rate 1.

    As transformers does it: step i of a warm-up of W = ⌈total · warmup⌉ steps has factor i/W.

    >>> unit_movement(10, 10, 0.0, "constant"), round(unit_movement(100, 100, 0.0, "cosine"), 1)
    (10.0, 50.5)
    """
    read = Schedule.parse(schedule)
    return math.fsum(read.factor(step, total, warmup) for step in range(steps))


def stable_points(points: Sequence[ProbePoint], diverged: Sequence[float]) -> list[ProbePoint]:
    """The points of rates below the first that diverged or ended significantly below a smaller rate's gain."""
    last: dict[float, ProbePoint] = {}
    for point in points:
        if point.learning_rate not in last or point.steps > last[point.learning_rate].steps:
            last[point.learning_rate] = point
    limit = min(diverged, default=math.inf)
    rates = sorted(rate for rate in last if rate < limit)
    for i, rate in enumerate(rates):
        changes = [gain_change(last[rate], last[other]) for other in rates[:i]]
        if any(c.excludes_zero and c.value < 0 for c in changes):
            limit = rate
            break
    return sorted((p for p in points if p.learning_rate < limit), key=lambda p: (p.movement, p.learning_rate))


def gain_change(a: ProbePoint, b: ProbePoint) -> Change:
    """Gain of `a` minus gain of `b`, paired by sequence; above 0, `a` gained more."""
    return compare(a.gain, b.gain)


def any_gain(points: Sequence[ProbePoint]) -> bool | None:
    """Whether any point gained significantly, all of them taken together (Holm); None where no error is known."""
    found = [change for change in holm([compare(p.gain, zero_of(p.gain)) for p in points]) if change]
    known = [change for change in found if change.significant is not None]
    return any(change.significant and change.value > 0 for change in known) if known else None


def forecast(stable: Sequence[ProbePoint], rate: float, units: float) -> Forecast:
    """What a full run of `units` (`unit_movement`) at `rate` would gain, and its KL from base.

    Both curves never fall with movement. Gain is linear in the logarithm of the movement between points, in proportion
    to it before the first and constant after the last; KL is linear in the movement, from 0 at no movement, and goes
    on after the last point as steeply as from 0 to it, or as between the last two if that is steeper.
    """
    movement = rate * units
    xs = [p.movement for p in stable]
    gains, kls = _rising([p.gain.value for p in stable]), _rising([p.kl.value for p in stable])
    beyond = movement > xs[-1] * (1 + 1e-9)
    if movement <= xs[0]:
        return Forecast(rate, movement, gains[0] * movement / xs[0], kls[0] * movement / xs[0], False)
    if beyond:
        slope = max([kls[-1] / xs[-1], *_slope(xs, kls)])
        return Forecast(rate, movement, gains[-1], kls[-1] + slope * (movement - xs[-1]), True)
    i = next(i for i, x in enumerate(xs) if movement <= x * (1 + 1e-9))
    low, high = xs[i - 1], xs[i]
    if high <= low:
        return Forecast(rate, movement, gains[i], kls[i], False)
    part = math.log(movement / low) / math.log(high / low)
    gain = gains[i - 1] + part * (gains[i] - gains[i - 1])
    kl = kls[i - 1] + (movement - low) / (high - low) * (kls[i] - kls[i - 1])
    return Forecast(rate, movement, gain, kl, False)


def choose(
    points: Sequence[ProbePoint],
    diverged: Sequence[float],
    *,
    units: float,
    test_rows: int,
    candidates: Sequence[float],
    budget: float | None = None,
) -> Choice | None:
    """The rate a sweep would choose: the least KL from base among those whose forecast gain is as good as the best.

    A gain is as good within 1.96 paired standard errors at `test_rows` rows, or 5 % of the best. Only rates up to the
    largest stable probe are candidates, and with a `budget` (bits of KL from base per token) only those forecast
    to stay within it. None where no rate was stable, or none keeps to the budget.
    """
    stable = stable_points(points, diverged)
    if not stable:
        return None
    largest = max(p.learning_rate for p in stable)
    found = tuple(forecast(stable, rate, units) for rate in sorted(candidates) if rate <= largest * 1.001)
    allowed = [f for f in found if budget is None or f.kl <= budget]
    if not allowed:
        return None
    best = max(f.gain for f in allowed)
    tolerance = max(SLACK * best, _WIDE * _paired_error(stable, test_rows))
    alike = [f for f in allowed if best - f.gain <= tolerance]
    chosen = min(alike, key=lambda f: (f.kl, f.learning_rate))
    ends = list[End]()
    if chosen.learning_rate == found[0].learning_rate:
        ends.append("smallest candidate")
    if chosen.learning_rate == max(candidates) < largest * 0.999:
        ends.append("largest candidate")
    elif largest >= max([*(p.learning_rate for p in points), *diverged]):
        # The forecast is level after the last probe only because nothing was measured there.
        reached = max(f.movement for f in allowed) >= stable[-1].movement * (1 - 1e-9)
        smaller = max((p.gain.value for p in stable if p.learning_rate < largest), default=0.0)
        still_rising = reached and stable[-1].gain.value - smaller > tolerance
        if still_rising or (chosen is found[-1] and chosen.gain > tolerance):
            ends.append("largest probe")
    rates = tuple(f.learning_rate for f in alike)
    return Choice(chosen.learning_rate, found, rates, tolerance, largest, best, tuple(ends))


def _paired_error(stable: Sequence[ProbePoint], test_rows: int) -> float:
    """Typical standard error of a difference in gain between neighbouring rates, at so many test rows."""
    ends = {p.learning_rate: p for p in sorted(stable, key=lambda p: p.steps)}
    ordered = [ends[rate] for rate in sorted(ends)]
    changes = [gain_change(b, a) for a, b in pairwise(ordered)]
    errors = [c.stderr * math.sqrt(c.n / test_rows) for c in changes if c.stderr is not None]
    return median(errors) if errors else 0.0


def _rising(values: Sequence[float]) -> list[float]:
    """Running largest value, from 0."""
    found, top = list[float](), 0.0
    for value in values:
        top = max(top, value)
        found.append(top)
    return found


def _slope(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    if len(xs) < 2 or xs[-1] <= xs[-2]:
        return []
    return [(ys[-1] - ys[-2]) / (xs[-1] - xs[-2])]
