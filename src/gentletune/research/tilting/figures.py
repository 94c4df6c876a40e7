"""A tuned model seen as a tilt of the base model: the effective λ, how well it fits, and the bounds at it.

Tensors in, tensors out; all in nats. T positions (contexts), V tokens; `log_q`, `log_p2` and `log_k` (T, V) are the
next-token log-probabilities of the base model q, of a target p₂ and of a checkpoint q_k, all finite; float32 tables add
up to 1 to some 1e-7, so they are normalised in float64. With s = log p₂ - log q at a position, the tilt is
q_λ ∝ q e^(λ s), and ψ(λ) = log Σ q e^(λ s); `docs/tilting.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

HIGHEST = 1.5  # a checkpoint may have gone further than the target; beyond this it is no step towards it
_ROWS = 16  # positions at a time: a few megabytes in float64, whatever T is
_NOTHING = 1e-7  # nats: where divergences of float32 tables end in rounding
_CLOSE = 1e-10  # of λ


class Moments(NamedTuple):
    """ψ(λ), and mean and variance of s under the tilt q_λ, at each position: (T,) in float64."""

    psi: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class EffectiveTilt:
    """The tilt nearest to a model: `lam` in [0, 1.5].

    `fit` = 1 - KL(q_k‖q_λ̂)/KL(q_k‖q), means over positions: the share of the model's way from q that one λ for all
    positions accounts for. None where the model is still q.
    """

    lam: float
    fit: float | None


@dataclass(frozen=True)
class TiltBounds:
    """KL(q‖q_λ), mean over positions, and what bounds it. All nats.

    `convex` is λ·KL(q‖p₂), a bound for λ in [0, 1] (None beyond). `hoeffding` is λ² D²/8 with D the range of s at the
    position, and `theorem` λ²·min(D²/8, V) of Theorem 1a, for λ in [0, 1] too. `quadratic` is λ²/2·Var_q(s), which is
    near for small λ and bounds nothing.
    """

    tilted: float
    convex: float | None
    hoeffding: float
    theorem: float | None
    quadratic: float


def tilt_moments(log_q: Tensor, log_p2: Tensor, lam: float) -> Moments:
    """ψ, ψ′ and ψ″ of the tilt towards p₂ at λ.

    >>> q, p2 = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    >>> found = tilt_moments(q, p2, 1.0)  # ψ(1) = 0 and ψ′(1) = KL(p₂‖q)
    >>> abs(found.psi.item()) < 1e-6, round(found.mean.item(), 3)
    (True, 0.368)
    """

    def moments(q: Tensor, s: Tensor) -> Tensor:
        weight = torch.exp(q + lam * s)  # at most 1 for λ ≤ 1, and far from float64's end up to 1.5
        total, weighted = weight.sum(-1), weight * s
        mean = weighted.sum(-1) / total
        return torch.stack([total.log(), mean, ((weighted * s).sum(-1) / total - mean**2).clamp_min(0)], -1)

    return Moments(*_each(moments, log_q, log_p2).unbind(-1))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) at each position, nats: (T,) in float64.

    >>> kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()).item()  # doctest: +ELLIPSIS
    0.1438...
    """
    return -_each(lambda p, s: (p.exp() * s).sum(-1), log_p, log_q)


def moved(log_q: Tensor, log_p2: Tensor) -> bool:
    """Whether p₂ differs from q by more than the rounding of float32 tables: the tilt is undefined otherwise."""
    return float(tilt_moments(log_q, log_p2, 0.0).variance.mean()) / 2 > _NOTHING  # near q that is KL(q‖p₂)


def effective_tilt(log_q: Tensor, log_p2: Tensor, log_k: Tensor, highest: float = HIGHEST) -> EffectiveTilt:
    """λ̂ = argmin over [0, `highest`] of the mean over positions of KL(q_k‖q_λ), and its fit.

    The mean is KL(q_k‖q) - λ E_{q_k}[s] + ψ(λ), convex in λ, with derivative E_{q_λ}[s] - E_{q_k}[s]; its zero is
    found by Newton steps kept within a bracket. Ours.

    Raises:
        ValueError: p₂ is q, so that every λ gives the same model; shapes that do not fit; no position.

    >>> q, p2 = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.9, 0.1]]).double().log()
    >>> half = (q + p2).div(2).log_softmax(-1)
    >>> round(effective_tilt(q, p2, half).lam, 9)
    0.5
    """
    _check(log_q, log_p2, log_k)
    if not moved(log_q, log_p2):
        raise ValueError("the target is the base model: no λ is defined")
    reached = float(_each(lambda _, s, k: (k.exp() * s).sum(-1), log_q, log_p2, log_k).mean())
    way = float(kl(log_k, log_q).mean())
    lam = _zero(log_q, log_p2, reached, highest)
    if abs(lam - 1) < _CLOSE:
        lam = 1.0  # the target itself: rounded above 1, it would have no convex bound
    left = way - lam * reached + float(tilt_moments(log_q, log_p2, lam).psi.mean())
    return EffectiveTilt(lam, 1 - left / way if way > _NOTHING else None)


def tilt_bounds(log_q: Tensor, log_p2: Tensor, lam: float) -> TiltBounds:
    """How far the tilt at λ ≥ 0 is from q, and the bounds on that. Ours; `docs/tilting.md`.

    V = Σ_{s≥0} (p₂ - q - q s) + Σ_{s<0} q s²/2, with which ψ(λ) - λ E_q s ≤ λ² V for λ in [0, 1].

    >>> q, p2 = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.9, 0.1]]).double().log()
    >>> found = tilt_bounds(q, p2, 0.5)
    >>> found.tilted <= found.hoeffding <= found.convex
    True
    """
    _check(log_q, log_p2)
    start, here = tilt_moments(log_q, log_p2, 0.0), tilt_moments(log_q, log_p2, lam)
    hoeffding = _each(lambda _, s: (s.amax(-1) - s.amin(-1)) ** 2 / 8, log_q, log_p2)
    one_sided = _each(lambda q, s: (q.exp() * torch.where(s >= 0, torch.expm1(s) - s, s**2 / 2)).sum(-1), log_q, log_p2)
    return TiltBounds(
        tilted=float((here.psi - lam * start.mean).mean()),
        convex=-lam * float(start.mean.mean()) if lam <= 1 else None,  # E_q[s] = -KL(q‖p₂)
        hoeffding=lam**2 * float(hoeffding.mean()),
        theorem=lam**2 * float(torch.minimum(hoeffding, one_sided).mean()) if lam <= 1 else None,
        quadratic=lam**2 * float(start.variance.mean()) / 2,
    )


def _zero(log_q: Tensor, log_p2: Tensor, reached: float, highest: float) -> float:
    """Where E_{q_λ}[s] is `reached` on average; the end of [0, highest] beyond which it lies."""
    low, high, lam = 0.0, highest, 0.0
    for end, sign in ((low, 1), (high, -1)):
        if sign * (float(tilt_moments(log_q, log_p2, end).mean.mean()) - reached) >= 0:
            return end
    for _ in range(100):
        found = tilt_moments(log_q, log_p2, lam)
        slope, curve = float(found.mean.mean()) - reached, float(found.variance.mean())
        low, high = (lam, high) if slope < 0 else (low, lam)
        step = lam - slope / curve if curve > 0 else high
        before, lam = lam, step if low < step < high else (low + high) / 2
        if abs(lam - before) < _CLOSE:
            break
    return lam


def _each(read: Callable[..., Tensor], log_q: Tensor, log_p2: Tensor, *others: Tensor) -> Tensor:
    """`read(log q, s, others …)` at every position, in float64 and adding up to 1, some positions at a time."""
    parts = []
    for block in zip(*(table.split(_ROWS) for table in (log_q, log_p2, *others)), strict=True):
        q, p2, *more = (rows.double().log_softmax(-1) for rows in block)
        parts.append(read(q, p2 - q, *more))
    return torch.cat(parts)


def _check(*tables: Tensor) -> None:
    shapes = [tuple(table.shape) for table in tables]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
        raise ValueError(f"expected log-probabilities (positions, tokens) of one shape, not empty, got {shapes}")
    if not all(bool(torch.isfinite(table).all()) for table in tables):
        raise ValueError("log-probabilities must be finite")
