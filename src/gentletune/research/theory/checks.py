"""The statements of docs/theory.md as inequalities on a batch of drawn settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from gentletune.research.theory import bounds
from gentletune.research.theory.draw import BATCH, NEAR, OWN, UNRELATED, Draw
from gentletune.research.theory.tally import SMALLEST, Mask, Tally
from gentletune.research.theory.tilting import Tuning, normalised
from gentletune.research.theory.tree import LN2, FloatArray, path_log_probs

LAMBDAS = np.array([0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
BUDGETS = (0.01, 0.1, 1.0)  # bits per sequence that general data may lose, for the safe range of Theorem 2
THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
_HALVINGS = 45


def check_identities(tally: Tally, drawn: Draw) -> None:
    """The proposition, the sum over nodes, and the composition of tilts."""
    tuning = drawn.tuning
    laws = (tuning.base, tuning.target, tuning.general)
    log_q, log_p, log_general = (path_log_probs(rows, tuning.depth) for rows in laws)
    weights, one = np.exp(log_general), np.ones(BATCH)
    change = (weights * (log_q - log_p)).sum(axis=-1) / LN2
    after, before = ((weights * (log_general - log)).sum(axis=-1) / LN2 for log in (log_p, log_q))
    tally.equal("Proposition: ΔL = KL(P‖q₂) - KL(P‖q₁), to 1e-12", change, after - before, one, 1e-12)
    tally.equal("R(1) summed over nodes = ΔL over sequences", tuning.rise_and_gain(1.0)[0], change, one)
    path = np.log(tuning.base)
    rate = drawn.step[:, None, None]
    for _ in range(drawn.steps):
        path = normalised((1.0 - rate) * path + rate * np.log(tuning.target))
    once = normalised(np.log(tuning.base) + drawn.way[:, None, None] * tuning.log_ratio)
    apart = np.abs(path - once).max(axis=(-2, -1))
    tally.equal("Composition: K tilts by λ = one by 1-(1-λ)^K, log-probabilities", apart, 0.0 * apart, drawn.step)


def check_exchange_rate(tally: Tally, drawn: Draw) -> None:
    """Theorem 1a."""
    tuning, lam, own = drawn.tuning, LAMBDAS[None, :], drawn.kind == OWN
    rise, gain = curves(tuning)
    full_rise, full_gain = rise[:, -1:], gain[:, -1:]
    tally.at_most("1a convexity: R(λ) ≤ λ R(1)", rise, lam * full_rise, lam)
    tally.at_most("1a concavity: λ G(1) ≤ G(λ)", lam * full_gain, gain, lam)
    bound = bounds.rise_bound(tuning)
    slope = np.asarray(bound.linear)
    tally.at_most("1a slope: a ≤ Σ P₁(c) D √(ε/2)", slope, bounds.pinsker_slope(tuning), np.zeros(BATCH), ~own)
    helped = full_gain[:, 0] > SMALLEST
    rate = bounds.exchange_rate_bound(column(bound), lam, np.where(helped[:, None], full_gain, 1.0))
    idle = idle_from(bound, full_rise[:, 0])
    for label, trees in (("P₁ = q", own), ("P₁ ≠ q", ~own)):
        name, ratio = f"1a rise, {label}: R(λ) ≤ aλ + bλ²", f"1a exchange rate, {label}: R/G ≤ max(0, a + bλ)/G(1)"
        tally.at_most(name, rise, column(bound).at(lam), lam, trees)
        tally.silent_from(name, idle, trees)
        tally.at_most(ratio, rise, rate * gain, lam, trees & helped)
        tally.silent_from(ratio, idle, trees & helped)
    # R/G ≤ R'/G' with both sides times G G', so that no tiny gain is divided by.
    held = helped[:, None] & (rise[:, :-1] >= 0)
    left, right = rise[:, :-1] * gain[:, 1:], rise[:, 1:] * gain[:, :-1]
    tally.at_most("1a order: R/G does not fall with λ where R ≥ 0", left, right, lam[:, :-1], held)


def check_noisy_steps(tally: Tally, drawn: Draw) -> None:
    """Theorem 1b, with the exact expectation over all sign sequences."""
    tuning, lam = drawn.tuning, drawn.step
    length = drawn.way
    rise, gain = tuning.rise_and_gain(length)
    noisy_rise, noisy_gain = tuning.noisy_rise_and_gain(drawn.step, drawn.steps, drawn.direction, drawn.width)
    extra = bounds.noisy_steps_bound(drawn.step, drawn.steps, drawn.width, tuning.depth)
    tally.at_most("1b noise never helps: R(L) ≤ E[R]", rise, noisy_rise, lam)
    tally.at_most("1b noise never helps: E[G] ≤ G(L)", noisy_gain, gain, lam)
    tally.at_most("1b excess rise: E[R] - R(L) ≤ T(λ)", noisy_rise - rise, extra, lam)
    tally.at_most("1b lost gain: G(L) - E[G] ≤ T(λ)", gain - noisy_gain, extra, lam)
    share = 1.0 - (1.0 - length) ** 2
    budget = 8.0 * LN2 * rise / (tuning.depth * drawn.width**2 * share)
    tally.silent_from("1b excess rise: E[R] - R(L) ≤ T(λ)", np.clip(2.0 * budget / (1.0 + budget), 0, 1), rise > 0)
    full_rise, full_gain = tuning.rise_and_gain(1.0)
    fits = (noisy_gain >= 0) & (noisy_gain < full_gain - SMALLEST)
    there = largest(lambda point: tuning.rise_and_gain(point)[1] <= noisy_gain, length)
    rise_there = tuning.rise_and_gain(there)[0]
    price = 1.0 + np.maximum(0.0, full_rise - rise_there) / np.where(fits, full_gain - noisy_gain, 1.0)
    name = "1b at equal gain: E[R] - R(L_γ) ≤ T(λ)(1 + r)"
    tally.at_most(name, noisy_rise - rise_there, extra * price, lam, fits)


def check_hard_tokens(tally: Tally, drawn: Draw) -> None:
    """Theorem 2's bounds on the rise, where the target is a true mixture."""
    tuning, lam = drawn.tuning, LAMBDAS[None, :]
    own, m = drawn.kind == OWN, _mix(drawn)
    rise, _ = curves(tuning)
    bound = hard_bound(drawn, m, drawn.threshold)
    sloped = bounds.RiseBound(bounds.rise_bound(tuning).linear, bound.quadratic)
    least = np.min([np.asarray(hard_bound(drawn, m, delta).quadratic) for delta in THRESHOLDS], axis=0)
    for name, variant, trees in (
        ("2 rise, P₁ = q: R(λ) ≤ aλ + bλ²", bound, own),
        ("2 rise, P₁ near q: R(λ) ≤ aλ + bλ²", bound, drawn.kind == NEAR),
        ("2 rise, P₁ unrelated: R(λ) ≤ aλ + bλ²", bound, drawn.kind == UNRELATED),
        ("2 rise, P₁ ≠ q, with the a of Theorem 1a", sloped, ~own),
        ("2 rise, P₁ = q, at the best of 8 thresholds", bounds.RiseBound(bound.linear, least), own),
    ):
        tally.at_most(name, rise, column(variant).at(lam), lam, trees & (drawn.mix < 1.0))
        tally.silent_from(name, idle_from(variant, rise[:, -1]), trees & (drawn.mix < 1.0))


def check_hard_token_range(tally: Tally, drawn: Draw) -> None:
    """Theorem 2's safe range, its form for very hard tokens, its converse, and convexity in the hard share."""
    tuning, lam, one = drawn.tuning, LAMBDAS[None, :], np.ones(BATCH)
    mixed, m = drawn.mix < 1.0, _mix(drawn)
    own, other = mixed & (drawn.kind == OWN), mixed & (drawn.kind != OWN)
    bound = hard_bound(drawn, m, drawn.threshold)
    for budget in BUDGETS:
        safe = bounds.safe_lambda(bound, budget)
        exact = largest(partial(_within, tuning, budget), one)  # R is convex: one range
        for label, trees in (("P₁ = q", own), ("P₁ ≠ q", other)):
            tally.at_most(f"2 safe λ at {budget:g} bits, {label}: up to the exact one", safe, exact, safe, trees)
    rise, _ = curves(tuning)
    mass = bounds.hard_tokens(tuning.base, tuning.base, drawn.threshold)
    share = bounds.hard_tokens(tuning.base, drawn.pull, drawn.threshold)
    reach = tuning.general_reach
    very = [bounds.very_hard_token_bound(reach, mass, share, m, drawn.threshold, x * one) for x in LAMBDAS]
    tally.at_most("2 very hard tokens, P₁ = q", rise, np.stack(very, axis=-1), lam, own)
    floor = bounds.hard_token_floor(reach, mass, share, m)
    tally.at_most("2 converse, P₁ = q: Σ P₁(c) kl(H_c) ≤ R(1)", floor, rise[:, -1], one, own)
    few, some, many = (with_hard_share(drawn, h).rise_and_gain(1.0)[0] for h in (0.25, 0.5, 0.75))
    tally.at_most("2 convexity: R(1) in the hard share h, P₁ = q", some, (few + many) / 2, one, mixed)


def _within(tuning: Tuning, budget: float, lam: FloatArray) -> Mask:
    return tuning.rise_and_gain(lam)[0] <= budget


def _mix(drawn: Draw) -> FloatArray:
    """m, with a stand-in where the target is no mixture: those trees are left out of the checks."""
    return np.where(drawn.mix < 1.0, drawn.mix, 0.5)


def hard_bound(drawn: Draw, mix: FloatArray, threshold: bounds.Number) -> bounds.RiseBound:
    """Theorem 2's bound for the drawn settings at another threshold than theirs, or theirs."""
    tuning = drawn.tuning
    share = bounds.hard_tokens(tuning.base, drawn.pull, threshold)
    short = bounds.shortfall(tuning.general, tuning.base)
    return bounds.hard_token_bound(tuning.general_reach, share, mix, threshold, short)


def with_hard_share(drawn: Draw, share: float) -> Tuning:
    """The drawn settings with P₁ = q and hard share h = `share` wherever a node has hard and easy tokens.

    Within either kind the domain's law stays as drawn, so that nothing else changes.
    """
    q = drawn.tuning.base
    hard = q < drawn.threshold[:, None, None]
    parts = [np.where(side, drawn.pull, 0.0) for side in (hard, ~hard)]
    masses = [part.sum(axis=-1, keepdims=True) for part in parts]
    both = (masses[0] > 0) & (masses[1] > 0)
    laws = [part / np.where(both, mass, 1.0) for part, mass in zip(parts, masses, strict=True)]
    pull = np.where(both, share * laws[0] + (1.0 - share) * laws[1], drawn.pull)
    m = drawn.mix[:, None, None]
    target = (1.0 - m) * q + m * pull
    return Tuning(q, target, q, target, drawn.tuning.depth)


def curves(tuning: Tuning) -> tuple[FloatArray, FloatArray]:
    """R and G at every λ of `LAMBDAS`, bits per sequence: (T, Λ) each."""
    rises, gains = zip(*(tuning.rise_and_gain(float(lam)) for lam in LAMBDAS), strict=True)
    return np.stack(rises, axis=-1), np.stack(gains, axis=-1)


def column(bound: bounds.RiseBound) -> bounds.RiseBound:
    """A bound of T trees, ready for λs in columns: (T, 1)."""
    return bounds.RiseBound(np.asarray(bound.linear)[:, None], np.asarray(bound.quadratic)[:, None])


def idle_from(bound: bounds.RiseBound, full_rise: FloatArray) -> FloatArray:
    """The λ from which aλ + bλ² exceeds what convexity gives, λ R(1): (R(1) - a)/b, within [0, 1]."""
    room = full_rise - np.asarray(bound.linear)
    idle: FloatArray = np.clip(room / np.maximum(np.asarray(bound.quadratic), 1e-300), 0.0, 1.0)
    return idle


def largest(holds: Callable[[FloatArray], Mask], end: FloatArray) -> FloatArray:
    """The largest λ in [0, `end`] up to which a condition that holds at 0 goes on holding, by bisection: (T,)."""
    low, high = np.zeros(end.shape), end.copy()
    low = np.where(holds(end), end, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return low
