from __future__ import annotations

import doctest
import importlib
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.research import TokenTree, decode_path, encode_path, path_interval

DOCS = Path(__file__).parents[3] / "docs" / "theory.md"


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    return list(itertools.product(range(tree.vocab), repeat=tree.depth))


def test_golden_code(golden_q: TokenTree) -> None:
    # Widths 1/8, 3/8, 1/4, 1/4 start at 0, 1/8, 1/2, 3/4; midpoints 1/16, 5/16, 5/8, 7/8;
    # ⌈L⌉ + 1 = 4, 3, 3, 3 bits; cut to that: 0.0001, 0.010 (of 0.0101), 0.101, 0.111.
    assert [path_interval(golden_q, path) for path in paths(golden_q)] == [
        (Fraction(0), Fraction(1, 8)),
        (Fraction(1, 8), Fraction(3, 8)),
        (Fraction(1, 2), Fraction(1, 4)),
        (Fraction(3, 4), Fraction(1, 4)),
    ]
    assert [encode_path(golden_q, path) for path in paths(golden_q)] == ["0001", "010", "101", "111"]


@given(
    seed=st.integers(0, 2**32),
    depth=st.integers(1, 3),
    vocab=st.integers(1, 4),
    concentration=st.sampled_from([0.05, 0.3, 1.0, 5.0]),
)
def test_every_path_round_trips_within_two_bits(seed: int, depth: int, vocab: int, concentration: float) -> None:
    tree = TokenTree.random(depth, vocab, np.random.default_rng(seed), concentration)
    ideal = tree.code_lengths()
    words, end = [], Fraction(0)
    for index, path in enumerate(paths(tree)):
        low, width = path_interval(tree, path)
        assert low == end  # the intervals tile [0, 1) in order
        end = low + width
        if width == 0:
            continue
        bits = encode_path(tree, path)
        words.append(bits)
        assert decode_path(tree, bits) == path
        assert len(bits) <= ideal[index] + 2 + 1e-9
        assert Fraction(1, 2) ** len(bits) > width / 4  # length < L + 2, exactly
    assert end == 1
    assert sum(Fraction(1, 2) ** len(word) for word in words) <= 1  # Kraft
    ordered = sorted(words)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))  # prefix-free


def test_interval_width_is_the_probability() -> None:
    tree = TokenTree.random(4, 3, np.random.default_rng(3), 0.5)
    widths = [float(path_interval(tree, path)[1]) for path in paths(tree)]
    np.testing.assert_allclose(widths, np.exp(tree.sequence_log_probs()), rtol=1e-12)


def test_sure_and_impossible_paths() -> None:
    tree = TokenTree((np.array([[0.0, 1.0]]),))
    assert encode_path(tree, (1,)) == "1"
    assert decode_path(tree, "1") == (1,)
    with pytest.raises(ValueError, match="probability zero"):
        encode_path(tree, (0,))


@pytest.mark.parametrize("path", [(), (0,), (0, 0, 0), (0, 2), (-1, 0)])
def test_malformed_paths_are_refused(golden_q: TokenTree, path: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"path must have|tokens must lie"):
        encode_path(golden_q, path)


@pytest.mark.parametrize("bits", ["", "0b1", "01 0", "0_1", "2", "000", "0101", "01", "1110"])
def test_non_codewords_are_refused(golden_q: TokenTree, bits: str) -> None:
    with pytest.raises(ValueError, match="codeword"):
        decode_path(golden_q, bits)


@pytest.mark.parametrize("name", ["tree", "coding", "tilting", "bounds", "draw", "tally"])
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"gentletune.research.theory.{name}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_page_examples() -> None:
    results = doctest.testfile(str(DOCS), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert results.failed == 0
