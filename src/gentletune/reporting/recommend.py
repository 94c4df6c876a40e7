"""Findings from records: the choice at work, with everything that a reader should know beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord
from gentletune.reporting.axes import (
    ACCURACIES,
    Axis,
    at_chance,
    both_axes,
    complete,
    overlapping,
    room_above_chance,
)
from gentletune.reporting.choice import RULED_OUT, Choice
from gentletune.reporting.findings import Excluded, Findings, Reason
from gentletune.reporting.settings import apart, settings_of
from gentletune.reporting.try_next import try_next
from gentletune.reporting.words import excluded_words
from gentletune.stats.numbers import rate

MARGIN_SHARE, MARGIN_BITS = 0.02, 0.05  # of accuracy, and of bits per token


def recommend(
    records: Sequence[RunRecord], *, margin: float | None = None, domain: str | None = None, general: str | None = None
) -> Findings:
    """What the runs of one base model on one data set show: `safe` and `most_gain`, each with its price, and the rest.

    A setting is a method at a learning rate, over its seeds. It is safe where its domain gain is significant among all
    settings (Benjamini and Hochberg) and its general change against the base model is shown to be no larger loss than
    `margin` (by default 0.02 of accuracy or 0.05 bits per token, in the general axis's unit); where the data are too
    few to show that, where no loss is seen (`choice` has the rules). The margin is never more than half of what the
    base model is shown to have above guessing. `domain` and `general` choose the axes by score key (`clinic/accuracy`).

    Raises `UserError` on a margin below 0, not finite or, where the general axis is a share, of 1 or more; on an
    unknown key, or the domain's own as `general`; and on runs of several base models or data sets, which are not
    compared.

        from gentletune import load_records, recommend
        print(recommend(load_records([Path("runs/study")]), margin=0.01).safe)
    """
    from gentletune.reporting.section import split  # it holds the findings of each of its sections

    sections = split(records, domain, general, margin)
    if len(sections) > 1:
        names = "; ".join(section.name for section in sections)
        raise UserError(f"these runs are not one comparison ({names}); give the records of one of them")
    return sections[0].findings


def find(
    records: Sequence[RunRecord], domain: str | None = None, general: str | None = None, margin: float | None = None
) -> Findings:
    """The findings on runs that may be compared, all of them. Raises `UserError` on a bad margin or key."""
    check_margin(margin)
    x, y = both_axes(records, domain, general)
    if y is not None and (_is_share(y) or y.unit.endswith("from 0 to 1")):
        check_margin(margin, y.key)
    shared = overlapping(records)
    asked = margin if margin is not None else default_margin(y)
    room = room_above_chance(records, y, "general") if y else math.inf
    known: dict[str, Any] = {
        "overlapping": tuple(shared),
        "margin": min(asked, room / 2),
        "margin_asked": asked,
        "unit": y.unit if y else "",
        "domain_axis": x.key if x else None,
        "general_axis": y.key if y else None,
        "domain_label": x.described if x else "",
        "general_label": y.described if y else "",
        "distance": y is not None and y.is_distance,
        "blind": y is not None and general is None and set(y.sources) <= set(shared),
        **_at_chance(records, x if domain is None else None, y, general is None),
        "headroom": room if math.isfinite(room) else None,
        "runs": len(records),
    }
    settings = settings_of(records, x, y) if x and y else []
    failed = _without_scores(records, {i for s in settings for i in s.indices}, x, y)
    if x is None or y is None or not settings:
        reason: Reason = "no_scores" if complete(records) else "no_complete_runs"
        return Findings(None, None, None, (), (), failed, reason=reason, **known)
    choice = Choice(records, x, y, settings, known["margin"], known["blind"])
    out = (_excluded(choice, i) for i in range(len(settings)) if i != choice.safe)
    return Findings(
        choice.pick(choice.safe),
        choice.pick(choice.most_gain),
        choice.pick(choice.least_harmful),
        try_next(choice),
        choice.exchange(),
        tuple(sorted([*out, *failed], key=lambda one: one.index)),
        reason=_reason(choice),
        apart=apart(settings),
        settings=len(settings),
        **known,
    )


def _at_chance(
    records: Sequence[RunRecord], domain: Axis | None, general: Axis | None, chosen: bool
) -> dict[str, tuple[str, ...]]:
    """Accuracies at chance, by what becomes of them; those left out only where an axis was `chosen` for the user."""
    weak = at_chance(records, "general")
    within = [key for key in general.sources if key in weak] if general else []
    return {
        "domain_at_chance": tuple(
            at_chance(records, "domain") if domain and not domain.key.endswith(ACCURACIES) else ()
        ),
        "general_left_out": tuple(key for key in weak if general and chosen and key not in within),
        "general_diluting": tuple(within),
    }


def check_margin(margin: float | None, share: str | None = None) -> None:
    """Raise `UserError` on a margin that no general score can have: below 0, infinite, not a number.

    Of a `share`, named so, 1 is all there is, and as a margin would make everything safe.
    """
    if margin is not None and margin >= 1 and share is not None:
        told = f"margin {margin:g} is all of {share} or more, which goes from 0 to 1"
        raise UserError(f"{told}; for {margin:g} % write {margin / 100:g}")
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"margin must be a number >= 0 in the general score's unit, got {margin:g}")


def default_margin(general: Axis | None) -> float:
    """The loss that may be overlooked without a word from the user."""
    return MARGIN_SHARE if general is None or _is_share(general) else MARGIN_BITS


def _is_share(axis: Axis) -> bool:
    return axis.key.endswith(ACCURACIES) or "share" in axis.unit


def _reason(choice: Choice) -> Reason:
    if choice.safe is not None:
        return "found"
    if choice.gained:
        return "nothing_safe"
    return "no_gain" if any(c is not None and c.p is not None for c in choice.gains) else "unknown"


def _excluded(choice: Choice, i: int) -> Excluded:
    reason = choice.why_not(i)
    facts = {
        "domain": choice.gains[i],
        "general": choice.cost(i) if i in choice.claims else None,
        "distance": choice.general.is_distance,
        "margin": choice.margin,
        "ruled_out": RULED_OUT * choice.margin,
        "best": choice.name(choice.best[0]) if choice.best else "",
        "ahead": choice.name(choice.left_behind[i]) if i in choice.left_behind else "",
        "claim": choice.claims.get(i),
        "chosen_claim": None if choice.safe is None else choice.claims[choice.safe],
        "preferred": _preferred(choice, i) if reason == "no_difference" else "",
    }
    return Excluded(choice.index(i), choice.name(i), reason, excluded_words(reason, facts))


def _preferred(choice: Choice, i: int) -> str:
    """What the choice has before a setting as good on the domain."""
    if choice.safe is None:
        return ""
    mine, other = choice.settings[choice.safe], choice.settings[i]
    if mine.plain != other.plain or mine.parts != other.parts:
        return "is simpler"
    if mine.learning_rate > other.learning_rate:  # so it is not the one that was preferred
        return "was preferred at a smaller learning rate, and is better at this one"
    if mine.learning_rate < other.learning_rate:
        return "has a smaller learning rate"
    return "kept more general skill by the estimate"


def _without_scores(
    records: Sequence[RunRecord], scored: set[int], domain: Axis | None, general: Axis | None
) -> tuple[Excluded, ...]:
    """Runs that failed, and complete ones without a score on an axis."""
    found = []
    for index, record in enumerate(records):
        name = f"{record.label} at learning rate {rate(record.learning_rate)}, seed {record.seed}"
        if record.status != "complete":
            found.append(Excluded(index, name, "failed", excluded_words("failed", {"error": record.error})))
        elif index not in scored and any(axis is None or axis.point(record) is None for axis in (domain, general)):
            found.append(Excluded(index, name, "no_score", excluded_words("no_score", {})))
    return tuple(found)


def to_json(found: Findings) -> str:
    """The findings as indented JSON."""
    return json.dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
