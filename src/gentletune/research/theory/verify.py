"""Every statement of docs/theory.md, checked on random trees: counterexamples, tightness, and where a bound is idle."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from gentletune.research.theory import checks
from gentletune.research.theory.draw import BATCH, Draw, draw
from gentletune.research.theory.tally import Finding, Mask, Quantiles, Tally


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
        return asdict(self)

    def frame(self) -> pd.DataFrame:
        """The findings to read: a row a statement, each median with its 5 % and 95 % quantile."""

        def told(found: Quantiles | None) -> str:
            return "" if found is None else "{1:.3g} ({0:.3g}-{2:.3g})".format(*found)

        return pd.DataFrame([
            {
                "statement": f.statement,
                "checks": f.checks,
                "violations": f.violations,
                "tightness (5-95 %)": told(f.tightness) if f.worst_error is None else f"error ≤ {f.worst_error:.0e}",
                "idle from λ (5-95 %)": told(f.uninformative),
            }
            for f in self.findings
        ])  # fmt: skip


def verify(trees: int = 10_000, seed: int = 0) -> Verification:
    """Draw `trees` settings and check every statement on each, at the λs of `LAMBDAS` where it has a λ.

    Settings come in batches (`theory.draw`) of depth 1 to 4 and vocabulary 2 to 6. All but `seconds` follows from
    `trees` and `seed`. Raises `ValueError` on less than one tree or a negative seed.
    """
    if trees < 1 or seed < 0:
        raise ValueError(f"trees must be at least 1 and seed not negative, got {trees} and {seed}")
    start, tally = time.perf_counter(), Tally(seed)
    pairs = {True: [0, 0], False: [0, 0]}  # whether Theorem 2's b grows with h: [pairs, those ordered as claimed]
    for batch in range(-(-trees // BATCH)):
        tally.batch, tally.trees = batch, min(BATCH, trees - batch * BATCH)
        drawn = draw(seed, batch)
        checks.check_identities(tally, drawn)
        checks.check_exchange_rate(tally, drawn)
        checks.check_noisy_steps(tally, drawn)
        checks.check_hard_tokens(tally, drawn)
        checks.check_hard_token_range(tally, drawn)
        counted, wider, grows = _wider_range(drawn)
        counted &= np.arange(BATCH) < tally.trees
        for regime, count in pairs.items():
            chosen = counted & (grows == regime)
            count[0] += int(chosen.sum())
            count[1] += int((chosen & wider).sum())
    names = {True: "where the bound of Theorem 2 grows with the hard share", False: "elsewhere"}
    observations = tuple(
        f"Fewer hard tokens, wider exact safe range: true of {good} of {count} pairs of domains ({good / count:.1%}) "
        f"{names[regime]}."
        for regime, (count, good) in pairs.items()
        if count
    )
    return Verification(trees, seed, time.perf_counter() - start, tally.findings(), observations)


def _wider_range(drawn: Draw) -> tuple[Mask, Mask, Mask]:
    """The claim that fewer hard tokens mean a wider safe range, tried on the exact rise: counted, true, b grows; (T,).

    Two domains differ only in the hard share, h = 0.25 and h = 0.75 at every node that has both hard and easy tokens.
    At the budget that the first meets at λ = 1/2, it has the wider safe range exactly when the second rises higher.
    """
    few, many = (checks.with_hard_share(drawn, share).rise_and_gain(0.5)[0] for share in (0.25, 0.75))
    m = np.where(drawn.mix < 1.0, drawn.mix, 0.5)
    grows = m >= np.log1p(-m) ** 2 / 2 * (1.0 / drawn.threshold - 2.0)
    return (drawn.mix < 1.0) & (np.abs(many - few) > 1e-9), many > few, grows
