"""A language model over sequences of fixed length as a tree of next-token probabilities, and its code lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import rel_entr, softmax

FloatArray = npt.NDArray[np.float64]
LN2 = math.log(2.0)  # nats in a bit
ROW_SUM_TOLERANCE = 1e-9  # how far a row given to `TokenTree` may sum from 1; within it, it is divided by its sum


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A model q over the sequences of `depth` = n tokens from a vocabulary of v, small enough to enumerate.

    `conditionals[d]` has shape (v**d, v): row c is q(· | c) at the inner node reached by prefix c of d tokens. Prefixes
    and sequences are numbered in lexicographic order, so node c has children c·v, …, c·v + v - 1. Zeros are allowed:
    such a token has log-probability -inf. The arrays (nested lists will do) are copied, each row is divided by its sum,
    and the copies are read-only. Raises `ValueError` on a wrong shape, an entry that is negative or not finite, or a
    row whose sum is not 1 (to `ROW_SUM_TOLERANCE`).

    Source: the token tree of arXiv 2509.20758, here complete (every leaf at depth n).

    >>> tree = TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]]))
    >>> np.exp(tree.sequence_log_probs()).round(3).tolist()
    [0.125, 0.375, 0.25, 0.25]
    """

    conditionals: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        if len(self.conditionals) == 0:
            raise ValueError("a token tree needs at least one level of conditionals")
        first = np.shape(self.conditionals[0])
        if len(first) != 2 or first[1] < 1:
            raise ValueError(f"level 0 must have shape (1, vocab), got {first}")
        vocab = first[1]
        levels = tuple(_checked(level, (vocab**d, vocab), f"level {d}") for d, level in enumerate(self.conditionals))
        object.__setattr__(self, "conditionals", levels)

    @classmethod
    def random(cls, depth: int, vocab: int, rng: np.random.Generator, concentration: float = 1.0) -> TokenTree:
        """A tree whose rows are drawn from a symmetric Dirichlet: peaked for small concentrations, flat for large ones.

        Raises `ValueError` unless depth and vocab are at least 1 and concentration is positive and finite.

        >>> [level.shape for level in TokenTree.random(3, 2, np.random.default_rng(0)).conditionals]
        [(1, 2), (2, 2), (4, 2)]
        """
        _check_size(depth, vocab)
        if not 0 < concentration < np.inf:
            raise ValueError(f"concentration must be positive and finite, got {concentration}")
        alpha = np.full(vocab, concentration)
        return cls(tuple(rng.dirichlet(alpha, size=vocab**d) for d in range(depth)))

    @classmethod
    def from_conditionals(
        cls, depth: int, vocab: int, conditional: Callable[[tuple[int, ...]], npt.ArrayLike]
    ) -> TokenTree:
        """The tree of any model: `conditional(prefix)` is its row of `vocab` next-token probabilities.

        It is called once for every prefix of 0 … depth - 1 tokens, in lexicographic order level by level; restrict a
        real model to a few tokens (and renormalise) first. Raises `ValueError` unless depth and vocab are at least 1,
        and naming the prefix where what comes back is not a row of `vocab` probabilities that sums to 1.

        >>> tree = TokenTree.from_conditionals(2, 2, lambda prefix: [0.5, 0.5] if sum(prefix) else [0.25, 0.75])
        >>> [level.tolist() for level in tree.conditionals]
        [[[0.25, 0.75]], [[0.25, 0.75], [0.5, 0.5]]]
        """
        _check_size(depth, vocab)

        def row(prefix: tuple[int, ...]) -> FloatArray:
            given = np.reshape(conditional(prefix), (1, -1))
            found: FloatArray = _checked(given, (1, vocab), f"the row at prefix {prefix}")[0]
            return found

        prefixes = (itertools.product(range(vocab), repeat=d) for d in range(depth))
        return cls(tuple(np.array([row(prefix) for prefix in level]) for level in prefixes))

    @property
    def depth(self) -> int:
        """Tokens per sequence, n."""
        return len(self.conditionals)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary, v."""
        return int(self.conditionals[0].shape[1])

    @property
    def rows(self) -> FloatArray:
        """The conditionals of all inner nodes, level after level: shape (M, v).

        >>> TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [1.0, 0.0]])).rows.tolist()
        [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]
        """
        return np.concatenate(self.conditionals)

    def prefix_log_probs(self, length: int) -> FloatArray:
        """log q(c) of every prefix c of `length` tokens: shape (v**length,), nats. Raises `ValueError` beyond n."""
        if not 0 <= length <= self.depth:
            raise ValueError(f"length must lie in [0, {self.depth}], got {length}")
        return path_log_probs(self.rows, length)

    def sequence_log_probs(self) -> FloatArray:
        """log q(z) of every sequence z: shape (v**n,), nats; -inf where q excludes z."""
        return self.prefix_log_probs(self.depth)

    def code_lengths(self) -> FloatArray:
        """Ideal code length L_q(z) = -log₂ q(z) of every sequence: shape (v**n,), bits; inf where q(z) = 0.

        >>> TokenTree(([[0.5, 0.25, 0.25]],)).code_lengths().tolist()
        [1.0, 2.0, 2.0]
        """
        return 0.0 - self.sequence_log_probs() / LN2

    def tilt(self, other: TokenTree, lam: float) -> TokenTree:
        """The model q_λ(x | c) ∝ q(x | c)^(1-λ) · p₂(x | c)^λ at every node c, where p₂ is `other`.

        λ = 0 is this tree and λ = 1 is `other`, exactly. In between a token has probability zero where either tree
        gives it zero. Every node has its own normaliser, so this is not the tilt of the two sequence laws. Raises
        `ValueError` when λ is outside [0, 1], when the trees differ in shape, or when 0 < λ < 1 and the two rows of
        some node share no token. Source: the exponential tilting of arXiv 2509.20758.

        >>> fair, biased = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.2, 0.8]],))
        >>> fair.tilt(biased, 0.5).conditionals[0].round(4).tolist()
        [[0.3333, 0.6667]]
        """

        def between(q: FloatArray, p: FloatArray) -> FloatArray:
            logits = (1.0 - lam) * _log(q) + lam * _log(p)
            if not np.isfinite(logits.max(axis=1)).all():
                raise ValueError("cannot tilt: the two rows of some node share no token")
            rows: FloatArray = softmax(logits, axis=1)
            return rows

        return self._blend(other, "lam", lam, between)

    def mix(self, other: TokenTree, share: float) -> TokenTree:
        """The model (1 - m) q(x | c) + m d(x | c) at every node c, where d is `other` and m is `share`.

        It is the target of Theorem 2: a model that follows the domain with probability m at every token. As every node
        is mixed with the same m, this is not the mixture of the two sequence laws. m = 0 is this tree and m = 1 is
        `other`, exactly. Raises `ValueError` when share is outside [0, 1] or the trees differ in shape.

        >>> TokenTree(([[0.5, 0.5]],)).mix(TokenTree(([[0.0, 1.0]],)), 0.5).conditionals[0].tolist()
        [[0.25, 0.75]]
        """
        return self._blend(other, "share", share, lambda q, d: (1.0 - share) * q + share * d)

    def _blend(
        self, other: TokenTree, name: str, at: float, between: Callable[[FloatArray, FloatArray], FloatArray]
    ) -> TokenTree:
        check_same_shape(self, other)
        if not 0.0 <= at <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {at}")
        if at in (0.0, 1.0):
            return other if at else self
        return TokenTree(tuple(between(q, p) for q, p in zip(self.conditionals, other.conditionals, strict=True)))


def levels(rows: FloatArray, depth: int) -> Iterator[FloatArray]:
    """Node rows (…, M, v) level by level: (…, v**d, v) for d < depth."""
    vocab, start = rows.shape[-1], 0
    for d in range(depth):
        yield rows[..., start : start + vocab**d, :]
        start += vocab**d


def path_log_probs(rows: FloatArray, length: int) -> FloatArray:
    """Log-probability of every path of `length` tokens under node rows: (…, M, v) to (…, v**length), nats."""
    total = np.zeros((*rows.shape[:-2], 1))
    for level in levels(rows, length):
        total = (total[..., None] + _log(level)).reshape(*rows.shape[:-2], -1)
    return total


def expected_code_length(p: TokenTree, q: TokenTree) -> float:
    """E_{z~p}[L_q(z)]: bits per sequence when sequences come from p and the code is q's (the cross-entropy).

    inf when q excludes a sequence that p can produce; sequences of probability zero under p cost nothing. Raises
    `ValueError` when the trees differ in depth or vocabulary.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(expected_code_length(p, q), 4), expected_code_length(p, p)
    (1.2075, 1.0)
    """
    return _expectation(p, q, q.code_lengths)


def kl(p: TokenTree, q: TokenTree) -> float:
    """KL(p ‖ q) = Σ_z p(z) log₂(p(z) / q(z)) over sequences, bits: what coding p's sequences with q wastes.

    Never negative (rounding below zero is cut off); inf when q excludes a sequence that p can produce. Raises
    `ValueError` when the trees differ in depth or vocabulary.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(kl(p, q), 4), kl(p, p)
    (0.2075, 0.0)
    """

    def excess() -> FloatArray:
        own = p.code_lengths()
        return q.code_lengths() - np.where(np.isinf(own), 0.0, own)

    return max(0.0, _expectation(p, q, excess))


def node_kl(p: TokenTree, q: TokenTree) -> tuple[FloatArray, ...]:
    """KL(p(· | c) ‖ q(· | c)) at every inner node c, bits: entry d has shape (v**d,).

    The chain rule makes KL(p ‖ q) the sum of these weighted by p(c). Raises `ValueError` when the trees differ in depth
    or vocabulary. Source: Cover and Thomas, Elements of Information Theory, Theorem 2.5.3.

    >>> p, q = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> node_kl(p, q)[0].round(4).tolist()
    [0.2075]
    """
    check_same_shape(p, q)
    pairs = zip(p.conditionals, q.conditionals, strict=True)
    return tuple(np.maximum(rel_entr(a, b).sum(axis=1) / LN2, 0.0) for a, b in pairs)


def code_length_change(p: TokenTree, q1: TokenTree, q2: TokenTree) -> float:
    """ΔL(p) = E_{z~p}[L_{q2}(z)] - E_{z~p}[L_{q1}(z)], bits per sequence: positive when q2 is worse.

    Equals KL(p ‖ q2) - KL(p ‖ q1), since p's own entropy cancels. inf when only q2 excludes a sequence that p can
    produce, -inf when only q1 does. Raises `ValueError` when both do (the change is undefined) or when the trees differ
    in depth or vocabulary. Source: arXiv 2509.20758.

    >>> p, start = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.25, 0.75]],))
    >>> round(code_length_change(p, start, p), 4)
    -0.2075
    """
    before, after = expected_code_length(p, q1), expected_code_length(p, q2)
    if math.isinf(before) and math.isinf(after):
        raise ValueError("the change is undefined: both models exclude a sequence that p can produce")
    return after - before


def check_same_shape(*trees: TokenTree) -> None:
    """Raise `ValueError` unless all the trees have one depth and one vocabulary."""
    shapes = {(tree.depth, tree.vocab) for tree in trees}
    if len(shapes) > 1:
        raise ValueError(f"trees differ in (depth, vocab): {sorted(shapes)}")


def _check_size(depth: int, vocab: int) -> None:
    if depth < 1 or vocab < 1:
        raise ValueError(f"depth and vocab must be at least 1, got {depth} and {vocab}")


def _checked(rows: npt.ArrayLike, shape: tuple[int, int], where: str) -> FloatArray:
    """Read-only rows that add up to 1. Raises `ValueError` where they are no distributions of that shape."""
    array = np.array(rows, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{where} must have shape {shape}, got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"{where} holds an entry that is negative or not finite")
    sums = array.sum(axis=1, keepdims=True)
    if np.abs(sums - 1.0).max() > ROW_SUM_TOLERANCE:
        raise ValueError(f"{where} must sum to 1, got sums in [{sums.min()}, {sums.max()}]")
    array /= sums
    array.flags.writeable = False
    return array


def _expectation(p: TokenTree, q: TokenTree, values: Callable[[], FloatArray]) -> float:
    """E_{z~p} of values by sequence, over those that p can produce."""
    check_same_shape(p, q)
    weights = np.exp(p.sequence_log_probs())
    seen = weights > 0
    return math.fsum(weights[seen] * values()[seen])


def _log(probabilities: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)
