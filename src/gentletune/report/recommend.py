"""Advice from the evidence: what to ship, in one sentence, why, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from gentletune.errors import UserError
from gentletune.records import RunRecord
from gentletune.report.axes import Axis, Point
from gentletune.report.numbers import number, plus_minus
from gentletune.report.reasons import Reasons, signed
from gentletune.report.settings import Reading, Setting, plain_twin, read_all, setting_name, settings_of, verdict
from gentletune.statistics import Change

Reason = Literal["no_complete_runs", "no_scores", "unknown", "no_gain", "over_budget", "clear", "tied"]


@dataclass(frozen=True)
class Advice:
    """What to ship. `index` is the run's place in the records, None where the advice is to ship none.

    A setting is a method at a learning rate, over its seeds; each is stood for by its run nearest to the seeds' mean.
    `tied` are the settings whose domain score the data cannot tell from the best; `rivals` those of them that the
    data cannot tell from the chosen one on general skill either. `reason` says which rule spoke, `reasons` are
    further sentences: what the choice rests on and what it does not.
    """

    sentence: str
    index: int | None
    reason: Reason
    tied: tuple[int, ...] = ()
    rivals: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


def recommend(
    records: Sequence[RunRecord], domain: Axis | None, general: Axis | None, *, budget: float | None = None
) -> Advice:
    """Of the settings tied with the best domain score, the one that loses least general skill.

    Runs that differ in their seed only are one setting (`statistics.over_seeds`), the variance between seeds is pooled
    over the settings. Two scores tie where the 95 %
    interval of their change holds 0, paired item by item where they are on the same items. A setting must itself be
    measurably better than its initial model on the domain, and not measurably worse than any other such; one that
    plain SFT at the same rate beats on one side and loses to on none is out. To
    beat another of k tied settings on general skill it must at level 1 - 0.05/(k - 1) (Bonferroni). Where
    general skill ties too, plain `sft` at the smallest learning rate is taken, being simplest. A missing standard
    error counts as unknown.

    `budget` is the general skill that may be lost against the initial model, in the general axis's unit (0.01: one
    point of accuracy): settings that lost more, by their point estimate, are out.

    Raises `UserError` on a budget that is negative or not finite.
    """
    if budget is not None and not (math.isfinite(budget) and budget >= 0):
        raise UserError(f"budget must be a number >= 0 in the general score's unit, got {budget:g}")
    if not any(r.status == "complete" for r in records):
        sentence = f"No complete runs among {len(records)}, so there is nothing to recommend."
        return Advice(sentence, None, "no_complete_runs")
    if domain is None or general is None:
        side = "domain" if domain is None else "general"
        return Advice(f"No complete run has a {side} score, so nothing can be recommended.", None, "no_scores")
    settings = settings_of(records, domain, general)
    if not settings:
        sentence = f"No complete run has both {domain.key} and {general.key}, so nothing can be recommended."
        return Advice(sentence, None, "no_scores")
    return Choice(records, domain, general, settings, budget).advice()


@dataclass(frozen=True)
class Choice:
    """The rules at work on the settings that have both scores; settings are named by their place in the list."""

    records: Sequence[RunRecord]
    domain: Axis
    general: Axis
    settings: Sequence[Setting]
    budget: float | None

    def advice(self) -> Advice:
        known = [i for i in self.places if self.point(self.domain, i).stderr is not None]
        gained = [i for i in known if verdict(self.domain, self._gain(i)) == "better"]
        if not gained:
            best = max(known or self.places, key=lambda i: self.rank(i)[1:])
            if not known or verdict(self.domain, self._gain(best)) == "unknown":
                return Advice(self._unknown(best), None, "unknown")
            return Advice(self._no_gain(best), None, "no_gain")
        allowed = [i for i in gained if self.within(i) and not self.against(i, gained)]
        if not allowed:
            return Advice(self._over_budget(gained), None, "over_budget")
        tied = [i for i in allowed if not any(self.better(self.domain, j, i, 0.95) for j in allowed)]
        level = 1 - 0.05 / max(len(tied) - 1, 1)
        unbeaten = [i for i in tied if not any(self.better(self.general, j, i, level) for j in tied)]
        chosen = self._simplest(unbeaten, tied, level)
        rivals = [i for i in unbeaten if i != chosen]
        sentence = self._sentence(chosen, tied, rivals, len(self.settings) - len(known))
        reasons = Reasons(self, chosen, tied, rivals, level).all()
        places = tuple(self._index(i) for i in tied), tuple(self._index(i) for i in rivals)
        return Advice(sentence, self._index(chosen), "tied" if rivals else "clear", *places, reasons)

    @property
    def places(self) -> range:
        return range(len(self.settings))

    @cached_property
    def _changes(self) -> dict[tuple[str, int, int, float], Change | None]:
        return {}

    def change(self, axis: Axis, a: int, b: int, level: float = 0.95) -> Change | None:
        """Setting a minus setting b, None where a score is missing."""
        key = axis.key, a, b, level
        if key not in self._changes:
            mine, other = self.reading(axis, a), self.reading(axis, b)
            self._changes[key] = mine.change(other, level) if mine and other else None
        return self._changes[key]

    def from_initial(self, axis: Axis, index: int) -> Change | None:
        """The setting minus its initial model, None where that was not measured."""
        mine, start = self.reading(axis, index), self.settings[index].reading(axis, initial=True)
        return mine.change(start) if mine and start else None

    def _gain(self, index: int) -> Change | None:
        return self.from_initial(self.domain, index)

    def better(self, axis: Axis, a: int, b: int, level: float) -> bool:
        return a != b and verdict(axis, self.change(axis, a, b, level)) == "better"

    def against(self, index: int, among: Sequence[int]) -> bool:
        """Whether plain SFT at the same rate is measurably better on one side and not measurably worse on the other.

        Ties are not transitive: such a setting could be left over where a third puts plain SFT out.
        """
        twin = None if self.settings[index].plain else plain_twin(self.settings[index], self.settings)
        if twin is None or twin not in among:
            return False
        verdicts = {verdict(axis, self.change(axis, index, twin)) for axis in (self.domain, self.general)}
        return "worse" in verdicts and "better" not in verdicts

    def reading(self, axis: Axis, index: int) -> Reading | None:
        """The setting's scores on an axis."""
        if axis.key not in self._readings:
            self._readings[axis.key] = read_all(self.settings, axis)
        return self._readings[axis.key][index]

    @cached_property
    def _readings(self) -> dict[str, list[Reading | None]]:
        return {}

    def point(self, axis: Axis, index: int) -> Point:
        """The setting's value on an axis, with its standard error over items and seeds."""
        found = self.reading(axis, index)
        return found.point if found else Point(math.nan, None, 0)

    def _index(self, index: int) -> int:
        return self.settings[index].nearest((self.domain, self.general))

    def loss(self, index: int) -> tuple[float, float | None] | None:
        """General skill lost against the initial model, and its upper 95 % bound; below 0 for a gain."""
        change = self.from_initial(self.general, index)
        if change is None:
            return None
        if self.general.higher_is_better:
            return -change.value, None if change.low is None else -change.low
        return change.value, change.high

    def within(self, index: int) -> bool:
        if self.budget is None:
            return True
        lost = self.loss(index)
        return lost is not None and lost[0] <= self.budget + 1e-12  # rounding is no overspending

    def rank(self, index: int) -> tuple[float, float, float]:
        """General skill, domain score, small learning rate: larger is better in each."""
        x, y = self.point(self.domain, index).value, self.point(self.general, index).value
        return (
            y if self.general.higher_is_better else -y,
            x if self.domain.higher_is_better else -x,
            -self.settings[index].learning_rate,
        )

    def _simplest(self, unbeaten: Sequence[int], tied: Sequence[int], level: float) -> int:
        plain = [i for i in unbeaten if self.settings[i].plain]
        if plain:
            return min(plain, key=lambda i: (self.settings[i].learning_rate, i))
        # Another method takes the place of plain SFT only where it is itself measurably better than it.
        beaten = [i for i in tied if self.settings[i].plain]
        proven = [i for i in unbeaten if all(self.better(self.general, i, p, level) for p in beaten)]
        return max(proven or unbeaten, key=self.rank)

    def name(self, index: int) -> str:
        """The setting, as a reader finds it in the table."""
        return setting_name(self.settings[index], self.settings)

    def _move(self, index: int) -> str:
        start = self.settings[index].reading(self.domain, initial=True)
        what = f"{self.domain.label} ({self.domain.unit})"
        return (
            f"{what} from {plus_minus(start.point if start else None)} to {plus_minus(self.point(self.domain, index))}"
        )

    def _unknown(self, index: int) -> str:
        return (
            "The data cannot tell whether any run improved the domain, because a standard error or the initial "
            f"model's score is missing ({self.name(index)} took {self._move(index)}): score more test rows "
            "before shipping."
        )

    def _no_gain(self, index: int) -> str:
        return (
            f"No run improved the domain measurably (the best, {self.name(index)}, took {self._move(index)}, "
            "and the 95 % interval of that change holds 0), so ship none yet: train longer, with a larger "
            "learning rate, or score more test rows."
        )

    def _over_budget(self, gained: Sequence[int]) -> str:
        losses = {i: lost for i in gained if (lost := self.loss(i)) is not None}
        if not losses:
            return (
                f"No run can be held against the budget of {number(self.budget)} {self.general.unit}, because the "
                "initial model's general score is missing, so ship none."
            )
        least = min(losses, key=lambda i: losses[i][0])
        change = self.from_initial(self.general, least)
        return (
            f"No run that improved the domain stays within the budget of {number(self.budget)} {self.general.unit} "
            f"lost (the least loss, {self.name(least)}, changes {self.general.label} by {signed(change)}), so ship "
            "none: try a smaller learning rate, weight averaging, or a larger budget."
        )

    def _sentence(self, chosen: int, tied: Sequence[int], rivals: Sequence[int], left_out: int) -> str:
        cost = self.from_initial(self.general, chosen)
        way = "higher is better" if self.general.higher_is_better else "lower is better"
        change = f"changes by {signed(cost)}" if cost else "has no initial value to compare"
        seeds = self.settings[chosen].seeds
        text = (
            f"Ship {self.name(chosen)}{f' (mean of {seeds} seeds)' if seeds > 1 else ''}: it takes "
            f"{self._move(chosen)}, and {self.general.label} ({self.general.unit}, {way}) {change}, "
            f"{self._loss(cost)}; {self._certainty(chosen, tied, rivals)}"
        )
        if left_out:
            text += f" ({left_out} left out for want of a standard error)"
        return text + "."

    def _loss(self, change: Change | None) -> str:
        return {
            "worse": "a measurable loss",
            "tied": "no measurable loss",
            "better": "a measurable gain",
            "unknown": "and the data cannot tell whether that is a loss",
        }[verdict(self.general, change)]

    def _certainty(self, chosen: int, tied: Sequence[int], rivals: Sequence[int]) -> str:
        if rivals:
            named = ", ".join(self.name(i).replace("learning rate ", "") for i in rivals[:4])
            more = f" and {len(rivals) - 4} more" if len(rivals) > 4 else ""
            why = (
                "so the simplest, plain sft at the smallest such learning rate, is preferred"
                if self.settings[chosen].plain
                else "so take it as the best guess, not as a proven winner"
            )
            return f"the data cannot tell it apart from {named}{more}, {why}"
        if len(self.settings) == 1:
            return "it is the only scored setting, so nothing says that another would not do better"
        limit = " and stays within the budget" if self.budget is not None else ""
        if len(tied) == 1:
            return f"its domain score is measurably above that of every other run that improved{limit}"
        return f"of the {len(tied)} runs tied on the domain score it measurably keeps the most general skill"
