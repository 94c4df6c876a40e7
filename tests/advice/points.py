"""Hand-made probes."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.advice.curve import ProbePoint
from gentletune.advice.harm import Accuracy, Dose, FromBase, Harm
from gentletune.core.records import Score
from gentletune.stats import accuracy_score, mean_over_tasks, mean_score

SCATTER = (-0.04, -0.02, 0.0, 0.02, 0.04)
ITEMS = 100


def accuracy(share: float) -> Score:
    """So many of ITEMS right answers."""
    right = round(share * ITEMS)
    score = accuracy_score([1.0] * right + [0.0] * (ITEMS - right), task="general", side="general")
    return mean_over_tasks([score], task="general_mean", side="general")


def point(
    rate: float,
    gain: float,
    kl: float,
    *,
    steps: int = 10,
    method: str = "sft",
    scatter: Sequence[float] = SCATTER,
    general: float | None = None,
) -> ProbePoint:
    """A probe; its items lie around the mean, alike in each probe."""
    made = (
        mean_score([value + s for s in scatter], task=task, side=side, metric="bits_per_token", higher_is_better=up)
        for value, task, side, up in ((gain, "domain_gain", "domain", True), (kl, "kl_sampled", "general", False))
    )
    return ProbePoint(method, rate, steps, *made, None if general is None else accuracy(general))


def from_base(points: Sequence[ProbePoint], margin: float = 0.05, longer: float = 1.0) -> Harm:
    """Harm by the probes' KL from base."""
    return Harm(FromBase([Dose(p.learning_rate, p.kl.value) for p in points]), margin, longer)


def by_accuracy(losses: dict[float, float], base: float = 1.0, longer: float = 1.0) -> Harm:
    """Harm by what probes at these rates lost of `base`, with the usual margin."""
    return Harm(Accuracy([Dose(rate, loss) for rate, loss in losses.items()], base, ITEMS), 0.02, longer)
