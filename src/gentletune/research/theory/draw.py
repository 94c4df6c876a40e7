"""Random settings to check the statements on: batches of trees of one shape, from peaked to flat."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gentletune.research.theory.tilting import Tuning
from gentletune.research.theory.tree import FloatArray

BATCH = 25  # settings; a batch depends on the seed and its own number only, never on how many are drawn
SHAPES = tuple((depth, vocab) for vocab, depth in itertools.product(range(2, 7), range(1, 5)))
STEPS = (1, 2, 4, 8)
FLOOR = 1e-6  # share of every drawn row that is uniform, so that no token is impossible (about 22 bits at most)
OWN, NEAR, UNRELATED = range(3)  # general data are drawn by the base model, close to it, or without regard to it


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch of T settings. `pull` holds the rows of d, and the target is (1-m) q + m d with m in `mix` (T,).

    m = 1 in a third of the settings: there the target is d, as free of q as can be. The domain's law P₂ is p₂ or d.
    `threshold` is δ (T,); `step` λ (T,), `steps` K, `width` w (T,) nats and `direction` u (T, M, v) are the noisy steps
    of Theorem 1b; `kind` (T,) is OWN, NEAR or UNRELATED.
    """

    tuning: Tuning
    pull: FloatArray
    mix: FloatArray
    threshold: FloatArray
    step: FloatArray
    steps: int
    width: FloatArray
    direction: FloatArray
    kind: npt.NDArray[np.int64]

    @property
    def way(self) -> FloatArray:
        """L = 1 - (1-λ)^K: how far K steps of size λ go, shape (T,)."""
        length: FloatArray = 1.0 - (1.0 - self.step) ** self.steps
        return length


def draw(seed: int, batch: int) -> Draw:
    """Batch number `batch` of `seed`: the shape and the number of noisy steps follow from `batch`.

    >>> draw(0, 3).tuning.depth, draw(0, 3).tuning.base.shape
    (4, (25, 15, 2))
    """
    rng = np.random.default_rng([seed, batch])
    depth, vocab = SHAPES[batch % len(SHAPES)]
    shape = (BATCH, sum(vocab**d for d in range(depth)), vocab)

    def log_uniform(low: float, high: float) -> FloatArray:
        drawn: FloatArray = np.exp(rng.uniform(np.log(low), np.log(high), BATCH))
        return drawn

    def rows() -> FloatArray:
        """Dirichlet rows, one concentration a tree from 0.1 (peaked) to 10 (flat)."""
        weights = rng.standard_gamma(np.broadcast_to(log_uniform(0.1, 10.0)[:, None, None], shape)) + 1e-300
        found: FloatArray = (1.0 - FLOOR) * weights / weights.sum(axis=-1, keepdims=True) + FLOOR / vocab
        return found

    def coin() -> npt.NDArray[np.bool_]:
        """One fair coin a tree, to choose between node rows."""
        return (rng.random(BATCH) < 0.5)[:, None, None]

    base, pull = rows(), rows()
    # Half the domains lean to what q finds improbable: without that, hard tokens would be rare in them.
    leaning = pull * np.where(coin(), base**-0.5, 1.0)
    pull = leaning / leaning.sum(axis=-1, keepdims=True)
    mix = np.where(rng.random(BATCH) < 1 / 3, 1.0, log_uniform(0.01, 0.9))
    target = _between(base, pull, mix)
    kind = rng.integers(0, 3, BATCH)
    other = rows()
    general = _between(base, other, np.select([kind == OWN, kind == NEAR], [0.0, rng.uniform(0.01, 0.3, BATCH)], 1.0))
    domain = np.where(coin(), target, pull)
    way = rng.uniform(0.05, 0.95, BATCH)
    steps = STEPS[(batch // len(SHAPES)) % len(STEPS)]
    return Draw(
        Tuning(base, target, general, domain, depth),
        pull,
        mix,
        threshold=log_uniform(0.02, 0.5),
        step=1.0 - (1.0 - way) ** (1.0 / steps),
        steps=steps,
        width=log_uniform(0.05, 4.0),
        direction=rng.uniform(-1.0, 1.0, shape),
        kind=kind,
    )


def _between(one: FloatArray, other: FloatArray, share: FloatArray) -> FloatArray:
    weight = share[:, None, None]
    return (1.0 - weight) * one + weight * other
