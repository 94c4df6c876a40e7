"""What a comparison found: every setting beside SFT at its rate, and every method at an equal domain score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from gentletune.core.records import RunRecord
from gentletune.core.render import MISSING, one_line, template
from gentletune.reporting import Section, split
from gentletune.reporting.axes import Axis, score_keys, single_axis
from gentletune.reporting.choice import Choice
from gentletune.reporting.pareto import base_point, in_order
from gentletune.reporting.settings import Setting, from_base, from_plain, plain_twin, told_apart, verdict
from gentletune.reporting.tables import SIGNS as OF_REPORTS
from gentletune.reporting.tables import error_of
from gentletune.research.comparison.level import Place, Pools, change_at, place_at
from gentletune.stats import Change, holm, mean_of
from gentletune.stats.numbers import number, plus_minus, rate, with_interval

PLAIN, AVERAGE = "sft", "wise_ft"
# With few seeds among many methods most of what is better is so by its own interval only.
SIGNS = {**{str(said): sign for said, sign in OF_REPORTS.items()}, "better_alone": "△"}
SHARES = (0.5, 0.9)  # of the most domain gain of plain SFT: a modest and a nearly full one
KL, ENTROPY = "kl_sampled/bits_per_token", "own_answers/entropy"


@dataclass(frozen=True)
class Read:
    """A method at a domain score: where on its line (None: it does not get there), and what it scores there.

    `points`, `from_plain` and `from_average` are by axis key: the score itself, and the differences to plain SFT and to
    the average of SFT with the base model (Wise-FT) at the same domain score.
    """

    method: str
    place: Place | None
    points: dict[str, float]
    from_plain: dict[str, Change | None]
    from_average: dict[str, Change | None]
    best: float

    @property
    def rates(self) -> str:
        """The rates it is read between."""
        if self.place is None:
            return MISSING
        low, high = self.place.below, rate(self.place.above.learning_rate)
        if self.place.share == 1:
            return high
        return f"{rate(low.learning_rate) if low else 'base'} to {high}"


@dataclass(frozen=True)
class Level:
    """A domain score, in words and as a number, and every method there."""

    name: str
    target: float
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class Comparison:
    """The runs of one base model on one data set, method by method."""

    section: Section

    @classmethod
    def of(cls, records: Sequence[RunRecord], margin: float | None = None) -> list[Comparison]:
        """A comparison for each base model and data set among the records."""
        return [cls(section) for section in split(records, margin=margin)]

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, by method and rate."""
        return in_order(self.section.settings)

    @cached_property
    def lines(self) -> dict[str, list[Setting]]:
        """The settings of each method, by rate; a method is named with what else of the recipe tells it apart."""
        found: dict[str, list[Setting]] = {}
        for setting in self.settings:
            told = told_apart(setting, self.settings)
            found.setdefault(f"{setting.label} ({told})" if told else setting.label, []).append(setting)
        return found

    @cached_property
    def _places(self) -> dict[int, int]:
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
        return mean_of(runs, self.pools[axis.key].axis) if runs else None

    @cached_property
    def pools(self) -> dict[str, Pools]:
        """The variance between seeds, by axis."""
        domain = self.section.domain
        return {key: Pools.of(self.settings, domain, axis) for key, axis in self.axes.items()} if domain else {}

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

    # --- at an equal domain score

    @cached_property
    def levels(self) -> list[Level]:
        """Every method at the domain score of plain SFT's safe choice, and at shares of its most domain gain.

        None without SFT or a gain of it; no safe choice, no level of it.
        """
        domain, line = self.section.domain, self.lines.get(PLAIN, [])
        start = next((r.point.value for s in line if domain and (r := s.reading(domain, base=True))), None)
        if domain is None or start is None or not line:
            return []
        most = self._best(line, domain)
        gain = most - start if domain.higher_is_better else start - most
        if gain <= 0:
            return []
        targets = {f"{share:.0%} of plain SFT's most gain": start + share * (most - start) for share in SHARES}
        if (safe := self._safe(line)) is not None:
            targets = {
                f"plain SFT's safe choice, rate {rate(safe.learning_rate)}": self._best([safe], domain)
            } | targets
        return [self._level(name, target, domain) for name, target in targets.items()]

    def _safe(self, line: Sequence[Setting]) -> Setting | None:
        """Which of plain SFT's own settings a report would name; those of other methods have no say in it."""
        domain, general = self.section.axes
        found = self.section.findings
        choice = Choice(self.section.records, domain, general, line, found.margin, found.blind)
        return None if choice.safe is None else line[choice.safe]

    def _best(self, line: Sequence[Setting], domain: Axis) -> float:
        values = [r.point.value for s in line if (r := s.reading(domain)) is not None]
        return (max if domain.higher_is_better else min)(values)

    def _level(self, name: str, target: float, domain: Axis) -> Level:
        places = {name: place_at(line, domain, target) for name, line in self.lines.items()}
        axes = [axis for axis in self.axes.values() if axis.key == KL or axis is self.section.general]
        tables = {base: self._changes(places, base, domain, axes) for base in (PLAIN, AVERAGE)}
        reads = [
            Read(
                method,
                place,
                {a.key: mean_of(runs).value for a in axes if place and (runs := place.runs(a))},
                {a.key: tables[PLAIN][a.key].get(method) for a in axes},
                {a.key: tables[AVERAGE][a.key].get(method) for a in axes},
                self._best(self.lines[method], domain),
            )
            for method, place in places.items()
        ]
        return Level(name, target, tuple(self._sorted(reads)))

    def _changes(
        self, places: dict[str, Place | None], base: str, domain: Axis, axes: Iterable[Axis]
    ) -> dict[str, dict[str, Change | None]]:
        """Every method minus `base` there, by axis, one family (Holm) each."""
        start, found = places.get(base), dict[str, dict[str, Change | None]]()
        for axis in axes:
            others = {name: place for name, place in places.items() if place and start and name != base}
            changes = [change_at(p, start, domain, axis, self.pools[axis.key]) for p in others.values() if start]
            found[axis.key] = dict(zip(others, holm(changes), strict=True))
        return found

    def _sorted(self, reads: Sequence[Read]) -> list[Read]:
        """The most general skill first; those that do not get there last."""
        general = self.section.general
        sign = -1.0 if general and general.higher_is_better else 1.0
        key = general.key if general else ""
        return sorted(reads, key=lambda r: (r.place is None, sign * r.points.get(key, 0.0)))

    # --- tables

    def rates_table(self) -> pd.DataFrame:
        """A row a method, a column a rate: domain and general score, each with how it compares with SFT there."""
        domain, general = self.section.axes
        signs = {axis.key: self.against_plain(axis) for axis in (domain, general)}

        def cell(setting: Setting) -> str:
            parts = []
            for axis in (domain, general):
                change = signs[axis.key].get(self._places[id(setting)])
                sign = f" {SIGNS[told_of(axis, change)]}" if change else ""
                parts.append(plus_minus(self.point(setting, axis)) + sign)
            return " / ".join(parts)

        rows = []
        for name, line in self.lines.items():
            cells = {rate(s.learning_rate): cell(s) for s in line}
            rows.append({"method": name} | {rate(r): cells.get(rate(r), MISSING) for r in self.rates})
        return pd.DataFrame(rows)

    def level_table(self, level: Level) -> pd.DataFrame:
        """A row a method, at the domain score of a level."""
        rows = []
        for read in level.reads:
            row = {"method": read.method, "between rates": read.rates}
            for axis in self.axes.values():
                if axis.key in read.points or axis is self.section.general:
                    row |= self._level_cells(read, axis)
            rows.append(row)
        return pd.DataFrame(rows)

    def _level_cells(self, read: Read, axis: Axis) -> dict[str, str]:
        name = "KL" if axis.key == KL else str(axis.side)
        if read.place is None:
            return {name: f"not reached, at most {number(read.best)}"}
        cells = {name: number(read.points.get(axis.key))}
        for title, changes in ((f"{name} − SFT", read.from_plain), (f"{name} − Wise-FT", read.from_average)):
            change = changes.get(axis.key)
            cells[title] = MISSING if change is None else f"{with_interval(change)} {SIGNS[told_of(axis, change)]}"
        return cells

    def costs_table(self) -> pd.DataFrame:
        """A row a method, each figure the mean over its rates: time and memory over plain SFT's."""
        rows = []
        for name, line in self.lines.items():
            found = {f: [c for s in line if (c := self.cost(s, f)) is not None] for f in ("train", "peak_memory_gib")}
            cells = {f: f"× {math.fsum(v) / len(v):.2f}" if v else MISSING for f, v in found.items()}
            rows.append({"method": name, "training time": cells["train"], "peak memory": cells["peak_memory_gib"]})
        return pd.DataFrame(rows)

    def frame(self) -> pd.DataFrame:
        """A row a setting, numbers: each score with its error, its change from the base model and from plain SFT."""
        changes = {key: (from_base(self.settings, a), self.against_plain(a)) for key, a in self.axes.items()}
        rows = []
        for i, setting in enumerate(self.settings):
            row: dict[str, Any] = {
                "compared": self.section.name,
                "method": setting.label,
                "learning_rate": setting.learning_rate,
                "told_apart": told_apart(setting, self.settings),
                "seeds": " ".join(str(r.seed) for r in setting.records),
                "time_ratio": self.cost(setting, "train"),
                "memory_ratio": self.cost(setting, "peak_memory_gib"),
                "update_norm": _mean([r.training.get("update_norm") for r in setting.records]),
            }
            for key, axis in self.axes.items():
                point = self.point(setting, axis)
                row |= {key: point and point.value, f"{key} stderr": point and point.stderr}
                for name, change in (("base", changes[key][0][i]), ("sft", changes[key][1][i])):
                    row |= _flat(f"{key} minus {name}", axis, change)
            rows.append(row)
        return pd.DataFrame(rows)

    def levels_frame(self) -> pd.DataFrame:
        """A row a method and level, numbers."""
        rows = []
        for level in self.levels:
            for read in level.reads:
                row: dict[str, Any] = {
                    "compared": self.section.name,
                    "level": level.name,
                    "domain_score": level.target,
                    "method": read.method,
                    "reached": read.place is not None,
                    "rates": read.rates,
                    "best_domain": read.best,
                }
                for key, axis in self.axes.items():
                    if key in read.points:
                        row[key] = read.points[key]
                        row |= _flat(f"{key} minus sft", axis, read.from_plain.get(key))
                        row |= _flat(f"{key} minus wise_ft", axis, read.from_average.get(key))
                rows.append(row)
        return pd.DataFrame(rows)

    # --- words

    def sentences(self) -> list[str]:
        """What the tables show, a sentence each; nothing where a side has no score."""
        if len(self.section.axes) < 2:
            return []
        said = words().module
        told = [said.level(self, level, self.sides(level)) for level in self.levels]
        told += [said.equal(rate(one), self.at_rate(one)) for one in self.rates if self.at_rate(one)]
        return [one_line(line) for line in told]

    def sides(self, level: Level) -> dict[str, list[Read]]:
        """The methods at a level by how their general skill compares with plain SFT's."""
        general = self.section.general
        found: dict[str, list[Read]] = {name: [] for name in (*SIGNS, "not_reached")}
        for read in level.reads:
            if read.method == PLAIN or general is None:
                continue
            told: str = "not_reached" if read.place is None else told_of(general, read.from_plain.get(general.key))
            found[told].append(read)
        return found

    def at_rate(self, learning_rate: float) -> dict[str, list[str]]:
        """The methods at a rate by how they compare with plain SFT there: `domain general`, such as `worse better`."""
        domain, general = self.section.axes
        found: dict[str, list[str]] = {}
        for name, line in self.lines.items():
            for setting in line:
                place = self._places[id(setting)]
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


def _flat(name: str, axis: Axis, change: Change | None) -> dict[str, Any]:
    if change is None:
        return {}
    return {
        name: change.value,
        f"{name} low": change.low,
        f"{name} high": change.high,
        f"{name} verdict": told_of(axis, change),
    }


def _figure(record: RunRecord, name: str) -> float | None:
    return record.timings.get("train") if name == "train" else record.training.get(name)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def words() -> Any:
    """The template, with its macros."""
    filters: dict[str, Callable[..., str]] = {
        "number": number, "plus_minus": plus_minus, "with_interval": with_interval
    }  # fmt: skip
    return template("gentletune.research.comparison", "compare.md.j2", **filters)
