"""From short probes to a forecast of the full run, and the choice of a rate; numbers only.

A probe is a run at the same peak rate with the same schedule, but of few steps. What it loses says what the full run
loses (`harm`), what it gains is less than the full run will gain, and which rate gains more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, median
from typing import Literal

from gentletune.advice.harm import Harm
from gentletune.core.records import Score
from gentletune.stats import LEVEL, Change, compare, holm, zero_of

PRIOR = (576, 1e-5)  # hidden size and a rate that is small there (docs/log.md); the paper's 1e-6 is at 2048 to 2560
_EXPONENT = -5 / 3  # through both: 1e-6 at about 2300
_HALVES = (1.0, 3.0)  # rates of a decade that are probed
_SIXTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # and those that are proposed
_WIDE = NormalDist().inv_cdf((1 + LEVEL) / 2)  # standard errors of half an interval over many rows
SLACK = 0.02  # of the best gain: so much less counts as the same
RISK = 0.05  # of a loss above two margins: a rate with more is not proposed

End = Literal["smallest candidate", "largest candidate", "largest probe"]


@dataclass(frozen=True)
class ProbePoint:
    """What `steps` steps at one peak rate did, against the base model on the same items.

    `gain` is bits per domain token saved, `kl` from base in bits per token on what the base model samples, each a
    `Score` by sequence. `general` is the mean accuracy over the recipe's general tasks, None where it has none.
    """

    method: str
    learning_rate: float
    steps: int
    gain: Score
    kl: Score
    general: Score | None = None


@dataclass(frozen=True)
class Forecast:
    """The full run at one rate, as the probes foretell it.

    `loss` is of general skill in the margin's unit, `risk` the chance of more than two margins, `kl` from base in bits
    per token. `gain` is what a probe at that rate gains, bits per token: the full run gains more.
    """

    learning_rate: float
    gain: float
    kl: float
    loss: float
    risk: float


@dataclass(frozen=True)
class Choice:
    """The rate chosen, the forecasts it was chosen from, the rates as good as the best, within `tolerance`.

    `best` is the largest gain among the rates allowed. `largest_stable` is the largest probed rate that did no worse
    than the smaller ones. `safe`: the rate keeps to margin and budget. `ends` are the ends of the grid that the choice
    lies at, so that a rate beyond may be better: the smallest or the largest candidate, or the largest rate probed.
    """

    learning_rate: float
    forecasts: tuple[Forecast, ...]
    alike: tuple[float, ...]
    tolerance: float
    largest_stable: float
    best: float
    safe: bool
    ends: tuple[End, ...]


def prior_rate(hidden_size: int) -> float:
    """A small learning rate for full fine-tuning of a model of that width: ours, a starting point for the probes.

    A power law through 1e-5 for SmolLM2-135M (576) and 1e-6 for the paper's models of 3 to 4 billion (2048 to 2560).

    >>> prior_rate(576), prior_rate(2304)
    (1e-05, 1e-06)
    """
    return nearest(PRIOR[1] * (hidden_size / PRIOR[0]) ** _EXPONENT, _HALVES)


def nearest(rate: float, steps: Sequence[float] = _SIXTHS) -> float:
    """The nearest round rate on a logarithmic scale: 1, 1.5, 2, 3, 5 or 7 of a decade.

    >>> nearest(2.6e-6), nearest(1.7e-3)
    (3e-06, 0.0015)
    """
    power = math.floor(math.log10(rate))
    options = [float(f"{m:g}e{p}") for p in (power, power + 1) for m in steps]
    return min(
        options, key=lambda option: (round(abs(math.log(option / rate)), 9), option)
    )  # of two as near the smaller


def rates_between(low: float, high: float) -> tuple[float, ...]:
    """All round rates from `low` to `high`, both counted in.

    >>> rates_between(1e-6, 1e-5)
    (1e-06, 1.5e-06, 2e-06, 3e-06, 5e-06, 7e-06, 1e-05)
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    options = (float(f"{m:g}e{p}") for p in range(first, last + 1) for m in _SIXTHS)
    return tuple(option for option in options if low * 0.999 <= option <= high * 1.001)


def half_decades(count: int, above: float) -> tuple[float, ...]:
    """So many of …, 1e-6, 3e-6, 1e-5, … upwards, from the nearest to `above`.

    >>> half_decades(3, 1e-6)
    (1e-06, 3e-06, 1e-05)
    """
    first = nearest(above, _HALVES)
    return tuple(nearest(first * 10 ** (i / 2), _HALVES) for i in range(count))


def stable_points(points: Sequence[ProbePoint], diverged: Sequence[float]) -> list[ProbePoint]:
    """The points of rates below the first that diverged or gained significantly less than a smaller rate."""
    ordered = sorted(points, key=lambda p: p.learning_rate)
    limit = min(diverged, default=math.inf)
    for i, point in enumerate(ordered):
        changes = [gain_change(point, other) for other in ordered[:i]]
        if any(c.excludes_zero and c.value < 0 for c in changes):
            limit = min(limit, point.learning_rate)
            break
    return [p for p in ordered if p.learning_rate < limit]


def gain_change(a: ProbePoint, b: ProbePoint) -> Change:
    """Gain of `a` minus gain of `b`, paired by sequence; above 0, `a` gained more."""
    return compare(a.gain, b.gain)


def any_gain(points: Sequence[ProbePoint]) -> bool | None:
    """Whether any point gained significantly, all of them taken together (Holm); None where no error is known."""
    found = [change for change in holm([compare(p.gain, zero_of(p.gain)) for p in points]) if change]
    known = [change for change in found if change.significant is not None]
    return any(change.significant and change.value > 0 for change in known) if known else None


def forecast(stable: Sequence[ProbePoint], rate: float, harm: Harm, kl: Harm) -> Forecast:
    """The full run at `rate`: the gain straight in the logarithm of the rate between probes, the rest by `Harm`.

    The gain never falls with the rate; below the smallest probe it goes in proportion to the rate.
    """
    gain = _gain(stable, rate)
    return Forecast(rate, gain, kl.expected(rate), harm.expected(rate), harm.risk(rate))


def choose(
    points: Sequence[ProbePoint],
    diverged: Sequence[float],
    *,
    harm: Harm,
    kl: Harm,
    test_rows: int,
    candidates: Sequence[float],
    budget: float | None = None,
) -> Choice | None:
    """Of the rates forecast to be harmless the smallest whose gain is as good as the best.

    Harmless is a forecast loss within the margin, with a risk of more than two margins of at most RISK, and a KL from
    base within `budget`, where there is one. A gain is as good within 1.96 paired standard errors at `test_rows` rows,
    or 2 % of the best. Only rates up to the largest stable probe are candidates. Where none is harmless, it is the one
    with the least risk (or None, where it is the budget that none keeps to). None where no rate was stable.
    """
    stable = stable_points(points, diverged)
    if not stable:
        return None
    largest = max(p.learning_rate for p in stable)
    found = tuple(forecast(stable, rate, harm, kl) for rate in sorted(candidates) if rate <= largest * 1.001)
    within = [f for f in found if budget is None or f.kl <= budget]
    if not within:
        return None
    allowed = [f for f in within if f.loss <= harm.margin and f.risk <= RISK]
    safe = bool(allowed)
    allowed = allowed or [min(within, key=lambda f: (f.risk, f.loss, f.learning_rate))]
    best = max(f.gain for f in allowed)
    tolerance = max(SLACK * best, _WIDE * _paired_error(stable, test_rows))
    alike = [f for f in allowed if best - f.gain <= tolerance]
    chosen = min(alike, key=lambda f: f.learning_rate)
    ends = list[End]()
    if chosen is found[0]:
        ends.append("smallest candidate")
    if chosen is found[-1]:
        beyond = max([*(p.learning_rate for p in points), *diverged]) > largest
        if chosen.learning_rate == max(candidates) < largest * 0.999:
            ends.append("largest candidate")
        elif not beyond:
            ends.append("largest probe")
    rates = tuple(f.learning_rate for f in alike)
    return Choice(chosen.learning_rate, found, rates, tolerance, largest, best, safe, tuple(ends))


def _gain(stable: Sequence[ProbePoint], rate: float) -> float:
    xs, top, gains = [math.log(p.learning_rate) for p in stable], 0.0, list[float]()
    for point in stable:
        top = max(top, point.gain.value)
        gains.append(top)
    where = math.log(rate)
    if where <= xs[0]:
        return gains[0] * math.exp(where - xs[0])
    i = next((i for i, x in enumerate(xs) if where <= x + 1e-9), None)
    if i is None:
        return gains[-1]
    return gains[i - 1] + (where - xs[i - 1]) / (xs[i] - xs[i - 1]) * (gains[i] - gains[i - 1])


def _paired_error(stable: Sequence[ProbePoint], test_rows: int) -> float:
    """Typical standard error of a difference in gain between neighbouring rates, at so many test rows."""
    changes = [gain_change(b, a) for a, b in pairwise(stable)]
    errors = [c.stderr * math.sqrt(c.n / test_rows) for c in changes if c.stderr is not None]
    return median(errors) if errors else 0.0
