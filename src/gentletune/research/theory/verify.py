"""Every statement of docs/theory.md, checked on random trees: counterexamples, tightness, and where a bound is idle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from gentletune.research.theory.checks import (
    check_exchange_rate,
    check_hard_token_range,
    check_hard_tokens,
    check_identities,
    check_noisy_steps,
    with_hard_share,
)
from gentletune.research.theory.draw import BATCH, Draw, draw
from gentletune.research.theory.tally import Finding, Tally


@dataclass(frozen=True)
class Verification:
    """What `verify` found: one `Finding` a statement, and observations on what is claimed but not proved."""

    trees: int
    seed: int
    seconds: float
    findings: tuple[Finding, ...]
    observations: tuple[str, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The findings with a violation."""
        return tuple(finding for finding in self.findings if finding.violations)

    def as_dict(self) -> dict[str, Any]:
        return {
            "trees": self.trees,
            "seed": self.seed,
            "seconds": self.seconds,
            "findings": [finding.as_dict() for finding in self.findings],
            "observations": list(self.observations),
        }


def verify(trees: int = 10_000, seed: int = 0) -> Verification:
    """Draw `trees` settings and check every statement on each, at the λs of `LAMBDAS` where it has a λ.

    Settings come in batches (`theory.draw`) of depth 1 to 4 and vocabulary 2 to 6. All but `seconds`
    follows from `trees` and `seed`. Raises `ValueError` on less than one tree or a negative seed.
    """
    if trees < 1 or seed < 0:
        raise ValueError(f"trees must be at least 1 and seed not negative, got {trees} and {seed}")
    start = time.perf_counter()
    tally, wider = Tally(seed), WiderRange()
    for batch in range(-(-trees // BATCH)):
        tally.batch, tally.trees = batch, min(BATCH, trees - batch * BATCH)
        drawn = draw(seed, batch)
        check_identities(tally, drawn)
        check_exchange_rate(tally, drawn)
        check_noisy_steps(tally, drawn)
        check_hard_tokens(tally, drawn)
        check_hard_token_range(tally, drawn)
        wider.add(drawn, tally.trees)
    return Verification(trees, seed, time.perf_counter() - start, tally.findings(), wider.lines())


class WiderRange:
    """The claim that fewer hard tokens mean a wider safe range, tried on the exact rise rather than on a bound.

    Two domains differ only in the hard share: h = 0.25 and h = 0.75 at every node that has both hard and easy
    tokens, with the same law inside either kind. At the budget that the first meets at λ = 1/2, the first has the
    wider safe range exactly when the second rises higher there.
    """

    def __init__(self) -> None:
        self.counts = {True: [0, 0], False: [0, 0]}  # whether the bound's b grows with h: [pairs, as claimed]

    def add(self, drawn: Draw, trees: int) -> None:
        few, many = (with_hard_share(drawn, share).rise_and_gain(0.5)[0] for share in (0.25, 0.75))
        counted = (np.arange(BATCH) < trees) & (drawn.mix < 1.0) & (np.abs(many - few) > 1e-9)
        m = np.where(drawn.mix < 1.0, drawn.mix, 0.5)
        grows = m >= np.log1p(-m) ** 2 / 2 * (1.0 / drawn.threshold - 2.0)
        for regime, pair in self.counts.items():
            chosen = counted & (grows == regime)
            pair[0] += int(chosen.sum())
            pair[1] += int((chosen & (many > few)).sum())

    def lines(self) -> tuple[str, ...]:
        """One sentence a regime."""
        names = {True: "where the bound of Theorem 2 grows with the hard share", False: "elsewhere"}
        return tuple(
            f"Fewer hard tokens, wider exact safe range: true of {good} of {pairs} pairs of domains "
            f"({good / pairs:.1%}) {names[regime]}."
            for regime, (pairs, good) in self.counts.items()
            if pairs
        )
