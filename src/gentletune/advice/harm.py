"""How much general skill a full run at a rate would lose, and how sure that is: numbers only.

A probe is a short training with the full run's schedule, so its rate falls to zero as the full run's does, and what is
lost for want of that is not mistaken for loss. A run of m times as many steps loses as much as one at m^exponent times
the rate, where the exponent differs: on the lab it is largest under noise, for answers without working and on a small
base. Probes of two lengths narrow it. The constants are from the first 33 pairs of `docs/results/advisor.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm

EXPONENT = (0.4, 0.2)  # prior: mean, standard deviation
# Of the logarithm of the rate: the least error of a forecast of KL. It differs from probe to full run by seed and rows,
# too, of which KL itself says nothing; of accuracy the few questions leave more open than that.
SPREAD = 0.3
# Of the logistic curve in the logarithm of the rate: median, and the spread of its logarithm. Where half is lost it is
# 2.5 to 5 steep, but a weak base model loses a few points already at small rates, which only a flat curve allows for.
SLOPE = (2.0, 0.5)
KL_SLOPE = 2.0  # KL from base goes with the square of small movements
HARMFUL = 2.0  # margins
_FLOOR = 1e-6  # bits per token: a KL from base below 0 is noise
_NORMAL = np.linspace(-2.5, 2.5, 21)
_EXPONENTS = EXPONENT[0] + EXPONENT[1] * _NORMAL


@dataclass(frozen=True)
class Dose:
    """What one probe did to general skill: its rate, the loss in the margin's unit, and how many usual probes long."""

    rate: float
    loss: float
    times: float = 1.0


@dataclass(frozen=True)
class Accuracy:
    """General accuracy against the rate: a logistic dose-response curve through the probes, and what else is possible.

    `base` is the base model's share of right answers on `items` questions. Weights are the posterior of a flat prior
    over the logarithm of the rate at which half is lost, SLOPE's over the steepness and EXPONENT's over the exponent,
    with binomial errors.

    >>> probes = [Dose(1e-4, 0.0), Dose(3e-4, 0.0), Dose(1e-3, 0.5)]
    >>> curve = Accuracy(probes, base=0.9, items=100)
    >>> curve.loss(1e-4, times=1) < 0.01 < curve.loss(1e-4, times=100)
    True
    """

    probes: Sequence[Dose]
    base: float
    items: int

    @cached_property
    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms of the rate at half loss, slopes, exponents, and the weight of each triple."""
        rates = np.log([p.rate for p in self.probes])
        centre, spread = SLOPE
        normal = np.linspace(-2, 2, 9)
        halves = np.linspace(rates.min() - 4, rates.max() + 6, 400)
        half, slope, exponent = np.meshgrid(halves, centre * np.exp(spread * normal), _EXPONENTS)
        weight = np.log(norm.pdf(normal))[:, None, None] + norm.logpdf(exponent, *EXPONENT)
        for log_rate, probe in zip(rates, self.probes, strict=True):
            kept = self._share * (1 - _logistic(slope * (log_rate + exponent * math.log(probe.times) - half)))
            kept = np.clip(kept, 0.5 / self.items, 1 - 0.5 / self.items)
            right = min(max(self.base - probe.loss, 0.0), 1.0) * self.items
            weight = weight + right * np.log(kept) + (self.items - right) * np.log(1 - kept)
        weight = np.exp(weight - weight.max())
        return half, slope, exponent, weight / weight.sum()

    @property
    def _share(self) -> float:
        return (self.base * self.items + 0.5) / (self.items + 1)

    def losses(self, rate: float, times: float) -> tuple[np.ndarray, np.ndarray]:
        """What a run at this rate, so many usual probes long, may lose, with the weight of each."""
        half, slope, exponent, weight = self._posterior
        return self._share * _logistic(slope * (math.log(rate) + exponent * math.log(times) - half)), weight

    def loss(self, rate: float, times: float) -> float:
        """What it is expected to lose."""
        values, weights = self.losses(rate, times)
        return float((values * weights).sum())


@dataclass(frozen=True)
class FromBase:
    """KL from base against the rate, bits per token: straight in the logarithms of both between probes.

    Below the smallest probe it falls with the square of the rate; above the largest it goes on as steeply as before, at
    least with the square. With the number of steps it grows by the prior exponent, within at least SPREAD.

    >>> FromBase([Dose(1e-4, 0.01), Dose(1e-3, 1.0)]).loss(1e-5, times=1)
    0.0001
    """

    probes: Sequence[Dose]

    def losses(self, rate: float, times: float) -> tuple[np.ndarray, np.ndarray]:
        """What a run at this rate, so many usual probes long, may lose, with the weight of each."""
        longer = math.log(times)
        centre, spread = math.log(rate) + EXPONENT[0] * longer, max(EXPONENT[1] * abs(longer), SPREAD)
        weights = norm.pdf(_NORMAL)
        return np.array([self._at(centre + spread * z) for z in _NORMAL]), weights / weights.sum()

    def loss(self, rate: float, times: float) -> float:
        """KL from base of such a run, at the median exponent."""
        return self._at(math.log(rate) + EXPONENT[0] * math.log(times))

    def _at(self, where: float) -> float:
        ordered = sorted(self.probes, key=lambda p: p.rate)
        x, y = [math.log(p.rate) for p in ordered], list[float]()
        for probe in ordered:
            y.append(max([math.log(max(probe.loss, _FLOOR)), *y]))
        if where < x[0]:
            return round(math.exp(y[0] + KL_SLOPE * (where - x[0])), 12)
        if where > x[-1]:
            slope = max([KL_SLOPE, *([(y[-1] - y[-2]) / (x[-1] - x[-2])] if len(x) > 1 else [])])
            return math.exp(y[-1] + slope * (where - x[-1]))
        return float(np.exp(np.interp(where, x, y)))


@dataclass(frozen=True)
class Harm:
    """What the full run loses at a rate; it is `times` usual probes long."""

    curve: Accuracy | FromBase
    margin: float
    times: float

    def expected(self, rate: float) -> float:
        """General loss of the full run, in the margin's unit."""
        return self.curve.loss(rate, self.times)

    def risk(self, rate: float) -> float:
        """How likely the full run loses more than two margins."""
        values, weights = self.curve.losses(rate, self.times)
        found = float(weights[values > HARMFUL * self.margin].sum())
        return round(found, 9)  # so that of harms as good as certain the loss decides


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))
