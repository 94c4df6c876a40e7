"""The variance from seed to seed, borrowed from all the settings of a study.

Two or three seeds hardly know their own variance. Settings that were run from the same seeds know more together, if
their variances are alike and their seeds move them apart. How much more is the pool's degrees of freedom:

- The chance of a seed that moves all settings alike (the same data order, the same initial adapter) is seen S - 1
  times only, however many settings there are. Means by seed and setting split the variance into the part that all
  settings share and each one's own, and Satterthwaite's rule combines their degrees of freedom.
- The less alike the settings' variances are, beyond what so few seeds make of equal ones, the less each says of
  another: a spread with squared coefficient of variation h leaves 2/h degrees of freedom.

A setting's variance is then the mean of its own and the pool's, weighted by degrees of freedom (moderated variance;
Smyth 2004). The split and the 2/h are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Pool:
    """The variance from one seed to another beyond the items' noise, and the degrees of freedom it is known with.

    `own` is that of one setting's mean, for a change from a model without seeds; `pair` that of the difference of two
    settings on the same seed.
    """

    own: float
    own_df: float
    pair: float
    pair_df: float

    def moderated(self, seen: float, df: float, seeds: int, noise: float, paired: bool) -> tuple[float, float]:
        """M of an arm of so many seeds and its degrees of freedom, from what was `seen` with `df`, and the pool."""
        excess, pooled = (self.pair, self.pair_df) if paired else (self.own, self.own_df)
        more = max(pooled - df, 0.0)
        if not more:
            return seen, df
        return (more * (excess / seeds + noise) + df * seen) / (more + df), more + df


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
    unlike = _unlike([s / (excess + n) if excess + n else 1.0 for s, (_, n) in zip(spread, known, strict=True)], dfs)
    limit = unlike / 2
    return Pool(excess, 1 / (1 / own_df + limit), max(2 * (own - quiet), 0.0), 1 / (1 / pair_df + limit))


def _apart(settings: Sequence[Mapping[int, float]]) -> float | None:
    """Half the variance of differences by seed: what each setting has for itself; None without seeds in common."""
    spread, dfs = [], []
    for a, b in combinations(settings, 2):
        gaps = [a[seed] - b[seed] for seed in a if seed in b]
        if len(gaps) > 1:
            spread.append(variance(gaps) / 2)
            dfs.append(len(gaps) - 1)
    return _mean(spread, dfs) if spread else None


def _unlike(ratios: Sequence[float], dfs: Sequence[int]) -> float:
    """The squared coefficient of variation of the true variances, from that of the seen ones less their own chance."""
    count, mean = len(ratios), math.fsum(ratios) / len(ratios)
    if not mean:
        return 0.0
    chance = math.fsum(1 + 2 / df for df in dfs) / count / (1 + 2 / sum(dfs))
    return max(math.fsum(r * r for r in ratios) / count / mean**2 / chance - 1, 0.0)


def _combined(parts: Sequence[tuple[float, float]]) -> float:
    total, spread = math.fsum(v for v, _ in parts), math.fsum(v * v / df for v, df in parts if v)
    return total**2 / spread if spread else math.fsum(df for _, df in parts)


def variance(values: Sequence[float]) -> float:
    """Sample variance of at least two values, by n - 1."""
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
