"""Upper bounds on what general data loses: Theorems 1a, 1b and 2 of docs/theory.md (ours), with their constants.

Everything returned is in bits per sequence and takes arrays, one entry a tree, as well as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr

from gentletune.research.theory.tilting import Tuning
from gentletune.research.theory.tree import LN2, FloatArray

Number = float | FloatArray


@dataclass(frozen=True, eq=False)
class RiseBound:
    """R(λ) ≤ aλ + bλ² for 0 ≤ λ ≤ 1: a is `linear`, b ≥ 0 is `quadratic`; bits per sequence."""

    linear: Number
    quadratic: Number

    def at(self, lam: Number) -> FloatArray:
        """The bound aλ + bλ² at λ, bits per sequence.

        >>> float(RiseBound(1.0, 2.0).at(0.5))
        1.0
        """
        return np.asarray((self.linear + self.quadratic * lam) * lam)


def rise_bound(tuning: Tuning) -> RiseBound:
    """Theorem 1a: a = Σ_c P₁(c) (E_q s_c - E_{P₁} s_c) and b = Σ_c P₁(c) min(D_c²/8, V_c).

    D_c = max s_c - min s_c (Hoeffding's lemma); V_c = Σ_{s≥0} (p₂ - q - q s) + Σ_{s<0} q s²/2 stays finite where
    q makes a token arbitrarily improbable. On well-modelled data (P₁ = q) a = 0.

    >>> from gentletune.research import TokenTree
    >>> q, p = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> bound = rise_bound(Tuning.from_trees(q, p, general=q))
    >>> float(bound.linear), round(float(bound.quadratic), 4)
    (0.0, 0.2177)
    """
    ratio = tuning.log_ratio
    slope = ((tuning.base - tuning.general) * ratio).sum(axis=-1)
    above = tuning.target - tuning.base * (1.0 + ratio)
    one_sided = np.where(ratio >= 0, above, tuning.base * ratio**2 / 2).sum(axis=-1)
    curvature = np.minimum(np.ptp(ratio, axis=-1) ** 2 / 8, one_sided)
    return RiseBound(tuning.over_general(slope) / LN2, tuning.over_general(curvature) / LN2)


def pinsker_slope(tuning: Tuning) -> FloatArray:
    """An upper bound on Theorem 1a's a from how well P₁ is modelled: Σ_c P₁(c) D_c √(ε_c/2), bits per sequence.

    ε_c = KL(P₁(·|c) ‖ q(·|c)) in nats. Source: Pinsker's inequality (Cover and Thomas, Lemma 11.6.1).
    """
    divergence = np.maximum(rel_entr(tuning.general, tuning.base).sum(axis=-1), 0.0)
    return tuning.over_general(np.ptp(tuning.log_ratio, axis=-1) * np.sqrt(divergence / 2)) / LN2


def exchange_rate_bound(bound: RiseBound, lam: Number, full_gain: Number) -> FloatArray:
    """Theorem 1a: R(λ)/G(λ) ≤ max(0, a + bλ) / G(1), general bits lost per domain bit gained.

    `full_gain` is G(1) in bits per sequence. Raises `ValueError` unless it is positive: a target that does not
    help the domain has no exchange rate.

    >>> float(exchange_rate_bound(RiseBound(0.0, 2.0), 0.1, 4.0))
    0.05
    """
    if not (np.asarray(full_gain) > 0).all():
        raise ValueError("the exchange rate needs a positive domain gain at λ = 1")
    return np.asarray(np.maximum(0.0, bound.linear + bound.quadratic * lam) / full_gain)


def noisy_steps_bound(step: Number, steps: int, width: Number, depth: int) -> FloatArray:
    """Theorem 1b: the most that K noisy steps of size λ add to the expected rise, or take from the gain.

    n (w²/8) λ (1 - (1-L)²)/(2-λ) nats, here in bits per sequence, where 1 - L = (1-λ)^K. `step` is λ in (0, 1],
    `steps` K, `width` w in nats, `depth` n. Raises `ValueError` when λ is outside (0, 1] or K, n < 1.

    >>> round(float(noisy_steps_bound(1.0, 1, 2.0, 1)), 4)
    0.7213
    >>> bool(noisy_steps_bound(0.1, 10, 2.0, 1) < noisy_steps_bound(0.2, 5, 2.0, 1))
    True
    """
    rate = np.asarray(step)
    if not ((rate > 0) & (rate <= 1)).all() or steps < 1 or depth < 1:
        raise ValueError(f"step must lie in (0, 1], steps and depth be at least 1; got {step}, {steps}, {depth}")
    share = 1.0 - (1.0 - rate) ** (2 * steps)
    return np.asarray(depth * np.asarray(width) ** 2 / 8 * rate * share / (2.0 - rate) / LN2)


def hard_token_bound(
    reach: FloatArray, hard_share: FloatArray, mix: Number, threshold: Number, shortfall: Number = 0.0
) -> RiseBound:
    """Theorem 2: the target is p₂ = (1-m) q + m d, and hard tokens are those with q(x | c) < δ.

    a = Σ_c P₁(c) ρ_c log(1/(1-m)) and b = Σ_c P₁(c) [m h_c + κ m² (1 + (1-h_c)(1/δ - 2))], where
    κ = (log(1-m)/m)²/2, which is 1/2 for small m. `reach` is P₁(c) of the nodes, shape (…, M); `hard_share` is
    h_c = d(hard | c), the same shape; `mix` m in (0, 1) and `threshold` δ in (0, 1/2] are one number, or one a
    tree (…). `shortfall` ρ_c in [0, 1] bounds how far P₁ falls below q: P₁(x|c) ≥ (1-ρ_c) q(x|c); 0 for data
    that q itself produces. Needs no tree: on a real model `reach` may be the tokens of one measured sequence
    with weight 1 each. Raises `ValueError` when a value is outside its range.

    >>> bound = hard_token_bound(np.ones(1), np.array([0.5]), mix=0.1, threshold=0.25)
    >>> float(bound.linear), round(float(bound.quadratic), 4)
    (0.0, 0.0881)
    """
    m, delta = (np.asarray(value, dtype=np.float64)[..., None] for value in (mix, threshold))
    if not ((m > 0) & (m < 1)).all() or not ((delta > 0) & (delta <= 0.5)).all():
        raise ValueError(f"mix must lie in (0, 1) and threshold in (0, 1/2], got {mix} and {threshold}")
    for name, value in (("hard_share", hard_share), ("shortfall", np.asarray(shortfall))):
        if not ((value >= 0) & (value <= 1 + 1e-9)).all():
            raise ValueError(f"{name} must lie in [0, 1]")
    fall = -np.log1p(-m)
    easy = 1.0 + (1.0 - hard_share) * (1.0 / delta - 2.0)
    slope, curvature = shortfall * fall, m * hard_share + fall**2 / 2 * easy
    return RiseBound((reach * slope).sum(axis=-1) / LN2, (reach * curvature).sum(axis=-1) / LN2)


def very_hard_token_bound(
    reach: FloatArray, hard_mass: FloatArray, hard_share: FloatArray, mix: Number, threshold: Number, lam: Number
) -> FloatArray:
    """Theorem 2 with the hard mass q(H_c) = `hard_mass` known: a bound on R(λ), bits per sequence, for P₁ = q.

    Σ_c P₁(c) [min(λ² m h_c, q(H_c)^(1-λ) p₂(H_c)^λ) + λ² κ m² (1 + (1-h_c)(1/δ - 2))], never above
    `hard_token_bound`. For λ < 1 the share of tokens so hard that q(H_c) → 0 vanishes: tilting barely moves them.
    For other data add that bound's aλ. Arguments and errors as there; `lam` in [0, 1], one number or one a tree (…).

    >>> one = np.ones(1)
    >>> [round(float(very_hard_token_bound(one, q * one, one, 0.1, 0.25, 0.5)), 4) for q in (1e-2, 1e-4, 1e-6)]
    [0.0381, 0.0066, 0.0025]
    """
    quadratic = hard_token_bound(reach, hard_share, mix, threshold).quadratic
    m, rate = (np.asarray(value, dtype=np.float64)[..., None] for value in (mix, lam))
    after = (1.0 - m) * hard_mass + m * hard_share
    plain = rate**2 * m * hard_share
    saved = np.maximum(0.0, plain - hard_mass ** (1.0 - rate) * after**rate)
    return np.asarray(quadratic * np.asarray(lam) ** 2 - (reach * saved).sum(axis=-1) / LN2)


def hard_token_floor(reach: FloatArray, hard_mass: FloatArray, hard_share: FloatArray, mix: Number) -> FloatArray:
    """Theorem 2's converse: on data that q itself produces, R(1) is at least this, bits per sequence.

    Σ_c P₁(c) kl(q(H_c) ‖ (1-m) q(H_c) + m h_c), kl the divergence of two coins. `hard_mass` is q(H_c), shape
    (…, M) as `reach` and `hard_share`; `mix` as in `hard_token_bound`. Where q(H_c) = 0 it is -log(1 - m h_c) ≥ m h_c.
    """
    m = np.asarray(mix, dtype=np.float64)[..., None]
    sides = ((hard_mass, hard_share), (np.maximum(0.0, 1.0 - hard_mass), np.maximum(0.0, 1.0 - hard_share)))
    nats = sum(rel_entr(before, (1.0 - m) * before + m * pull) for before, pull in sides)
    return np.asarray((reach * nats).sum(axis=-1) / LN2)


def safe_lambda(bound: RiseBound, budget: Number) -> FloatArray:
    """The largest λ in [0, 1] with aλ + bλ² ≤ budget: every λ up to it keeps R within the budget (bits per sequence).

    Raises `ValueError` on a negative budget.

    >>> float(safe_lambda(RiseBound(0.0, 4.0), 0.01)), float(safe_lambda(RiseBound(0.0, 0.0), 0.01))
    (0.05, 1.0)
    """
    linear, quadratic, room = (np.asarray(x, dtype=np.float64) for x in (bound.linear, bound.quadratic, budget))
    if not (room >= 0).all():
        raise ValueError(f"the budget must not be negative, got {budget}")
    root = np.sqrt(linear**2 + 4.0 * quadratic * room)
    # Two forms of one root: each without cancellation where it is used. What overflows is cut to 1 below.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        largest = np.where(linear > 0, 2.0 * room / (linear + root), (root - linear) / (2.0 * quadratic))
    return np.asarray(np.where(bound.at(1.0) <= room, 1.0, np.minimum(1.0, largest)))


def hard_tokens(base: FloatArray, rows: FloatArray, threshold: Number) -> FloatArray:
    """What `rows` give to the hard tokens {x : q(x | c) < δ} of every node: (…, M, v) to (…, M).

    With the domain's rows this is the hard share h_c, with q's own the hard mass q(H_c).

    >>> hard_tokens(np.array([[0.1, 0.9]]), np.array([[0.75, 0.25]]), 0.2).tolist()
    [0.75]
    """
    hard = base < np.asarray(threshold)[..., None, None]
    mass: FloatArray = np.where(hard, rows, 0.0).sum(axis=-1)
    return mass


def shortfall(general: FloatArray, base: FloatArray) -> FloatArray:
    """ρ_c = max(0, max_x 1 - P₁(x | c)/q(x | c)): the least ρ with P₁ ≥ (1-ρ) q; (…, M, v) to (…, M).

    >>> shortfall(np.array([[0.4, 0.6]]), np.array([[0.5, 0.5]])).round(3).tolist()
    [0.2]
    """
    short: FloatArray = np.maximum(0.0, (1.0 - general / base).max(axis=-1))
    return short
