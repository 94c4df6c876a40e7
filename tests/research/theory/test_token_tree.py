from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.research import TokenTree

LOG3 = np.log2(3.0)


def random_trees(seed: int, depth: int, vocab: int, count: int = 2) -> list[TokenTree]:
    rng = np.random.default_rng(seed)
    return [TokenTree.random(depth, vocab, rng, rng.uniform(0.2, 4.0)) for _ in range(count)]


shapes = {"seed": st.integers(0, 2**32), "depth": st.integers(1, 4), "vocab": st.integers(1, 4)}


def test_golden_code_lengths(golden_q: TokenTree) -> None:
    # q = 1/2·1/4, 1/2·3/4, 1/2·1/2, 1/2·1/2 = 1/8, 3/8, 1/4, 1/4; so L = 3, log₂(8/3) = 3 - log₂3, 2, 2 bits.
    np.testing.assert_allclose(np.exp(golden_q.sequence_log_probs()), [1 / 8, 3 / 8, 1 / 4, 1 / 4], rtol=1e-14)
    np.testing.assert_allclose(golden_q.code_lengths(), [3, 3 - LOG3, 2, 2], rtol=1e-14)


def test_golden_tilt(golden_q: TokenTree, golden_p: TokenTree) -> None:
    # λ = 1/2 gives √(q·p) up to scale. Root: √(1/2·1/4) : √(1/2·3/4) = 1 : √3.
    # Node 0: √(1/4·1/2) : √(3/4·1/2) = 1 : √3. Node 1: √(1/2·1/3) : √(1/2·2/3) = 1 : √2.
    half = golden_q.tilt(golden_p, 0.5)
    a, b = 1 / (1 + np.sqrt(3)), 1 / (1 + np.sqrt(2))
    np.testing.assert_allclose(half.conditionals[0], [[a, 1 - a]], rtol=1e-14)
    np.testing.assert_allclose(half.conditionals[1], [[a, 1 - a], [b, 1 - b]], rtol=1e-14)


@given(**shapes)
def test_kraft_equality(seed: int, depth: int, vocab: int) -> None:
    (tree,) = random_trees(seed, depth, vocab, count=1)
    lengths = tree.code_lengths()
    assert lengths.shape == (vocab**depth,)
    assert (lengths >= -1e-12).all()
    assert abs((2.0**-lengths).sum() - 1.0) < 1e-12


@given(**shapes)
def test_prefix_probabilities_are_marginals(seed: int, depth: int, vocab: int) -> None:
    (tree,) = random_trees(seed, depth, vocab, count=1)
    leaves = np.exp(tree.sequence_log_probs())
    for length in range(depth + 1):
        marginal = leaves.reshape(vocab**length, -1).sum(axis=1)
        np.testing.assert_allclose(np.exp(tree.prefix_log_probs(length)), marginal, atol=1e-13)


@given(**shapes)
def test_tilt_end_points_and_reversal(seed: int, depth: int, vocab: int) -> None:
    q, p = random_trees(seed, depth, vocab)
    for d in range(depth):
        np.testing.assert_array_equal(q.tilt(p, 0.0).conditionals[d], q.conditionals[d])
        np.testing.assert_array_equal(q.tilt(p, 1.0).conditionals[d], p.conditionals[d])
        np.testing.assert_allclose(q.tilt(p, 1e-12).conditionals[d], q.conditionals[d], atol=1e-9)
        np.testing.assert_allclose(q.tilt(p, 0.3).conditionals[d], p.tilt(q, 0.7).conditionals[d], atol=1e-13)
        np.testing.assert_allclose(q.tilt(q, 0.3).conditionals[d], q.conditionals[d], atol=1e-13)


def test_tilts_compose() -> None:
    # Tilting by λ from q, then by μ towards p again, is one tilt by 1 - (1-λ)(1-μ).
    q, p = random_trees(7, 3, 3)
    twice, once = q.tilt(p, 0.4).tilt(p, 0.5), q.tilt(p, 0.7)
    for a, b in zip(twice.conditionals, once.conditionals, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_zeros_carry_minus_infinity() -> None:
    zero, full = TokenTree((np.array([[0.0, 0.5, 0.5]]),)), TokenTree((np.array([[0.5, 0.25, 0.25]]),))
    assert zero.sequence_log_probs()[0] == -np.inf
    assert zero.code_lengths()[0] == np.inf
    np.testing.assert_array_equal(zero.tilt(full, 0.5).conditionals[0], [[0.0, 0.5, 0.5]])
    with pytest.raises(ValueError, match="share no token"):
        TokenTree((np.array([[1.0, 0.0]]),)).tilt(TokenTree((np.array([[0.0, 1.0]]),)), 0.5)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one level"),
        ([[0.5, 0.5]], "level 0 must have shape"),
        ([[[]]], "level 0 must have shape"),
        ([[[0.5, 0.5], [0.5, 0.5]]], "level 0 must have shape"),
        ([[[0.5, 0.5]], [[0.5, 0.5]]], "level 1 must have shape"),
        ([[[1.5, -0.5]]], "negative or not finite"),
        ([[[np.nan, 1.0]]], "negative or not finite"),
        ([[[0.5, 0.4]]], "must sum to 1"),
    ],
)
def test_malformed_conditionals_are_refused(levels: list[list[list[float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree(tuple(np.array(level) for level in levels))


def test_a_row_that_nearly_sums_to_one_is_divided_by_its_sum() -> None:
    row = TokenTree((np.array([[0.5, 0.5 + 8e-10]]),)).conditionals[0]
    assert abs(row.sum() - 1.0) < 1e-15


def test_a_tree_cannot_be_changed(golden_q: TokenTree) -> None:
    given_level = np.array([[0.5, 0.5]])
    tree = TokenTree((given_level,))
    given_level[0, 0] = 9.0
    assert tree.conditionals[0][0, 0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        tree.conditionals[0][0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.conditionals = golden_q.conditionals  # a frozen dataclass refuses


@pytest.mark.parametrize(("depth", "vocab", "concentration"), [(0, 2, 1.0), (2, 0, 1.0)])
def test_random_needs_a_size(depth: int, vocab: int, concentration: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TokenTree.random(depth, vocab, np.random.default_rng(0), concentration)


@pytest.mark.parametrize("concentration", [0.0, -1.0, np.inf, np.nan])
def test_random_needs_a_concentration(concentration: float) -> None:
    with pytest.raises(ValueError, match="concentration"):
        TokenTree.random(2, 2, np.random.default_rng(0), concentration)


def test_random_follows_its_generator_and_concentration() -> None:
    draws = [TokenTree.random(2, 3, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(draws[0].sequence_log_probs(), draws[1].sequence_log_probs())
    flat = TokenTree.random(2, 3, np.random.default_rng(5), 1e8)
    np.testing.assert_allclose(flat.conditionals[1], 1 / 3, atol=1e-3)


@pytest.mark.parametrize("lam", [-1e-9, 1.0 + 1e-9, np.nan])
def test_tilt_refuses_lambda_outside_the_unit_interval(golden_q: TokenTree, golden_p: TokenTree, lam: float) -> None:
    with pytest.raises(ValueError, match="lam must lie"):
        golden_q.tilt(golden_p, lam)


def test_other_refusals(golden_q: TokenTree) -> None:
    with pytest.raises(ValueError, match="trees differ"):
        golden_q.tilt(random_trees(0, 3, 2)[0], 0.5)
    with pytest.raises(ValueError, match="length must lie"):
        golden_q.prefix_log_probs(3)


@given(**shapes)
def test_any_model_can_be_plugged_in(seed: int, depth: int, vocab: int) -> None:
    (tree,) = random_trees(seed, depth, vocab, count=1)
    asked: list[tuple[int, ...]] = []

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        asked.append(prefix)
        index = sum(token * vocab ** (len(prefix) - 1 - i) for i, token in enumerate(prefix))
        return tree.conditionals[len(prefix)][index]

    rebuilt = TokenTree.from_conditionals(depth, vocab, row)
    assert len(asked) == len(set(asked)) == sum(vocab**d for d in range(depth))
    for a, b in zip(rebuilt.conditionals, tree.conditionals, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_golden_model_plugged_in() -> None:
    # "Repeat the last token with 3/4" after a fair first one: q(0, 0, 1) = 1/2 · 3/4 · 1/4 = 3/32.
    sticky = TokenTree.from_conditionals(
        3, 2, lambda prefix: [0.5, 0.5] if not prefix else [0.75 if x == prefix[-1] else 0.25 for x in (0, 1)]
    )
    assert np.exp(sticky.sequence_log_probs())[0b001] == pytest.approx(3 / 32, rel=1e-14)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.5, 0.0], r"prefix \(\) must have shape \(1, 2\)"),
        ([0.5, 0.4], r"prefix \(\) must sum to 1"),
        ([1.5, -0.5], r"prefix \(\) holds an entry that is negative"),
        ([np.nan, 1.0], r"prefix \(\) holds an entry that is negative or not finite"),
    ],
)
def test_a_plugged_in_model_must_give_distributions(row: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTree.from_conditionals(2, 2, lambda prefix: row)


def test_a_bad_row_deeper_down_is_named() -> None:
    with pytest.raises(ValueError, match=r"prefix \(1,\)"):
        TokenTree.from_conditionals(2, 2, lambda prefix: [0.5, 0.4] if prefix == (1,) else [0.5, 0.5])


@pytest.mark.parametrize(("depth", "vocab"), [(0, 2), (2, 0)])
def test_a_plugged_in_model_needs_a_size(depth: int, vocab: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TokenTree.from_conditionals(depth, vocab, lambda prefix: [1.0])


def test_golden_mixture(golden_q: TokenTree, golden_p: TokenTree) -> None:
    # Root: 3/4·(1/2, 1/2) + 1/4·(1/4, 3/4) = (7/16, 9/16). Node 1: 3/4·(1/2, 1/2) + 1/4·(1/3, 2/3) = (11/24, 13/24).
    mixed = golden_q.mix(golden_p, 0.25)
    np.testing.assert_allclose(mixed.conditionals[0], [[7 / 16, 9 / 16]], rtol=1e-14)
    np.testing.assert_allclose(mixed.conditionals[1], [[5 / 16, 11 / 16], [11 / 24, 13 / 24]], rtol=1e-14)
    assert golden_q.mix(golden_p, 0.0) is golden_q
    assert golden_q.mix(golden_p, 1.0) is golden_p


def test_mixture_refusals(golden_q: TokenTree, golden_p: TokenTree) -> None:
    for share in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="share must lie"):
            golden_q.mix(golden_p, share)
    with pytest.raises(ValueError, match="trees differ"):
        golden_q.mix(random_trees(0, 3, 2)[0], 0.5)
