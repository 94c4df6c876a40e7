"""A comparison's tables: as text for people, as numbers for files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from gentletune.core.render import MISSING
from gentletune.reporting.axes import Axis
from gentletune.reporting.settings import Setting, from_base, told_apart
from gentletune.research.comparison.result import KL, PLAIN, SIGNS, Comparison, Level, Read, told_of
from gentletune.stats import Change
from gentletune.stats.numbers import number, plus_minus, rate, with_interval


def rates_table(found: Comparison) -> pd.DataFrame:
    """A row a method, a column a rate: domain and general score, each with how it compares with SFT there."""
    signs = {axis.key: found.against_plain(axis) for axis in found.section.axes}

    def cell(setting: Setting) -> str:
        parts = []
        for axis in found.section.axes:
            change = signs[axis.key].get(found.places[id(setting)])
            sign = f" {SIGNS[told_of(axis, change)]}" if change else ""
            parts.append(plus_minus(found.point(setting, axis)) + sign)
        return " / ".join(parts)

    rows = []
    for name, line in found.lines.items():
        cells = {rate(r): "failed" for r in found.failed[name]}
        cells |= {rate(s.learning_rate): cell(s) for s in line}
        rows.append({"method": name} | {rate(r): cells.get(rate(r), "not run") for r in found.rates})
    return pd.DataFrame(rows)


def level_table(found: Comparison, level: Level) -> pd.DataFrame:
    """A row a method, at a domain score."""
    rows = []
    for read in level.reads:
        row = {"method": read.method, "between rates": read.rates}
        for axis in found.axes.values():
            if axis.key in read.points or axis == found.section.general:
                row |= _level_cells(read, axis)
        rows.append(row | {"training time": times(read.time)})
    return pd.DataFrame(rows)


def _level_cells(read: Read, axis: Axis) -> dict[str, str]:
    name = "KL" if axis.key == KL else str(axis.side)
    if read.place is None:
        return {name: absent(read, "not reached")}
    cells = {name: number(read.points.get(axis.key))}
    for title, changes in ((f"{name} − SFT", read.from_plain), (f"{name} − Wise-FT", read.from_average)):
        change = changes.get(axis.key)
        cells[title] = MISSING if change is None else f"{with_interval(change)} {SIGNS[told_of(axis, change)]}"
    if read.method != PLAIN and read.from_plain.get(axis.key) is None:
        cells[f"{name} − SFT"] = SIGNS["unknown"]
    return cells


def absent(read: Read, told: str) -> str:
    """Why a method has no score at a level: the rates that it was not run at, else what is `told`."""
    return f"{f'not run at {read.missing_rates}' if read.missing else told}, at most {number(read.most)}"


def distances_table(found: Comparison, levels: Sequence[Level]) -> pd.DataFrame:
    """A row a method, a column a level: domain and general score, each with how it compares with SFT there."""
    rows: dict[str, dict[str, str]] = {name: {"method": name} for name in found.lines}
    for level in levels:
        for read in level.reads:
            cells = []
            for axis in found.section.axes:
                change = read.from_plain.get(axis.key)
                sign = "" if read.method == PLAIN else f" {SIGNS[told_of(axis, change)]}"
                cells.append(number(read.points.get(axis.key)) + sign)
            rows[read.method][f"{number(level.target)}: {level.name}"] = (
                " / ".join(cells) if read.place else absent(read, "never as far")
            )
    return pd.DataFrame(list(rows.values()))


def costs_table(found: Comparison) -> pd.DataFrame:
    """A row a method, each figure the mean over its rates: time and memory over plain SFT's."""
    rows = []
    for name, line in found.lines.items():
        costs = {f: _mean(found.cost(s, f) for s in line) for f in ("train", "peak_memory_gib")}
        cells = {"training time": times(costs["train"]), "peak memory": times(costs["peak_memory_gib"])}
        rows.append({"method": name} | cells)
    return pd.DataFrame(rows)


def times(ratio: float | None) -> str:
    """`× 1.08`; a dash where there is none."""
    return MISSING if ratio is None else f"× {ratio:.2f}"


def settings_frame(found: Comparison) -> pd.DataFrame:
    """A row a setting, numbers: each score with its error, its change from the base model and from plain SFT."""
    changes = {key: (from_base(found.settings, a), found.against_plain(a)) for key, a in found.axes.items()}
    rows = []
    for i, setting in enumerate(found.settings):
        row: dict[str, Any] = {
            "compared": found.section.name,
            "method": setting.label,
            "learning_rate": setting.learning_rate,
            "told_apart": told_apart(setting, found.settings),
            "seeds": " ".join(str(r.seed) for r in setting.records),
            "time_ratio": found.cost(setting, "train"),
            "memory_ratio": found.cost(setting, "peak_memory_gib"),
            "update_norm": _mean(r.training.get("update_norm") for r in setting.records),
        }
        for key, axis in found.axes.items():
            point = found.point(setting, axis)
            row |= {key: point and point.value, f"{key} stderr": point and point.stderr}
            for name, change in (("base", changes[key][0][i]), ("sft", changes[key][1][i])):
                row |= _flat(f"{key} minus {name}", axis, change)
        rows.append(row)
    return pd.DataFrame(rows)


def levels_frame(found: Comparison) -> pd.DataFrame:
    """A row a method and level, numbers: at equal domain score, then at equal KL from base and at equal movement."""
    rows = []
    for level in (*found.levels, *found.distances):
        for read in level.reads:
            row: dict[str, Any] = {
                "compared": found.section.name,
                "equal": level.equal,
                "level": level.name,
                "target": level.target,
                "method": read.method,
                "state": read.state,
                "rates": read.rates,
                "not_run_at": read.missing_rates,
                "most": read.most,
                "time_ratio": read.time,
            }
            for key, axis in found.axes.items():
                if key in read.points:
                    row[key] = read.points[key]
                    row |= _flat(f"{key} minus sft", axis, read.from_plain.get(key))
                    row |= _flat(f"{key} minus wise_ft", axis, read.from_average.get(key))
            rows.append(row)
    return pd.DataFrame(rows)


def _flat(name: str, axis: Axis, change: Change | None) -> dict[str, Any]:
    if change is None:
        return {}
    return {
        name: change.value,
        f"{name} low": change.low,
        f"{name} high": change.high,
        f"{name} verdict": told_of(axis, change),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
