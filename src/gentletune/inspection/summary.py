"""Statistics of label tokens that arrive a frame at a time; what is kept does not grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from gentletune.inspection.classes import CLASSES
from gentletune.inspection.weights import HARD, Tokens

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLDS = (0.001, 0.01, 0.1, 0.5)

# Quantiles come from a grid of NLLs: bins are 1/1024 nats wide, so a quantile is within 0.1 % of a token's probability.
_BINS_PER_NAT, _NATS = 1024, 64
LINEAR_EDGES = tuple(i / 20 for i in range(21))
"""Edges of the histogram of probabilities."""

DECADES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Edges of the histogram by powers of ten; the first bin holds all below."""

_STARTS = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513)
PLACES = ("1", "2", *(f"{a}–{b - 1}" for a, b in pairwise(_STARTS[2:])), f"{_STARTS[-1]}+")
"""Names of the bins of positions, such as 3–4."""


@dataclass(frozen=True)
class Group:
    """Tokens of one class or at one place: how many, their mean NLL (nats), and the share below each threshold."""

    name: str
    tokens: int
    mean_nll: float
    hard_share: dict[float, float]


@dataclass(frozen=True)
class MethodWeight:
    """A method's token weights over a data set.

    `mean` is the mean weight, `hard_share` the share of all weight that lies on hard tokens (p < 0.1), and
    `ess_share` the effective sample size (Kish) over the number of tokens; both are 0 where all weights are 0.
    """

    method: str
    mean: float
    hard_share: float
    ess_share: float


class Totals:
    """Sums over tokens: by class and place, in histograms, and of each method's weights."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = thresholds
        self._sums: dict[str, Any] = {}
        self._methods: tuple[str, ...] = ()
        self._counts: Any = np.zeros(_BINS_PER_NAT * _NATS)
        self._nll: Any = np.zeros(_BINS_PER_NAT * _NATS)

    def add(self, tokens: Tokens, weights: Tokens) -> None:
        """Count tokens (`stream.COLUMNS`) with their weights, one column per method."""
        nll, probability = tokens["nll"], tokens["probability"]
        bins = np.minimum((nll * _BINS_PER_NAT).astype(np.int64), len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._nll += np.bincount(bins, nll, minlength=len(self._nll))
        self._add("linear", np.histogram(probability, LINEAR_EDGES)[0])
        self._add("decades", np.histogram(probability, DECADES)[0])
        columns = [np.ones_like(nll), nll, *(probability < threshold for threshold in self.thresholds)]
        for name, size, place in (
            ("all", 1, np.zeros(len(nll), dtype=np.int64)),
            ("classes", len(CLASSES), pd.Categorical(tokens["class"], CLASSES).codes),
            ("positions", len(PLACES), np.searchsorted(_STARTS, tokens["position"], side="right") - 1),
        ):
            self._add(name, np.stack([np.bincount(place, column, minlength=size) for column in columns]))
        self._methods, given = tuple(weights), np.stack(list(weights.values()), axis=1)
        hard = given[probability < HARD].sum(0)
        self._add("weights", np.stack([np.full_like(hard, len(nll)), given.sum(0), (given**2).sum(0), hard]))

    def _add(self, name: str, sums: Any) -> None:
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def result(self) -> dict[str, Any]:
        """Fields of an `Inspection`; at least one token must have been counted."""
        (whole,) = self._groups("all", ["all"])
        weights = tuple(map(_weight, self._methods, *self._sums["weights"]))
        return {
            "tokens": whole.tokens,
            "mean_nll": whole.mean_nll,
            "hard_share": whole.hard_share,
            "quantiles": {q: self._quantile(q) for q in QUANTILES},
            "histogram": tuple(map(int, self._sums["linear"])),
            "decades": tuple(map(int, self._sums["decades"])),
            "classes": self._groups("classes", CLASSES),
            "positions": self._groups("positions", PLACES),
            "weights": weights,
            "talr_ess_share": next(weight.ess_share for weight in weights if weight.method == "talr"),
        }

    def _groups(self, name: str, groups: Sequence[str]) -> tuple[Group, ...]:
        """The groups that have tokens, in order."""
        return tuple(
            Group(group, int(tokens), nll / tokens, dict(zip(self.thresholds, (h / tokens for h in hard), strict=True)))
            for group, (tokens, nll, *hard) in zip(groups, self._sums[name].T.tolist(), strict=True)
            if tokens
        )

    def _quantile(self, q: float) -> float:
        """Nearest-rank quantile of the probability, as its bin's geometric mean."""
        rank = max(1, round(q * int(self._counts.sum())))
        downwards = np.cumsum(self._counts[::-1])  # the least probable token first
        place = len(self._counts) - 1 - int(np.searchsorted(downwards, rank))
        return float(np.exp(-self._nll[place] / self._counts[place]))


def _weight(method: str, tokens: float, total: float, squares: float, hard: float) -> MethodWeight:
    """What a method's weights amount to: Kish's (Σw)²/Σw², as losses.effective_sample_size has it, from sums."""
    if not squares > 0:
        return MethodWeight(method, 0.0, 0.0, 0.0)
    return MethodWeight(method, float(total / tokens), float(hard / total), float(total**2 / squares / tokens))
