"""How much general skill a full run at a rate would lose, and how sure that is: numbers only.

A probe is a short training with the full run's schedule, so its rate falls to zero as the full run's does, and what is
lost for want of that is not mistaken for loss. Then the loss goes by the peak rate far more than by the number of
steps. The constants are from the development pairs of `docs/results/advisor.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import norm

# A full run m times as long as the probe loses as much as a probe at FURTHER · m^LENGTH times the rate.
FURTHER, LENGTH = 1.4, 0.2
BRIDGE = 0.3  # standard deviation of that factor's logarithm
# Of the logistic curve in the logarithm of the rate: median, and the spread of its logarithm. Where half is lost it is
# 2.5 to 5 steep, but a weak base model loses a few points already at small rates, which only a flat curve allows for.
SLOPE = (2.0, 0.5)
KL_SLOPE = 2.0  # KL from base goes with the square of small movements
HARMFUL = 2.0  # margins
_FLOOR = 1e-6  # bits per token: a KL from base below 0 is noise


@dataclass(frozen=True)
class Dose:
    """What one probe did to general skill: its rate, and the loss in the margin's unit."""

    rate: float
    loss: float


@dataclass(frozen=True)
class Accuracy:
    """General accuracy against the rate: a logistic dose-response curve through the probes, and what else is possible.

    `base` is the base model's share of right answers on `items` questions. Weights are the posterior of a flat prior
    over the logarithm of the rate at which half is lost and of SLOPE's over the steepness, with binomial errors.

    >>> probes = [Dose(1e-4, 0.0), Dose(3e-4, 0.0), Dose(1e-3, 0.5)]
    >>> curve = Accuracy(probes, base=0.9, items=100)
    >>> curve.loss(1e-4) < 0.01 < curve.loss(5e-4)
    True
    """

    probes: Sequence[Dose]
    base: float
    items: int

    @cached_property
    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logarithms of the rate at half loss, slopes, and the weight of each pair."""
        rates = np.log([p.rate for p in self.probes])
        centre, spread = SLOPE
        normal = np.linspace(-2, 2, 9)
        half, slope = np.meshgrid(np.linspace(rates.min() - 4, rates.max() + 6, 400), centre * np.exp(spread * normal))
        weight = np.log(norm.pdf(normal))[:, None] + np.zeros_like(half)
        for log_rate, probe in zip(rates, self.probes, strict=True):
            kept = self._share * (1 - _logistic(slope * (log_rate - half)))
            kept = np.clip(kept, 0.5 / self.items, 1 - 0.5 / self.items)
            right = min(max(self.base - probe.loss, 0.0), 1.0) * self.items
            weight = weight + right * np.log(kept) + (self.items - right) * np.log(1 - kept)
        weight = np.exp(weight - weight.max())
        return half, slope, weight / weight.sum()

    @property
    def _share(self) -> float:
        return (self.base * self.items + 0.5) / (self.items + 1)

    def losses(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """What a probe at this rate may lose, with the weight of each."""
        half, slope, weight = self._posterior
        return self._share * _logistic(slope * (math.log(rate) - half)), weight

    def loss(self, rate: float) -> float:
        """What a probe at this rate is expected to lose."""
        values, weights = self.losses(rate)
        return float((values * weights).sum())


@dataclass(frozen=True)
class FromBase:
    """KL from base against the rate, bits per token: straight in the logarithms of both between probes.

    Below the smallest probe it falls with the square of the rate; above the largest it goes on as steeply as before, at
    least with the square.

    >>> FromBase([Dose(1e-4, 0.01), Dose(1e-3, 1.0)]).loss(1e-5)
    0.0001
    """

    probes: Sequence[Dose]

    def losses(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """The one value, with all the weight."""
        return np.array([self.loss(rate)]), np.ones(1)

    def loss(self, rate: float) -> float:
        """KL from base of a probe at this rate."""
        ordered = sorted(self.probes, key=lambda p: p.rate)
        x, y = [math.log(p.rate) for p in ordered], list[float]()
        for probe in ordered:
            y.append(max([math.log(max(probe.loss, _FLOOR)), *y]))
        where = math.log(rate)
        if where < x[0]:
            return round(math.exp(y[0] + KL_SLOPE * (where - x[0])), 12)
        if where > x[-1]:
            slope = max([KL_SLOPE, *([(y[-1] - y[-2]) / (x[-1] - x[-2])] if len(x) > 1 else [])])
            return math.exp(y[-1] + slope * (where - x[-1]))
        return float(np.exp(np.interp(where, x, y)))


@dataclass(frozen=True)
class Harm:
    """What the full run loses at a rate, from what probes `longer` times as short lose."""

    curve: Accuracy | FromBase
    margin: float
    longer: float

    def expected(self, rate: float) -> float:
        """General loss of the full run, in the margin's unit: the median error of the bridge, the mean of the rest."""
        return self.curve.loss(rate * self._shift)

    def risk(self, rate: float) -> float:
        """How likely the full run loses more than two margins."""
        errors = np.linspace(-2.5, 2.5, 21)
        weights = norm.pdf(errors) / norm.pdf(errors).sum()
        found = 0.0
        for error, weight in zip(errors, weights, strict=True):
            values, mine = self.curve.losses(rate * self._shift * math.exp(BRIDGE * error))
            found += float(weight * mine[values > HARMFUL * self.margin].sum())
        return found

    @property
    def _shift(self) -> float:
        return float(FURTHER * self.longer**LENGTH)


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))
