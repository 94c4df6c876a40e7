"""What tilting costs and gains, exactly, for one tree or a batch of trees of one shape at once.

A tree of depth n over v tokens is laid out as the rows of its M = (v**n - 1)/(v - 1) inner nodes, level after level:
shape (M, v), and (…, M, v) for a batch. Everything is a sum over nodes, which numpy does in one go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gentletune.research.theory.tree import LN2, FloatArray, TokenTree, check_same_shape, levels


def node_reach(rows: FloatArray, depth: int) -> FloatArray:
    """The probability of every inner node under the model with these rows: (…, M, v) to (…, M).

    Sums to `depth` over the nodes, as every level is reached once.

    >>> node_reach(np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]), 2).tolist()
    [1.0, 0.5, 0.5]
    """
    batch = rows.shape[:-2]
    reach = [np.ones((*batch, 1))]
    for level in levels(rows, depth - 1):
        reach.append((reach[-1][..., None] * level).reshape(*batch, -1))
    return np.concatenate(reach, axis=-1)


@dataclass(frozen=True, eq=False)
class Tuning:
    """Fine-tuning as theory sees it: from model q towards p₂, judged on general and on domain data.

    `base` (q), `target` (p₂), `general` (P₁) and `domain` (P₂) are node rows of shape (…, M, v), of trees of depth
    `depth`; the leading axes, if any, number the trees of a batch. Raises `ValueError` when shapes differ, do not fit
    `depth`, or when q or p₂ excludes a token (P₁ and P₂ may).
    """

    base: FloatArray
    target: FloatArray
    general: FloatArray
    domain: FloatArray
    depth: int

    def __post_init__(self) -> None:
        shapes = {rows.shape for rows in (self.base, self.target, self.general, self.domain)}
        if len(shapes) > 1:
            raise ValueError(f"the four models differ in shape: {sorted(shapes)}")
        nodes, vocab = self.base.shape[-2:]
        if self.depth < 1 or nodes != sum(vocab**d for d in range(self.depth)):
            raise ValueError(f"{nodes} nodes over {vocab} tokens are no complete tree of depth {self.depth}")
        if not ((self.base > 0).all() and (self.target > 0).all()):
            raise ValueError("the base model and the target must give every token a positive probability")

    @classmethod
    def from_trees(
        cls, base: TokenTree, target: TokenTree, general: TokenTree, domain: TokenTree | None = None
    ) -> Tuning:
        """One setting from trees; the domain's law P₂ is the target unless given.

        Raises `ValueError` when the trees differ in shape, or `base` or `target` has a zero.
        """
        law = target if domain is None else domain
        check_same_shape(base, target, general, law)
        return cls(base.rows, target.rows, general.rows, law.rows, base.depth)

    @cached_property
    def log_ratio(self) -> FloatArray:
        """s_c(x) = log(p₂(x | c) / q(x | c)), nats: shape (…, M, v)."""
        return np.log(self.target) - np.log(self.base)

    @cached_property
    def general_reach(self) -> FloatArray:
        """P₁(c) of every inner node: shape (…, M)."""
        return node_reach(self.general, self.depth)

    @cached_property
    def _domain_reach(self) -> FloatArray:
        return node_reach(self.domain, self.depth)

    def over_general(self, nodes: FloatArray) -> FloatArray:
        """Σ_c P₁(c) f(c): per-node values (…, M) to one per tree (…)."""
        total: FloatArray = (self.general_reach * nodes).sum(axis=-1)
        return total

    def over_domain(self, nodes: FloatArray) -> FloatArray:
        """Σ_c P₂(c) f(c): per-node values (…, M) to one per tree (…)."""
        total: FloatArray = (self._domain_reach * nodes).sum(axis=-1)
        return total

    def log_partition(self, lam: float | FloatArray) -> FloatArray:
        """ψ_c(λ) = log Σ_x q(x | c) exp(λ s_c(x)), nats: shape (…, M); `lam` is one λ, or one a tree (…).

        ψ is convex with ψ(0) = ψ(1) = 0, hence ≤ 0 on [0, 1].
        """
        return _log_sum_exp(np.log(self.base) + _per_tree(lam) * self.log_ratio)

    def rise_and_gain(self, lam: float | FloatArray) -> tuple[FloatArray, FloatArray]:
        """R(λ) = ΔL(P₁) and G(λ) = -ΔL(P₂) from q to q_λ, bits per sequence: shape (…) each.

        R = Σ_c P₁(c) [ψ_c(λ) - λ E_{P₁(·|c)} s_c] is convex in λ, and G, the same with P₂ and the sign turned, concave.
        With P₂ = p₂, G(1) = KL(p₂ ‖ q).

        >>> q, p = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
        >>> rise, gain = Tuning.from_trees(q, p, general=q).rise_and_gain(1.0)
        >>> round(float(rise), 4), round(float(gain), 4)
        (0.2075, 0.1887)
        """
        psi = self.log_partition(lam)
        general, domain = self._mean_ratio
        return (self.over_general(psi) - lam * general) / LN2, (lam * domain - self.over_domain(psi)) / LN2

    @cached_property
    def _mean_ratio(self) -> tuple[FloatArray, FloatArray]:
        """Σ_c P(c) E_{P(·|c)} s_c for P = P₁ and P₂, nats."""
        general = self.over_general((self.general * self.log_ratio).sum(axis=-1))
        return general, self.over_domain((self.domain * self.log_ratio).sum(axis=-1))

    def noisy_rise_and_gain(
        self, step: FloatArray, steps: int, direction: FloatArray, width: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """E[R] and E[G] after `steps` noisy steps of size `step`, exactly, bits per sequence: shape (…) each.

        Step k goes to q_{k+1} ∝ q_k^(1-λ) p̂^λ with log p̂ = log p₂ + σ_k (w/2) u, where u is `direction` (…, M, v) in
        [-1, 1], w is `width` (…), nats, and the signs σ_k = ±1 are fair and independent: all 2**steps sign sequences
        are averaged. Each node has its own signs in Theorem 1b; R and G are sums over nodes, so giving all nodes the
        same ones leaves the expectations as they are.
        """
        log_start, log_target = np.log(self.base), np.log(self.target)
        noise, rate = _per_tree(width) / 2 * direction, _per_tree(step)

        def walk(logits: FloatArray, left: int) -> Iterator[FloatArray]:
            """The unnormalised log q_K of every sign sequence."""
            if left == 0:
                yield logits
            else:
                for sign in (1.0, -1.0):
                    yield from walk((1.0 - rate) * logits + rate * (log_target + sign * noise), left - 1)

        total = np.zeros(self.base.shape)
        for logits in walk(log_start, steps):
            total += normalised(logits)
        change = log_start - total / 2.0**steps  # E[log q - log q_K]
        rise = self.over_general((self.general * change).sum(axis=-1))
        return rise / LN2, -self.over_domain((self.domain * change).sum(axis=-1)) / LN2


def normalised(logits: FloatArray) -> FloatArray:
    """Log-probabilities over the last axis."""
    return logits - _log_sum_exp(logits)[..., None]


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    peak = logits.max(axis=-1)
    total: FloatArray = peak + np.log(np.exp(logits - peak[..., None]).sum(axis=-1))
    return total


def _per_tree(value: float | FloatArray) -> FloatArray:
    """One number, or one a tree (…), to be multiplied with node rows (…, M, v)."""
    return np.asarray(value, dtype=np.float64)[..., None, None]
