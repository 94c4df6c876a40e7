"""A fit: what may be asked of it, the figures of its runs, and the safe range they leave. No torch is needed here.

All figures are bits per token; λ has no unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods import parse_method
from gentletune.stats import Run, measured

PLACES = ("λ̂ on general positions", "λ̂ on domain positions", "the learning rate")
HARD = 0.1  # a label token below this probability under the base model is hard


def check_fit(
    recipe: Recipe, rates: Sequence[float], seeds: Sequence[int], cots: Sequence[bool], every: int, budget: float,
    general_positions: int, domain_positions: int,
) -> None:  # fmt: skip
    """Raises `UserError` where `fit` cannot begin with these; needs no files."""
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UserError("rates must be numbers above 0, at least one")
    if not seeds or min(seeds) < 0:
        raise UserError("seeds must be whole numbers from 0, at least one")
    for name, values in (("rates", [f"{rate:g}" for rate in rates]), ("seeds", seeds), ("kinds of data", cots)):
        if len(set(values)) < len(values):
            raise UserError(f"{name} must differ from one another, got {', '.join(map(str, values))}")
    if not cots:
        raise UserError("give at least one kind of data: with chain of thought, or without")
    for name, count in (("every", every), ("general and domain positions", min(general_positions, domain_positions))):
        if count < 1:
            raise UserError(f"{name} must be 1 or more, got {count}")
    if not (math.isfinite(budget) and budget > 0):
        raise UserError(f"budget must be a number of bits per token above 0, got {budget:g}")
    method = parse_method(recipe.method)
    if method.merge is not None or method.sequence_weights is not None:
        raise UserError(
            f"method {recipe.method}: a fit follows training step by step, without a merge (wise_ft) and without "
            "weights of sequences (flow); leave them out"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A model on the way, `step` optimiser steps from the base model.

    `gain` is the fall of the code length of held-out labels, `kl` KL(q‖q_k) at general positions, `kl_sampled` its
    estimate from the tokens that stand there. The λ are effective ones on general and domain positions, the fits theirs
    (None: still the base model). `tilted_kl` is the KL of the tilt at `lambda_general`, and the bounds are taken there
    (`convex_bound` and `theorem_bound`, Theorem 1a's: None beyond λ = 1). `update_norm` is ‖θ-θ⁰‖.
    """

    step: int
    gain: float
    kl: float
    kl_sampled: float
    lambda_general: float
    fit_general: float | None
    lambda_domain: float
    fit_domain: float | None
    tilted_kl: float
    convex_bound: float | None
    theorem_bound: float | None
    hoeffding_bound: float
    quadratic: float
    update_norm: float


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
class Target:
    """What a kind of data pulls the model towards, p₂: the end of the run at `rate`.

    `bits` and `base_bits` are the target's and the base model's on the held-out labels, `candidates` every (rate, bits
    at its end) tried, bits None where it diverged; `divergence` is KL(q‖p₂) at general positions. `hard_share` of the
    `labels` domain tokens compared are hard.
    """

    rate: float
    bits: float
    base_bits: float
    divergence: float
    candidates: tuple[tuple[float, float | None], ...]
    hard_share: float
    labels: int


@dataclass(frozen=True)
class Edge:
    """Where KL meets the budget, and the gain there; `open` where it never did: then the largest place measured."""

    at: float
    gain: float
    open: bool


@dataclass(frozen=True)
class KindOfData:
    """What came of one kind of training data: its target and its runs; `budget` is the study's."""

    cot: bool
    target: Target
    runs: tuple[FollowedRun, ...]
    budget: float

    @property
    def name(self) -> str:
        """`CoT` or `label-only`."""
        return kind_name(self.cot)

    @cached_property
    def ranges(self) -> dict[int, dict[str, Edge]]:
        """The safe range of each seed, by `PLACES`."""
        seeds = dict.fromkeys(run.seed for run in self.runs)
        return {seed: safe_range([run for run in self.runs if run.seed == seed], self.budget) for seed in seeds}

    def reach(self, place: str) -> list[Run]:
        """How far the safe range goes, by seed."""
        return measured({seed: edges[place].at for seed, edges in self.ranges.items()})

    def is_target(self, run: FollowedRun) -> bool:
        """Whether it is the target's own training, done again."""
        return run.rate == self.target.rate and run.seed == self.runs[0].seed


@dataclass(frozen=True)
class TiltingStudy:
    """All of it. `budget` is the KL from base that a safe range stays within."""

    recipe: Recipe
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    budget: float
    kinds: tuple[KindOfData, ...]


def kind_name(cot: bool) -> str:
    """How a kind of data is called in tables."""
    return "CoT" if cot else "label-only"


def safe_edge(points: Iterable[tuple[float, float, float]], budget: float) -> Edge:
    """The first place at which KL exceeds `budget`, by linear interpolation along points (place, KL, gain).

    Points are taken in order of place; the way begins at (0, 0, 0), the base model. A point of infinite KL (a run that
    diverged) makes an edge of the point before it.

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


def safe_range(runs: Sequence[FollowedRun], budget: float) -> dict[str, Edge]:
    """The safe range of the runs of one kind of data and seed, by `PLACES`.

    In λ̂ all checkpoints of all rates are one set of points; in the learning rate a point is a run's end.
    """
    points = [point for run in runs for point in run.checkpoints]
    ends = [(run.rate, math.inf, 0.0) if run.end is None else (run.rate, run.end.kl, run.end.gain) for run in runs]
    ways = ([(p.lambda_general, p.kl, p.gain) for p in points], [(p.lambda_domain, p.kl, p.gain) for p in points], ends)
    return {place: safe_edge(way, budget) for place, way in zip(PLACES, ways, strict=True)}
