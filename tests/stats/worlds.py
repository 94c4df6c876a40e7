"""Made-up runs with a known truth, many at once: two methods over up to five seeds on the same items.

Items have a difficulty that both methods share, and a preference for one method or the other; each run adds noise of
its own, and its seed a shift. Grouped items share half of what an item has. Everything is drawn as arrays, so that
thousands of studies take seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr

from gentletune.stats.contrast import Contrast, crossed, p_value
from gentletune.stats.items import Array, Layout

SeedShift = Literal["none", "shared", "own"]  # no effect of the seed; one that both methods share; one each
Metric = Literal["accuracy", "code length"]
SEEDS = 5
_TOGETHER = 0.5  # of an item's variance is its group's


@dataclass(frozen=True)
class World:
    """How large the parts are: in probits of being right, or in bits per token.

    `gap` is the mean advantage of one method, `taste` how much items differ in it, `noise` a run's own, `seed` the
    standard deviation of a seed's shift, `ease` how many items are right at all.
    """

    metric: Metric
    gap: float
    taste: float
    noise: float
    seed: float
    ease: float = 0.0


ACCURACY = World("accuracy", gap=0.4, taste=0.4, noise=0.5, seed=0.12)
CODE_LENGTH = World("code length", gap=-0.3, taste=0.35, noise=0.25, seed=0.06)


@dataclass(frozen=True)
class Studies:
    """Item differences (studies, SEEDS, n) with the true difference: of all seeds, and of the first seed's weights."""

    differences: Array
    layout: Layout
    truth: float
    of_first: Array

    def covered(self, shares: bool, seeds: int) -> Array:
        """Whether each study's 95 % interval from its first seeds holds the truth (of these weights, for one seed)."""
        found = crossed(self.differences[:, :seeds], self.layout, shares=shares)
        truth = self.of_first if seeds == 1 else np.full(len(self.of_first), self.truth)
        return holds(found, truth)


def holds(found: Contrast, truth: Array, level: float = 0.95) -> Array:
    """Whether each interval holds its truth."""
    moved = Contrast(**{**vars(found), "centre": found.centre - truth})
    return np.asarray(p_value(moved) >= 1 - level)


def studies(
    world: World, rng: np.random.Generator, count: int, n: int, *, grouped: bool, shift: SeedShift, base: bool = False
) -> Studies:
    """So many studies of n items; with `base` the other side is one measurement of a model without seeds."""
    layout = layout_for(n, grouped, rng)
    hard, first, second = (_items(rng, count, layout) for _ in range(3))
    shifts = rng.standard_normal((2, count, SEEDS))
    ours, other = {"none": shifts * 0, "shared": shifts[[0, 0]], "own": shifts}[shift] * world.seed
    if base:
        other = other[:, :1] * 0
    noise = rng.standard_normal((count, SEEDS, n), dtype=np.float32)
    others = rng.standard_normal((count, other.shape[1], n), dtype=np.float32)
    if world.metric == "accuracy":
        a = ours[..., None] + world.gap + (world.taste * first - hard)[:, None] + world.noise * noise > -world.ease
        b = other[..., None] + (world.taste * second - hard)[:, None] + world.noise * others > -world.ease
        of_first = _right(world, world.gap + ours[:, 0], 0.0) - _right(world, other[:, 0], 0.0)
        spread = 0.0 if shift == "none" else world.seed
        truth = float(
            _right(world, np.array(world.gap), spread) - _right(world, np.array(0.0), 0.0 if base else spread)
        )
        return Studies(a.astype(float) - b, layout, truth, of_first)
    tokens = 1.0 + rng.poisson(np.exp(2.5 + 0.6 * _items(rng, count, layout)))
    a = _linearised(
        world.gap + ours[..., None] + (2 + 0.6 * hard + world.taste * first)[:, None] + world.noise * noise, tokens
    )
    b = _linearised(other[..., None] + (2 + 0.6 * hard + world.taste * second)[:, None] + world.noise * others, tokens)
    return Studies(a - b, layout, world.gap, world.gap + ours[:, 0] - other[:, 0])


def layout_for(n: int, grouped: bool, rng: np.random.Generator) -> Layout:
    """n items, each its own, or in groups of 1 to 5."""
    if not grouped:
        return Layout(n)
    sizes = rng.integers(1, 6, n)
    return Layout(n, tuple(int(g) for g in np.repeat(np.arange(n), sizes)[:n]))


def _items(rng: np.random.Generator, count: int, layout: Layout) -> Array:
    own = rng.standard_normal((count, layout.n), dtype=np.float32)
    if not layout.clusters:
        return own.astype(float)
    groups = rng.standard_normal((count, layout.units), dtype=np.float32)[:, layout.clusters]
    return math.sqrt(_TOGETHER) * groups + math.sqrt(1 - _TOGETHER) * own


def _right(world: World, ability: Array, seed: float) -> Array:
    """The share of all items that a run of that ability gets right, on average over a seed's shift."""
    spread = math.sqrt(1 + world.taste**2 + world.noise**2 + seed**2)
    return np.asarray(ndtr((ability + world.ease) / spread))


def _linearised(bits: Array, tokens: Array) -> Array:
    """Items of bits per token, a ratio of sums (`stats.ratio_score`)."""
    spent, n = bits * tokens[:, None], tokens.shape[-1]
    total = tokens.sum(-1)[:, None, None]
    ratio = spent.sum(-1, keepdims=True) / total
    return np.asarray(ratio + (spent - ratio * tokens[:, None]) * n / total)
