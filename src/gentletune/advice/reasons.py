"""What speaks for a proposal, as facts that `advice.txt.j2` puts into sentences; or why there is no rate to propose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gentletune.advice.curve import Choice, ProbePoint, any_gain, half_decades, stable_points
from gentletune.core.errors import UserError
from gentletune.core.render import one_line, template


def told(name: str, **facts: Any) -> list[str]:
    """The sentences that the template's macro `name` makes of the facts, a paragraph each."""
    filters = {"rate": "{:g}".format, "bits": "{:.3f}".format, "signed": "{:+.3f}".format}
    text = str(getattr(template("gentletune.advice", "advice.txt.j2", **filters).module, name)(**facts))
    return [one_line(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]


def rate_facts(choice: Choice, points: Sequence[ProbePoint], diverged: Sequence[float]) -> dict[str, Any]:
    """Which gain the rate's is as good as, what it was read from, and what the probes could not show."""
    stable, largest = stable_points(points, diverged), choice.largest_stable
    probed = {p.learning_rate for p in points} | set(diverged)
    return {
        "choice": choice,
        "mine": next(f for f in choice.forecasts if f.learning_rate == choice.learning_rate),
        "top": max(stable, key=lambda p: p.gain.value),
        "unstable": min((rate for rate in probed if rate > largest), default=None),
        "gained": any_gain(stable) is not False,
        "more": half_decades(3, largest),
    }


def nothing_to_propose(
    points: Sequence[ProbePoint], diverged: Sequence[float], candidates: Sequence[float], budget: float | None
) -> UserError:
    """Why there is no rate to propose, and the way out."""
    stable = stable_points(points, diverged)
    if not stable:
        return UserError(f"the probes at {', '.join(f'{r:g}' for r in diverged)} diverged; give smaller rates")
    largest = max(p.learning_rate for p in stable)
    if min(candidates) > largest * 1.001:
        top = f"{largest:g}, the largest stable rate probed"
        return UserError(f"all candidates lie above {top}; give smaller candidates")
    return UserError(
        f"no learning rate is forecast to stay within {budget:g} bits of KL from base per token; "
        "raise budget or give smaller candidates"
    )
