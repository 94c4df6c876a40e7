"""The error of a mean over test items, which may belong together in groups.

Questions on one patient note, or products of one query, are not independent. The variance is the cluster-robust one
with the small-sample correction CR2 (Bell and McCaffrey 2002), which for a mean over n items in groups of m_g is

    V = Σ_g (Σ_{i∈g} (zᵢ - z̄))² / (1 - m_g/n) / n²

and s²/n where every item is its own. Its degrees of freedom are Bell and McCaffrey's, Satterthwaite's for this V, as
if the items of a group were all alike (cautious): G - 1 for G groups of one size, fewer where sizes differ. Clustered
errors in LLM evaluations: Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RIGHT_AND_WRONG = (4.0, 2.0)  # Agresti and Coull's pseudo-items of a share: how many, and how many of them right
PSEUDO_PAIRS = 2.0  # Agresti and Min's: half a pair in each cell of right or wrong by right or wrong
SHARED = 0.1  # the part of the pseudo-pairs that all seeds have in common (ours, by simulation)
_FLAT = 1e-15


@dataclass(frozen=True)
class Layout:
    """Which of n items belong together: `clusters` numbers the group of each; empty, every item is its own."""

    n: int
    clusters: tuple[int, ...] = ()

    @cached_property
    def units(self) -> int:
        """How many independent units there are: groups, or items where they are not grouped."""
        return len(self._sizes) if self.clusters else self.n

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(np.asarray(self.clusters), kind="stable")

    @cached_property
    def _sizes(self) -> Array:
        return np.unique(np.asarray(self.clusters), return_counts=True)[1].astype(float)

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        return np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(np.intp)

    def variance(self, items: Array) -> Array:
        """The variance V of the mean of `items` (…, n). Needs two units at least."""
        rest = items - items.mean(-1, keepdims=True)
        if not self.clusters:
            return np.asarray((rest * rest).sum(-1) / (self.n * (self.n - 1)))
        sums = np.add.reduceat(rest[..., self._order], self._starts, axis=-1)
        return np.asarray((sums * sums / (1 - self._sizes / self.n)).sum(-1) / self.n**2)

    def effective_n(self, items: Array, variance: Array) -> Array:
        """n over the design effect, at most n; the number of groups where all items are alike, which does not tell.

        The design effect is `variance` over what it would be without groups (Cochran, Sampling Techniques, §9A; Korn
        and Graubard 1998).
        """
        if not self.clusters:
            return np.full(items.shape[:-1], float(self.n))
        plain = Layout(self.n).variance(items)
        flat = plain <= _FLAT
        effect = np.maximum(variance / np.where(flat, 1.0, plain), 1.0)
        return np.where(flat, self.units, self.n / effect)

    @cached_property
    def degrees(self) -> float:
        """Degrees of freedom of V: Satterthwaite's for its quadratic form, were the items of a group all alike."""
        if not self.clusters:
            return self.n - 1.0
        part = self._sizes / self.n
        form = (np.eye(len(part)) - part[:, None]) / np.sqrt(1 - part)[:, None]
        spread = (form * self._sizes**2) @ form.T
        return float(np.trace(spread) ** 2 / (spread**2).sum())


@lru_cache(maxsize=256)
def layout_of(n: int, clusters: tuple[int, ...]) -> Layout:
    """The layout, with what was worked out for it before."""
    return Layout(n, clusters)


@dataclass(frozen=True)
class MeanError:
    """A mean of items with its error; `centre` is where an interval lies, drawn to 0 for differences of shares.

    `scale` is what the correction for shares made of a variance, `total` the effective number of items it counts.
    """

    value: Array
    centre: Array
    variance: Array
    scale: Array
    total: Array


def mean_error(items: Array, layout: Layout, pairs: float | None = None) -> MeanError:
    """Error of the mean of `items` (…, n) over their last axis.

    With `pairs` the items are differences between right and wrong answers, and Agresti and Min's (2005) two
    pseudo-pairs are added at the effective n: half a pair in each cell, so that no discordant pair is not certainty.
    `pairs` is their sum of squares, 1 for one seed; averages over seeds have less (`pair_weight`).
    """
    value = np.asarray(items.mean(-1))
    variance = layout.variance(items)
    one = np.ones_like(value)
    if pairs is None:
        return MeanError(value, value, variance, one, one * layout.n)
    n = layout.effective_n(items, variance)
    total = n + PSEUDO_PAIRS
    shrink = n / total
    scale = (1 - 1 / layout.units) * shrink**2  # they divide by n where a sample variance divides by n - 1
    widened = variance * scale + (pairs + 2 * value**2 * shrink) / total**2
    return MeanError(value, value * shrink, widened, scale, total)


def pair_weight(*seeds: int) -> float:
    """The pseudo-pairs' sum of squares in an average over as many seeds on each side.

    A tenth of them is the same for all seeds, so that seeds that agree are no certainty; the rest averages out.

    >>> pair_weight(1), round(pair_weight(2), 3), round(pair_weight(2, 5), 3)
    (1.0, 0.55, 0.415)
    """
    return SHARED + (1 - SHARED) * sum(1 / s for s in seeds) / len(seeds)


def share_error(items: Array, layout: Layout) -> Array:
    """Agresti and Coull's (1998) variance of a share: two right and two wrong items more, at the effective n."""
    variance = layout.variance(items)
    n = layout.effective_n(items, variance)
    count, right = RIGHT_AND_WRONG
    total = n + count
    mean = (items.mean(-1) * n + right) / total
    square = ((items * items).mean(-1) * n + right) / total
    return np.asarray(np.maximum(square - mean**2, 0.0) / total)
