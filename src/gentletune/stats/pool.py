"""The variance from seed to seed, borrowed from all the settings of a study.

Two or three seeds hardly know their own variance. Settings that were run from the same seeds know more together, if
their variances are alike and their seeds move them apart. How much more is the pool's degrees of freedom:

- The chance of a seed that moves all settings alike (the same data order, the same initial adapter) is seen S - 1
  times only, however many settings there are. Means by seed and setting split the variance into the part that all
  settings share and each one's own, and Satterthwaite's rule combines their degrees of freedom.
- The less alike the settings' variances are, beyond what so few seeds make of equal ones, the less each says of
  another. Their logarithms say how much (Smyth 2004): a few wild settings among many then do not speak for all.

A setting's variance is then the mean of its own and the pool's, weighted by degrees of freedom (moderated variance;
Smyth 2004). The split is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import special
from scipy.optimize import brentq

_LEAST_RATIO = 1e-3  # of the mean: seeds that agree to the last digit are taken to differ by so much
_DOUBT = 0.5  # standard errors of how unlike the settings are that a family of comparisons adds (ours, by simulation)


@dataclass(frozen=True)
class Pool:
    """The variance from one seed to another beyond the items' noise, and the degrees of freedom it is known with.

    `own` is that of one setting's mean, for a change from a model without seeds; `pair` that of the difference of two
    settings on the same seed. Settings whose variances differ among themselves are drawn from a scaled inverse
    chi-square: `spread` is 1 over its degrees of freedom (0: all alike), `scale` its scale in units of the mean;
    `wary_spread` is what `spread` may as well be, by its own error.
    """

    own: float
    own_df: float
    pair: float
    pair_df: float
    spread: float = 0.0
    scale: float = 1.0
    wary_spread: float = 0.0

    @property
    def cautious(self) -> Pool:
        """For a family of comparisons, where the one whose variance is most underrated decides.

        Settings are taken to be as unlike as they may well be, and a scale below the plain mean to lie midway to it, by
        the logarithm (ours, by simulation).
        """
        return replace(self, spread=self.wary_spread, scale=max(self.scale, math.sqrt(self.scale)))

    def moderated(self, seen: float, df: float, seeds: int, noise: float, paired: bool) -> tuple[float, float]:
        """M of an arm of so many seeds and its degrees of freedom, from what was `seen` with `df`, and the pool."""
        excess, pooled = (self.pair, self.pair_df) if paired else (self.own, self.own_df)
        if pooled <= df:
            return seen, df
        more = 1 / (1 / (pooled - df) + self.spread)
        lent = self.scale * (excess / seeds + noise)
        return (more * lent + df * seen) / (more + df), more + df


def pool_of(settings: Sequence[Mapping[int, float]], noise: Sequence[float]) -> Pool | None:
    """The pool of settings, each its means by seed, with the noise of one seed's mean; None where nothing is known.

    Settings of a single seed have no variance to give; they can only borrow.
    """
    known = [(values, n) for values, n in zip(settings, noise, strict=True) if len(values) > 1]
    if not known:
        return None
    spread = [variance(list(values.values())) for values, _ in known]
    dfs = [len(values) - 1 for values, _ in known]
    count, seen = len(known), sum(dfs) / len(known)
    total = _mean(spread, dfs)
    quiet = _mean([n for _, n in known], dfs)
    apart = _apart([values for values, _ in known])
    own = min(apart, total) if apart is not None else total
    shared = total - own
    own_df = _combined([(shared + own / count, seen), (own * (1 - 1 / count), seen * (count - 1))])
    pair_df = seen * max(count - 1, 1)
    excess = max(total - quiet, 0.0)
    ratios = [s / (excess + n) if excess + n else 1.0 for s, (_, n) in zip(spread, known, strict=True)]
    return Pool(excess, own_df, max(2 * (own - quiet), 0.0), pair_df, *_unlike(ratios, dfs))


def _apart(settings: Sequence[Mapping[int, float]]) -> float | None:
    """Half the variance of differences by seed: what each setting has for itself; None without seeds in common."""
    spread, dfs = [], []
    for a, b in combinations(settings, 2):
        gaps = [a[seed] - b[seed] for seed in a if seed in b]
        if len(gaps) > 1:
            spread.append(variance(gaps) / 2)
            dfs.append(len(gaps) - 1)
    return _mean(spread, dfs) if spread else None


def _unlike(ratios: Sequence[float], dfs: Sequence[int]) -> tuple[float, float, float]:
    """1 over the degrees of freedom of the distribution that the true variances are from, its scale, and a wary 1/df.

    By the mean and variance of the logarithms of the seen ones, less what their own chance makes (Smyth 2004, section
    6.2); the plain mean where they differ by no more than that. The error of that variance is that of equal ones.
    """
    if len(ratios) < 2 or not any(ratios):
        return 0.0, 1.0, 0.0
    df, seen, count = np.asarray(dfs, dtype=float), np.asarray(ratios), len(ratios)
    logs = np.log(np.maximum(seen, _LEAST_RATIO * seen.mean())) - special.digamma(df / 2) + np.log(df / 2)
    chance = float(special.polygamma(1, df / 2).mean())
    more = max(float(logs.var(ddof=1)) - chance, 0.0)
    error = math.sqrt((float(special.polygamma(3, df / 2).mean()) + 2 * chance**2) / (count - 1))
    wary = 1 / (2 * _half_df(more + _DOUBT * error))
    if not more:
        return 0.0, 1.0, wary
    half = _half_df(more)
    scale = math.exp(float(logs.mean()) + float(special.digamma(half)) - math.log(half))
    return 1 / (2 * half), scale, wary


def _half_df(variance: float) -> float:
    """Half the degrees of freedom of a chi-square whose logarithm has this variance."""
    return float(brentq(lambda x: float(special.polygamma(1, x)) - variance, 1e-4, 1e8))


def _combined(parts: Sequence[tuple[float, float]]) -> float:
    total, spread = math.fsum(v for v, _ in parts), math.fsum(v * v / df for v, df in parts if v)
    return total**2 / spread if spread else math.fsum(df for _, df in parts)


def variance(values: Sequence[float]) -> float:
    """Sample variance of at least two values, by n - 1."""
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
