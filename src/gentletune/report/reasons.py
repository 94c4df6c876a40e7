"""The sentences behind a choice: what it rests on, what speaks against it, and what would tell more."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import TYPE_CHECKING

from gentletune.report.axes import Axis, Point, score_keys, single_axis
from gentletune.report.numbers import number, plus_minus, rate
from gentletune.report.settings import plain_twin, verdict
from gentletune.stats import Change, holm

if TYPE_CHECKING:
    from gentletune.report.recommend import Choice

_POWER = 2.8  # standard errors that a difference must have to be found in 4 of 5 tries: 1.96 + 0.84


@dataclass(frozen=True)
class Reasons:
    """The sentences behind a choice, each with its uncertainty.

    `wins` are all (better, worse) on general skill among the tied.
    """

    choice: Choice
    chosen: int
    tied: Sequence[int]
    rivals: Sequence[int]
    wins: Set[tuple[int, int]]

    def all(self) -> tuple[str, ...]:
        said = [self._budget(), self._method(), *self._same_rate(), self._cannot_tell(), self._views()]
        return tuple(line for line in [*said, self._many(), self._seeds()] if line)

    def _budget(self) -> str:
        c = self.choice
        lost = c.loss(self.chosen)
        if c.budget is None or lost is None:
            return ""
        unit = c.general.unit
        said = f"By its point estimate it loses {number(lost[0])} {unit}, within the budget of {number(c.budget)}"
        if lost[0] < 0:
            said = f"By its point estimate it loses nothing (a gain of {number(-lost[0])} {unit}), within the budget"
        if lost[1] is None:
            return f"{said}; the upper bound of that loss is unknown."
        inside = "is too" if lost[1] <= c.budget else "is not, so the data do not rule out a larger loss"
        return f"{said}; the upper 95 % bound of the loss, {number(lost[1])}, {inside}."

    def _plain(self, among: Sequence[int]) -> int | None:
        """Plain SFT at its best rate: least general loss among those given."""
        plain = [i for i in among if self.choice.settings[i].plain]
        return max(plain, key=self.choice.rank) if plain else None

    def _method(self) -> str:
        """Whether plain SFT suffices, or what another method is worth."""
        c, general = self.choice, self.choice.general
        others = [i for i in self.tied if not c.settings[i].plain]
        plain = self._plain(self.tied)
        if plain is None:
            best = max((i for i in c.places if c.settings[i].plain), key=lambda i: c.rank(i)[1:], default=None)
            if best is None:
                return "No plain sft run is there to compare with, so whether the method is worth it is open."
            why = "is out by the budget" if not c.within(best) else "does not reach the best domain score"
            apart = signed(c.change(c.domain, self.chosen, best))
            names = f"{c.name(self.chosen)} against {c.name(best)}"
            return f"Plain sft {why}: {names} is {apart} {c.domain.unit} on the domain."
        winners = [i for i in others if (i, plain) in self.wins]
        if winners and self.chosen not in winners:
            return (
                f"{c.name(max(winners, key=c.rank))} is significantly better on general skill than plain sft at its "
                f"best rate, {rate(c.settings[plain].learning_rate)}, but the data cannot tell it from the choice."
            )
        if winners:
            gap, pairs = c.change(general, self.chosen, plain), math.comb(len(self.tied), 2)
            among = f", {pairs} comparisons taken together" if pairs > 1 else ""
            return (
                f"{c.name(self.chosen)} is worth it: at a tied domain score its {general.label} differs from plain "
                f"sft's at its best rate, {rate(c.settings[plain].learning_rate)}, by {signed(gap)} {general.unit}, "
                f"significantly for the better{among}."
            )
        small = "Plain sft with a small learning rate suffices" if self._small(plain) else "Plain sft suffices"
        if not others:
            return f"{small}: no other method ties with it on the domain."
        close = max(others, key=c.rank)
        apart = signed(c.change(general, close, plain))
        return (
            f"{small}: of the other methods tied on the domain none keeps significantly more general skill than it "
            f"does at {rate(c.settings[plain].learning_rate)} (the best of {len(others)}, {c.name(close)}, differs by "
            f"{apart} {general.unit})."
        )

    def _small(self, plain: int) -> bool:
        """Whether a larger rate of plain SFT was tried and did not pay."""
        rates = [s.learning_rate for s in self.choice.settings if s.plain]
        return self.choice.settings[plain].learning_rate < max(rates)

    def _same_rate(self) -> list[str]:
        """Against plain SFT at the same learning rate: the chosen method, else TALR, which the paper would have."""
        c, said = self.choice, list[str]()
        chosen = c.settings[self.chosen]
        talr = [i for i in c.places if c.settings[i].label.partition("(")[0] == "talr"]
        shown = [self.chosen] if not chosen.plain else talr
        for i in shown:
            mine = c.settings[i]
            base = plain_twin(mine, c.settings)
            if base is None or len(said) == 3:
                continue
            domain, general = (c.change(axis, i, base) for axis in (c.domain, c.general))
            verdicts = verdict(c.domain, domain), verdict(c.general, general)
            against = "worse" in verdicts and "better" not in verdicts
            end = ", so the evidence is against it at this rate" if against else ""
            said.append(
                f"At the same rate, {rate(mine.learning_rate)}, {mine.label} against plain sft: {signed(domain)} "
                f"{c.domain.unit} on the domain ({verdicts[0]}), {signed(general)} {c.general.unit} on general skill "
                f"({verdicts[1]}){end}."
            )
        return said

    def _cannot_tell(self) -> str:
        c = self.choice
        if not self.rivals:
            return ""
        rival = max(self.rivals, key=c.rank)
        gap = c.change(c.general, self.chosen, rival)
        head = f"What would tell it from {c.name(rival)} on general skill ({signed(gap)} {c.general.unit}): "
        if gap is None or not gap.stderr:
            return f"{head}a standard error, so score more items."
        by_seed = gap.seed_share > 0.5
        what = "seeds" if by_seed else f"items ({4 * gap.n} in place of {gap.n})"
        text = f"{head}4 times the {what} halve its standard error"
        times = (_POWER * gap.stderr / gap.value) ** 2 if gap.value else math.inf
        if times > 100:
            return f"{text}, but a difference this small will hardly be resolved, and hardly matters."
        more = "the seeds" if by_seed else f"the items ({math.ceil(times * gap.n)})"
        return (
            f"{text}, and a difference as large as the one seen takes about {number(max(times, 1.0))} times {more} to "
            "be found in 4 of 5 tries."
        )

    def _views(self) -> str:
        """Whether another view of general skill would choose otherwise."""
        c = self.choice
        keys = [
            k for k in score_keys([r for s in c.settings for r in s.records], "general") if k not in c.general.sources
        ]
        views = [axis for axis in (single_axis(c.records, key) for key in keys) if self._seen(axis)]
        others = [i for i in self.tied if i != self.chosen]
        # One family: all views of all other settings.
        found = holm([c.change(axis, i, self.chosen) for axis in views for i in others])
        against: list[str] = []
        for place, axis in enumerate(views):
            mine = dict(zip(others, found[place * len(others) : (place + 1) * len(others)], strict=True))
            better = [i for i, change in mine.items() if verdict(axis, change) == "better"]
            if better:
                sign = 1 if axis.higher_is_better else -1
                best = max(better, key=lambda i: sign * c.point(axis, i).value)
                values = (f"{c.point(axis, i).value:.2f}" for i in (best, self.chosen))
                what = f"by {axis.label} {c.name(best)} is significantly better"
                against.append(f"{what} ({' against '.join(values)} {axis.unit}, {signed(mine[best])})")
        if against:
            return f"Views of general skill disagree on the choice: {'; '.join(against)}; weigh what matters to you."
        if not views or not others:
            return ""
        named = ", ".join(axis.label for axis in views)
        return f"Of the other views of general skill ({named}) none names a tied setting that is significantly better."

    def _seen(self, axis: Axis) -> bool:
        readings = self.choice.readings(axis)
        return all(readings[i] is not None for i in self.tied)

    def _many(self) -> str:
        """The best of many looks better than it is: by how much, were all alike (Blom's expected largest)."""
        c, m = self.choice, len(self.choice.settings)
        errors = [e for i in c.places if (e := c.point(c.domain, i).stderr) is not None]
        if m < 2 or not errors:
            return ""
        excess = NormalDist().inv_cdf((m - 0.375) / (m + 0.25)) * median(errors)
        return (
            f"Picked among {m} settings: were all equally good, the best would still look about {number(excess)} "
            f"{c.domain.unit} better on the domain than it is, so confirm the choice on fresh items."
        )

    def _seeds(self) -> str:
        counts = [s.seeds for s in self.choice.settings]
        if max(counts) == 1:
            return (
                "One seed each: the errors are over test items, and what another seed would change is in none of them."
            )
        if min(counts) < max(counts):
            return f"Settings have {min(counts)} to {max(counts)} seeds; the change from seed to seed is seen over all."
        return (
            f"Errors are over test items and {counts[0]} seeds; the change from seed to seed is seen over all settings."
        )


def signed(change: Change | None) -> str:
    """`+0.010 ± 0.004`, or `unknown`."""
    return plus_minus(Point(change.value, change.stderr, change.n), signed=True) if change else "unknown"
