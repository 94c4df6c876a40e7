"""What a comparison found: every setting beside SFT at its rate, and every method beside SFT at an equal score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gentletune.core.records import RunRecord
from gentletune.core.render import MISSING, one_line, template
from gentletune.reporting import Section, split
from gentletune.reporting.axes import Axis, score_keys, single_axis
from gentletune.reporting.choice import Choice
from gentletune.reporting.pareto import base_point, in_order
from gentletune.reporting.settings import Setting, apart, from_plain, plain_twin, told_apart, verdict
from gentletune.reporting.tables import SIGNS as OF_REPORTS
from gentletune.reporting.tables import error_of
from gentletune.research.comparison.level import MOVED, Place, change_at, moved, place_at, upward, value_of
from gentletune.stats import Change, Pool, holm, mean_of, seed_pool
from gentletune.stats.numbers import number, plus_minus, rate, with_interval

PLAIN, AVERAGE = "sft", "wise_ft"
# With few seeds among many methods most of what is better is so by its own interval only.
SIGNS = {**{str(said): sign for said, sign in OF_REPORTS.items()}, "better_alone": "△"}
SHARES = (0.5, 0.9)  # of the most domain gain of plain SFT: a modest and a nearly full one
KL, ENTROPY = "kl_sampled/bits_per_token", "own_answers/entropy"
_LENGTH = ("max_steps", "epochs", "train_rows")  # runs that differ in these are not at equal steps


@dataclass(frozen=True)
class Read:
    """A method at a score: where on its line (None: it does not get there), and what it scores there.

    `points`, `from_plain` and `from_average` are by axis key: the score itself, and the differences to plain SFT and to
    the average of SFT with the base model (Wise-FT) at the same score. `most` is the largest score on its line (the
    smallest, where less is better), `missing` the rates at which plain SFT has the score and the method was not run,
    `time` its training time over plain SFT's.
    """

    method: str
    place: Place | None
    points: dict[str, float]
    from_plain: dict[str, Change | None]
    from_average: dict[str, Change | None]
    most: float | None
    missing: tuple[float, ...] = ()
    time: float | None = None

    @property
    def state(self) -> str:
        """`reached`; `not_run` where that is open for want of runs, else `not_reached`."""
        if self.place is not None:
            return "reached"
        return "not_run" if self.missing else "not_reached"

    @property
    def rates(self) -> str:
        """The rates it is read between."""
        if self.place is None:
            return MISSING
        low, high = self.place.below, rate(self.place.above.learning_rate)
        if self.place.share == 1:
            return high
        return f"{rate(low.learning_rate) if low else 'base'} to {high}"

    @property
    def missing_rates(self) -> str:
        """The missing rates, in words."""
        return ", ".join(map(rate, self.missing))


@dataclass(frozen=True)
class Level:
    """A score in words and as a number, the axis it is on, and every method there."""

    name: str
    by: Axis
    target: float
    reads: tuple[Read, ...]

    @property
    def equal(self) -> str:
        """What is equal: `domain score`, `KL from base`, `movement`."""
        return {KL: "KL from base", MOVED.key: "movement"}.get(self.by.key, "domain score")


@dataclass(frozen=True)
class Comparison:
    """The runs of one base model on one data set, method by method."""

    section: Section

    @classmethod
    def of(cls, records: Sequence[RunRecord], margin: float | None = None) -> list[Comparison]:
        """A comparison for each base model, data set and length of training among the records."""
        groups: dict[tuple[Any, ...], list[RunRecord]] = {}
        for record in records:
            groups.setdefault(tuple(record.recipe.get(name) for name in _LENGTH), []).append(record)
        told = [name for name, values in zip(_LENGTH, zip(*groups, strict=True), strict=False) if len(set(values)) > 1]
        return [
            cls(
                replace(
                    one, name=", ".join([one.name, *(f"{name}={one.records[0].recipe.get(name)}" for name in told)])
                )
            )
            for group in groups.values()
            for one in split(group, margin=margin)
        ]

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, by method and rate."""
        return list(map(moved, in_order(self.section.settings)))

    @cached_property
    def lines(self) -> dict[str, list[Setting]]:
        """The settings of each method, by rate; a method is named with what else of the recipe tells it apart."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            told = told_apart(setting, self.settings)
            found.setdefault(f"{setting.label} ({told})" if told else setting.label, []).append(setting)
        return found

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each setting object lies among the settings: records are large, and comparing them is slow."""
        return {id(setting): place for place, setting in enumerate(self.settings)}

    @cached_property
    def rates(self) -> list[float]:
        """The learning rates, smallest first."""
        return sorted({setting.learning_rate for setting in self.settings})

    @cached_property
    def axes(self) -> dict[str, Axis]:
        """What the tables show: both sides' scores, the domain's bits per token, KL from base, entropy."""
        records = [record for setting in self.settings for record in setting.records]
        keys = score_keys(records)
        bits = [key for key in score_keys(records, "domain") if key.endswith("/bits_per_token")]
        wanted = [self.section.domain, self.section.general]
        wanted += [single_axis(records, key) for key in (*bits[:1], KL, ENTROPY) if key in keys]
        return {axis.key: axis for axis in wanted if axis is not None}

    def point(self, setting: Setting, axis: Axis) -> Any:
        """A setting's mean with its error; None where it has no such score."""
        runs = setting.runs(axis)
        return mean_of(runs, self.pools[axis.key]) if runs else None

    @cached_property
    def pools(self) -> dict[str, Pool | None]:
        """The variance between seeds of all settings, by axis."""
        return {a.key: seed_pool([s.runs(a) for s in self.settings]) for a in (*self.axes.values(), MOVED)}

    def against_plain(self, axis: Axis) -> dict[int, Change | None]:
        """Each setting minus plain SFT at the same rate, one family, by place."""
        if axis.key not in self._against:
            self._against[axis.key] = dict(enumerate(from_plain(self.settings, axis)))
        return self._against[axis.key]

    @cached_property
    def _against(self) -> dict[str, dict[int, Change | None]]:
        return {}

    def cost(self, setting: Setting, figure: str) -> float | None:
        """Training time (`train`) or peak memory of a setting, over plain SFT's at the same rate; the mean of seeds."""
        twin = plain_twin(setting, self.settings)
        base = {r.seed: _figure(r, figure) for r in self.settings[twin].records} if twin is not None else {}
        pairs = [(_figure(r, figure), base.get(r.seed)) for r in setting.records]
        ratios = [mine / other for mine, other in pairs if mine and other]
        return math.fsum(ratios) / len(ratios) if ratios else None

    # --- at an equal score

    @cached_property
    def levels(self) -> list[Level]:
        """Every method at the domain score of plain SFT's safe choice, and at shares of its most domain gain.

        None without SFT or a gain of it; no safe choice, no level of it.
        """
        domain = self.section.domain
        found = [self._level(name, domain, place) for name, place in self._marks.items() if domain]
        return [level for level in found if level is not None]

    @cached_property
    def distances(self) -> list[Level]:
        """Every method where it is as far from the base model as plain SFT is at these levels.

        In KL from base, then in how far the weights moved; as far as these were measured.
        """
        by = [axis for axis in (self.axes.get(KL), MOVED) if axis and axis != self.section.general]
        found = [self._level(name, axis, place) for axis in by for name, place in self._marks.items()]
        return [level for level in found if level is not None]

    @cached_property
    def _marks(self) -> dict[str, Place]:
        """The places on plain SFT's line that the levels are of, by what they are called."""
        domain, line = self.section.domain, self.lines.get(PLAIN, [])
        start = next((v for s in line if domain and (v := value_of(s, domain, base=True)) is not None), None)
        most = self._most(line, domain) if domain else None
        if domain is None or start is None or most is None:
            return {}
        if (most - start if domain.higher_is_better else start - most) <= 0:
            return {}
        targets = {f"{share:.0%} of plain SFT's most gain": start + share * (most - start) for share in SHARES}
        if (safe := self._safe(line)) is not None and (score := self._most([safe], domain)) is not None:
            targets = {f"plain SFT's safe choice, rate {rate(safe.learning_rate)}": score} | targets
        places = {name: place_at(line, domain, target) for name, target in targets.items()}
        return {name: place for name, place in places.items() if place is not None}

    def _safe(self, line: Sequence[Setting]) -> Setting | None:
        """Which of plain SFT's own settings a report would name; those of other methods have no say in it."""
        domain, general = self.section.axes
        found = self.section.findings
        choice = Choice(self.section.records, domain, general, line, found.margin, found.blind)
        return None if choice.safe is None else line[choice.safe]

    def _most(self, line: Sequence[Setting], by: Axis) -> float | None:
        values = [v for s in line if (v := value_of(s, by)) is not None]
        return (max if upward(by) else min)(values, default=None)

    def _missing(self, name: str, by: Axis, target: float) -> tuple[float, ...]:
        """The rates at which plain SFT has the score or more, and the method was not run; a failed run is one."""
        sign = 1.0 if upward(by) else -1.0
        reached = [s for s in self.lines[PLAIN] if (v := value_of(s, by)) is not None and sign * v >= sign * target]
        done = {s.learning_rate for s in self.lines[name]} | self.failed[name]
        return tuple(s.learning_rate for s in reached if s.learning_rate not in done)

    @cached_property
    def failed(self) -> dict[str, set[float]]:
        """The rates of each line at which a run of it failed; one of another `precision`, say, is none of it."""
        failed = [record for record in self.section.records if record.status == "failed"]
        found: dict[str, set[float]] = {}
        for name, line in self.lines.items():
            label, mine = line[0].label, line[0].records[0].recipe
            told = apart([setting for setting in self.settings if setting.label == label])
            own = (r for r in failed if r.label == label and all(r.recipe.get(k) == mine.get(k) for k in told))
            found[name] = {record.learning_rate for record in own}
        return found

    def _level(self, name: str, by: Axis, plain: Place) -> Level | None:
        """Every method at the score that plain SFT has at a place of its line; None where that was not measured."""
        if (target := plain.value(by)) is None:
            return None
        places = {m: plain if m == PLAIN else place_at(line, by, target) for m, line in self.lines.items()}
        sides = self.section.axes
        axes = [a for a in self.axes.values() if a != by and (a in sides or a.key == KL)]
        tables = {base: self._changes(places, base, by, axes) for base in (PLAIN, AVERAGE)}
        reads = [
            Read(
                method,
                place,
                {a.key: mean_of(runs).value for a in axes if place and (runs := place.runs(a))},
                {a.key: tables[PLAIN][a.key].get(method) for a in axes},
                {a.key: tables[AVERAGE][a.key].get(method) for a in axes},
                self._most(self.lines[method], by),
                () if place else self._missing(method, by, target),
                self.cost(place.above, "train") if place else None,
            )
            for method, place in places.items()
        ]
        best = next(axis for axis in reversed(sides) if axis != by)  # general skill, at an equal domain score
        sign = -1.0 if best.higher_is_better else 1.0
        reads.sort(key=lambda r: (r.place is None, sign * r.points.get(best.key, 0.0)))
        return Level(name, by, target, tuple(reads))

    def _changes(
        self, places: Mapping[str, Place | None], base: str, by: Axis, axes: Iterable[Axis]
    ) -> dict[str, dict[str, Change | None]]:
        """Every method minus `base` there, by axis, one family (Holm) each."""
        start, found = places.get(base), dict[str, dict[str, Change | None]]()
        for axis in axes:
            others = {name: place for name, place in places.items() if place and start and name != base}
            changes = [change_at(p, start, by, axis, self.pools) for p in others.values() if start]
            found[axis.key] = dict(zip(others, holm(changes), strict=True))
        return found

    # --- words

    def headlines(self) -> list[str]:
        """What the tables show at equal domain scores, a sentence each; nothing where a side has no score."""
        if len(self.section.axes) < 2:
            return []
        said = words().module
        told = [said.level(self, level, self.sides(level)) for level in self.levels]
        return [one_line(line) for line in (told if set(self.lines) != {PLAIN} else [said.alone()])]

    def sentences(self) -> list[str]:
        """The headlines, then what the tables show at equal steps and equally far from the base model."""
        if len(self.section.axes) < 2 or set(self.lines) == {PLAIN}:
            return self.headlines()
        said = words().module
        told = [
            said.equal(f"rate {rate(one)} and equal steps", cells) for one in self.rates if (cells := self.at_rate(one))
        ]
        told += [
            said.equal(f"equal {one.equal} ({number(one.target)}, {one.name})", self.at_level(one))
            for one in self.distances
        ]
        return [*self.headlines(), *map(one_line, told)]

    def sides(self, level: Level) -> dict[str, list[Read]]:
        """The methods at a level of the domain score by how their general skill compares with plain SFT's."""
        general = self.section.general
        found: dict[str, list[Read]] = {name: [] for name in (*SIGNS, "not_reached", "not_run")}
        for read in level.reads:
            if read.method == PLAIN or general is None:
                continue
            told = read.state if read.place is None else told_of(general, read.from_plain.get(general.key))
            found[told].append(read)
        return found

    def at_level(self, level: Level) -> dict[str, list[str]]:
        """The methods at a level by how they compare with plain SFT there, as `at_rate` has them.

        `not_reached` and `not_run` are those that do not get there.
        """
        domain, general = self.section.axes
        found: dict[str, list[str]] = {}
        for read in level.reads:
            changes = [(axis, read.from_plain.get(axis.key)) for axis in (domain, general)]
            if read.method != PLAIN:
                told = [read.state] if read.place is None else [told_of(axis, change) for axis, change in changes]
                found.setdefault(" ".join(told), []).append(read.method)
        return found

    def at_rate(self, learning_rate: float) -> dict[str, list[str]]:
        """The methods at a rate by how they compare with plain SFT there: `domain general`, such as `worse better`."""
        domain, general = self.section.axes
        found: dict[str, list[str]] = {}
        for name, line in self.lines.items():
            for setting in line:
                place = self.places[id(setting)]
                both = [(axis, self.against_plain(axis).get(place)) for axis in (domain, general)]
                if setting.learning_rate == learning_rate and any(change for _, change in both):
                    told = [told_of(axis, change) for axis, change in both]
                    found.setdefault(" ".join(told), []).append(name)
        return found

    def facts(self) -> dict[str, Any]:
        """What the template tells of the study."""
        records = self.section.records
        seeds = {r.seed for s in self.settings for r in s.records}
        steps = sorted({int(r.training["steps"]) for r in records if "steps" in r.training})
        points = [(axis, base_point(records, axis)) for axis in self.section.axes]
        failed = [
            (f"{r.label} at {rate(r.learning_rate)}, seed {r.seed}", error_of(r))
            for r in records
            if r.status == "failed"
        ]
        return {"seeds": len(seeds), "steps": steps, "base": points, "failed": failed}


def told_of(axis: Axis, change: Change | None) -> str:
    """A report's verdict; `better_alone` where, on the good side, only the change's own interval leaves out 0."""
    said = verdict(axis, change)
    return "better_alone" if said == "no_difference" and change is not None and change.excludes_zero else said


def _figure(record: RunRecord, name: str) -> float | None:
    return record.timings.get("train") if name == "train" else record.training.get(name)


def words() -> Any:
    """The template, with its macros."""
    filters: dict[str, Callable[..., str]] = {
        "number": number, "plus_minus": plus_minus, "with_interval": with_interval
    }  # fmt: skip
    return template("gentletune.research.comparison", "comparison.md.j2", **filters)


def legend() -> str:
    """What the signs of the table of rates mean."""
    return one_line(words().module.legend())
