"""A language model over sequences of fixed length, written out as a tree of next-token probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ROW_SUM_TOLERANCE = 1e-9
"""How far a row given to `TokenTree` may sum from 1; within it, the row is divided by its sum."""


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A model q over the sequences of `depth` = n tokens from a vocabulary of v, small enough to enumerate.

    `conditionals[d]` has shape (v**d, v): row c is q(· | c) at the inner node reached by prefix c of d
    tokens. Prefixes and sequences are numbered in lexicographic order, so node c has children
    c·v, …, c·v + v - 1, and sequence x₁…xₙ has index Σ xᵢ v^(n-i). Zeros are allowed: such a token has
    log-probability -inf. The arrays (nested lists will do) are copied, each row is divided by its sum, and
    the copies are read-only. Raises `ValueError` on a wrong shape, an entry that is negative or not finite,
    or a row whose sum is not 1 (to `ROW_SUM_TOLERANCE`).

    Source: the token tree of arXiv 2509.20758, here complete (every leaf at depth n).

    >>> tree = TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]]))
    >>> tree.depth, tree.vocab
    (2, 2)
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
        levels = tuple(_checked_level(level, d, first[1]) for d, level in enumerate(self.conditionals))
        object.__setattr__(self, "conditionals", levels)

    @classmethod
    def random(cls, depth: int, vocab: int, rng: np.random.Generator, concentration: float = 1.0) -> TokenTree:
        """A tree whose every row is drawn from a symmetric Dirichlet(`concentration`), independently.

        Small concentrations give peaked rows, large ones near-uniform rows. Raises `ValueError` unless
        depth and vocab are at least 1 and concentration is positive and finite.

        >>> [level.shape for level in TokenTree.random(3, 2, np.random.default_rng(0)).conditionals]
        [(1, 2), (2, 2), (4, 2)]
        """
        if depth < 1 or vocab < 1:
            raise ValueError(f"depth and vocab must be at least 1, got {depth} and {vocab}")
        if not 0 < concentration < np.inf:
            raise ValueError(f"concentration must be positive and finite, got {concentration}")
        alpha = np.full(vocab, concentration)
        return cls(tuple(rng.dirichlet(alpha, size=vocab**d) for d in range(depth)))

    @classmethod
    def from_conditionals(
        cls, depth: int, vocab: int, conditional: Callable[[tuple[int, ...]], npt.ArrayLike]
    ) -> TokenTree:
        """The tree of any model: `conditional(prefix)` is its row of `vocab` next-token probabilities.

        It is called once for every prefix of 0 … depth - 1 tokens, (v**n - 1) / (v - 1) times, in
        lexicographic order level by level; restrict a real model to a few tokens (and renormalise) first.
        Raises `ValueError` unless depth and vocab are at least 1, and naming the prefix where what comes
        back is not a row of `vocab` probabilities that sums to 1.

        >>> tree = TokenTree.from_conditionals(2, 2, lambda prefix: [0.5, 0.5] if sum(prefix) else [0.25, 0.75])
        >>> [level.tolist() for level in tree.conditionals]
        [[[0.25, 0.75]], [[0.25, 0.75], [0.5, 0.5]]]
        """
        if depth < 1 or vocab < 1:
            raise ValueError(f"depth and vocab must be at least 1, got {depth} and {vocab}")
        levels = []
        for d in range(depth):
            prefixes = itertools.product(range(vocab), repeat=d)
            levels.append(np.array([_checked_row(conditional(prefix), prefix, vocab) for prefix in prefixes]))
        return cls(tuple(levels))

    @property
    def depth(self) -> int:
        """Tokens per sequence, n."""
        return len(self.conditionals)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary, v."""
        return int(self.conditionals[0].shape[1])

    def prefix_log_probs(self, length: int) -> FloatArray:
        """log q(c) of every prefix c of `length` tokens: shape (v**length,), nats.

        Raises `ValueError` unless 0 ≤ length ≤ depth.
        """
        if not 0 <= length <= self.depth:
            raise ValueError(f"length must lie in [0, {self.depth}], got {length}")
        total = np.zeros(1)
        for level in self.conditionals[:length]:
            total = (total[:, None] + _log(level)).reshape(-1)
        return total

    def sequence_log_probs(self) -> FloatArray:
        """log q(z) of every sequence z: shape (v**n,), nats; -inf where q excludes z."""
        return self.prefix_log_probs(self.depth)

    def code_lengths(self) -> FloatArray:
        """Ideal code length L_q(z) = -log₂ q(z) of every sequence: shape (v**n,), bits; inf where q(z) = 0.

        >>> TokenTree(([[0.5, 0.25, 0.25]],)).code_lengths().tolist()
        [1.0, 2.0, 2.0]
        """
        lengths: FloatArray = 0.0 - self.sequence_log_probs() / np.log(2.0)
        return lengths

    def tilt(self, other: TokenTree, lam: float) -> TokenTree:
        """The model q_λ(x | c) ∝ q(x | c)^(1-λ) · p₂(x | c)^λ at every node c, where p₂ is `other`.

        λ = 0 is this tree and λ = 1 is `other`, exactly. In between a token has probability zero where
        either tree gives it zero (or the result underflows), so with zeros the path may jump at its end
        points. Every node has its own normaliser, so this is not the tilt of the two sequence laws. Raises
        `ValueError` when λ is outside [0, 1], when the trees differ in shape, or when 0 < λ < 1 and the
        two rows of some node share no token.

        Source: the exponential tilting by which arXiv 2509.20758 models a fine-tuning step.

        >>> fair, biased = TokenTree(([[0.5, 0.5]],)), TokenTree(([[0.2, 0.8]],))
        >>> fair.tilt(biased, 0.5).conditionals[0].round(4).tolist()
        [[0.3333, 0.6667]]
        """
        check_same_shape(self, other)
        if not 0.0 <= lam <= 1.0:
            raise ValueError(f"lam must lie in [0, 1], got {lam}")
        if lam in (0.0, 1.0):
            return other if lam else self
        pairs = zip(self.conditionals, other.conditionals, strict=True)
        return TokenTree(tuple(_tilted_level(q, p, lam, d) for d, (q, p) in enumerate(pairs)))

    def mix(self, other: TokenTree, share: float) -> TokenTree:
        """The model (1 - m) q(x | c) + m d(x | c) at every node c, where d is `other` and m is `share`.

        It is the target of Theorem 2: a model that follows the domain with probability m at every token. As
        every node is mixed with the same m, this is not the mixture of the two sequence laws. m = 0 is this
        tree and m = 1 is `other`, exactly. Raises `ValueError` when share is outside [0, 1] or the trees
        differ in shape.

        >>> TokenTree(([[0.5, 0.5]],)).mix(TokenTree(([[0.0, 1.0]],)), 0.5).conditionals[0].tolist()
        [[0.25, 0.75]]
        """
        check_same_shape(self, other)
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must lie in [0, 1], got {share}")
        if share in (0.0, 1.0):
            return other if share else self
        pairs = zip(self.conditionals, other.conditionals, strict=True)
        return TokenTree(tuple((1.0 - share) * q + share * d for q, d in pairs))


def check_same_shape(*trees: TokenTree) -> None:
    """Raise `ValueError` unless all the trees have one depth and one vocabulary."""
    shapes = {(tree.depth, tree.vocab) for tree in trees}
    if len(shapes) > 1:
        raise ValueError(f"trees differ in (depth, vocab): {sorted(shapes)}")


def _checked_row(row: npt.ArrayLike, prefix: tuple[int, ...], vocab: int) -> FloatArray:
    array = np.array(row, dtype=np.float64)
    if array.shape != (vocab,):
        raise ValueError(f"the row at prefix {prefix} must have shape {(vocab,)}, got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all() and abs(array.sum() - 1.0) <= ROW_SUM_TOLERANCE):
        raise ValueError(f"the row at prefix {prefix} is not a probability distribution: {array.tolist()}")
    return array


def _checked_level(level: npt.ArrayLike, depth: int, vocab: int) -> FloatArray:
    array = np.array(level, dtype=np.float64)
    if array.shape != (vocab**depth, vocab):
        raise ValueError(f"level {depth} must have shape {(vocab**depth, vocab)}, got {array.shape}")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"level {depth} holds an entry that is negative or not finite")
    sums = array.sum(axis=1, keepdims=True)
    if np.abs(sums - 1.0).max() > ROW_SUM_TOLERANCE:
        raise ValueError(f"rows of level {depth} must sum to 1, got sums in [{sums.min()}, {sums.max()}]")
    array /= sums
    array.flags.writeable = False
    return array


def _tilted_level(q: FloatArray, p: FloatArray, lam: float, depth: int) -> FloatArray:
    logits = (1.0 - lam) * _log(q) + lam * _log(p)
    peak = logits.max(axis=1, keepdims=True)
    if not np.isfinite(peak).all():
        raise ValueError(f"cannot tilt level {depth}: the two rows of some node share no token")
    weights: FloatArray = np.exp(logits - peak)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _log(probabilities: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        logs: FloatArray = np.log(probabilities)
    return logs
