"""Expected code lengths and divergences between token trees, in bits."""

from __future__ import annotations

import math

import numpy as np

from gentletune.research.theory.tree import FloatArray, TokenTree, check_same_shape


def expected_code_length(p: TokenTree, q: TokenTree) -> float:
    """E_{z~p}[L_q(z)]: bits per sequence when sequences come from p and the code is q's (the cross-entropy).

    inf when q excludes a sequence that p can produce; sequences of probability zero under p cost nothing.
    Raises `ValueError` when the trees differ in depth or vocabulary.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(expected_code_length(p, q), 4), expected_code_length(p, p)
    (1.2075, 1.0)
    """
    check_same_shape(p, q)
    return _expectation(np.exp(p.sequence_log_probs()), q.code_lengths())


def kl(p: TokenTree, q: TokenTree) -> float:
    """KL(p ‖ q) = Σ_z p(z) log₂(p(z) / q(z)) over sequences, bits: what coding p's sequences with q wastes.

    Never negative (rounding below zero is cut off); inf when q excludes a sequence that p can produce.
    Raises `ValueError` when the trees differ in depth or vocabulary. Source: Cover and Thomas, Elements of
    Information Theory, §2.3.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(kl(p, q), 4), kl(p, p)
    (0.2075, 0.0)
    """
    check_same_shape(p, q)
    log_p = p.sequence_log_probs()
    excess = q.code_lengths() - np.where(np.isneginf(log_p), 0.0, p.code_lengths())
    return max(0.0, _expectation(np.exp(log_p), excess))


def node_kl(p: TokenTree, q: TokenTree) -> tuple[FloatArray, ...]:
    """KL(p(· | c) ‖ q(· | c)) at every inner node c, bits: entry d has shape (v**d,).

    The chain rule makes KL(p ‖ q) the sum of these weighted by p(c). Raises `ValueError` when the trees
    differ in depth or vocabulary. Source: Cover and Thomas, Elements of Information Theory, Theorem 2.5.3.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> node_kl(p, q)[0].round(4).tolist()
    [0.2075]
    """
    check_same_shape(p, q)
    return tuple(_row_kl(a, b) for a, b in zip(p.conditionals, q.conditionals, strict=True))


def code_length_change(p: TokenTree, q1: TokenTree, q2: TokenTree) -> float:
    """ΔL(p) = E_{z~p}[L_{q2}(z)] - E_{z~p}[L_{q1}(z)], bits per sequence: positive when q2 is worse.

    Equals KL(p ‖ q2) - KL(p ‖ q1), since p's own entropy cancels. inf when only q2 excludes a sequence
    that p can produce, -inf when only q1 does. Raises `ValueError` when both do (the change is undefined)
    or when the trees differ in depth or vocabulary. Source: arXiv 2509.20758.

    >>> p, start = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(code_length_change(p, start, p), 4)
    -0.2075
    """
    before, after = expected_code_length(p, q1), expected_code_length(p, q2)
    if math.isinf(before) and math.isinf(after):
        raise ValueError("the change is undefined: both models exclude a sequence that p can produce")
    return after - before


def _expectation(weights: FloatArray, values: FloatArray) -> float:
    seen = weights > 0
    return math.fsum(weights[seen] * values[seen])


def _row_kl(p: FloatArray, q: FloatArray) -> FloatArray:
    seen = p > 0
    terms = np.zeros_like(p)
    with np.errstate(divide="ignore"):
        terms[seen] = p[seen] * (np.log2(p[seen]) - np.log2(q[seen]))
    rows: FloatArray = np.maximum(terms.sum(axis=1), 0.0)
    return rows
