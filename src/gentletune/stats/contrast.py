"""What is known of a mean difference between two groups of runs, and the interval that follows.

The items that runs are measured on are a sample, and so are the seeds that they are trained from; the two are crossed:

    d_{s,i} = δ + seed_s + item_i + noise_{s,i}

The mean of d over S seeds and n items has the variance

    V = I + M,    I = shared item variance / n,    M = variance of the seeds' means / S

and M is the seed effect together with what of the noise is left, N = noise / (S n). I and N follow from mean squares,
with items or their groups as units; M is seen directly, but by S - 1 degrees of freedom only. Satterthwaite's single
number of degrees of freedom for I + M does not do for so few: of 95 % intervals from 2 seeds 86 % hold the truth where
the seed effect is a few times the items' error. So the uncertainty of M is averaged over instead, Student's t over its
scale (`p_value`); Satterthwaite's rule is used within I and between parts of M, which have enough degrees of freedom.
docs/statistics.md has the formulas, and the simulation that chose among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special
from scipy.optimize import brentq

from gentletune.stats.items import SHARED, Array, Layout, mean_error, pair_weight

_NODES = np.linspace(-5.5, 5.5, 67)  # of the normal quantile of M's chi-square: its mass beyond is 4e-8
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
_PROBABILITIES = special.ndtr(_NODES)
_FLOOR = 0.2  # of the items-only variance: no interval is narrower than that says (ours, by simulation)
_HALF = 5.0  # M's posterior weight, c = f / (f + 5) (ours, by simulation)
_TINY, _LEAST = 1e-300, 1e-4


@dataclass(frozen=True)
class Contrast:
    """The parts of a mean difference: arrays of one shape, or numbers.

    `items` is I with `items_df` degrees of freedom, `noise` N, `seeds` M with `seeds_df` (0: no seed is averaged over,
    so nothing of the seeds is in it). `value` is the mean difference, `centre` where the interval lies.
    """

    value: Array
    centre: Array
    items: Array
    items_df: Array
    noise: Array
    seeds: Array
    seeds_df: Array

    @property
    def variance(self) -> Array:
        """I + M, with M at least N: the seeds cannot tell less than nothing."""
        return np.asarray(self.items + np.maximum(self.seeds, self.noise))

    @property
    def satterthwaite(self) -> Array:
        """Satterthwaite's (1946) degrees of freedom of I + M: how much is behind the error, in one number."""
        spread = self.items**2 / self.items_df
        spread = spread + np.where(self.seeds_df > 0, self.seeds**2 / np.maximum(self.seeds_df, _TINY), 0.0)
        total = self.items + self.seeds
        return np.asarray(np.where(spread > 0, total**2 / np.maximum(spread, _TINY), np.inf))

    def mirrored(self) -> Contrast:
        """The difference the other way round."""
        return replace(self, value=-self.value, centre=-self.centre)


def crossed(differences: Array, layout: Layout, *, shares: bool = False) -> Contrast:
    """The contrast of differences (…, S, n) of S seeds on the same n items, paired by seed and by item.

    With `shares` they are differences between right and wrong answers (0 or 1 each).
    """
    seeds = differences.shape[-2]
    mean = differences.mean(-2)
    found = mean_error(mean, layout, pair_weight(seeds) if shares else None)
    zero = np.zeros_like(found.value)
    if seeds == 1:
        return Contrast(found.value, found.centre, found.variance, zero + layout.degrees, zero, zero, zero)
    noise = seed_noise(differences, layout) * found.scale
    if shares:
        noise = noise + (1 - SHARED) / seeds / found.total**2
    between = differences.mean(-1).var(-1, ddof=1) / seeds
    return Contrast(
        found.value,
        found.centre,
        np.maximum(found.variance - noise, 0.0),
        zero + layout.degrees,
        noise,
        np.asarray(between),
        zero + (seeds - 1),
    )


def seed_noise(runs: Array, layout: Layout) -> Array:
    """N of runs (…, S, n) on the same items: what is neither seed nor item, in the variance of their mean."""
    seeds = runs.shape[-2]
    rest = runs - runs.mean(-2, keepdims=True)
    return np.asarray(layout.variance(rest).sum(-1) / (seeds * (seeds - 1)))


def p_value(contrast: Contrast, against: float = 0.0) -> Array:
    """Two-sided p-value of the true difference being `against`; an interval is where it exceeds 1 - level.

    Given M's true size v, the mean difference has variance I + v, and Student's t with Satterthwaite's degrees of
    freedom (only I is uncertain then). v is averaged over its posterior under the prior v^-1 (1 + c I/v), a mixture of
    two inverse chi-squares. With c = 1 coverage is right up to terms that fall as 1/f² (worked out numerically);
    c = f/(f + 5) is more cautious where M has only f = 1 or 2 degrees of freedom (ours). As f grows this becomes
    Satterthwaite's t, and with I = 0 it is Student's t with f degrees of freedom. The p-value is at least that of 0.2
    times the items-only variance I + N: seeds that agree by chance do not know more than their items (ours).
    """
    away, items, seeds, f, items_df, noise = (
        np.asarray(x, dtype=float)[..., None]
        for x in (
            np.abs(contrast.centre - against),
            contrast.items,
            contrast.seeds,
            contrast.seeds_df,
            contrast.items_df,
            contrast.noise,
        )
    )

    def tail(variance: Array, degrees: Array) -> Array:
        return np.asarray(2 * special.stdtr(degrees, -away / np.sqrt(np.maximum(variance, _TINY))))

    alone = tail(items, items_df)
    if np.any(f > 0):

        def averaged(degrees: Array) -> Array:
            variance = items + f * seeds / _chi_squares(degrees)
            share = np.maximum(items / np.maximum(variance, _TINY), _LEAST)
            return np.asarray(tail(variance, items_df / share**2) @ _WEIGHTS)[..., None]

        weight = seeds / np.maximum(seeds + f / (f + _HALF) * items, _TINY)
        mixed = weight * averaged(f) + (1 - weight) * averaged(f + 2)
        floor = tail(_FLOOR * (items + noise), items_df)
        alone = np.where(f > 0, np.maximum(mixed, floor), alone)
    return np.asarray(alone[..., 0])


def _chi_squares(degrees: Array) -> Array:
    """Quantiles of the chi-square at the nodes, along the last axis."""
    if degrees.size == 1:
        return _chi_squares_of(float(degrees.flat[0]))
    return np.asarray(2 * special.gammaincinv(np.maximum(degrees, _TINY) / 2, _PROBABILITIES))


@lru_cache(maxsize=512)
def _chi_squares_of(degrees: float) -> Array:
    return np.asarray(2 * special.gammaincinv(degrees / 2, _PROBABILITIES))


def half_width(contrast: Contrast, level: float) -> float:
    """Half the width of the interval at `level` of one contrast; 0 where nothing varies."""
    step = math.sqrt(float(contrast.variance))
    if not step:
        return 0.0
    alone = replace(contrast, centre=np.zeros(()))

    def excess(half: float) -> float:
        return float(p_value(alone, half)) - (1 - level)

    high = 2 * step
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-9 * step, rtol=1e-10))
