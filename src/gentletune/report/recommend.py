"""Advice from the evidence: what to ship, in one sentence, why, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

from gentletune.core.errors import UserError
from gentletune.core.records import RunRecord
from gentletune.report.axes import Axis, Point
from gentletune.report.changes import between, from_initial
from gentletune.report.numbers import number, plus_minus
from gentletune.report.reasons import Reasons, signed
from gentletune.report.settings import Reading, Setting, plain_twin, read_all, setting_name, settings_of, verdict
from gentletune.stats import Change

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

    Runs that differ in their seed only are one setting; settings are compared by `stats.compare`, by seed and item. A
    setting must be significantly better than its initial model on the domain, and not significantly worse than any
    other such; one that plain SFT at the same rate beats on one side and loses to on none is out. Of those left, one is
    out that another significantly beats on general skill. Where general skill ties too, plain `sft` at the smallest
    learning rate is taken, being simplest. A missing standard error counts as unknown.

    Each of these three is a family of comparisons, corrected by Holm: all settings against the initial model, all pairs
    on the domain, all pairs tied there on general skill. So where no setting has any effect, the chance that one is
    advised is at most 5 %, however many there are.

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
        gained = [i for i in known if verdict(self.domain, self.from_initial(self.domain, i)) == "better"]
        if not gained:
            best = max(known or self.places, key=lambda i: self.rank(i)[1:])
            if not known or verdict(self.domain, self.from_initial(self.domain, best)) == "unknown":
                return Advice(self._unknown(best), None, "unknown")
            return Advice(self._no_gain(best), None, "no_gain")
        allowed = [i for i in gained if self.within(i) and not self.against(i, gained)]
        if not allowed:
            return Advice(self._over_budget(gained), None, "over_budget")
        beaten = {worse for _, worse in self.wins(self.domain, allowed)}
        tied = [i for i in allowed if i not in beaten]
        wins = self.wins(self.general, tied)
        unbeaten = [i for i in tied if i not in {worse for _, worse in wins}]
        chosen = self._simplest(unbeaten, tied, wins)
        rivals = [i for i in unbeaten if i != chosen]
        sentence = self._sentence(chosen, tied, rivals, len(self.settings) - len(known))
        reasons = Reasons(self, chosen, tied, rivals, wins).all()
        places = tuple(self._index(i) for i in tied), tuple(self._index(i) for i in rivals)
        return Advice(sentence, self._index(chosen), "tied" if rivals else "clear", *places, reasons)

    @property
    def places(self) -> range:
        return range(len(self.settings))

    def change(self, axis: Axis, a: int, b: int) -> Change | None:
        """Setting a minus setting b by itself, None where a score is missing."""
        key = axis.key, a, b
        if key not in self._changes:
            (self._changes[key],) = between(self.readings(axis), [(a, b)])
        return self._changes[key]

    @cached_property
    def _changes(self) -> dict[tuple[str, int, int], Change | None]:
        return {}

    def wins(self, axis: Axis, among: Sequence[int]) -> set[tuple[int, int]]:
        """All (better, worse) among these settings, every pair of them taken together (Holm)."""
        pairs = list(combinations(among, 2))
        found = set[tuple[int, int]]()
        for (a, b), change in zip(pairs, between(self.readings(axis), pairs), strict=True):
            if change is not None and change.significant:
                found.add((a, b) if (change.value > 0) == axis.higher_is_better else (b, a))
        return found

    def from_initial(self, axis: Axis, index: int) -> Change | None:
        """The setting minus its initial model, among all settings; None where that was not measured."""
        if axis.key not in self._starts:
            self._starts[axis.key] = from_initial(self.settings, axis)
        return self._starts[axis.key][index]

    @cached_property
    def _starts(self) -> dict[str, list[Change | None]]:
        return {}

    def against(self, index: int, among: Sequence[int]) -> bool:
        """Whether plain SFT at the same rate is significantly better on one side and not worse on the other.

        Ties are not transitive: such a setting could be left over where a third puts plain SFT out.
        """
        twin = None if self.settings[index].plain else plain_twin(self.settings[index], self.settings)
        if twin is None or twin not in among:
            return False
        verdicts = {verdict(axis, self.change(axis, index, twin)) for axis in (self.domain, self.general)}
        return "worse" in verdicts and "better" not in verdicts

    def readings(self, axis: Axis) -> list[Reading | None]:
        """The settings' scores on an axis, by place."""
        if axis.key not in self._readings:
            self._readings[axis.key] = read_all(self.settings, axis)
        return self._readings[axis.key]

    @cached_property
    def _readings(self) -> dict[str, list[Reading | None]]:
        return {}

    def point(self, axis: Axis, index: int) -> Point:
        """The setting's value on an axis, with its standard error over items and seeds."""
        found = self.readings(axis)[index]
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

    def _simplest(self, unbeaten: Sequence[int], tied: Sequence[int], wins: set[tuple[int, int]]) -> int:
        plain = [i for i in unbeaten if self.settings[i].plain]
        if plain:
            return min(plain, key=lambda i: (self.settings[i].learning_rate, i))
        # Another method takes the place of plain SFT only where it is itself significantly better than it.
        beaten = [i for i in tied if self.settings[i].plain]
        proven = [i for i in unbeaten if all((i, p) in wins for p in beaten)]
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
            f"No run improved the domain significantly (the best, {self.name(index)}, took {self._move(index)}, "
            f"{self._chance(index)}), so ship none yet: train longer, with a larger learning rate, or score more test "
            "rows."
        )

    def _chance(self, index: int) -> str:
        change = self.from_initial(self.domain, index)
        if change is None or change.p_family is None:
            return "whose chance is unknown"
        among = f" among {change.family} settings" if change.family > 1 else ""
        return f"which chance alone does{among} with p = {number(change.p_family)}"

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
            "worse": "a significant loss",
            "tied": "no significant loss",
            "better": "a significant gain",
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
            return f"its domain score is significantly above that of every other run that improved{limit}"
        return f"of the {len(tied)} runs tied on the domain score it keeps significantly the most general skill"
