"""95 % intervals hold the truth in 93 to 97 % of made-up studies: the simulation that the comparison was chosen by.

`benchmarks/coverage.py` does the same with more studies, and in harder worlds; its tables are in docs/statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from scipy import special

from gentletune.stats.contrast import crossed
from tests.stats.worlds import ACCURACY, CODE_LENGTH, SeedShift, World, studies

STUDIES = {30: 2000, 200: 1500, 1000: 900}
LEAST, MOST = 0.93, 0.97
TOO_WIDE = 0.98  # of two seeds on 30 items in about ten groups: 97.6 % at most, the one place where 97 is not kept
WORLDS = pytest.mark.parametrize("world", [ACCURACY, CODE_LENGTH], ids=lambda world: world.metric)


def coverage(world: World, n: int, grouped: bool, count: int, batches: int) -> dict[tuple[SeedShift, int], float]:
    """The share of studies whose interval holds the truth, by seed effect and number of seeds."""
    found: dict[tuple[SeedShift, int], list[float]] = {}
    for batch in range(batches):  # each with groups of its own
        for shift in get_args(SeedShift):
            rng = np.random.default_rng([n, grouped, batch])
            drawn = studies(world, rng, count // batches, n, grouped=grouped, shift=shift)
            for seeds in (1, 2, 3, 5):
                hit = drawn.covered(world.metric == "accuracy", seeds)
                found.setdefault((shift, seeds), []).append(float(hit.mean()))
    return {cell: float(np.mean(shares)) for cell, shares in found.items()}


def slack(count: int) -> float:
    """Three standard errors of a coverage at the limits, of so many studies."""
    return 3 * math.sqrt(LEAST * (1 - LEAST) / count)


def off(found: dict[tuple[SeedShift, int], float], n: int, grouped: bool, count: int) -> dict[Any, float]:
    """The cells that are outside 93 to 97 % by more than three standard errors."""
    few = {2: TOO_WIDE} if grouped and n == 30 else {}
    limits = {cell: few.get(cell[1], MOST) + slack(count) for cell in found}
    return {cell: share for cell, share in found.items() if not LEAST - slack(count) <= share <= limits[cell]}


@WORLDS
@pytest.mark.parametrize("grouped", [False, True], ids=["items", "groups"])
@pytest.mark.parametrize("n", STUDIES)
def test_intervals_hold_the_truth(world: World, grouped: bool, n: int) -> None:
    """12 cells each: no seed effect, one that both methods share, or one each; 1, 2, 3 or 5 seeds."""
    found = coverage(world, n, grouped, STUDIES[n], 5)
    assert not off(found, n, grouped, STUDIES[n])
    assert 0.94 <= np.mean(list(found.values())) <= 0.97


@pytest.mark.slow
@WORLDS
@pytest.mark.parametrize("grouped", [False, True], ids=["items", "groups"])
@pytest.mark.parametrize("n", STUDIES)
def test_intervals_hold_the_truth_in_many_studies(world: World, grouped: bool, n: int) -> None:
    count = 8 * STUDIES[n]
    assert not off(coverage(world, n, grouped, count, 20), n, grouped, count)


@WORLDS
def test_against_one_measurement_of_a_base_model(world: World) -> None:
    for shift in ("none", "own"):
        drawn = studies(world, np.random.default_rng(5), 1500, 200, grouped=False, shift=shift, base=True)
        for seeds in (1, 2, 3, 5):
            share = drawn.covered(world.metric == "accuracy", seeds).mean()
            assert LEAST - slack(1500) <= share <= MOST + slack(1500)


@WORLDS
def test_one_seed_speaks_of_its_own_weights_only(world: World) -> None:
    """What one seed cannot know: with a seed effect its interval misses what another seed would give."""
    far = replace(world, seed=3 * world.seed)
    drawn = studies(far, np.random.default_rng(1), 1500, 200, grouped=False, shift="own")
    other = replace(drawn, of_first=np.full(1500, drawn.truth))
    shares = world.metric == "accuracy"
    assert LEAST - slack(1500) <= drawn.covered(shares, 1).mean() <= MOST + slack(1500)
    assert other.covered(shares, 1).mean() < 0.6
    assert other.covered(shares, 2).mean() >= LEAST - slack(1500)


@WORLDS
def test_satterthwaites_one_number_does_not_do_for_two_seeds(world: World) -> None:
    drawn = studies(world, np.random.default_rng(2), 1500, 1000, grouped=False, shift="own")
    found = crossed(drawn.differences[:, :2], drawn.layout, shares=world.metric == "accuracy")
    deviation = np.abs(found.centre - drawn.truth) / np.sqrt(found.items + found.seeds)
    assert (2 * special.stdtr(found.satterthwaite, -deviation) >= 0.05).mean() < 0.9


def test_right_and_wrong_answers_that_all_agree_are_no_certainty() -> None:
    rare = replace(ACCURACY, gap=0.1, taste=0.1, noise=0.1)  # 1 answer in 15 differs
    for shift in ("none", "own"):
        drawn = studies(rare, np.random.default_rng(3), 2000, 30, grouped=False, shift=shift)
        for seeds in (1, 2, 3, 5):
            assert drawn.covered(True, seeds).mean() >= 0.91
            assert drawn.covered(False, seeds).mean() < drawn.covered(True, seeds).mean()
