"""Whether to keep a recipe's TALR: what a probe of it gains against plain training at equal KL from base."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gentletune.advice.curve import ProbePoint
from gentletune.core.records import Score
from gentletune.methods import parse_method
from gentletune.stats import Change, Run, compare, zero_of

_PART = re.compile(r"\+(?=[a-z_])")  # a sign within an argument, as in 1e+3, is no joint
_UNPROBED = ("talr", "flow", "wise_ft", "trust_region")  # a probe has no budget to keep


Verdict = Literal["better", "worse", "no_difference", "unknown"]
Why = Literal["better", "worse", "no advantage", "nothing moved", "diverged", "not asked"]


@dataclass(frozen=True)
class Edge:
    """Gain of TALR's probe less that of plain training at equal KL from base, bits per domain token.

    `change` is by sequence, paired, with the error of the KL carried over by the slope of the curve. `bound`: TALR
    went further from base than any plain probe, so it is set against the furthest of them, and the edge at equal KL is
    at most that: it can only speak against TALR.
    """

    change: Change
    bound: bool = False

    @property
    def value(self) -> float:
        """The edge itself."""
        return self.change.value

    @property
    def verdict(self) -> Verdict:
        """`better` at 99 %, `worse` at 95 %, `no_difference` or `unknown`.

        Straight lines between probes run below a curve of falling returns, which favours TALR a little: what is to
        speak for it has the higher bar (ours).
        """
        if self.change.p is None:
            return "unknown"
        if self.change.p > (0.01 if self.value > 0 else 0.05):
            return "no_difference"
        if self.value > 0:
            return "unknown" if self.bound else "better"
        return "worse"


def base_method(method: str) -> str:
    """The method that is probed: the recipe's, without TALR, and what a probe cannot show (FLOW, Wise-FT, budgets).

    >>> base_method("talr+lora(r=8)"), base_method("talr")
    ('lora(r=8)', 'sft')
    """
    parts = _PART.split(parse_method(method).label)
    return "+".join(p for p in parts if p.partition("(")[0] not in _UNPROBED) or "sft"


def talr_method(method: str) -> str | None:
    """What is probed as well, where the recipe has TALR: the same with it.

    >>> talr_method("lora"), talr_method("talr(tau=1.0)+lora(r=8)")
    (None, 'talr(tau=1.0)+lora(r=8)')
    """
    own = [p for p in _PART.split(parse_method(method).label) if p.partition("(")[0] == "talr"]
    return parse_method("+".join([*own, base_method(method)])).label if own else None


def edge_at_equal_kl(talr: ProbePoint, plain: Sequence[ProbePoint]) -> Edge | None:
    """TALR's gain against that of plain training at as large a KL from base, read between two of its points.

    Plain points are followed from the base model (no gain, no KL) in order of KL. None where none has any.
    """
    ordered = sorted((p for p in plain if p.kl.value > 0), key=lambda p: p.kl.value)
    if not ordered:
        return None
    target = max(talr.kl.value, 0.0)
    above = next((i for i, p in enumerate(ordered) if p.kl.value >= target), None)
    if above is None:
        return Edge(_edge(talr, ordered[-1].gain, ordered[-1].kl, 0.0), bound=True)
    high, low = ordered[above], ordered[above - 1] if above else None
    before = (low.gain, low.kl) if low else (zero_of(high.gain), zero_of(high.kl))
    width = high.kl.value - before[1].value
    part = (target - before[1].value) / width if width > 0 else 1.0
    gain, kl = (_between(a, b, part) for a, b in zip(before, (high.gain, high.kl), strict=True))
    slope = (high.gain.value - before[0].value) / (width or 1.0)
    return Edge(_edge(talr, gain, kl, slope))


def advise_method(edge: Edge | None) -> tuple[bool, Why]:
    """Whether to take TALR, and why: only where its probe shows it; with no edge, plain training."""
    if edge is None:
        return False, "nothing moved"
    if edge.verdict in ("better", "worse"):
        return edge.verdict == "better", edge.verdict
    return False, "no advantage"


def _edge(talr: ProbePoint, gain: Score, kl: Score, slope: float) -> Change:
    """TALR's gain less `gain`, with the error of its KL less `kl`, at so much gain a bit of KL.

    KL is equal by the choice of the place on the curve: it brings its error and no difference.
    """
    if not slope:
        return compare(talr.gain, gain)
    ours = _times(talr.gain, 2.0), _times(talr.kl, -2.0 * slope)  # the mean of twice each is their sum
    base = _times(gain, 2.0), _moved_to(ours[1].value, _times(kl, -2.0 * slope))
    return compare([Run(ours)], [Run(base, seed=None)])


def _moved_to(value: float, score: Score) -> Score:
    return score.model_copy(update={"value": value, "items": tuple(x + value - score.value for x in score.items)})


def _between(low: Score, high: Score, part: float) -> Score:
    """The score a part of the way from one to another, item by item."""
    items = tuple((1 - part) * a + part * b for a, b in zip(low.items, high.items, strict=True))
    return high.model_copy(update={"value": (1 - part) * low.value + part * high.value, "items": items})


def _times(score: Score, factor: float) -> Score:
    stderr = None if score.stderr is None else abs(factor) * score.stderr
    items = tuple(factor * item for item in score.items)
    return score.model_copy(update={"value": factor * score.value, "stderr": stderr, "items": items})
