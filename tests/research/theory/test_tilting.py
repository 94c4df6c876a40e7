from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentletune.research import TokenTree, Tuning, code_length_change
from gentletune.research.theory.tilting import node_reach
from tests.research.theory.random_settings import LAMBDAS, models, setting, shapes, single


@given(**shapes)
def test_rise_and_gain_are_code_length_changes(seed: int, depth: int, vocab: int) -> None:
    q, p2, general, domain = models(seed, depth, vocab, 4)
    tuning = Tuning.from_trees(q, p2, general, domain)
    for lam in LAMBDAS:
        rise, gain = tuning.rise_and_gain(lam)
        tilted = q.tilt(p2, lam)
        assert float(rise) == pytest.approx(code_length_change(general, q, tilted), abs=1e-11)
        assert float(gain) == pytest.approx(-code_length_change(domain, q, tilted), abs=1e-11)


@given(**shapes)
def test_reach_is_the_probability_of_the_prefix(seed: int, depth: int, vocab: int) -> None:
    (tree,) = models(seed, depth, vocab, 1)
    reach = node_reach(tree.rows, depth)
    prefixes = np.concatenate([np.exp(tree.prefix_log_probs(d)) for d in range(depth)])
    np.testing.assert_allclose(reach, prefixes, atol=1e-13)
    assert reach.sum() == pytest.approx(depth, abs=1e-12)


def test_golden_rise_and_gain() -> None:
    # q = (1/2, 1/2), p₂ = (1/4, 3/4), so q_λ ∝ (1, 3^λ). R(1) = 1 - log₂3/2 and G(1) = 3/4·log₂3 - 1.
    # At λ = 1/2, q_λ = (1, √3)/(1 + √3): R = log₂(1 + √3) - log₂3/4 - 1.
    tuning = Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(0.5, 0.5))
    log3 = np.log2(3.0)
    rise, gain = tuning.rise_and_gain(1.0)
    assert float(rise) == pytest.approx(1 - log3 / 2, abs=1e-14)
    assert float(gain) == pytest.approx(0.75 * log3 - 1, abs=1e-14)
    assert float(tuning.rise_and_gain(0.5)[0]) == pytest.approx(np.log2(1 + np.sqrt(3)) - log3 / 4 - 1, abs=1e-14)
    assert [float(x) for x in tuning.rise_and_gain(0.0)] == [0.0, 0.0]


@given(**shapes, steps=st.integers(1, 6), lam=st.floats(0.01, 0.99))
def test_steps_compose(seed: int, depth: int, vocab: int, steps: int, lam: float) -> None:
    q, p2 = models(seed, depth, vocab, 2)
    path = q
    for _ in range(steps):
        path = path.tilt(p2, lam)
    once = q.tilt(p2, 1.0 - (1.0 - lam) ** steps)
    for a, b in zip(path.conditionals, once.conditionals, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@given(**shapes)
def test_log_partition_is_convex_and_not_positive(seed: int, depth: int, vocab: int) -> None:
    tuning = setting(seed, depth, vocab)
    psi = np.stack([tuning.log_partition(lam) for lam in np.linspace(0, 1, 21)])
    np.testing.assert_allclose(psi[[0, -1]], 0.0, atol=1e-12)
    assert (psi <= 1e-12).all()
    assert (np.diff(psi, 2, axis=0) >= -1e-11).all()


def test_a_batch_is_its_trees_one_by_one() -> None:
    trees = [models(seed, 2, 3, 4) for seed in range(5)]
    q, p2, general, domain = (np.stack([four[i].rows for four in trees]) for i in range(4))
    batch = Tuning(q, p2, general, domain, 2)
    lam = np.linspace(0.1, 0.9, 5)
    rises, gains = batch.rise_and_gain(lam)
    for i, four in enumerate(trees):
        rise, gain = Tuning.from_trees(*four).rise_and_gain(float(lam[i]))
        assert (float(rise), float(gain)) == pytest.approx((float(rises[i]), float(gains[i])), abs=1e-12)


def test_golden_noise() -> None:
    # One whole step (λ = 1) to p̂ ∝ exp(±(b/2) u) with u = (1, -1) and p₂ = q uniform: for either sign
    # R = -½ Σ log(p̂ / ½) = log cosh(b/2), and the gain of the same data is its negative.
    q = single(0.5, 0.5)
    noisy = Tuning.from_trees(q, q, q).noisy_rise_and_gain(np.array(1.0), 1, np.array([[1.0, -1.0]]), np.array(3.0))
    assert float(noisy[0]) == pytest.approx(np.log2(np.cosh(1.5)), abs=1e-14)
    assert float(noisy[1]) == pytest.approx(-np.log2(np.cosh(1.5)), abs=1e-14)


def test_noise_is_averaged_over_every_sign_of_every_node() -> None:
    # Depth 2, two tokens, two steps: three nodes with signs of their own, 2^6 ways, each walked with real trees.
    q, p2, general, domain = models(11, 2, 2, 4)
    lam, width = 0.4, 1.7
    direction = np.random.default_rng(1).uniform(-1, 1, (3, 2))
    rises, gains = [], []
    for signs in itertools.product((1.0, -1.0), repeat=6):
        model = q
        for step in range(2):
            noise = np.array(signs[3 * step : 3 * step + 3])[:, None] * width / 2 * direction
            rows = p2.rows * np.exp(noise)
            rows /= rows.sum(axis=-1, keepdims=True)
            model = model.tilt(TokenTree((rows[:1], rows[1:])), lam)
        rises.append(code_length_change(general, q, model))
        gains.append(-code_length_change(domain, q, model))
    tuning = Tuning.from_trees(q, p2, general, domain)
    rise, gain = tuning.noisy_rise_and_gain(np.array(lam), 2, direction, np.array(width))
    assert float(rise) == pytest.approx(np.mean(rises), abs=1e-12)
    assert float(gain) == pytest.approx(np.mean(gains), abs=1e-12)


def test_general_data_may_lack_tokens() -> None:
    tuning = Tuning.from_trees(single(0.5, 0.5), single(0.25, 0.75), single(1.0, 0.0))
    assert float(tuning.rise_and_gain(1.0)[0]) == pytest.approx(1.0, abs=1e-14)  # from 1 bit to 2


def test_refusals() -> None:
    fair, sure = single(0.5, 0.5), single(1.0, 0.0)
    for q, p2 in ((sure, fair), (fair, sure)):
        with pytest.raises(ValueError, match="positive probability"):
            Tuning.from_trees(q, p2, fair)
    with pytest.raises(ValueError, match="trees differ"):
        Tuning.from_trees(fair, fair, models(0, 2, 2, 1)[0])
    rows = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match="differ in shape"):
        Tuning(rows, rows, rows, rows[:1], 2)
    for depth in (0, 1, 3):
        with pytest.raises(ValueError, match="no complete tree"):
            Tuning(rows, rows, rows, rows, depth)
