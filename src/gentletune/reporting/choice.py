"""The choice: which settings are safe, which of them is named, what else gained and at what price.

A setting counts where its gain on the domain is significant among all settings. Of general skill there are two
claims that make it safe:

- `safe`: its 95 % interval leaves out a loss larger than the margin (non-inferiority), and with no margin, every loss.
- `no_loss_seen`: too few items for that, but there is no significant loss, the estimate lies within the margin, and a
  loss of `RULED_OUT` margins or more is rejected at 5 % among all settings that gained (Holm, one-sided). Without
  that test a study of many settings on few items often holds a harmful one that looks harmless by luck.

A significant loss is no safe choice, unless it is shown to lie within the margin: the margin is the loss that the user
takes, and with items enough any training has a significant one. It is then named as what it is, a small loss.

Both claims compete for the best domain score, but of settings without a significant difference from the best one a
proven one goes first, then plain SFT, then what has fewest parts, then the smallest learning rate. So nobody is led to
more risk or to more machinery by a gain that may be chance; only a significant one is worth a weaker claim. Within what
is so preferred a larger rate that is itself proven safe is no more risk, by its proof: there a smaller one is left
where it is worse by its own interval. (Were proven settings always first, the best choice would nearly always be the
one that learnt least: what hardly moves is easily shown to be harmless.)

Which settings gained, and which are worse than the best, are questions that screen many at once. They go by the false
discovery rate (Benjamini and Hochberg); Holm's correction is made for claims that must all be true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gentletune.core.records import RunRecord
from gentletune.reporting.axes import Axis
from gentletune.reporting.findings import Claim, ExcludedReason, Pick, Step
from gentletune.reporting.pareto import pareto_front
from gentletune.reporting.repeat import command
from gentletune.reporting.settings import Reading, Setting, between, from_base, read_all, setting_name, told_apart
from gentletune.stats import LEVEL, Change, adjusted, benjamini_hochberg

RULED_OUT = 3.0  # margins: what a setting without a proof must not have lost (ours, by simulation)
BASE = "base model"
_CLAIMS: tuple[Claim, ...] = ("safe", "no_loss_seen", "unknown", "loss")


@dataclass(frozen=True)
class Choice:
    """The rules at work on the settings that have both scores; a setting is named by its place among them.

    Changes of skill are `oriented`: above 0 is better, whatever the score's direction. With `blind` the general axis
    says nothing of general skill (it is the domain's own skill), so nothing is claimed of it.
    """

    records: Sequence[RunRecord]
    domain: Axis
    general: Axis
    settings: Sequence[Setting]
    margin: float
    blind: bool = False

    # --- what is known of each setting

    @cached_property
    def gains(self) -> list[Change | None]:
        """Domain changes from the base model, one family."""
        return from_base(self.settings, self.domain, self.readings(self.domain))

    def cost(self, i: int) -> Change | None:
        """The general change from the base model, by itself; None where a score is missing."""
        if i not in self._costs:
            self._costs[i] = self._general_changes([i])[i]
        return self._costs[i]

    @cached_property
    def _costs(self) -> dict[int, Change | None]:
        return {}

    def _general_changes(self, among: Sequence[int], null: float = 0.0) -> list[Change | None]:
        """The general changes of these settings by place, one family; None for others."""
        mine = [reading if i in among else None for i, reading in enumerate(self.readings(self.general))]
        return from_base(self.settings, self.general, mine, null=null)

    @cached_property
    def gained(self) -> list[int]:
        """Those significantly better than the base model on the domain, among all settings."""
        return [
            i for i, c in enumerate(self.gains) if c is not None and c.significant and oriented(self.domain, c)[0] > 0
        ]

    @cached_property
    def claims(self) -> dict[int, Claim]:
        """What may be said of the general skill of each that gained."""
        return {i: self._claim(i) for i in self.gained}

    @cached_property
    def candidates(self) -> list[int]:
        """The safe settings: proven, or without a loss seen."""
        return [i for i in self.gained if self.claims[i] in ("safe", "no_loss_seen")]

    @cached_property
    def best(self) -> list[int]:
        """The safe settings with the best domain score, and those without a significant difference from it."""
        return self.no_worse_than_best(self.candidates)

    @cached_property
    def preferred(self) -> int | None:
        """The most cautious of the best."""
        return min(self.best, key=self._caution, default=None)

    @cached_property
    def safe(self) -> int | None:
        """The safe choice: the preferred one, or a larger rate of it that is as well proven and better by itself."""
        return min((i for i in self._larger if i not in self.left_behind), key=self._caution, default=self.preferred)

    @cached_property
    def _larger(self) -> list[int]:
        """The preferred setting and larger rates of it that are among the best, all proven; none where it is not."""
        first = self.preferred
        if first is None or self.claims[first] != "safe":
            return []
        line, rate = self._line(first), self.settings[first].learning_rate
        return [
            i
            for i in self.best
            if self._line(i) == line and self.settings[i].learning_rate >= rate and self.claims[i] == "safe"
        ]

    @cached_property
    def left_behind(self) -> dict[int, int]:
        """Those of `_larger` whose domain score is below the best one's of them, by its own interval; and that one."""
        if not self._larger:
            return {}
        best = max(self._larger, key=lambda i: self.level(self.domain, i))
        others = [i for i in self._larger if i != best]
        found = between(self.readings(self.domain), [(i, best) for i in others])
        return {i: best for i, c in zip(others, found, strict=True) if c is not None and c.excludes_zero}

    def _line(self, i: int) -> tuple[str, str]:
        """What settings share that differ in the rate alone."""
        return self.settings[i].label, told_apart(self.settings[i], self.settings)

    @cached_property
    def most_gain(self) -> int | None:
        """The most domain gain; of those without a significant difference the one with least risk, then least loss."""
        alike = self.no_worse_than_best(self.gained)
        if self.safe in alike:
            return self.safe
        return min(
            alike, key=lambda i: (_CLAIMS.index(self.claims[i]), -self.level(self.general, i), *self._caution(i)),
            default=None,
        )  # fmt: skip

    @cached_property
    def least_harmful(self) -> int | None:
        """Where something gained but nothing is safe: what lost least, by the estimate."""
        if self.candidates:
            return None
        return max(self.gained, key=lambda i: (self.kept(i), -self.settings[i].learning_rate), default=None)

    def kept(self, i: int) -> float:
        """General skill kept, by the estimate: its change, or the score where the base model's is not known."""
        cost = self.cost(i)
        return self.level(self.general, i) if cost is None else oriented(self.general, cost)[0]

    def level(self, axis: Axis, i: int) -> float:
        """The setting's score, larger is better."""
        found = self.readings(axis)[i]
        value = found.point.value if found else -math.inf
        return value if axis.higher_is_better else -value

    def readings(self, axis: Axis) -> list[Reading | None]:
        """The settings' scores on an axis, by place."""
        if axis.key not in self._readings:
            self._readings[axis.key] = read_all(self.settings, axis)
        return self._readings[axis.key]

    @cached_property
    def _readings(self) -> dict[str, list[Reading | None]]:
        return {}

    def no_worse_than_best(self, among: Sequence[int]) -> list[int]:
        """The best domain score among these, and all that is not significantly worse."""
        if not among:
            return []
        best = max(among, key=lambda i: self.level(self.domain, i))
        others = [i for i in among if i != best]
        found = between(self.readings(self.domain), [(i, best) for i in others], benjamini_hochberg)
        return [best, *(i for i, change in zip(others, found, strict=True) if change is None or not change.significant)]

    def _claim(self, i: int) -> Claim:
        found = self.interval(i)
        if found is None or self.blind:
            return "unknown"
        value, low, high = found
        if low > 0 or (low >= -self.margin and self.margin):
            return "safe"
        if self._significant_loss(i) or high < -self.margin:
            return "loss"
        seen = value >= -self.margin and self._larger_loss[i] <= 1 - LEVEL
        return "no_loss_seen" if seen and self.margin else "unknown"

    def interval(self, i: int) -> tuple[float, float, float] | None:
        """The general change with its interval, oriented; None where something of it is unknown."""
        cost = self.cost(i)
        return None if cost is None or cost.low is None else oriented(self.general, cost)

    @cached_property
    def _larger_loss(self) -> dict[int, float]:
        """For each that gained, the one-sided p-value of having lost `RULED_OUT` margins or more, by Holm."""
        bound = -RULED_OUT * self.margin
        null = bound if self.general.higher_is_better else -bound
        changes = self._general_changes(self.gained, null)
        known = {i: c for i in self.gained if (c := changes[i]) is not None and c.p_cautious is not None}
        ps = [_one_sided(c, oriented(self.general, c)[0] > bound) for c in known.values()]
        return dict.fromkeys(self.gained, 1.0) | dict(zip(known, adjusted(ps), strict=True))

    def _caution(self, i: int) -> tuple[bool, bool, int, float, float, int]:
        """Proven first, then the simplest at the smallest rate; of methods as simple the one that kept most."""
        setting = self.settings[i]
        proven = self.claims[i] == "safe"
        return not proven, not setting.plain, setting.parts, setting.learning_rate, -self.level(self.general, i), i

    # --- as findings

    def name(self, i: int) -> str:
        """The setting, as a reader finds it in the table."""
        return setting_name(self.settings[i], self.settings)

    def index(self, i: int) -> int:
        """Place in the records of the run that stands for it."""
        return self.settings[i].nearest((self.domain, self.general))

    def pick(self, i: int | None) -> Pick | None:
        """The setting with its price."""
        if i is None:
            return None
        setting = self.settings[i]
        start, end = setting.reading(self.domain, base=True), self.readings(self.domain)[i]
        times = [r.timings["train"] for r in setting.records if "train" in r.timings]
        claim = self.claims[i]
        return Pick(
            self.index(i),
            self.name(i),
            self.gains[i],
            self.cost(i),
            claim,
            self.more_items(i) if claim == "no_loss_seen" else None,
            math.fsum(times) / len(times) / 60 if times else None,
            start.point.value if start else None,
            end.point.value if end else None,
            setting.seeds,
            setting.indices,
            claim == "safe" and self._significant_loss(i),
            *self._model(self.records[self.index(i)]),
        )

    def _model(self, record: RunRecord) -> tuple[str | None, str]:
        """Where a run's model lies; or None, and the command that trains it again. Neither of a record on no disk."""
        if record.directory is None:
            return None, ""
        model = record.directory / "model"
        if any((model / name).exists() for name in ("config.json", "adapter_config.json")):
            return str(model), ""
        return None, command(record)

    def _significant_loss(self, i: int) -> bool:
        found = self.interval(i)
        return not self.general.is_distance and found is not None and found[2] < 0

    def more_items(self, i: int) -> int | None:
        """How many more general items would show it to be safe, were the loss as seen (a gain counts as none).

        More items make smaller only what of the variance is theirs; None where the rest alone is too much.
        """
        cost, found = self.cost(i), self.interval(i)
        if cost is None or found is None:
            return None
        value, low, high = found
        half, room = (high - low) / 2, self.margin + min(value, 0.0)
        left = (room / half) ** 2 - cost.seed_share if half else 0.0
        return math.ceil(cost.n * ((1 - cost.seed_share) / left - 1)) if left > 1e-3 else None

    def exchange(self) -> tuple[Step, ...]:
        """The steps from the base model along the front of what gained on the domain, by the point estimates."""
        points = [(self.level(self.domain, i), self.level(self.general, i)) for i in self.gained]
        front = [self.gained[k] for k in pareto_front(points)]
        pairs = list(zip(front[1:], front, strict=False))
        domain, general = (between(self.readings(axis), pairs) for axis in (self.domain, self.general))
        return (
            *(Step(BASE, self.name(i), self.gains[i], self.cost(i), None, self.index(i)) for i in front[:1]),
            *(
                Step(self.name(a), self.name(b), gain, cost, self.index(a), self.index(b))
                for (b, a), gain, cost in zip(pairs, domain, general, strict=True)
            ),
        )

    def why_not(self, i: int) -> ExcludedReason:
        """Why a setting is not the safe choice."""
        gain = self.gains[i]
        if i not in self.claims:
            return "no_error" if gain is None or gain.p is None else "no_gain"
        if i in self.best and i not in self.left_behind:
            return "no_difference"
        if i in self.candidates:
            return "less_gain"
        if self.claims[i] == "loss":
            return "loss"
        found = self.interval(i)
        if self.blind:
            return "own_skill"
        if found is None:
            return "no_base"
        return "over_margin" if found[0] < -self.margin else "too_few_items"


def oriented(axis: Axis, change: Change) -> tuple[float, float, float]:
    """A change and the ends of its interval, above 0 where it is for the better; the ends are endless if unknown."""
    low = -math.inf if change.low is None else change.low
    high = math.inf if change.high is None else change.high
    return (change.value, low, high) if axis.higher_is_better else (-change.value, -high, -low)


def _one_sided(change: Change, above: bool) -> float:
    """The p-value against a true change at or below the null, from the two-sided one.

    Of one seed it counts twice, since what another seed would change is in no error.
    """
    p = 1.0 if change.p_cautious is None else change.p_cautious
    alone = 1 if change.seed_effect_known else 2
    return min(alone * (p / 2 if above else 1 - p / 2), 1.0)
