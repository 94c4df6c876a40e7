"""Did A beat B? One answer, from one function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gentletune.core.records import Score
from gentletune.stats.contrast import half_width, p_value
from gentletune.stats.evidence import find
from gentletune.stats.items import layout_of, share_error
from gentletune.stats.pool import Pool
from gentletune.stats.runs import Run, design
from gentletune.stats.scores import is_share, least_variance

LEVEL = 0.95
SeedEffect = Literal["none", "known", "borrowed", "unknown"]


@dataclass(frozen=True)
class Change:
    """A score minus its base, in the score's unit, with an interval [low, high] at the level asked for.

    `stderr`, `low`, `high`, `p` (two-sided, of no change) and `df` (Satterthwaite's, of the whole error) are None when
    unknown, `df` also where the error is exact. `n` counts items, `units` their groups, `seeds` what is averaged over;
    `paired` says whether items were compared one by one. The interval of shares lies around a value drawn slightly to
    0, so it is not symmetric.

    `seed_effect` says what is known of the chance of the training seed: `none` where nothing was trained, `known` from
    these seeds, `borrowed` from a pool of settings, or `unknown`: then all else holds for these weights only, and
    another seed may do better or worse by an amount that the data do not show. `seed_share` is the share of stderr²
    that more seeds would make smaller.

    `p_family` is `p` adjusted for `family` comparisons (`holm`, `benjamini_hochberg`); None outside a family. It starts
    from `p_cautious`, which is `p` but where seeds are borrowed from a pool: the most underrated variance of many
    decides there, so the pool is trusted less (`Pool.cautious`).
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n: int
    paired: bool
    df: float | None = None
    p: float | None = None
    seeds: int = 1
    units: int = 0
    seed_effect: SeedEffect = "unknown"
    seed_share: float = 0.0
    p_cautious: float | None = None
    p_family: float | None = None
    family: int = 1

    @property
    def seed_effect_known(self) -> bool:
        """Whether the interval speaks of other seeds, too."""
        return self.seed_effect != "unknown"

    @property
    def excludes_zero(self) -> bool | None:
        """Whether this interval by itself leaves out 0; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    @property
    def significant(self) -> bool | None:
        """Whether the change differs from 0 at 5 %, among its family; None where that is unknown."""
        p = self.p if self.p_family is None else self.p_family
        return None if p is None else p <= 1 - LEVEL


@dataclass(frozen=True)
class Mean:
    """A mean over seeds in the score's unit, with its standard error over items and seeds (None: unknown).

    `seeds` is how many there are; of one, the error is over items alone.
    """

    value: float
    stderr: float | None
    n: int = 0
    seeds: int = 1


def compare(
    ours: Score | Sequence[Run], base: Score | Sequence[Run], *, level: float = LEVEL, pool: Pool | None = None,
    null: float = 0.0,
) -> Change:  # fmt: skip
    """`ours` minus `base`: two groups of runs that differ in their seed only, or a group and a base model.

    Runs are paired by seed, and within a seed by item (or by group of items) where both were measured on the same
    sample; what is averaged over is both (`contrast` has the model and the interval). Of one seed the interval is over
    items alone and says so (`Change.seed_effect`). With a `pool` the variance from seed to seed is moderated by that
    of a study's other settings (`family.seed_pool`). `p` is that of the true change being `null`: for a claim that a
    loss is not larger than a margin, the change that is as large. Two scores are taken to be on the same sample;
    nothing tells whether they are.

    Raises `ValueError` where the scores' keys differ, there are none, a seed is twice in a group, or `level` is not
    within (0, 1).

    >>> from gentletune.stats import accuracy_score
    >>> a, b = (accuracy_score(r, task="t", side="domain") for r in ([1, 1, 1, 0], [1, 0, 0, 0]))
    >>> change = compare(a, b)
    >>> change.value, round(change.stderr, 4), change.paired, change.seed_effect
    (0.5, 0.2546, True, 'unknown')
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie within (0, 1), got {level}")
    mine = [Run((ours,))] if isinstance(ours, Score) else ours
    other = [Run((base,), seed=None)] if isinstance(base, Score) else base
    if not mine or not other:
        raise ValueError("no runs to compare")
    plan = design(mine, other)
    found = find(plan, pool)
    contrast = found.contrast
    effect: SeedEffect = "unknown" if found.unseen else "borrowed" if found.borrowed else "known"
    effect = effect if plan.arms else "none"
    seeds = min(plan.arms, default=1)
    share = 0.0
    if contrast is not None and contrast.variance:
        share = 1 - float(contrast.items / contrast.variance)
    rest = (seeds, found.units, effect, share)
    blind = contrast is not None and contrast.seeds_df and found.value and not contrast.variance
    if contrast is None or blind:  # seeds that agree to the last digit, and no item to go by
        return Change(found.value, None, None, None, found.n, found.paired, None, None, *rest)
    p = float(p_value(contrast, null))
    wary = find(plan, pool.cautious).contrast if pool and found.borrowed else None
    half, centre, df = half_width(contrast, level), float(contrast.centre), float(contrast.satterthwaite)
    bound = 1.0 if found.shares else math.inf
    return Change(
        found.value,
        math.sqrt(float(contrast.variance)),
        max(centre - half, -bound),
        min(centre + half, bound),
        found.n,
        found.paired,
        df if math.isfinite(df) else None,
        p,
        *rest,
        p_cautious=p if wary is None else max(p, float(p_value(wary, null))),
    )


def mean_of(runs: Sequence[Run], pool: Pool | None = None) -> Mean:
    """The mean of runs that differ in their seed only. Raises `ValueError` as `compare` does."""
    if not runs:
        raise ValueError("no runs to average")
    found = find(design(runs, ()), pool)
    stderr = None if found.contrast is None else math.sqrt(float(found.contrast.variance))
    return Mean(found.value, stderr, found.n, len(runs))


def average(scores: Sequence[Score]) -> Score:
    """One score of runs on the same items: the items averaged, with the error over items alone.

    Scores that are not on as many items in the same groups have only their values and squared errors averaged, and no
    items. One score is returned as it is. Raises `ValueError` on no scores and on unlike keys.
    """
    if not scores or len({s.key for s in scores}) > 1:
        raise ValueError("no scores to average, or not of one key")
    first, count = scores[0], len(scores)
    if count == 1:
        return first
    value = math.fsum(s.value for s in scores) / count
    agreed = {k: v for k, v in first.details.items() if all(s.details.get(k) == v for s in scores)}
    if not first.items or len({(s.n, s.clusters, len(s.items)) for s in scores}) > 1:
        errors = [s.stderr for s in scores if s.stderr is not None]
        stderr = math.sqrt(math.fsum(e * e for e in errors) / count) if len(errors) == count else None
        n = min(s.n for s in scores)
        bare = {"value": value, "stderr": stderr, "n": n, "items": (), "clusters": (), "details": agreed}
        return first.model_copy(update=bare)
    items = np.mean([s.items for s in scores], axis=0)
    layout = layout_of(first.n, first.clusters)
    error = None
    if layout.units > 1:
        plain = share_error(items, layout) if all(map(is_share, scores)) else layout.variance(items)
        error = math.sqrt(max(float(plain), least_variance(first)))
    kept = {"value": value, "stderr": error, "items": tuple(map(float, items)), "details": agreed}
    return first.model_copy(update=kept)
