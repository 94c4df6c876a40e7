from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.advice.curve import (
    RISK,
    Choice,
    ProbePoint,
    choose,
    forecast,
    half_decades,
    nearest,
    prior_rate,
    rates_between,
    stable_points,
)
from gentletune.advice.harm import Accuracy, Dose, Harm

from .points import ITEMS, by_accuracy, from_base, point

# The gain is level from 1e-4 on, KL goes on.
CURVE = [point(1e-5, 0.2, 1e-4), point(3e-5, 0.5, 3e-4), point(1e-4, 0.995, 1e-3), point(3e-4, 1.0, 4e-3)]
GRID = rates_between(1e-6, 3e-4)


def chosen(
    points: list[ProbePoint],
    harm: Harm | None = None,
    candidates: tuple[float, ...] = GRID,
    diverged: tuple[float, ...] = (),
    budget: float | None = None,
) -> Choice | None:
    kl = from_base(points)
    return choose(
        points, diverged, harm=harm or kl, kl=kl, test_rows=64, candidates=candidates, budget=budget
    )  # fmt: skip


def test_the_prior_goes_through_the_two_rates_it_is_made_from() -> None:
    assert prior_rate(576) == 1e-5
    assert prior_rate(2048) == prior_rate(2560) == 1e-6
    assert half_decades(5, 1e-6) == (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
    assert nearest(9.9e-4) == 1e-3


def test_between_before_and_beyond_the_probes() -> None:
    harm = from_base(CURVE)
    first = forecast(CURVE, 5e-6, harm, harm)
    assert first.gain == pytest.approx(0.1)
    middle = forecast(CURVE, (1e-5 * 3e-5) ** 0.5, harm, harm)
    assert middle.gain == pytest.approx(0.35)
    assert forecast(CURVE, 1e-3, harm, harm).gain == 1.0


def test_the_smallest_rate_that_gains_as_much_as_the_best_harmless_one() -> None:
    found = chosen(CURVE)
    assert found is not None
    assert (found.learning_rate, found.safe, found.ends) == (1e-4, True, ())
    assert found.alike == (1e-4, 1.5e-4, 2e-4, 3e-4)


def test_where_the_gain_rises_it_is_the_largest_harmless_one() -> None:
    rising = [point(1e-4, 0.5, 0.01), point(1e-3, 1.0, 0.1), point(2e-3, 1.2, 0.4)]
    harm = by_accuracy({1e-4: 0.0, 1e-3: 0.0, 2e-3: 0.1})
    found = chosen(rising, harm, rates_between(1e-5, 2e-3))
    assert found is not None
    risks = {f.learning_rate: f.risk for f in found.forecasts}
    assert found.safe
    assert 3e-4 <= found.learning_rate < 2e-3
    assert risks[found.learning_rate] <= RISK < risks[min(r for r in risks if r > found.learning_rate)]
    assert found.ends == ()


def test_a_longer_probe_tells_how_the_loss_grows_with_the_steps() -> None:
    """The same probes, and one of twice the steps that lost no more or much more."""
    doses = [Dose(1e-4, 0.0), Dose(1e-3, 0.0), Dose(2e-3, 0.1)]
    settled, growing = (
        Harm(Accuracy([*doses, Dose(2e-3, loss, times=2)], 1.0, ITEMS), 0.02, 5.0) for loss in (0.1, 0.5)
    )
    rising = [point(1e-4, 0.5, 0.01), point(1e-3, 1.0, 0.1), point(2e-3, 1.2, 0.4)]
    soon, later = (chosen(rising, harm, rates_between(1e-5, 2e-3)) for harm in (settled, growing))
    assert soon is not None
    assert later is not None
    assert soon.safe
    assert later.safe
    assert later.learning_rate < soon.learning_rate
    assert growing.expected(5e-4) > 2 * settled.expected(5e-4)


def test_a_run_as_long_as_the_probes_loses_what_they_lost() -> None:
    harm = from_base([point(1e-4, 0.5, 0.01), point(1e-3, 1.0, 0.1)])
    assert harm.expected(1e-3) == pytest.approx(0.1)
    assert harm.risk(1e-4) == 0
    assert 0 < from_base([point(1e-3, 1.0, 0.09)]).risk(1e-3) < 0.5  # of more than 0.1: another seed may go beyond
    longer = from_base([point(1e-4, 0.5, 0.01), point(1e-3, 1.0, 0.1)], longer=5.0)
    assert longer.expected(1e-3) > 0.1


def test_where_all_do_harm_it_is_the_least_likely_to_and_says_so() -> None:
    harm = by_accuracy({1e-4: 0.5, 1e-3: 1.0})
    found = chosen([point(1e-4, 0.5, 0.1), point(1e-3, 1.0, 0.4)], harm, (1e-4, 3e-4, 1e-3))
    assert found is not None
    assert (found.learning_rate, found.safe, found.ends) == (1e-4, False, ("smallest candidate",))


def test_a_noisier_test_set_ties_more() -> None:
    wild = [
        point(1e-5, 0.70, 1e-4, scatter=(-0.6, 0.6, 0.1, -0.1)),
        point(1e-4, 0.98, 1e-3, scatter=(0.6, -0.6, -0.3, 0.3)),
    ]
    kl = from_base(wild)
    few, many = (choose(wild, [], harm=kl, kl=kl, test_rows=n, candidates=[1e-5, 1e-4]) for n in (4, 4000))
    assert few is not None
    assert many is not None
    assert (few.learning_rate, many.learning_rate) == (1e-5, 1e-4)


def test_rates_that_diverge_or_do_significantly_worse_are_out() -> None:
    worse = [*CURVE, point(1e-3, 0.3, 0.01), point(3e-3, 1.2, 0.02)]
    assert {p.learning_rate for p in stable_points(worse, [])} == {1e-5, 3e-5, 1e-4, 3e-4}
    assert {p.learning_rate for p in stable_points(CURVE, [1e-4])} == {1e-5, 3e-5}
    assert chosen(CURVE, diverged=(1e-5,)) is None


def test_a_budget_of_kl_is_kept() -> None:
    found = chosen(CURVE, budget=2e-4)
    assert found is not None
    assert next(f for f in found.forecasts if f.learning_rate == found.learning_rate).kl <= 2e-4
    assert found.learning_rate == 1.5e-5
    assert chosen(CURVE, candidates=(1e-4,), budget=2e-4) is None


RISING = [point(1e-5, 0.2, 1e-5), point(1e-4, 0.6, 1e-4), point(1e-3, 1.0, 1e-3)]


def test_the_grid_ends_at_the_largest_probe_unless_more_is_known_to_be_unstable() -> None:
    grid = rates_between(1e-6, 1e-3)
    found = chosen(RISING, candidates=grid)
    assert found is not None
    assert (found.learning_rate, found.ends) == (1e-3, ("largest probe",))
    for points, diverged in ((RISING, (3e-3,)), ([*RISING, point(3e-3, 0.3, 2e-3)], ())):
        known = chosen(points, candidates=grid, diverged=diverged)
        assert known is not None
        assert (known.learning_rate, known.ends) == (1e-3, ())


def test_the_ends_of_a_list_of_candidates() -> None:
    high = chosen(CURVE, candidates=(1e-5, 3e-5))
    assert high is not None
    assert (high.learning_rate, high.ends) == (3e-5, ("largest candidate",))


RISES = st.lists(st.tuples(st.floats(-0.1, 0.6), st.floats(-0.05, 0.5)), min_size=1, max_size=5)


@given(RISES)
def test_forecasts_never_fall_with_the_rate(rises: list[tuple[float, float]]) -> None:
    points = [point(r, g, d) for r, (g, d) in zip((1e-5, 3e-5, 1e-4, 3e-4, 1e-3), rises, strict=False)]
    harm = from_base(points, longer=10.0)
    found = [forecast(stable_points(points, []) or points[:1], rate, harm, harm) for rate in GRID]
    for a, b in pairwise(found):
        assert b.gain >= a.gain - 1e-12
        assert b.kl >= a.kl - 1e-12
        assert b.risk >= a.risk - 1e-12


@given(RISES, st.floats(0.01, 0.3), st.floats(1.0, 5.0))
def test_a_larger_budget_never_gains_less(rises: list[tuple[float, float]], budget: float, more: float) -> None:
    points = [point(r, g, d) for r, (g, d) in zip((1e-5, 3e-5, 1e-4, 3e-4, 1e-3), rises, strict=False)]
    small, large = (chosen(points, budget=b) for b in (budget, budget * more))
    if small is None or large is None:
        assert small is None
        return
    if small.safe:
        assert large.best >= small.best - 1e-12
