"""What to try where nothing is safe, or nothing gained: from what was tried, and how much it lost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gentletune.report.choice import Choice
from gentletune.report.words import say

Idea = tuple[str, Mapping[str, Any]]
_ALPHA = re.compile(r"wise_ft\(alpha=([0-9.]+)\)")
_LEAST, _MOST = 0.1, 0.9


def try_next(choice: Choice) -> tuple[str, ...]:
    """What is most likely to help, in words; nothing where there is a safe choice."""
    if choice.safe is not None:
        return ()
    ideas = _gentler(choice) if choice.gained else _stronger(choice)
    return tuple(say("advice", kind, facts) for kind, facts in ideas)


def _stronger(choice: Choice) -> Iterator[Idea]:
    yield "larger_rate", {"rate": _round(3 * max(s.learning_rate for s in choice.settings))}
    yield "longer", {}
    yield "domain_items", {}


def _gentler(choice: Choice) -> Iterator[Idea]:
    if choice.blind:
        yield "general_task", {}
        return
    if any(choice.why_not(i) == "too_few_items" for i in choice.gained):
        yield "general_items", {}
    yield _rate(choice)
    if alpha := _alpha(choice):
        yield "average", {"alpha": alpha}
    yield "replay", {}


def _rate(choice: Choice) -> Idea:
    """Below the smallest rate that gained: beyond all that was tried, or above the next one, which did not gain."""
    first = min(choice.settings[i].learning_rate for i in choice.gained)
    below = [s.learning_rate for s in choice.settings if s.learning_rate < first]
    return (
        ("rate_between", {"low": max(below), "high": first}) if below else ("smaller_rate", {"rate": _round(first / 3)})
    )


def _round(rate: float) -> float:
    return float(f"{rate:.0e}")


def _alpha(choice: Choice) -> float | None:
    """How much of the least harmful setting to keep: half of the smallest share tried, or what the margin allows.

    The loss is taken to grow in proportion to alpha, which is cautious: Wise-FT's usually grows slower at first.
    """
    tried = [float(found[1]) for s in choice.settings if (found := _ALPHA.search(s.label))]
    if tried:
        half = math.floor(10 * min(tried) / 2) / 10
        return half if half >= _LEAST else None
    i = choice.least_harmful
    lost = -choice.kept(i) if i is not None and choice.cost(i) is not None else 0.0
    return min(max(math.floor(10 * choice.margin / lost + 1e-9) / 10, _LEAST), _MOST) if lost > 0 else None
