"""Several comparisons at once."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.stats import Change, Run, adjusted, benjamini_hochberg, compare, holm, seed_pool
from gentletune.stats.pool import pool_of
from tests.stats.made_scores import accuracy, mean


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closure_of_bonferroni(ps: list[float]) -> None:
    """A null is rejected where Bonferroni rejects every set of nulls that it is in (Marcus, Peritz, Gabriel 1976)."""
    m = range(len(ps))
    sets = [c for size in range(1, len(ps) + 1) for c in combinations(m, size)]
    closed = [max(min(len(c) * min(ps[j] for j in c), 1.0) for c in sets if i in c) for i in m]
    assert adjusted(ps) == pytest.approx(closed)


def test_changes_of_a_family() -> None:
    base = accuracy([1, 0] * 50)
    found = [compare(accuracy([1] * k + [1, 0] * ((100 - k) // 2)), base) for k in (0, 12, 40)]
    unknown = compare(mean([1]), mean([0]))
    none, some, most, alone, left_out = holm([*found, unknown, None])
    assert left_out is None
    assert alone == unknown  # not counted
    assert [change.family for change in (none, some, most) if change] == [3, 3, 3]
    assert most is not None
    assert (most.p_family, most.significant) == (pytest.approx(3 * (found[2].p or 0)), True)
    assert some is not None
    assert (some.low, some.high, some.p) == (found[1].low, found[1].high, found[1].p)
    assert some.p_family == pytest.approx(2 * (found[1].p or 0))
    assert none is not None
    assert not none.significant
    assert holm([]) == []


def test_screened_changes_go_by_the_false_discovery_rate() -> None:
    base = accuracy([1, 0] * 50)
    found = [compare(accuracy([1] * k + [1, 0] * ((100 - k) // 2)), base) for k in (0, 12, 12, 40)]
    screened = [change for change in benjamini_hochberg([*found, None]) if change]
    assert [change.family for change in screened] == [4] * 4
    ps = [change.p or 0.0 for change in found]
    # the k-th smallest of m goes up by m/k, and none beyond a larger one's
    assert [change.p_family for change in screened] == pytest.approx([1.0, ps[1] * 4 / 3, ps[2] * 4 / 3, ps[3] * 4])
    assert [change.significant for change in screened] == [False, True, True, True]
    assert [change and change.significant for change in holm(found)] == [False, False, False, True]


def test_all_of_one_family_hold_together_and_each_by_itself_does_not() -> None:
    rng = np.random.default_rng(0)
    alone = together = 0
    for _ in range(150):
        base = mean(list(rng.normal(0, 1, 20)))
        family = [compare(mean(list(np.array(base.items) + rng.normal(0, 1, 20))), base) for _ in range(10)]
        alone += any(change.significant for change in family)
        together += any(change.significant for change in holm(family) if change)
    assert alone > 0.25 * 150
    assert together <= 0.08 * 150


def setting(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_the_pool_of_settings_by_hand() -> None:
    # Each setting's seeds lie 2 apart, one up and one down: variance 2 each, all of it each one's own
    pool = pool_of([setting(0, 2), setting(3, 1)], [0.5, 0.5])
    assert pool is not None
    assert (pool.own, pool.pair) == (1.5, 2 * 1.5)  # less the items' noise
    # own = 2: of 1 + 1 degrees of freedom, half its weight in the mean of both, half in their difference
    assert pool.own_df == pytest.approx(2**2 / (1**2 / 1 + 1**2 / 1))
    assert pool.pair_df == 1
    # Both move alike: their seeds say no more than one setting's, and nothing is left of it in their difference
    shared = pool_of([setting(0, 2), setting(1, 3), setting(5, 7)], [0.5] * 3)
    assert shared is not None
    assert (shared.own, shared.own_df, shared.pair, shared.pair_df) == (1.5, pytest.approx(1), 0, 2)
    # One setting's seeds are lent to settings of one seed
    lone = pool_of([setting(0, 2, 4)], [1.0])
    assert lone is not None
    assert (lone.own, lone.own_df, lone.pair, lone.pair_df) == (3, 2, 6, 2)
    assert pool_of([setting(1)], [0.0]) is None
    apart = pool_of([setting(0, 2), {7: 1.0, 8: 3.0}], [0.0, 0.0])  # no seed in common
    assert apart is not None
    assert apart.own_df == 2


def test_settings_with_unlike_variances_lend_less() -> None:
    rng = np.random.default_rng(1)
    rows = [setting(*rng.normal(0, 1, 3)) for _ in range(24)]
    wild = [{s: v * (20 if k < 4 else 1) for s, v in row.items()} for k, row in enumerate(rows)]
    alike, unlike = (pool_of(found, [0.0] * 24) for found in (rows, wild))
    assert alike is not None
    assert unlike is not None
    known = [pool.moderated(1.0, 2, 3, 0.0, paired=False)[1] for pool in (alike, unlike)]
    assert known[0] > 10 > 4 > known[1]
    # The quiet ones are most: what is lent is far below the mean of all, which the wild ones make
    assert unlike.scale < 0.1
    assert unlike.scale < unlike.cautious.scale == pytest.approx(math.sqrt(unlike.scale))
    assert alike.cautious.moderated(1.0, 2, 3, 0.0, paired=False)[1] < known[0]


def test_a_setting_borrows_from_the_pool_as_much_as_that_knows() -> None:
    pool = pool_of([setting(*np.random.default_rng(k).normal(0, 1, 3)) for k in range(12)], [0.1] * 12)
    assert pool is not None
    seen, df = pool.moderated(0.0, 2, 3, 0.05, paired=False)
    more = 1 / (1 / (pool.own_df - 2) + pool.spread)
    lent = pool.scale * (pool.own / 3 + 0.05)
    assert (seen, df) == (pytest.approx(more * lent / (more + 2)), pytest.approx(more + 2))
    assert pool.moderated(4.0, 100, 3, 0.05, paired=False) == (4.0, 100)  # it knows better itself
    assert pool.moderated(0.0, 0, 1, 0.05, paired=True) == (
        pytest.approx(pool.scale * (pool.pair + 0.05)),
        pytest.approx(1 / (1 / pool.pair_df + pool.spread)),
    )


def test_a_large_gain_of_two_seeds_is_told_among_many_settings_of_which_one_is_wild() -> None:
    rng = np.random.default_rng(3)
    base = [Run((accuracy([0.0] * 290 + [1.0] * 10),), None)]
    shares = [[0.3 + 0.02 * k + shift for shift in rng.normal(0, 0.02, 2)] for k in range(23)] + [[0.1, 0.5]]
    groups = [
        [Run((accuracy(list((rng.random(300) < share).astype(float))),), s) for s, share in enumerate(of)]
        for of in shares
    ]  # fmt: skip
    changes = holm([compare(group, base, pool=seed_pool(groups)) for group in groups])
    told = [change is not None and bool(change.significant) for change in changes]
    assert all(told[:23])
    assert not told[23]


def test_changes_with_a_pool() -> None:
    rng = np.random.default_rng(2)
    base = list(rng.normal(0, 1, 100))

    def runs(seeds: int, gain: float) -> list[Run]:
        moved = [np.array(base) + gain + shift + rng.normal(0, 0.2, 100) for shift in rng.normal(0, 0.3, seeds)]
        return [Run((mean(list(items)),), seed) for seed, items in enumerate(moved)]

    groups = [runs(2, 0.0) for _ in range(12)]
    pool = seed_pool(groups)
    model = [Run((mean(base),), None)]
    alone, helped = compare(groups[0], model), compare(groups[0], model, pool=pool)
    assert (alone.seed_effect, helped.seed_effect) == ("known", "borrowed")
    assert width(helped) < 0.5 * width(alone)
    single = runs(1, 0.0)
    assert compare(single, model).seed_effect == "unknown"
    assert width(compare(single, model, pool=pool)) > 3 * width(compare(single, model))
    assert seed_pool([single]) is None


def width(change: Change) -> float:
    assert change.low is not None
    assert change.high is not None
    return change.high - change.low


def test_a_seeds_shift_that_all_settings_share_is_known_from_the_seeds_alone() -> None:
    """24 settings that move together are one sample of seeds: no more certain than one of them."""
    rng = np.random.default_rng(4)
    missed, dfs = 0, list[float]()
    for _ in range(200):
        shifts = rng.normal(0, 1, 3)
        rows = [setting(*(shifts + rng.normal(0, 0.05, 3))) for _ in range(24)]
        pool = pool_of(rows, [0.0025] * 24)
        assert pool is not None
        seen, df = pool.moderated(float(np.var(list(rows[0].values()), ddof=1)) / 3, 2, 3, 0.0025 / 3, paired=False)
        dfs.append(df)
        missed += abs(math.fsum(rows[0].values()) / 3) > 3.182 * math.sqrt(seen)  # t of 3 degrees of freedom
    assert np.median(dfs) < 2.5
    assert missed <= 0.12 * 200
