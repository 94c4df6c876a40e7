"""What to try next: from what was tried, how much it lost, and what paid in our measurements (docs/choosing.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

from gentletune.reporting.axes import room_above_chance
from gentletune.reporting.choice import Choice, oriented
from gentletune.reporting.words import say
from gentletune.stats import LEVEL

Idea = tuple[str, Mapping[str, Any]]
_ALPHA = re.compile(r"wise_ft\(alpha=([0-9.]+)\)")
_LEAST, _MOST = 0.1, 0.9
_NEAR = 10.5  # times the safe rate: what is left of an update that went farther is a poor one
_MANY_SEEDS = 4  # that know their own variance


def try_next(choice: Choice) -> tuple[str, ...]:
    """What is most likely to help, in words; nothing where the safe choice has the most domain gain."""
    if choice.safe is not None:
        ideas = _further(choice, choice.safe)
    else:
        ideas = _gentler(choice) if choice.gained else _stronger(choice)
    return tuple(say("advice", kind, facts) for kind, facts in ideas)


def _further(choice: Choice, safe: int) -> Iterator[Idea]:
    """What kept more than SFT at larger rates in our studies, where more is to be gained than the safe choice does."""
    setting = choice.settings[safe]
    rate = setting.learning_rate
    more = choice.most_gain is not None and choice.settings[choice.most_gain].learning_rate > rate
    tried = [record.label for record in choice.records if record.learning_rate > rate]
    beyond = [s.learning_rate for s in choice.settings if s.plain and 1 < s.learning_rate / rate < _NEAR]
    if setting.plain and more and beyond and not any(_has(label, "wise_ft") for label in tried):
        yield "averaged", {"rate": min(beyond)}
    if setting.plain and more and not any(_has(label, "mofo") for label in tried):
        yield "steadier", {"low": _round(2 * rate), "high": _round(3 * rate)}


def _has(label: str, *parts: str) -> bool:
    return any(re.search(rf"\b{part}\b", label) for part in parts)


def _stronger(choice: Choice) -> Iterator[Idea]:
    """More training where nothing gained; not where training has already made the domain worse, or cost the rest."""
    if all(change is None or change.p is None for change in choice.gains):
        yield "base_scores", {}
        return
    if any(_seeds_decide(choice, i) for i in range(len(choice.settings))):
        yield "seeds", {}
    places = range(len(choice.settings))
    largest = max(s.learning_rate for s in choice.settings)
    strongest = [i for i in places if choice.settings[i].learning_rate == largest]
    if all(_worse(choice, i) for i in strongest):
        yield "smaller_rate", {"rate": _round(min(s.learning_rate for s in choice.settings) / 3)}
        yield "domain_items", {}
        return
    costs = [cost for i in strongest if (cost := choice.cost(i)) is not None]
    if costs and all(oriented(choice.general, cost)[0] < -choice.margin for cost in costs):
        yield "longer_gently", {}
        yield "domain_items", {}
        return
    yield "larger_rate", {"rate": _round(3 * largest)}
    yield "longer", {}
    yield "domain_items", {}


def _seeds_decide(choice: Choice, i: int) -> bool:
    """Whether the items alone show a gain, among all settings, and few seeds leave more open than the items do."""
    change, seeds = choice.gains[i], choice.settings[i].seeds
    if change is None or change.stderr is None or not 1 < seeds < _MANY_SEEDS or change.seed_share <= 0.5:
        return False
    sure = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(choice.settings))
    return oriented(choice.domain, change)[0] > sure * change.stderr * math.sqrt(1 - change.seed_share)


def _worse(choice: Choice, i: int) -> bool:
    """Whether a setting's domain score is significantly below the base model's, by itself: a warning."""
    change = choice.gains[i]
    return change is not None and bool(change.excludes_zero) and oriented(choice.domain, change)[0] < 0


def _gentler(choice: Choice) -> Iterator[Idea]:
    if choice.blind:
        yield "general_task", {}
        return
    if room_above_chance(choice.records, choice.general, "general") == 0:
        yield "easier_task", {}
    if any(choice.why_not(i) == "too_few_items" for i in choice.gained):
        yield "general_items", {}
    yield _rate(choice)
    if alpha := _alpha(choice):
        yield "average", {"alpha": alpha}
    if not any(_has(s.label, "trust_region") for s in choice.settings):
        plain = not any(record.recipe.get("quantization") for record in choice.records)
        yield "budget", {"method": "trust_region(budget=0.05)" if plain else "wise_ft(alpha=auto, budget=0.05)"}
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
