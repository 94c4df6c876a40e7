from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from gentletune.advice.curve import ProbePoint, choose, forecast, half_decades, prior_rate, stable_points, unit_movement

from .points import point

# Gain saturates at a movement of about 1e-3, KL goes on.
CURVE = [point(1e-5, 0.2, 0.01), point(3e-5, 0.5, 0.03), point(1e-4, 0.98, 0.1), point(3e-4, 1.0, 0.4)]
GRID = half_decades(1e-7, 3e-4)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_movement_is_what_transformers_schedules_add_up_to(warmup: float, schedule: str) -> None:
    import torch

    total = 20
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rising = int(total * warmup)
    if schedule == "cosine":
        made = get_cosine_schedule_with_warmup(optimiser, rising, total)
    else:
        made = get_constant_schedule_with_warmup(optimiser, rising)
    moved = [0.0]
    for _ in range(total):
        moved.append(moved[-1] + made.get_last_lr()[0])
        optimiser.step()
        made.step()
    for steps in (0, 1, 7, total):
        assert unit_movement(steps, total, warmup, schedule) == pytest.approx(moved[steps])


def test_the_prior_goes_through_the_two_rates_it_is_made_from() -> None:
    assert prior_rate(576) == 1e-5
    assert prior_rate(2048) == prior_rate(2560) == 1e-6
    assert half_decades(1e-6, 1e-4) == (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)


def test_a_full_run_is_read_off_the_probe_that_moved_as_far() -> None:
    # 100 units at 1e-5 move 1e-3, as 10 steps at 1e-4 do.
    found = forecast(CURVE, 1e-5, 100)
    assert (found.gain, found.kl, found.beyond) == (pytest.approx(0.98), pytest.approx(0.1), False)


def test_between_before_and_beyond_the_probes() -> None:
    first = forecast(CURVE, 1e-6, 50)  # half of the first movement
    assert (first.gain, first.kl) == (pytest.approx(0.1), pytest.approx(0.005))
    middle = forecast(CURVE, (1e-4 * 3e-4) ** 0.5, 10)
    assert middle.gain == pytest.approx(0.99)
    assert 0.1 < middle.kl < 0.25
    far = forecast(CURVE, 3e-4, 20)
    assert (far.gain, far.beyond) == (1.0, True)
    # (0.4 - 0.1) / 2e-3 a unit of movement, steeper than 0.4 / 3e-3.
    assert far.kl == pytest.approx(0.4 + 150 * 3e-3)


def test_the_smallest_rate_that_ties_with_the_best_is_chosen() -> None:
    found = choose(CURVE, [], units=100, test_rows=64, candidates=GRID)
    assert found is not None
    assert (found.learning_rate, found.largest_stable) == (1e-5, 3e-4)
    assert found.alike[0] == 1e-5
    # A run ten times as long moves as far at a tenth of the rate.
    longer = choose(CURVE, [], units=1000, test_rows=64, candidates=GRID)
    assert longer is not None
    assert longer.learning_rate == 1e-6


def test_a_noisier_test_set_ties_more() -> None:
    wild = [
        point(1e-5, 0.70, 0.01, scatter=(-0.6, 0.6, 0.1, -0.1)),
        point(1e-4, 0.98, 0.1, scatter=(0.6, -0.6, -0.3, 0.3)),
    ]
    small, large = (choose(wild, [], units=10, test_rows=n, candidates=[1e-5, 1e-4]) for n in (4, 4000))
    assert small is not None
    assert large is not None
    assert (small.learning_rate, large.learning_rate) == (1e-5, 1e-4)


def test_rates_that_diverge_or_do_significantly_worse_are_out() -> None:
    worse = [*CURVE, point(1e-3, 0.3, 2.0), point(3e-3, 1.2, 9.0)]
    assert {p.learning_rate for p in stable_points(worse, [])} == {1e-5, 3e-5, 1e-4, 3e-4}
    assert {p.learning_rate for p in stable_points(CURVE, [1e-4])} == {1e-5, 3e-5}
    assert choose(CURVE, [1e-5], units=10, test_rows=64, candidates=GRID) is None


def test_a_budget_of_kl_is_kept() -> None:
    found = choose(CURVE, [], units=100, test_rows=64, candidates=GRID, budget=0.02)
    assert found is not None
    assert found.learning_rate == 1e-6
    assert choose(CURVE, [], units=100, test_rows=64, candidates=[1e-4], budget=0.02) is None


RISING = [point(1e-5, 0.2, 0.01), point(1e-4, 0.6, 0.1), point(1e-3, 1.0, 0.4)]


def test_a_choice_within_the_grid_lies_at_no_end() -> None:
    for units in (100, 1000):
        found = choose(CURVE, [], units=units, test_rows=64, candidates=GRID)
        assert found is not None
        assert found.ends == ()


def test_the_grid_ends_where_the_gain_still_rises() -> None:
    # The full run goes as far as the furthest probe at 1e-4 already, and gains nothing beyond it for want of a probe.
    found = choose(RISING, [], units=100, test_rows=64, candidates=half_decades(1e-7, 1e-3))
    assert found is not None
    assert (found.learning_rate, found.ends) == (1e-4, ("largest probe",))
    # A run of few steps falls short of it at all rates.
    short = choose(RISING, [], units=2, test_rows=64, candidates=half_decades(1e-7, 1e-3))
    assert short is not None
    assert (short.learning_rate, short.ends) == (1e-3, ("largest probe",))


def test_rates_shut_out_by_instability_or_budget_are_no_end() -> None:
    grid = half_decades(1e-7, 3e-3)
    for points, diverged in ((RISING, [3e-3]), ([*RISING, point(3e-3, 0.3, 2.0)], [])):
        found = choose(points, diverged, units=2, test_rows=64, candidates=grid)
        assert found is not None
        assert (found.learning_rate, found.ends) == (1e-3, ())
    kept = choose(RISING, [], units=100, test_rows=64, candidates=grid, budget=0.05)
    assert kept is not None
    assert (kept.learning_rate, kept.ends) == (3e-6, ())


def test_the_ends_of_a_list_of_candidates() -> None:
    low = choose(CURVE, [], units=1000, test_rows=64, candidates=[1e-5, 1e-4])
    assert low is not None
    assert (low.learning_rate, low.ends) == (1e-5, ("smallest candidate",))
    high = choose(CURVE, [], units=10, test_rows=64, candidates=[1e-5, 3e-5])
    assert high is not None
    assert (high.learning_rate, high.ends) == (3e-5, ("largest candidate",))


RISES = st.lists(st.tuples(st.floats(-0.1, 0.6), st.floats(-0.05, 0.5)), min_size=1, max_size=5)


@given(RISES, st.floats(1.0, 1e4))
def test_forecasts_never_fall_with_the_rate(rises: list[tuple[float, float]], units: float) -> None:
    rates = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    points = [point(r, g, d) for r, (g, d) in zip(rates, rises, strict=False)]
    stable: list[ProbePoint] = stable_points(points, [])
    found = [forecast(stable, rate, units) for rate in GRID]
    for a, b in pairwise(found):
        assert b.gain >= a.gain - 1e-12
        assert b.kl >= a.kl - 1e-12
    assert all(f.gain <= max(max(p.gain.value for p in stable), 0.0) + 1e-12 for f in found)


@given(RISES, st.floats(1.0, 1e3), st.floats(0.01, 0.3), st.floats(1.0, 5.0))
def test_a_larger_budget_never_gains_less(
    rises: list[tuple[float, float]], units: float, budget: float, more: float
) -> None:
    points = [point(r, g, d) for r, (g, d) in zip((1e-5, 3e-5, 1e-4, 3e-4, 1e-3), rises, strict=False)]
    small, large = (
        choose(points, [], units=units, test_rows=64, candidates=GRID, budget=b) for b in (budget, budget * more)
    )
    if small is None or large is None:
        assert small is None
        return
    gains = {f.learning_rate: f.gain for f in large.forecasts}
    assert max(gains[r] for r in large.alike) >= max(gains[r] for r in small.alike) - 1e-12
    assert (
        large.learning_rate >= small.learning_rate or gains[large.learning_rate] >= gains[small.learning_rate] - 1e-12
    )
