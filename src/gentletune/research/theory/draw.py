"""Random settings to check the statements on: batches of trees of one shape, from peaked to flat."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gentletune.research.theory.tilting import Tuning
from gentletune.research.theory.tree import FloatArray

BATCH = 25
"""Settings in a batch; a batch depends on the seed and its own number only, never on how many are drawn."""
SHAPES = tuple((depth, vocab) for vocab, depth in itertools.product(range(2, 7), range(1, 5)))
STEPS = (1, 2, 4, 8)
FLOOR = 1e-6
"""Share of every drawn row that is uniform, so that no token is impossible (about 22 bits at most)."""
OWN, NEAR, UNRELATED = range(3)
"""How general data is drawn: by the initial model, close to it, or without regard to it."""


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch of T settings. `pull` holds the rows of d, and the target is (1-m) q + m d with m in `mix` (T,).

    m = 1 in a third of the settings: there the target is d, as free of q as can be. The domain's law P₂ is p₂ or
    d. `threshold` is δ (T,); `step` λ (T,), `steps` K, `width` w (T,) nats and `direction` u (T, M, v) are the
    noisy steps of Theorem 1b; `kind` (T,) is OWN, NEAR or UNRELATED.
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


def draw(seed: int, batch: int) -> Draw:
    """Batch number `batch` of `seed`: the shape and the number of noisy steps follow from `batch`.

    >>> draw(0, 3).tuning.depth, draw(0, 3).tuning.initial.shape
    (4, (25, 15, 2))
    """
    rng = np.random.default_rng([seed, batch])
    depth, vocab = SHAPES[batch % len(SHAPES)]
    shape = (BATCH, sum(vocab**d for d in range(depth)), vocab)
    initial, pull = _rows(rng, shape), _rows(rng, shape)
    # Half the domains lean to what q finds improbable: without that, hard tokens would be rare in them.
    leaning = pull * np.where(_coin(rng), initial**-0.5, 1.0)
    pull = leaning / leaning.sum(axis=-1, keepdims=True)
    mix = np.where(rng.random(BATCH) < 1 / 3, 1.0, _log_uniform(rng, 0.01, 0.9))
    weight = mix[:, None, None]
    target = (1.0 - weight) * initial + weight * pull
    kind = rng.integers(0, 3, BATCH)
    general = _general(rng, initial, kind)
    domain = np.where(_coin(rng), target, pull)
    way = rng.uniform(0.05, 0.95, BATCH)
    steps = STEPS[(batch // len(SHAPES)) % len(STEPS)]
    return Draw(
        Tuning(initial, target, general, domain, depth),
        pull,
        mix,
        threshold=_log_uniform(rng, 0.02, 0.5),
        step=1.0 - (1.0 - way) ** (1.0 / steps),
        steps=steps,
        width=_log_uniform(rng, 0.05, 4.0),
        direction=rng.uniform(-1.0, 1.0, shape),
        kind=kind,
    )


def _rows(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Dirichlet rows, one concentration a tree from 0.1 (peaked) to 10 (flat)."""
    concentration = _log_uniform(rng, 0.1, 10.0)[:, None, None]
    weights = rng.standard_gamma(np.broadcast_to(concentration, shape)) + 1e-300
    rows: FloatArray = (1.0 - FLOOR) * weights / weights.sum(axis=-1, keepdims=True) + FLOOR / shape[-1]
    return rows


def _general(rng: np.random.Generator, initial: FloatArray, kind: npt.NDArray[np.int64]) -> FloatArray:
    other = _rows(rng, initial.shape)
    share = rng.uniform(0.01, 0.3, BATCH)
    share = np.select([kind == OWN, kind == NEAR], [0.0, share], 1.0)[:, None, None]
    general: FloatArray = (1.0 - share) * initial + share * other
    return general


def _coin(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """One fair coin a tree, to choose between node rows."""
    return (rng.random(BATCH) < 0.5)[:, None, None]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> FloatArray:
    drawn: FloatArray = np.exp(rng.uniform(np.log(low), np.log(high), BATCH))
    return drawn
