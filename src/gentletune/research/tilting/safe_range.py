"""The safe range: how far a fine-tuning may go before general drift exceeds a budget. Bits per token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """A model on the way, `step` optimiser steps from the initial one. Bits per token; λ has no unit.

    `gain` is the fall of the code length of held-out labels, `drift` KL(q‖q_k) at general positions, `drift_sampled`
    its estimate from the tokens that stand there. The λ are effective ones on general and domain positions, the
    fits theirs (None: still the initial model). `tilted_drift` is the drift of the tilt at `lambda_general`, and the
    bounds are taken there (`convex_bound` and `theorem_bound`, Theorem 1a's: None beyond λ = 1).
    `update_norm` is ‖θ-θ⁰‖.
    """

    step: int
    gain: float
    drift: float
    drift_sampled: float
    lambda_general: float
    fit_general: float | None
    lambda_domain: float
    fit_domain: float | None
    tilted_drift: float
    convex_bound: float | None
    hoeffding_bound: float
    quadratic: float
    update_norm: float
    theorem_bound: float | None = None


@dataclass(frozen=True)
class FollowedRun:
    """One training run and its checkpoints in order of steps; none may be left where it `diverged` at once."""

    cot: bool
    rate: float
    seed: int
    diverged: bool
    checkpoints: tuple[Checkpoint, ...]

    @property
    def end(self) -> Checkpoint | None:
        """The last checkpoint of a run that came to its end."""
        return None if self.diverged or not self.checkpoints else self.checkpoints[-1]


@dataclass(frozen=True)
class Edge:
    """Where drift meets the budget, and the gain there; `open` where it never did: then the largest place measured."""

    at: float
    gain: float
    open: bool


@dataclass(frozen=True)
class SafeRange:
    """The safe range of one kind of data and seed, in λ̂ on general and on domain positions, and in the learning rate.

    `best_gain` is the largest gain measured at any checkpoint within the budget.
    """

    seed: int
    lambda_general: Edge
    lambda_domain: Edge
    rate: Edge
    best_gain: float


def safe_edge(points: Iterable[tuple[float, float, float]], budget: float) -> Edge:
    """The first place at which drift exceeds `budget`, by linear interpolation along points (place, drift, gain).

    Points are taken in order of place; the way begins at (0, 0, 0), the initial model. A point of infinite drift
    (a run that diverged) makes an edge of the point before it.

    >>> safe_edge([(2.0, 0.25, 5.0), (4.0, 0.75, 7.0)], budget=0.5)
    Edge(at=3.0, gain=6.0, open=False)
    """
    x0, d0, g0 = 0.0, 0.0, 0.0
    for x1, d1, g1 in sorted(points):
        if d1 > budget:
            share = (budget - d0) / (d1 - d0)  # 0 where d1 is infinite
            return Edge(x0 + share * (x1 - x0), g0 + share * (g1 - g0), open=False)
        x0, d0, g0 = x1, d1, g1
    return Edge(x0, g0, open=True)


def safe_range(runs: Sequence[FollowedRun], budget: float) -> SafeRange:
    """The safe range of the runs of one kind of data and seed.

    In λ̂ all checkpoints of all rates are one set of points; in the learning rate a point is a run's end.
    """
    points = [point for run in runs for point in run.checkpoints]
    ends = [(run.rate, math.inf, 0.0) if run.end is None else (run.rate, run.end.drift, run.end.gain) for run in runs]
    return SafeRange(
        seed=runs[0].seed,
        lambda_general=safe_edge([(p.lambda_general, p.drift, p.gain) for p in points], budget),
        lambda_domain=safe_edge([(p.lambda_domain, p.drift, p.gain) for p in points], budget),
        rate=safe_edge(ends, budget),
        best_gain=max((p.gain for p in points if p.drift <= budget), default=0.0),
    )
