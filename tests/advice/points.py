"""Hand-made probes."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.advice.curve import ProbePoint
from gentletune.stats import mean_score

SCATTER = (-0.04, -0.02, 0.0, 0.02, 0.04)


def point(
    rate: float, gain: float, kl: float, *, steps: int = 10, method: str = "sft", scatter: Sequence[float] = SCATTER
) -> ProbePoint:
    """A probe of a constant rate without warm-up; its items lie around the mean, alike in each probe."""
    made = (
        mean_score([value + s for s in scatter], task=task, side=side, metric="bits_per_token", higher_is_better=up)
        for value, task, side, up in ((gain, "domain_gain", "domain", True), (kl, "kl_sampled", "general", False))
    )
    return ProbePoint(method, rate, steps, rate * steps, *made)
