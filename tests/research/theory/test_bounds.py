"""Theorems 1a, 1b and 2: every bound on random trees, by hand, and just beyond its hypotheses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gentletune.research import (
    RiseBound,
    TokenTree,
    Tuning,
    code_length_change,
    exchange_rate_bound,
    hard_token_bound,
    noisy_steps_bound,
    rise_bound,
    safe_lambda,
)
from gentletune.research.theory.bounds import (
    hard_token_floor,
    hard_tokens,
    pinsker_slope,
    shortfall,
    very_hard_token_bound,
)
from gentletune.research.theory.checks import largest
from gentletune.research.theory.tilting import node_reach
from gentletune.research.theory.tree import LN2
from tests.research.theory.random_settings import EPSILON, LAMBDAS, models, setting, shapes, single

mixes, thresholds = st.floats(0.01, 0.95), st.floats(0.01, 0.5)


def general_rise(q: TokenTree, p2: TokenTree, general: TokenTree, lam: float) -> float:
    """R(λ) without the code under test."""
    return code_length_change(general, q, q.tilt(p2, lam))


# Theorem 1a


@given(**shapes)
def test_the_rise_is_bounded(seed: int, depth: int, vocab: int) -> None:
    q, p2, general = models(seed, depth, vocab, 3)
    for law in (general, q, q.mix(general, 0.1)):
        bound = rise_bound(Tuning.from_trees(q, p2, law))
        for lam in LAMBDAS:
            assert general_rise(q, p2, law, lam) <= float(bound.at(lam)) + EPSILON
    own = rise_bound(Tuning.from_trees(q, p2, q))
    assert abs(float(own.linear)) < EPSILON  # well-modelled data: nothing is lost to first order


@given(**shapes)
def test_the_rise_is_below_its_chord_and_the_gain_above(seed: int, depth: int, vocab: int) -> None:
    q, p2, general = models(seed, depth, vocab, 3)
    for lam in LAMBDAS:
        tilted = q.tilt(p2, lam)
        assert code_length_change(general, q, tilted) <= lam * code_length_change(general, q, p2) + EPSILON
        assert code_length_change(p2, q, tilted) <= lam * code_length_change(p2, q, p2) + EPSILON


@given(**shapes)
def test_the_exchange_rate_is_bounded_and_ordered(seed: int, depth: int, vocab: int) -> None:
    tuning = setting(seed, depth, vocab)
    bound, full = rise_bound(tuning), float(tuning.rise_and_gain(1.0)[1])
    before = None
    for lam in LAMBDAS[1:]:
        rise, gain = (float(x) for x in tuning.rise_and_gain(lam))
        assert rise <= float(exchange_rate_bound(bound, lam, full)) * gain + EPSILON
        if before is not None and before[0] >= 0:
            assert before[0] * gain <= rise * before[1] + EPSILON
        before = rise, gain


@given(**shapes)
def test_on_well_modelled_data_a_gain_costs_at_most_a_constant_times_lambda(seed: int, depth: int, vocab: int) -> None:
    q, p2 = models(seed, depth, vocab, 2)
    constant = float(rise_bound(Tuning.from_trees(q, p2, q)).quadratic) / -code_length_change(p2, q, p2)
    for lam in LAMBDAS:
        gain = -code_length_change(p2, q, q.tilt(p2, lam))
        assert general_rise(q, p2, q, lam) <= constant * lam * gain + EPSILON


@given(**shapes)
def test_pinsker_bounds_the_slope(seed: int, depth: int, vocab: int) -> None:
    tuning = setting(seed, depth, vocab)
    assert float(rise_bound(tuning).linear) <= float(pinsker_slope(tuning)) + EPSILON


def test_golden_rise_bound() -> None:
    # q = (1/2, 1/2), p₂ = (1/4, 3/4): s = (-log 2, log 3/2), D = log 3, D²/8 = 0.15087;
    # V = (3/4 - 1/2 - log(3/2)/2) + (log 2)²/4 = 0.16738 is larger. P₁ = (1, 0): a = (s₁ + s₂)/2 - s₁ = log(3)/2.
    bound = rise_bound(Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(1.0, 0.0)))
    assert float(bound.linear) == pytest.approx(np.log2(3) / 2, abs=1e-12)
    assert float(bound.quadratic) == pytest.approx(np.log(3) ** 2 / 8 / LN2, abs=1e-12)
    assert float(bound.at(0.5)) == pytest.approx(np.log2(3) / 4 + np.log(3) ** 2 / 32 / LN2, abs=1e-12)


def test_a_very_improbable_token_does_not_blow_the_bound_up() -> None:
    # D² /8 grows like (log q)²/8 as q(x) → 0; V stays below p₂(x) + … nats.
    q, p2 = single(1e-30, 1 - 1e-30), single(0.1, 0.9)
    bound = rise_bound(Tuning.from_trees(q, p2, q))
    assert float(bound.quadratic) * LN2 < 0.11
    assert (np.log(0.1 / 1e-30) - np.log(0.9)) ** 2 / 8 > 500


def test_pinsker_slope_by_hand() -> None:
    # P₁ = (1, 0) against q = (1/2, 1/2): ε = log 2, D = log 3.
    slope = pinsker_slope(Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(1.0, 0.0)))
    assert float(slope) == pytest.approx(np.log2(3) * np.sqrt(LN2 / 2), abs=1e-12)


def test_the_exchange_rate_bound_needs_its_zero() -> None:
    # A counterexample to R/G ≤ (a + bλ)/G(1): general data that gain, here (0.4, 0.6), gain the less per domain
    # bit than the right side says. With max(0, ·) the statement holds.
    tuning = Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(0.4, 0.6))
    bound, full = rise_bound(tuning), float(tuning.rise_and_gain(1.0)[1])
    rise, gain = (float(x) for x in tuning.rise_and_gain(0.1))
    assert rise / gain > (float(bound.linear) + 0.1 * float(bound.quadratic)) / full
    assert rise / gain <= float(exchange_rate_bound(bound, 0.1, full)) == 0.0


def test_the_exchange_rate_may_fall_while_general_data_gain() -> None:
    # A counterexample to the order of R/G without its hypothesis R ≥ 0: P₁ = (0.2, 0.8) lies beyond p₂.
    tuning = Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(0.2, 0.8))
    rates = [float(rise / gain) for rise, gain in (tuning.rise_and_gain(lam) for lam in (0.1, 0.5, 1.0))]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 0


def test_no_exchange_rate_without_a_gain() -> None:
    for full in (0.0, -1.0, np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="positive domain gain"):
            exchange_rate_bound(RiseBound(0.0, 1.0), 0.5, full)


# Theorem 1b


@given(
    **shapes,
    steps=st.integers(1, 6),
    way=st.floats(0.05, 0.95),
    width=st.floats(0.01, 6.0),
)
def test_noise_costs_at_most_its_bound(seed: int, depth: int, vocab: int, steps: int, way: float, width: float) -> None:
    tuning = setting(seed, depth, vocab)
    step = 1.0 - (1.0 - way) ** (1.0 / steps)
    direction = np.random.default_rng(seed).uniform(-1, 1, tuning.base.shape)
    rise, gain = (float(x) for x in tuning.rise_and_gain(way))
    noisy_rise, noisy_gain = (
        float(x) for x in tuning.noisy_rise_and_gain(np.array(step), steps, direction, np.array(width))
    )
    extra = float(noisy_steps_bound(step, steps, width, depth))
    assert -EPSILON <= noisy_rise - rise <= extra + EPSILON
    assert -EPSILON <= gain - noisy_gain <= extra + EPSILON
    assert extra <= depth * width**2 / 8 * step / LN2 + EPSILON  # at most a constant times λ


@given(**shapes, steps=st.integers(1, 5), way=st.floats(0.1, 0.9), width=st.floats(0.01, 3.0))
def test_at_equal_gain_noise_costs_at_most_a_constant_times_lambda(
    seed: int, depth: int, vocab: int, steps: int, way: float, width: float
) -> None:
    tuning = setting(seed, depth, vocab)
    step = 1.0 - (1.0 - way) ** (1.0 / steps)
    direction = np.random.default_rng(seed).uniform(-1, 1, tuning.base.shape)
    rise, gain = tuning.noisy_rise_and_gain(np.array(step), steps, direction, np.array(width))
    full_rise, full_gain = tuning.rise_and_gain(1.0)
    assume(0 <= gain < full_gain - 1e-4)
    there = largest(lambda lam: tuning.rise_and_gain(lam)[1] <= gain, np.array(way))
    noise_free, reached = tuning.rise_and_gain(there)
    assert float(reached) == pytest.approx(float(gain), abs=1e-9)
    constant = (1.0 + max(0.0, float((full_rise - noise_free) / (full_gain - gain)))) * depth * width**2 / 8 / LN2
    assert float(rise) <= float(noise_free) + constant * step + EPSILON


@given(way=st.floats(0.05, 0.95), width=st.floats(0.01, 6.0))
def test_on_the_same_way_smaller_steps_have_the_smaller_bound(way: float, width: float) -> None:
    extras = [
        float(noisy_steps_bound(1.0 - (1.0 - way) ** (1.0 / steps), steps, width, 2)) for steps in (1, 2, 4, 64, 4096)
    ]
    assert extras == sorted(extras, reverse=True)
    assert extras[-1] < 0.01 * extras[0] / way


def test_golden_noise_bound() -> None:
    # λ = 1/2, K = 2: λ²(1 + 1/4) = 5/16, times n b²/8 = 3·4/8.
    assert float(noisy_steps_bound(0.5, 2, 2.0, 3)) == pytest.approx(5 / 16 * 3 / 2 / LN2, abs=1e-14)


def test_noise_bound_is_nearly_met() -> None:
    # One whole step, u = (1, -1), p₂ = q uniform: the excess is log cosh(b/2), the bound b²/8; their ratio tends to 1.
    q = single(0.5, 0.5)
    found = Tuning.from_trees(q, q, q).noisy_rise_and_gain(np.array(1.0), 1, np.array([[1.0, -1.0]]), np.array(0.1))
    assert 1.0 <= float(noisy_steps_bound(1.0, 1, 0.1, 1)) / float(found[0]) < 1.001


@pytest.mark.parametrize(
    ("step", "steps", "depth"), [(0.0, 1, 1), (1.1, 1, 1), (np.nan, 1, 1), (0.5, 0, 1), (0.5, 1, 0)]
)
def test_noise_bound_refusals(step: float, steps: int, depth: int) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        noisy_steps_bound(step, steps, 1.0, depth)


# Theorem 2


@given(**shapes, mix=mixes, threshold=thresholds)
def test_hard_tokens_bound_the_rise(seed: int, depth: int, vocab: int, mix: float, threshold: float) -> None:
    q, domain, other = models(seed, depth, vocab, 3)
    p2, rows = q.mix(domain, mix), q.rows
    share = hard_tokens(rows, domain.rows, threshold)
    for law in (q, q.mix(other, 0.2), other):
        general = law.rows
        bound = hard_token_bound(node_reach(general, depth), share, mix, threshold, shortfall(general, rows))
        for lam in LAMBDAS:
            assert general_rise(q, p2, law, lam) <= float(bound.at(lam)) + EPSILON
        for budget in (0.0, 0.01, 0.3):
            safe = float(safe_lambda(bound, budget))
            assert 0.0 <= safe <= 1.0
            for lam in (safe, safe / 2):
                assert general_rise(q, p2, law, lam) <= budget + EPSILON


@given(**shapes, mix=mixes, threshold=thresholds)
def test_hard_tokens_do_drive_the_rise(seed: int, depth: int, vocab: int, mix: float, threshold: float) -> None:
    q, domain = models(seed, depth, vocab, 2)
    rows = q.rows
    mass, share = (hard_tokens(rows, tree.rows, threshold) for tree in (q, domain))
    floor = hard_token_floor(node_reach(rows, depth), mass, share, mix)
    assert -EPSILON <= float(floor) <= general_rise(q, q.mix(domain, mix), q, 1.0) + EPSILON


@given(**shapes, mix=mixes)
def test_the_full_rise_is_convex_in_what_the_domain_asks(seed: int, depth: int, vocab: int, mix: float) -> None:
    q, first, second, general = models(seed, depth, vocab, 4)
    ends = [general_rise(q, q.mix(domain, mix), general, 1.0) for domain in (first, second)]
    middle = general_rise(q, q.mix(first.mix(second, 0.5), mix), general, 1.0)
    assert middle <= sum(ends) / 2 + EPSILON


@given(**shapes, mix=mixes, threshold=thresholds)
def test_very_hard_tokens_bound_the_rise(seed: int, depth: int, vocab: int, mix: float, threshold: float) -> None:
    q, domain = models(seed, depth, vocab, 2)
    rows = q.rows
    mass, share = (hard_tokens(rows, tree.rows, threshold) for tree in (q, domain))
    reach = node_reach(rows, depth)
    plain = hard_token_bound(reach, share, mix, threshold)
    for lam in LAMBDAS:
        bound = float(very_hard_token_bound(reach, mass, share, mix, threshold, lam))
        assert general_rise(q, q.mix(domain, mix), q, lam) <= bound + EPSILON
        assert bound <= float(plain.at(lam)) + EPSILON


def test_golden_very_hard_tokens() -> None:
    # q(H) = 1/64, h = 1 and m = 5/21, so that p₂(H) = (16/21)/64 + 5/21 = 1/4. The hard part, in nats, is the least
    # of λ² m and 2^(-6(1-λ)) 2^(-2λ): 5/84 against 1/16 at λ = 1/2, and 0.152 against 2^(-2.8) = 0.144 at λ = 4/5.
    one, m = np.ones(1), 5 / 21
    rest = np.log1p(-m) ** 2 / 2
    for lam, hard in ((0.5, 5 / 84), (0.1, m / 100), (0.8, 2**-2.8)):
        found = float(very_hard_token_bound(one, one / 64, one, m, 0.5, lam))
        assert found == pytest.approx((hard + lam**2 * rest) / LN2, abs=1e-12)


def test_the_hardest_tokens_barely_move() -> None:
    # A counterexample to "the harder the token, the narrower the range": one hard token that the domain always wants,
    # m = 0.1. Of q(H) = 1e-1, 1e-2, 1e-6 the middle one rises most half way, though at λ = 1 the last one does.
    rises = []
    for mass in (1e-1, 1e-2, 1e-6):
        q = single(mass, 1.0 - mass)
        p2 = q.mix(single(1.0, 0.0), 0.1)
        rises.append([general_rise(q, p2, q, lam) for lam in (0.5, 1.0)])
    half, full = zip(*rises, strict=True)
    assert half[1] > half[0] > 20 * half[2]
    assert full[0] < full[1] < full[2]


def test_golden_hard_token_bound() -> None:
    # m = 1/2: log²(1-m)/2 = (log 2)²/2 = 0.24023. δ = 1/4, h = 1/2: 1 + 1/2·(4 - 2) = 2, so b = 1/4 + 0.48045 nats.
    # ρ = 1/10: a = log(2)/10.
    bound = hard_token_bound(np.ones(1), np.array([0.5]), 0.5, 0.25, 0.1)
    assert float(bound.quadratic) == pytest.approx((0.25 + LN2**2) / LN2, abs=1e-12)
    assert float(bound.linear) == pytest.approx(0.1, abs=1e-12)


def test_golden_hard_token_floor() -> None:
    # q(H) = 1/4, h = 1, m = 1/3: after, 1/2. kl = 1/4·log₂(1/2) + 3/4·log₂(3/2) = 3/4·log₂3 - 1 bits.
    one = np.ones(1)
    assert float(hard_token_floor(one, one / 4, one, 1 / 3)) == pytest.approx(0.75 * np.log2(3) - 1, abs=1e-12)
    assert float(hard_token_floor(one, 0 * one, one, 0.5)) == pytest.approx(1.0, abs=1e-12)  # -log₂(1 - m h)
    assert float(hard_token_floor(one, one, one, 0.5)) == 0.0


def test_a_wider_range_with_fewer_hard_tokens() -> None:
    # m = 0.1, δ = 0.1: b grows with h, as m > log²(1-m)/2 · (1/δ - 2), and the guaranteed range shrinks.
    ranges = [
        float(safe_lambda(hard_token_bound(np.ones(1), np.array([h]), 0.1, 0.1), 0.01)) for h in (0.0, 0.2, 0.5, 1.0)
    ]
    assert ranges == sorted(ranges, reverse=True)
    assert ranges[0] > 1.4 * ranges[-1]


def test_fewer_hard_tokens_do_not_always_rise_less() -> None:
    # A counterexample about the rise itself: q = (0.2, 0.3, 0.5), the first token hard at δ = 1/4, m = 1/2.
    # Moving a quarter of the domain from the second token to the hard one lowers the rise, at every λ.
    q = single(0.2, 0.3, 0.5)
    without, some = (q.mix(single(h, 1.0 - h, 0.0), 0.5) for h in (0.0, 0.25))
    assert hard_tokens(q.rows, q.rows, 0.25).tolist() == [0.2]
    for lam in (0.1, 0.5, 1.0):
        assert general_rise(q, some, q, lam) < 0.7 * general_rise(q, without, q, lam)


def test_hard_tokens_by_hand() -> None:
    q = np.array([[0.1, 0.2, 0.7]])
    assert hard_tokens(q, q, 0.2).tolist() == [0.1]  # a token at the threshold is easy
    assert hard_tokens(q, q, 0.05).tolist() == [0.0]
    np.testing.assert_allclose(hard_tokens(q, np.array([[0.5, 0.25, 0.25]]), 0.5), [0.75])
    assert shortfall(q, q).tolist() == [0.0]
    assert shortfall(np.array([[0.0, 0.3, 0.7]]), q).tolist() == [1.0]
    np.testing.assert_allclose(shortfall(np.array([[0.1, 0.1, 0.8]]), q), [0.5])


@pytest.mark.parametrize(("mix", "threshold"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 0.6), (np.nan, 0.1)])
def test_hard_token_bound_refuses_numbers_outside_the_theorem(mix: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="mix must lie"):
        hard_token_bound(np.ones(1), np.ones(1), mix, threshold)


def test_hard_token_bound_refuses_shares_outside_the_unit_interval() -> None:
    with pytest.raises(ValueError, match="hard_share must lie"):
        hard_token_bound(np.ones(1), np.array([1.5]), 0.1, 0.1)
    with pytest.raises(ValueError, match="shortfall must lie"):
        hard_token_bound(np.ones(1), np.ones(1), 0.1, 0.1, -0.1)


@given(linear=st.floats(-5, 5), quadratic=st.floats(0, 50), budget=st.floats(0, 3))
def test_the_safe_range_is_safe_and_full(linear: float, quadratic: float, budget: float) -> None:
    bound = RiseBound(linear, quadratic)
    safe = float(safe_lambda(bound, budget))
    assert float(np.max(bound.at(np.linspace(0, safe, 50)))) <= budget + 1e-9
    assert safe == 1.0 or float(bound.at(min(1.0, safe * (1 + 1e-6) + 1e-9))) > budget - 1e-12


def test_safe_range_edges() -> None:
    assert float(safe_lambda(RiseBound(1.0, 0.0), 0.0)) == 0.0
    assert float(safe_lambda(RiseBound(0.0, 1.0), 0.0)) == 0.0
    assert float(safe_lambda(RiseBound(-1.0, 0.0), 0.0)) == 1.0
    assert float(safe_lambda(RiseBound(2.0, 0.0), 1.0)) == 0.5
    np.testing.assert_allclose(safe_lambda(RiseBound(np.zeros(2), np.array([4.0, 0.1])), 1.0), [0.5, 1.0])
    with pytest.raises(ValueError, match="negative"):
        safe_lambda(RiseBound(0.0, 1.0), -0.1)
