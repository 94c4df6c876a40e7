"""A token tree as an actual lossless code: exact arithmetic coding of a root-to-leaf path, in Python rationals.

A float64 is itself a dyadic rational, so each conditional is taken at its exact value and each row divided by its exact
sum: nothing rounds. Integers grow with depth: this is a reference to check code lengths against, not a fast coder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from gentletune.research.theory.tree import TokenTree


def path_interval(tree: TokenTree, path: Sequence[int]) -> tuple[Fraction, Fraction]:
    """The interval [low, low + width) of [0, 1) that arithmetic coding gives to `path`; width = q(path).

    `path` holds `depth` tokens in [0, vocab). Intervals of different paths are disjoint, lie in lexicographic order and
    fill [0, 1). Raises `ValueError` on a path of wrong length or with a token out of range.

    >>> path_interval(TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]])), (0, 1))
    (Fraction(1, 8), Fraction(3, 8))
    """
    if len(path) != tree.depth:
        raise ValueError(f"path must have {tree.depth} tokens, got {len(path)}")
    if not all(0 <= token < tree.vocab for token in path):
        raise ValueError(f"tokens must lie in [0, {tree.vocab}), got {tuple(path)}")
    low, width, node = Fraction(0), Fraction(1), 0
    for level, token in enumerate(path):
        start, share = list(_shares(tree, level, node))[token]
        low, width, node = low + width * start, width * share, node * tree.vocab + token
    return low, width


def encode_path(tree: TokenTree, path: Sequence[int]) -> str:
    """The Shannon-Fano-Elias codeword of `path`, as a string of 0s and 1s.

    It is the midpoint of the path's interval cut to ⌈L⌉ + 1 bits, where L = -log₂ q(path); so it is shorter than L + 2
    bits, and no codeword is a prefix of another. Raises `ValueError` on a path that is malformed or has probability
    zero. Source: Cover and Thomas, Elements of Information Theory, §5.9.

    >>> tree = TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]]))
    >>> [encode_path(tree, path) for path in ((0, 0), (0, 1), (1, 0), (1, 1))]
    ['0001', '010', '101', '111']
    """
    low, width = path_interval(tree, path)
    if width == 0:
        raise ValueError(f"path {tuple(path)} has probability zero: it has no codeword")
    bits = ((width.denominator - 1) // width.numerator).bit_length() + 1  # ⌈log₂(1/width)⌉ in integers, and one
    middle = low + width / 2
    return format((middle.numerator << bits) // middle.denominator, f"0{bits}b")


def decode_path(tree: TokenTree, bits: str) -> tuple[int, ...]:
    """The path whose codeword is `bits`, found by walking down to the leaf that holds the point.

    Raises `ValueError` when `bits` is not a codeword of this tree.

    >>> decode_path(TokenTree(([[0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]])), "010")
    (0, 1)
    """
    if not bits or set(bits) - {"0", "1"}:
        raise ValueError(f"a codeword is a non-empty string of 0s and 1s, got {bits!r}")
    point, node = Fraction(int(bits, 2), 2 ** len(bits)), 0
    path: list[int] = []
    for level in range(tree.depth):
        shares = enumerate(_shares(tree, level, node))
        token, start, share = next((t, a, w) for t, (a, w) in shares if a <= point < a + w)
        path.append(token)
        point, node = (point - start) / share, node * tree.vocab + token
    if encode_path(tree, path) != bits:
        raise ValueError(f"{bits!r} is not a codeword of this tree")
    return tuple(path)


def _shares(tree: TokenTree, level: int, node: int) -> Iterator[tuple[Fraction, Fraction]]:
    """(start, share) of every token's part of [0, 1) at a node, exactly filling it."""
    weights = [Fraction(float(p)) for p in tree.conditionals[level][node]]
    total, start = sum(weights, Fraction(0)), Fraction(0)
    for weight in weights:
        yield start, weight / total
        start += weight / total
