"""Random fine-tuning settings whose models give every token a positive probability."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from gentletune.research import TokenTree, Tuning

LAMBDAS = [0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 1.0]
shapes = {"seed": st.integers(0, 2**32), "depth": st.integers(1, 3), "vocab": st.integers(2, 5)}
EPSILON = 1e-10


def positive(rng: np.random.Generator, depth: int, vocab: int) -> TokenTree:
    """A random tree, from peaked to flat, with a trace of the uniform one mixed in."""
    uniform = TokenTree(tuple(np.full((vocab**d, vocab), 1 / vocab) for d in range(depth)))
    return TokenTree.random(depth, vocab, rng, float(10 ** rng.uniform(-1, 1))).mix(uniform, 1e-5)


def models(seed: int, depth: int, vocab: int, count: int) -> list[TokenTree]:
    rng = np.random.default_rng(seed)
    return [positive(rng, depth, vocab) for _ in range(count)]


def setting(seed: int, depth: int, vocab: int) -> Tuning:
    """q, p₂ and P₁ drawn without regard to each other; P₂ = p₂."""
    return Tuning.from_trees(*models(seed, depth, vocab, 3))


def single(*row: float) -> TokenTree:
    return TokenTree((np.array([row]),))
