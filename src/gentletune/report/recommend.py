"""Advice from the evidence: what to ship, in one sentence, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gentletune.records import RunRecord
from gentletune.report.axes import Axis, Point, compare, difference
from gentletune.report.numbers import plus_minus, rate

DRIFT = "drift_sampled/bits_per_token"
Reason = Literal["no_complete_runs", "no_scores", "unknown", "no_gain", "clear", "tied"]


@dataclass(frozen=True)
class Advice:
    """What to ship. `index` is the run's place in the records, None where the advice is to ship none.

    `tied` are the runs whose domain score the data cannot tell from the best; `rivals` those of them that the
    data cannot tell from the chosen run on general skill either. `reason` says which rule spoke.
    """

    sentence: str
    index: int | None
    reason: Reason
    tied: tuple[int, ...] = ()
    rivals: tuple[int, ...] = ()


def recommend(records: Sequence[RunRecord], domain: Axis | None, general: Axis | None) -> Advice:
    """Of the complete runs tied with the best domain score, the one that loses least general skill.

    Two scores tie within 1.96·√(se1² + se2²) (unpaired). A run must itself be measurably better than its
    initial model on the domain. Where general skill ties too, plain `sft` at the smallest learning rate is
    taken, being simplest. A missing standard error counts as unknown.
    """
    if not any(r.status == "complete" for r in records):
        sentence = f"No complete runs among {len(records)}, so there is nothing to recommend."
        return Advice(sentence, None, "no_complete_runs")
    if domain is None or general is None:
        side = "domain" if domain is None else "general"
        return Advice(f"No complete run has a {side} score, so nothing can be recommended.", None, "no_scores")
    runs = _scored(records, domain, general)
    if not runs:
        sentence = f"No complete run has both {domain.key} and {general.key}, so nothing can be recommended."
        return Advice(sentence, None, "no_scores")
    return _Choice(records, domain, general, runs).advice()


def _scored(records: Sequence[RunRecord], domain: Axis, general: Axis) -> dict[int, tuple[Point, Point]]:
    found: dict[int, tuple[Point, Point]] = {}
    for index, record in enumerate(records):
        x, y = domain.point(record), general.point(record)
        if record.status == "complete" and x is not None and y is not None:
            found[index] = (x, y)
    return found


@dataclass(frozen=True)
class _Choice:
    """The rule at work on the runs that have both scores (record index → domain point, general point)."""

    records: Sequence[RunRecord]
    domain: Axis
    general: Axis
    runs: dict[int, tuple[Point, Point]]

    def advice(self) -> Advice:
        known = [i for i in self.runs if self.runs[i][0].stderr is not None]
        if not known:
            return Advice(self._unknown(next(iter(self.runs))), None, "unknown")
        best = max(known, key=lambda i: self._rank(i)[1:])
        gain = self._gain(best)
        if gain == "unknown":
            return Advice(self._unknown(best), None, "unknown")
        if gain != "better":
            return Advice(self._no_gain(best), None, "no_gain")
        tied = [i for i in known if self._tie(self.domain, 0, best, i) and self._gain(i) == "better"]
        unbeaten = [i for i in tied if not any(self._beats(j, i) for j in tied)]
        chosen = self._simplest(unbeaten) if len(unbeaten) > 1 else unbeaten[0]
        rivals = tuple(i for i in unbeaten if i != chosen)
        sentence = self._sentence(chosen, tied, rivals, len(self.runs) - len(known))
        return Advice(sentence, chosen, "tied" if rivals else "clear", tuple(tied), rivals)

    def _gain(self, index: int) -> str:
        start = self.domain.point(self.records[index], initial=True)
        return compare(self.domain, self.runs[index][0], start)

    def _tie(self, axis: Axis, which: Literal[0, 1], a: int, b: int) -> bool:
        return compare(axis, self.runs[a][which], self.runs[b][which]) == "tied"

    def _beats(self, a: int, b: int) -> bool:
        return compare(self.general, self.runs[a][1], self.runs[b][1]) == "better"

    def _rank(self, index: int) -> tuple[float, float, float]:
        """General skill, domain score, small learning rate: larger is better in each."""
        x, y = self.runs[index]
        return (
            y.value if self.general.higher_is_better else -y.value,
            x.value if self.domain.higher_is_better else -x.value,
            -self.records[index].learning_rate,
        )

    def _simplest(self, unbeaten: Sequence[int]) -> int:
        plain = [i for i in unbeaten if self._plain(i)]
        if plain:
            return min(plain, key=lambda i: (self.records[i].learning_rate, i))
        return max(unbeaten, key=self._rank)

    def _plain(self, index: int) -> bool:
        return self.records[index].method == self.records[index].label == "sft"

    def _name(self, index: int) -> str:
        record = self.records[index]
        twins = [r for r in self.records if (r.label, r.learning_rate) == (record.label, record.learning_rate)]
        seed = f" (seed {record.seed})" if len(twins) > 1 else ""
        return f"{record.label} at learning rate {rate(record.learning_rate)}{seed}"

    def _move(self, index: int) -> str:
        start = self.domain.point(self.records[index], initial=True)
        what = f"{self.domain.label} ({self.domain.unit})"
        return f"{what} from {plus_minus(start)} to {plus_minus(self.runs[index][0])}"

    def _unknown(self, index: int) -> str:
        return (
            "The data cannot tell whether any run improved the domain, because a standard error or the initial "
            f"model's score is missing ({self._name(index)} took {self._move(index)}): score more test rows "
            "before shipping."
        )

    def _no_gain(self, index: int) -> str:
        return (
            f"No run improved the domain measurably (the best, {self._name(index)}, took {self._move(index)}, "
            "not a gain beyond 1.96 unpaired standard errors), so ship none yet: train longer, with a larger "
            "learning rate, or score more test rows."
        )

    def _sentence(self, chosen: int, tied: Sequence[int], rivals: Sequence[int], left_out: int) -> str:
        cost = difference(self.runs[chosen][1], self.general.point(self.records[chosen], initial=True))
        general = f"{self.general.label} ({self.general.unit}, {self._better_way})"
        change = f"changes by {plus_minus(cost, signed=True)}" if cost else "has no initial value to compare"
        text = (
            f"Ship {self._name(chosen)}: it takes {self._move(chosen)}, and {general} {change}, "
            f"{self._loss(chosen)}; {self._certainty(chosen, tied, rivals)}{self._drift(chosen, rivals)}"
        )
        if left_out:
            text += f" ({left_out} left out for want of a standard error)"
        return text + "."

    def _drift(self, chosen: int, rivals: Sequence[int]) -> str:
        """Where sampled drift tells runs apart that the general axis cannot, say so: the choice stays the rule's."""
        own = self.records[chosen].score(DRIFT)
        if own is None or own.stderr is None or self.general.key == DRIFT:
            return ""
        least: tuple[float, int] | None = None
        for i in rivals:
            other = self.records[i].score(DRIFT)
            if other is None or other.stderr is None:
                continue
            if own.value - other.value > 1.96 * math.hypot(own.stderr, other.stderr):
                least = min(least or (other.value, i), (other.value, i))
        if least is None:
            return ""
        return (
            f"; but by sampled drift {self._name(least[1])} moved measurably less from the initial model "
            f"({least[0]:.2f} against {own.value:.2f} bits per token), so weigh it if answers beyond these tests matter"
        )

    @property
    def _better_way(self) -> str:
        return "higher is better" if self.general.higher_is_better else "lower is better"

    def _loss(self, index: int) -> str:
        start = self.general.point(self.records[index], initial=True)
        return {
            "worse": "a measurable loss",
            "tied": "no measurable loss",
            "better": "a measurable gain",
            "unknown": "and the data cannot tell whether that is a loss",
        }[compare(self.general, self.runs[index][1], start)]

    def _certainty(self, chosen: int, tied: Sequence[int], rivals: Sequence[int]) -> str:
        if rivals:
            named = ", ".join(self._name(i).replace("learning rate ", "") for i in rivals[:4])
            more = f" and {len(rivals) - 4} more" if len(rivals) > 4 else ""
            why = (
                "so the simplest, plain sft at the smallest such learning rate, is preferred"
                if self._plain(chosen)
                else "so take it as the best guess, not as a proven winner"
            )
            return f"the data cannot tell it apart from {named}{more}, {why}"
        if len(self.runs) == 1:
            return "it is the only scored run, so nothing says that another would not do better"
        if len(tied) == 1:
            return "its domain score is measurably above that of every other run that improved"
        return f"of the {len(tied)} runs tied on the domain score it measurably keeps the most general skill"
