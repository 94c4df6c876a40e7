"""The tables as files: CSV for machines, Markdown for people."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from io import StringIO

from gentletune.report.axes import Point
from gentletune.report.changes import from_initial, from_plain, of_runs
from gentletune.report.numbers import rate
from gentletune.report.page import Part
from gentletune.report.repeat import commands
from gentletune.report.scene import Scene
from gentletune.report.section import Section
from gentletune.report.table import LEGEND, Table, error_of, score_axes
from gentletune.report.words import full_answer
from gentletune.stats import Change

_CHANGE = ("change", "change low", "change high")
_PLAIN = ("minus sft", "minus sft low", "minus sft high")


def runs_csv(sections: Sequence[Section]) -> str:
    """One row a run, numbers to six digits; each score with its error, its initial value and the paired change."""
    records = [record for section in sections for record in section.records]
    axes = score_axes(records)
    head = ["compared", "label", "method", "learning_rate", "seed", "status", "steps", "update_norm", "train_seconds"]
    names = ["", " stderr", " n", " initial", " initial stderr", *(f" {name}" for name in _CHANGE)]
    rows: list[list[object]] = [[*head, "error", *(axis.key + name for axis in axes for name in names)]]
    for section in sections:
        changes = [of_runs(section.records, axis) for axis in axes]
        for place, record in enumerate(section.records):
            figures: list[float | None] = []
            for axis, found in zip(axes, changes, strict=True):
                point, start = axis.point(record), axis.point(record, initial=True)
                figures += [*_figures(point), point.n if point else None, *_figures(start)]
                figures += _interval(found[place])
            front = [section.name, record.label, record.method, record.learning_rate, record.seed, record.status]
            costs = [record.training.get("steps"), record.training.get("update_norm"), record.timings.get("train")]
            rows.append([*front, *map(_plain, costs), record.error or "", *map(_plain, figures)])
    return _csv(rows)


def settings_csv(sections: Sequence[Section], scenes: Sequence[Scene | None]) -> str:
    """One row a setting, over its seeds: both axes with their changes against the initial model and plain SFT."""
    head = ["compared", "label", "learning_rate", "setting", "seeds", "advised", "front_share"]
    sides = ("domain", "general")
    names = ["key", "value", "stderr", *_CHANGE, *_PLAIN]
    rows: list[list[object]] = [[*head, *(f"{side} {name}" for side in sides for name in names)]]
    for section, scene in zip(sections, scenes, strict=True):
        if scene is None:
            continue
        settings = [c.setting for c in scene.options if c.setting]
        axes = scene.domain, scene.general
        changes = [list(zip(from_initial(settings, a), from_plain(settings, a), strict=True)) for a in axes]
        for i, (option, share) in enumerate(zip(scene.options, scene.shares, strict=True)):
            s = option.setting
            place = i - (len(scene.options) - len(settings))  # the initial model comes first
            peak = s.learning_rate if s else ""
            row: list[object] = [
                section.name,
                option.method,
                peak,
                option.name,
                option.seeds,
                int(i == scene.advised),
                _plain(share),
            ]
            for axis, point, known in zip(axes, (option.x, option.y), changes, strict=True):
                start, plain = known[place] if s else (None, None)
                figures = [*_figures(point), *_interval(start), *_interval(plain)]
                row += [axis.key, *map(_plain, figures)]
            rows.append(row)
    return _csv(rows)


def to_markdown(parts: Sequence[Part], title: str) -> str:
    """The title and, for each part, its sentences, tables, failures and commands; all from records escaped."""
    lines = [f"# {_escape(title)}"]
    for part in parts:
        section = part.section
        if len(parts) > 1:
            lines.append(f"## {_escape(section.name)}")
        lines += map(_escape, [*full_answer(section.findings), *part.notes])
        if part.settings.rows:
            lines += ["### Settings", _table(part.settings)]
        if part.areas.rows:
            lines += ["### Area by method", _table(part.areas), _escape(part.area_note)]
        lines += ["### Runs", _table(part.runs), f"{LEGEND}."]
        failed = [
            f"- {_escape(r.label)} {rate(r.learning_rate)}, seed {r.seed}: {_escape(error_of(r))}"
            for r in section.records
            if r.status == "failed"
        ]
        lines += ["### Failed runs", "\n".join(failed)] if failed else []
        if told := commands(section.records):
            # Indented, since no text within can end such a block.
            lines += ["### To repeat a run", "\n".join(f"    {line}" for line in told)]
    return "\n\n".join(lines) + "\n"


def _table(table: Table) -> str:
    head = [column.name for column in table.columns]
    body = []
    for row in table.rows:
        cells = [f"{c.text} ({c.change} {c.sign})" if c.change else c.text for c in row.cells]
        cells = list(map(_escape, cells))
        body.append([f"**{cells[0]}**" if row.advised else cells[0], *cells[1:]])
    rows = [list(map(_escape, head)), ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _figures(point: Point | None) -> list[float | None]:
    return [point.value, point.stderr] if point else [None, None]


def _interval(change: Change | None) -> list[float | None]:
    return [change.value, change.low, change.high] if change else [None, None, None]


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _escape(text: str) -> str:
    flat = " ".join(text.split())
    return html.escape(flat, quote=False).replace("|", "\\|")
