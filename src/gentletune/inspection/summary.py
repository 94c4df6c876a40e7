"""Statistics of label tokens that arrive row by row; what is kept does not grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

# Quantiles come from a grid of NLLs: bins are 1/1024 nats wide, so a quantile is within 0.1 % of a token's probability.
_BINS_PER_NAT, _NATS = 1024, 64
LINEAR_EDGES = tuple(i / 20 for i in range(21))
"""Edges of the histogram of probabilities."""

DECADES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Edges of the histogram by powers of ten; the first bin holds all below."""

POSITION_STARTS = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513)
"""First position of each bin; the last bin has no end."""


def position_names() -> tuple[str, ...]:
    """Names of the bins of positions.

    >>> position_names()[:4], position_names()[-1]
    (('1', '2', '3–4', '5–8'), '513+')
    """
    ends = [start - 1 for start in POSITION_STARTS[1:]]
    spans = zip(POSITION_STARTS, ends, strict=False)
    return (*(str(a) if a == b else f"{a}–{b}" for a, b in spans), f"{POSITION_STARTS[-1]}+")


@dataclass(frozen=True)
class Group:
    """Tokens of one class or at one place: how many, their mean NLL (nats), and the share below each threshold."""

    name: str
    tokens: int
    mean_nll: float
    hard_share: dict[float, float]


class NLLGrid:
    """Counts and sums of NLLs on a fine grid, from which quantiles of the probability are read."""

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(_BINS_PER_NAT * _NATS, dtype=np.int64)
        self._sums: Array = np.zeros(len(self._counts))

    def add(self, nll: Array) -> None:
        """Count NLLs (N,) in nats."""
        place = np.clip((nll * _BINS_PER_NAT).astype(np.int64), 0, len(self._counts) - 1)
        np.add.at(self._counts, place, 1)
        np.add.at(self._sums, place, nll)

    def quantile(self, q: float) -> float:
        """Nearest-rank quantile of the probability, as its bin's geometric mean; at least one token was counted."""
        rank = max(1, round(q * int(self._counts.sum())))
        downwards = np.cumsum(self._counts[::-1])  # the least probable token first
        place = len(self._counts) - 1 - int(np.searchsorted(downwards, rank))
        return float(np.exp(-self._sums[place] / self._counts[place]))


class Groups:
    """Counts, NLL and hard tokens by group."""

    def __init__(self, names: Sequence[str], thresholds: Sequence[float]) -> None:
        self._names, self._thresholds = tuple(names), tuple(thresholds)
        self._tokens: Array = np.zeros(len(names))
        self._nll: Array = np.zeros(len(names))
        self._hard: Array = np.zeros((len(thresholds), len(names)))

    def add(self, group: NDArray[np.int64], nll: Array, probability: Array) -> None:
        """Count tokens: the group of each (N,), NLL (N,) in nats, probability (N,)."""
        size = len(self._names)
        self._tokens += np.bincount(group, minlength=size)
        self._nll += np.bincount(group, nll, minlength=size)
        for i, threshold in enumerate(self._thresholds):
            self._hard[i] += np.bincount(group[probability < threshold], minlength=size)

    def result(self) -> tuple[Group, ...]:
        """The groups that have tokens, in order."""
        return tuple(
            Group(
                name,
                int(count),
                float(self._nll[i] / count),
                {t: float(self._hard[j, i] / count) for j, t in enumerate(self._thresholds)},
            )
            for i, (name, count) in enumerate(zip(self._names, self._tokens, strict=True))
            if count
        )


class Histogram:
    """Counts of probabilities between fixed edges; the last bin holds its upper edge."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = tuple(edges)
        self._counts: Counts = np.zeros(len(edges) - 1, dtype=np.int64)

    def add(self, probability: Array) -> None:
        """Count probabilities (N,)."""
        self._counts += np.histogram(probability, self.edges)[0]

    def result(self) -> tuple[int, ...]:
        """The counts."""
        return tuple(int(count) for count in self._counts)
