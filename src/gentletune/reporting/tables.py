"""Every table once, as columns of values: cells for the page, text for Markdown, plain numbers for CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from gentletune.core.records import RunRecord
from gentletune.core.render import markdown as to_markdown
from gentletune.reporting.axes import Axis, Point, Verdict, score_keys, single_axis
from gentletune.reporting.findings import Step
from gentletune.reporting.pareto import BASE_LABEL, Estimate, base_point, labels_of
from gentletune.reporting.scene import ROLES, Scene, Volume
from gentletune.reporting.settings import Setting, from_base, from_plain, of_runs, settings_of, told_apart, verdict
from gentletune.stats import Change
from gentletune.stats.numbers import MISSING, duration, number, plus_minus, rate, with_interval

SIGNS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "no_difference": "≈", "unknown": "?"}
# Recipe fields that a column of their own has, or that say where something lies or how it is logged.
_OWN = frozenset({"method", "learning_rate", "seed", "output", "report_to", "log_every", "save_every",
                  "keep_checkpoints", "evaluate_every", "evaluate_limit", "push_to_hub", "shard_size",
                  "gguf"})  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a cell shows, the change under it with its verdict, and what it is sorted by (None: always last)."""

    text: str
    sort: float | str | None = None
    change: str = ""
    verdict: Verdict | None = None

    @property
    def sign(self) -> str:
        """`▲`, `▼`, `≈` or `?`; empty where there is no change to speak of."""
        return SIGNS[self.verdict] if self.verdict else ""


@dataclass(frozen=True)
class Result:
    """A score of a run or a setting, with its base model's and the change from it."""

    axis: Axis
    point: Point | None
    start: Point | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Column:
    """A column: its name in files, its title with a note under it on the page, its values and how one is shown.

    A column without a title is in the files only, one without a name on the page only.
    """

    name: str
    title: str
    values: Sequence[Any]
    show: Callable[[Any], Cell]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, the first of which names the row; `kinds` holds each row's: `run`, `base`, `failed`, or its role."""

    columns: Sequence[Column] = ()
    kinds: Sequence[str] = field(default=())

    @property
    def shown(self) -> list[Column]:
        """The columns that a reader sees."""
        return [column for column in self.columns if column.title]

    @property
    def rows(self) -> list[tuple[str, list[Cell]]]:
        """Each row's kind and cells, to be shown but not escaped."""
        cells = zip(*([c.show(v) for v in c.values] for c in self.shown), strict=True)
        return list(zip(self.kinds, map(list, cells), strict=True))

    @property
    def frame(self) -> pd.DataFrame:
        """Plain values, one column for each number."""
        return pd.DataFrame([_flat(self.columns, i) for i in range(len(self.kinds))])

    @property
    def markdown(self) -> str:
        """The table for people who read text."""
        lines = []
        for kind, cells in self.rows:
            first, *rest = [f"{c.text} ({c.change} {c.sign})" if c.change else c.text for c in cells]
            lines.append([f"**{first}** ({ROLES[kind]})" if kind in ROLES else first, *rest])
        return to_markdown(pd.DataFrame(lines, columns=[column.title for column in self.shown]))


def csv(tables: Iterable[tuple[str, Table]], *, base: bool = True) -> str:
    """Named tables as one CSV, numbers to six digits; the first column, `compared`, tells which is which.

    `base` keeps the base model's rows.
    """
    frames = [table.frame[[base or kind != "base" for kind in table.kinds]].assign(compared=name)
              for name, table in tables if table.kinds]  # fmt: skip
    if not frames:
        return "compared\n"
    whole = pd.concat(frames, ignore_index=True)
    first = whole.pop("compared")
    whole.insert(0, "compared", first)
    return str(whole.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def as_json(table: Table) -> list[dict[str, Any]]:
    """The rows as JSON takes them, numbers to six digits, without what is missing."""
    rows = json.loads(table.frame.to_json(orient="records", double_precision=10)) if table.kinds else []
    return [{key: _short(value) for key, value in row.items() if value not in (None, "")} for row in rows]


# ------------------------------------------------------------------------------------------ the tables


def settings_table(scene: Scene | None) -> Table:
    """One row per setting: both axes, their changes against the base model and plain SFT, how often on the front."""
    if scene is None:
        return Table()
    options, settings = scene.options, [c.setting for c in scene.options if c.setting]
    of = [c.setting for c in options]
    columns = [
        Column("label", "Setting", [_named(c.method, s, settings) for c, s in zip(options, of, strict=True)], _text),
        Column("learning_rate", "Learning rate", [s.learning_rate if s else None for s in of], _rate),
        Column("setting", "", [c.name for c in options], _text),
        Column("seeds", "Seeds", [c.seeds for c in options], partial(_number, zero=MISSING)),
        Column("advised", "", [scene.marks.get(i, "") for i in range(len(options))], _text),
        Column("front_share", "On the front", scene.shares, _share, "share of draws"),
    ]
    for place, axis in enumerate((scene.domain, scene.general)):
        starts, plain = iter(from_base(settings, axis)), iter(from_plain(settings, axis))
        base = next((c.readings[place].point for c in options if not c.setting), None)
        changes = [next(starts) if s else None for s in of]
        points = [(c.x, c.y)[place] for c in options]
        results = [Result(axis, p, base if s else None, d) for p, s, d in zip(points, of, changes, strict=True)]
        columns.append(Column(axis.side, axis.side.capitalize(), results, _result, f"{axis.key}: {_about(axis)}"))
        apart = [(axis, next(plain)) if s else None for s in of]
        if any(found and found[1] for found in apart):
            title = f"{axis.side.capitalize()} − SFT"
            columns.append(
                Column(f"{axis.side} minus sft", title, apart, _difference, "plain SFT at the same learning rate")
            )
    trained = [(list(s.records) if s else []) for s in of]
    minutes = [_mean([r.timings["train"] for r in rs if "train" in r.timings]) for rs in trained]
    norms = [_mean([r.training["update_norm"] for r in rs if "update_norm" in r.training]) for rs in trained]
    columns += [
        Column("train_seconds", "Training time", minutes, _duration),
        Column("update_norm", "Update norm", norms, _number),
    ]
    return Table(columns, [scene.marks.get(i, "run" if s else "base") for i, s in enumerate(of)])


def runs_table(records: Sequence[RunRecord], named: dict[int, str]) -> Table:
    """Every run, every score and every figure of it, the base model first; `named` are places the findings name."""
    labels = labels_of(records)
    order = sorted(range(len(records)), key=lambda i: (labels.index(records[i].label), records[i].learning_rate,
                                                       records[i].seed))  # fmt: skip
    runs = [records[i] for i in order]
    axes = score_axes(records)
    starts = [base_point(records, axis) for axis in axes]
    head: list[RunRecord | None] = [None] if any(starts) else []
    rows = [*head, *runs]
    columns = [
        Column("label", "Run", [r.label if r else BASE_LABEL for r in rows], _text),
        Column("method", "", [r.method if r else "" for r in rows], _text),
        Column("learning_rate", "Learning rate", [r.learning_rate if r else None for r in rows], _rate),
        Column("seed", "Seed", [r.seed if r else None for r in rows], _number),
        Column("status", "Status", [r.status if r else "base" for r in rows], _text),
    ]
    for axis, start in zip(axes, starts, strict=True):
        changes = of_runs(records, axis)
        found = [Result(axis, axis.point(records[i]), axis.point(records[i], base=True), changes[i]) for i in order]
        base = [Result(axis, start)] if head else []
        columns.append(Column(axis.key, axis.key, [*base, *found], _result, f"{axis.side}; {_about(axis)}"))
    for name, title, show in _figures(runs):
        columns.append(Column(name, title, [_figure(r, name) if r else None for r in rows], show))
    for name in differing(records):
        values = ["" if r is None or (v := r.recipe.get(name)) is None else str(v) for r in rows]
        columns.append(Column(name, name, values, _text, "recipe"))
    if any(r.status == "failed" for r in runs):
        columns.append(Column("error", "Error", [error_of(r) if r else "" for r in rows], _text))
    kinds = ["failed" if records[i].status == "failed" else named.get(i, "run") for i in order]
    return Table(columns, [*("base" for _ in head), *kinds])


def areas_table(found: Sequence[Volume]) -> Table:
    """One row per method: the area that its settings enclose."""
    columns = [
        Column("method", "Method", [v.method for v in found], _text),
        Column("settings", "Settings", [v.points for v in found], _number),
        Column("area", "Area", [v.area for v in found], _estimate, "share of the box, 95 % interval"),
    ]
    if any(v.against for v in found):
        columns.append(
            Column("area minus sft", "Area − plain SFT", [v.against for v in found], _apart, "95 % interval")
        )
    return Table(columns if found else (), ["run"] * len(found))


def exchange_table(steps: Sequence[Step], domain: Axis | None, general: Axis | None) -> Table:
    """What each further step along the front brings and costs."""
    if not steps or domain is None or general is None:
        return Table()
    changes = [
        (axis, [(axis, step.domain if axis is domain else step.general) for step in steps])
        for axis in (domain, general)
    ]
    columns = [Column("to", "Step to", [s.end for s in steps], _text)]
    columns += [Column(a.side, a.side.capitalize(), d, _difference, f"{a.key}: {_about(a)}") for a, d in changes]
    columns.append(Column("from", "From", [s.start for s in steps], _text))
    return Table(columns, ["run"] * len(steps))


def category_tables(records: Sequence[RunRecord]) -> list[tuple[str, Table]]:
    """For each score that has categories, one row per setting, its seeds averaged, and one column per category."""
    made = []
    for axis in score_axes(records):
        settings = settings_of(records, axis)
        scores = [[s for r in setting.records if (s := r.score(axis.key))] for setting in settings]
        base = [s for r in records if (s := r.score(axis.key, base=True))][:1]
        rows = [row for row in [base, *scores] if row]
        found = [[s.details["by_category"] for s in row if "by_category" in s.details] for row in rows]
        names = dict.fromkeys(name for row in found for one in row for name in one)
        if not names or any(len(one) < len(row) for one, row in zip(found, rows, strict=True)):
            continue
        heads = [BASE_LABEL] * bool(base) + [f"{s.label} {rate(s.learning_rate)}" for s in settings]
        columns = [Column("setting", "Setting", heads, _text)]
        for name in names:
            values = [_mean([one[name]["value"] for one in row if name in one]) for row in found]
            count = next((one[name]["n"] for row in found for one in row if name in one), 0)
            columns.append(Column(name, name, values, _number, f"{count} items"))
        made.append((axis.key, Table(columns, ["base"] * bool(base) + ["run"] * len(settings))))
    return made


def score_axes(records: Sequence[RunRecord]) -> list[Axis]:
    """An axis for every score, the domain's first."""
    return [single_axis(records, key) for key in (*score_keys(records, "domain"), *score_keys(records, "general"))]


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Recipe fields, beside method, rate and seed, in which the runs differ."""
    names = dict.fromkeys(name for r in records for name in r.recipe if name not in _OWN)
    return [name for name in names if len({repr(r.recipe.get(name)) for r in records if r.recipe}) > 1]


def error_of(record: RunRecord) -> str:
    """Why a run failed; empty for one that did not."""
    return (record.error or "no error was recorded") if record.status == "failed" else ""


# ------------------------------------------------------------------------------------------ figures of a run


def _figures(records: Sequence[RunRecord]) -> list[tuple[str, str, Callable[[Any], Cell]]]:
    """Name, title and form of the figures of training that any run has."""
    known: dict[str, tuple[str, Callable[[Any], Cell]]] = {
        "steps": ("Steps", _number),
        "update_norm": ("Update norm", _number),
        "train_seconds": ("Training time", _duration),
        "label_tokens_per_second": ("Label tokens/s", _number),
        "tokens_per_second": ("Tokens/s", _number),
        "mfu": ("MFU", _number),
    }
    other = dict.fromkeys(n for r in records for n in r.training if n not in known)
    known |= {name: (name.replace("_", " ").capitalize().replace(" gib", " GiB"), _number) for name in other}
    always = ("steps", "update_norm", "train_seconds")
    return [
        (n, title, show) for n, (title, show) in known.items() if n in always or any(_figure(r, n) for r in records)
    ]


def _figure(record: RunRecord, name: str) -> float | None:
    seconds = record.timings.get("train")
    if name == "train_seconds":
        return seconds
    if name == "label_tokens_per_second":
        tokens = record.training.get("label_tokens")
        return tokens / seconds if tokens and seconds else None
    return record.training.get(name)


def _named(method: str, setting: Setting | None, settings: Sequence[Setting]) -> str:
    told = told_apart(setting, settings) if setting else ""
    return f"{method} ({told})" if told else method


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# ------------------------------------------------------------------------------------------ cells and numbers


def _text(value: str) -> Cell:
    return Cell(value or MISSING, value or None)


def _rate(value: float | None) -> Cell:
    return Cell(MISSING if value is None else rate(value), value)


def _number(value: float | None, zero: str = "") -> Cell:
    if value is None:
        return Cell(MISSING)
    whole = float(value).is_integer() and abs(value) < 1e9
    return Cell(zero if zero and not value else f"{value:.0f}" if whole else number(value), value)


def _share(value: float) -> Cell:
    return Cell(f"{value:.0%}", value)


def _duration(value: float | None) -> Cell:
    return Cell(duration(value), value)


def _result(value: Result) -> Cell:
    text, sort = plus_minus(value.point), value.point.value if value.point else None
    if value.change is None:
        return Cell(text, sort)
    return Cell(text, sort, with_interval(value.change), verdict(value.axis, value.change))


def _difference(value: tuple[Axis, Change | None] | None) -> Cell:
    if value is None or value[1] is None:
        return Cell(MISSING)
    told = verdict(*value)
    return Cell(f"{with_interval(value[1])} {SIGNS[told]}", value[1].value, verdict=told)


def _estimate(value: Estimate, form: str = "{:.2f}") -> Cell:
    middle, low, high = (form.format(x).replace("-", "−") for x in (value.value, value.low, value.high))
    return Cell(f"{middle} [{low}, {high}]", value.value)


def _apart(value: Estimate | None) -> Cell:
    if value is None:
        return Cell(MISSING)
    told: Verdict = "no_difference" if value.low <= 0 <= value.high else "better" if value.value > 0 else "worse"
    return Cell(f"{_estimate(value, '{:+.2f}').text} {SIGNS[told]}", value.value, verdict=told)


def _flat(columns: Sequence[Column], row: int) -> dict[str, Any]:
    """A row's plain values by name."""
    flat: dict[str, Any] = {}
    for column in columns:
        value, name = column.values[row], column.name
        if isinstance(value, Result):
            whole, point, start = name == value.axis.key, value.point, value.start
            flat |= {} if whole else {f"{name} key": value.axis.key}
            flat[name if whole else f"{name} value"] = point.value if point else None
            flat[f"{name} stderr"] = point.stderr if point else None
            flat[f"{name} n"] = point.n if point else None
            flat |= {f"{name} base": start.value, f"{name} base stderr": start.stderr} if start else {}
            flat |= _interval(f"{name} change", value.change)
        elif isinstance(value, Estimate):
            flat |= {name: value.value, f"{name} low": value.low, f"{name} high": value.high}
        elif isinstance(value, tuple):
            flat |= _interval(name, value[1])
        else:
            flat[name] = value
    return flat


def _interval(name: str, change: Change | None) -> dict[str, float | None]:
    low, high = (change.low, change.high) if change else (None, None)
    return {name: change.value if change else None, f"{name} low": low, f"{name} high": high}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _about(axis: Axis) -> str:
    return f"{axis.unit}, {'higher' if axis.higher_is_better else 'lower'} is better"
