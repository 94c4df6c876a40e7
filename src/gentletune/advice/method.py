"""Whether to reweight tokens (TALR) or not: what a probe of it gains against plain training at equal drift."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from gentletune.advice.curve import ProbePoint
from gentletune.methods import parse_method
from gentletune.statistics import t_quantile

HARD = 0.1  # a token is hard below this probability
FEW_HARD = 0.05  # share of hard tokens up to which the paper's regime is taken to hold: few of them, most near 1
_PART = re.compile(r"\+(?=[a-z_])")  # a sign within an argument, as in 1e+3, is no joint
_UNPROBED = ("talr", "flow", "wise_ft")


@dataclass(frozen=True)
class Edge:
    """Gain of TALR's probe less that of plain training at equal drift, bits per domain token.

    `stderr` is by `n` sequences, paired, with the error of the drift carried over by the slope of the curve; None where
    it cannot be estimated. `bound`: TALR drifted further than any plain probe, so it is set against the furthest of
    them, and the edge at equal drift is at most that: it can only speak against TALR.
    """

    value: float
    stderr: float | None
    bound: bool = False
    n: int | None = None

    @property
    def verdict(self) -> str:
        """`better` at 99 %, `worse` at 95 %, `tied` or `unknown`, by Student's t where `n` is known.

        Straight lines between probes run below a curve of falling returns, which favours TALR a little: what is to
        speak for it has the higher bar (ours).
        """
        if self.stderr is None:
            return "unknown"
        level = 0.99 if self.value > 0 else 0.95
        normal = NormalDist().inv_cdf((1 + level) / 2)
        if abs(self.value) <= (t_quantile(level, self.n - 1) if self.n else normal) * self.stderr:
            return "tied"
        if self.value > 0:
            return "unknown" if self.bound else "better"
        return "worse"


def base_method(method: str) -> str:
    """The method that is probed: the recipe's, without TALR, and without what a probe cannot show (FLOW, Wise-FT).

    >>> base_method("talr+lora(r=8)"), base_method("talr")
    ('lora(r=8)', 'sft')
    """
    parts = _PART.split(parse_method(method).label)
    return "+".join(p for p in parts if p.partition("(")[0] not in _UNPROBED) or "sft"


def talr_method(method: str) -> str:
    """The same with TALR: the recipe's own if it has one.

    >>> talr_method("lora"), talr_method("talr(tau=1.0)")
    ('talr+lora', 'talr(tau=1.0)')
    """
    own = [p for p in _PART.split(parse_method(method).label) if p.partition("(")[0] == "talr"]
    return parse_method("+".join([*(own or ["talr"]), base_method(method)])).label


def edge_at_equal_drift(talr: ProbePoint, plain: Sequence[ProbePoint]) -> Edge | None:
    """TALR's gain against that of plain training where it has drifted as far, read between two of its points.

    Plain points are followed from the initial model (no gain, no drift) in order of drift. None where none drifted.
    """
    ordered = sorted((p for p in plain if p.drift.value > 0), key=lambda p: p.drift.value)
    if not ordered:
        return None
    target = max(talr.drift.value, 0.0)
    above = next((i for i, p in enumerate(ordered) if p.drift.value >= target), None)
    if above is None:
        far = ordered[-1]
        gaps = [a - b for a, b in zip(talr.gain.items, far.gain.items, strict=True)]
        return Edge(talr.gain.value - far.gain.value, _error(gaps, talr, far, 0.0), bound=True, n=len(gaps))
    high = ordered[above]
    low = ordered[above - 1] if above else None
    floor = low.drift.value if low else 0.0
    width = high.drift.value - floor
    part = (target - floor) / width if width > 0 else 1.0
    low_items = low.gain.items if low else (0.0,) * high.gain.n
    base = tuple((1 - part) * a + part * b for a, b in zip(low_items, high.gain.items, strict=True))
    value = talr.gain.value - ((1 - part) * (low.gain.value if low else 0.0) + part * high.gain.value)
    gaps = [a - b for a, b in zip(talr.gain.items, base, strict=True)]
    slope = (high.gain.value - (low.gain.value if low else 0.0)) / (width or 1.0)
    return Edge(value, _error(gaps, talr, high, slope), n=len(gaps))


def advise_method(hard_share: float, edge: Edge | None, base: str, talr: str) -> tuple[str, str]:
    """The method, and the sentence that says why: TALR only where a probe shows it, or hard tokens are few.

    With no evidence it is the base method.
    """
    share = f"{hard_share:.0%} of the training labels are hard (p < {HARD:g} under the initial model)"
    shown = f"{edge.value:+.3f} ± {edge.stderr:.3f}" if edge and edge.stderr is not None else "unknown"
    at = f"its probe gained {shown} bits per domain token against {base} at equal drift"
    if edge is None:
        return base, f"{base}, not {talr}: {share}, and no probe of {base} drifted, so there is nothing to compare."
    if edge.bound:
        at = f"its probe drifted further than any stable one of {base}, and gained {shown} bits per token against that"
    if edge.verdict == "better":
        return talr, f"{talr}: {at}, measurably more; {share}."
    if edge.verdict == "worse":
        return base, f"{base}, not {talr}: {at}, measurably less; {share}."
    if hard_share <= FEW_HARD and edge.verdict == "tied" and edge.value >= 0:
        return talr, (
            f"{talr}: {share}, the regime of few hard tokens in which the paper shows it to pay; {at}, which does not "
            "tell the two apart, so measure both."
        )
    few = "" if hard_share <= FEW_HARD else f", more than the {FEW_HARD:.0%} of the regime in which it is shown to pay"
    return base, f"{base}, not {talr}: {share}{few}; {at}, which is no measurable advantage."


def _error(gaps: Sequence[float], talr: ProbePoint, plain: ProbePoint, slope: float) -> float | None:
    n = len(gaps)
    pairs = list(zip(talr.drift.items, plain.drift.items, strict=True))
    if n < 2 or len(pairs) < 2:
        return None
    return math.hypot(_mean_error(gaps), slope * _mean_error([a - b for a, b in pairs]))


def _mean_error(values: Sequence[float]) -> float:
    n, mean = len(values), math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n * (n - 1)))
