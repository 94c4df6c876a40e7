from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.research import TokenTree, code_length_change, expected_code_length, kl, node_kl

LOG3 = np.log2(3.0)
LAMBDAS = np.linspace(0.0, 1.0, 21)

shapes = {"seed": st.integers(0, 2**32), "depth": st.integers(1, 4), "vocab": st.integers(2, 4)}


def random_trees(seed: int, depth: int, vocab: int, count: int) -> list[TokenTree]:
    rng = np.random.default_rng(seed)
    return [TokenTree.random(depth, vocab, rng, rng.uniform(0.2, 4.0)) for _ in range(count)]


def uniform(depth: int, vocab: int) -> TokenTree:
    return TokenTree(tuple(np.full((vocab**d, vocab), 1 / vocab) for d in range(depth)))


def single(*row: float) -> TokenTree:
    return TokenTree((np.array([row]),))


def test_golden_lengths_and_change(golden_p: TokenTree, golden_q: TokenTree) -> None:
    # P = 1/8, 1/8, 1/4, 1/2 and L_q = 3, 3 - log₂3, 2, 2, so
    #   E_P[L_q] = 3/8 + (3 - log₂3)/8 + 2/4 + 2/2 = 9/4 - log₂3/8.
    #   H(P) = 3/8 + 3/8 + 2/4 + 1/2 = 7/4, so KL(P ‖ q) = 1/2 - log₂3/8.
    # The uniform u has L_u = 2 everywhere, so KL(P ‖ u) = 2 - 7/4 = 1/4,
    #   ΔL(P) from q to u = 2 - 9/4 + log₂3/8 = -1/4 + log₂3/8 = KL(P ‖ u) - KL(P ‖ q).
    u = uniform(2, 2)
    assert expected_code_length(golden_p, golden_q) == pytest.approx(9 / 4 - LOG3 / 8, abs=1e-14)
    assert expected_code_length(golden_p, golden_p) == pytest.approx(7 / 4, abs=1e-14)
    assert kl(golden_p, golden_q) == pytest.approx(1 / 2 - LOG3 / 8, abs=1e-14)
    assert kl(golden_p, u) == pytest.approx(1 / 4, abs=1e-14)
    assert code_length_change(golden_p, golden_q, u) == pytest.approx(-1 / 4 + LOG3 / 8, abs=1e-14)


def test_golden_node_kl(golden_p: TokenTree, golden_q: TokenTree) -> None:
    # Root: 1/4·log₂(1/2) + 3/4·log₂(3/2) = 3/4·log₂3 - 1.
    # Node 0: 1/2·log₂2 + 1/2·log₂(2/3) = 1 - log₂3/2. Node 1: 1/3·log₂(2/3) + 2/3·log₂(4/3) = 5/3 - log₂3.
    root, below = node_kl(golden_p, golden_q)
    np.testing.assert_allclose(root, [3 / 4 * LOG3 - 1], atol=1e-14)
    np.testing.assert_allclose(below, [1 - LOG3 / 2, 5 / 3 - LOG3], atol=1e-14)


@given(**shapes)
def test_change_is_a_difference_of_divergences(seed: int, depth: int, vocab: int) -> None:
    p, q1, q2 = random_trees(seed, depth, vocab, 3)
    assert abs(code_length_change(p, q1, q2) - (kl(p, q2) - kl(p, q1))) < 1e-12


@given(**shapes)
def test_kl_is_zero_only_between_equal_models(seed: int, depth: int, vocab: int) -> None:
    p, q = random_trees(seed, depth, vocab, 2)
    assert kl(p, p) == 0.0
    assert kl(p, TokenTree(p.conditionals)) < 1e-14  # a rebuilt tree may differ in the last bit
    distance = np.abs(np.exp(p.sequence_log_probs()) - np.exp(q.sequence_log_probs())).sum()
    assert distance > 0
    assert kl(p, q) >= distance**2 / (2 * np.log(2)) - 1e-12  # Pinsker's inequality


@given(**shapes)
def test_chain_rule(seed: int, depth: int, vocab: int) -> None:
    p, q = random_trees(seed, depth, vocab, 2)
    by_node = sum(float(np.exp(p.prefix_log_probs(d)) @ row) for d, row in enumerate(node_kl(p, q)))
    assert kl(p, q) == pytest.approx(by_node, abs=1e-11)


@given(**shapes)
def test_divergence_falls_along_the_tilt(seed: int, depth: int, vocab: int) -> None:
    q, p2 = random_trees(seed, depth, vocab, 2)
    path = [q.tilt(p2, float(lam)) for lam in LAMBDAS]
    for level in range(depth):
        values = np.stack([node_kl(p2, model)[level] for model in path])
        assert (np.diff(values, axis=0) <= 1e-12).all()
        np.testing.assert_array_equal(values[-1], 0.0)
    assert (np.diff([kl(p2, model) for model in path]) <= 1e-12).all()


@given(**shapes)
def test_every_divergence_is_convex_along_the_tilt(seed: int, depth: int, vocab: int) -> None:
    p, q, p2 = random_trees(seed, depth, vocab, 3)
    values = [kl(p, q.tilt(p2, float(lam))) for lam in LAMBDAS]
    assert (np.diff(values, 2) >= -1e-10).all()


def test_divergence_falls_where_supports_differ() -> None:
    q, p2 = single(0.5, 0.5, 0.0), single(0.0, 0.75, 0.25)
    values = [kl(p2, q.tilt(p2, lam)) for lam in (0.0, 0.5, 1.0)]
    assert values == [np.inf, np.inf, 0.0]
    values = [kl(single(0.0, 1.0, 0.0), q.tilt(single(0.0, 1.0, 0.0), lam)) for lam in (0.0, 0.5, 1.0)]
    assert values == [1.0, 0.0, 0.0]


def test_excluded_sequences() -> None:
    p, narrow = single(0.5, 0.5), single(1.0, 0.0)
    assert expected_code_length(p, narrow) == np.inf
    assert kl(p, narrow) == np.inf
    assert kl(narrow, narrow) == 0.0
    assert kl(narrow, p) == 1.0
    np.testing.assert_array_equal(node_kl(p, narrow)[0], [np.inf])
    assert code_length_change(p, p, narrow) == np.inf
    assert code_length_change(p, narrow, p) == -np.inf
    with pytest.raises(ValueError, match="undefined"):
        code_length_change(p, narrow, single(0.0, 1.0))


def test_trees_of_different_shape_are_refused() -> None:
    small, large = uniform(1, 2), uniform(2, 2)
    for measure in (kl, expected_code_length, node_kl):
        with pytest.raises(ValueError, match="trees differ"):
            measure(small, large)
    with pytest.raises(ValueError, match="trees differ"):
        code_length_change(small, small, large)
