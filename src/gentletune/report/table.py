"""Every run and every score in one table: as rows for the page, as Markdown and as CSV."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

from gentletune.records import RunRecord
from gentletune.report.axes import Axis, Point, Verdict, compare, difference, score_keys, single_axis
from gentletune.report.numbers import MISSING, duration, number, plus_minus, rate
from gentletune.report.pareto import INITIAL_LABEL, initial_of

SIGNS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "tied": "≈", "unknown": "?"}
LEGEND = "▲ measurably better than the initial model, ▼ measurably worse, ≈ no measurable change, ? cannot tell"


@dataclass(frozen=True)
class Cell:
    """A score, its change from the initial model, and whether that change is measurable."""

    value: str
    change: str = ""
    verdict: Verdict | None = None

    @property
    def sign(self) -> str:
        """`▲`, `▼`, `≈` or `?`; empty where there is no change to speak of."""
        return SIGNS[self.verdict] if self.verdict else ""


@dataclass(frozen=True)
class Row:
    """One run's row (or the initial model's), every entry ready to show but not escaped."""

    label: str
    learning_rate: str
    seed: str
    status: str
    cells: list[Cell]
    steps: str
    update_norm: str
    time: str
    error: str = ""
    advised: bool = False


@dataclass(frozen=True)
class Table:
    """The columns (domain scores, then general) and the rows, the initial model first where it is known."""

    domain: list[Axis]
    general: list[Axis]
    rows: list[Row]


def build_table(records: Sequence[RunRecord], advised: int | None) -> Table:
    """The table of all runs, in the order given; `advised` is the place of the recommended one."""
    domain = [single_axis(records, key) for key in score_keys(records, "domain")]
    general = [single_axis(records, key) for key in score_keys(records, "general")]
    columns = [*domain, *general]
    rows = [_row(record, columns, index == advised) for index, record in enumerate(records)]
    starts = [initial_of(records, axis) for axis in columns]
    if any(starts):
        cells = [Cell(plus_minus(point)) for point in starts]
        rows.insert(0, Row(INITIAL_LABEL, MISSING, MISSING, "initial", cells, MISSING, MISSING, MISSING))
    return Table(domain, general, rows)


def to_csv(records: Sequence[RunRecord]) -> str:
    """One row per run, numbers to six digits; each score with `stderr`, `n` and its initial value beside it."""
    columns = [single_axis(records, key) for key in score_keys(records)]
    names = ["", " stderr", " n", " initial", " initial stderr"]
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["label", "method", "learning_rate", "seed", "status", "steps", "update_norm", "train_seconds"]
    writer.writerow([*head, "error", *(axis.key + name for axis in columns for name in names)])
    for record in records:
        scores: list[float | None] = []
        for axis in columns:
            scores += [*_figures(axis.point(record), True), *_figures(axis.point(record, initial=True), False)]
        norm, steps = record.training.get("update_norm"), record.training.get("steps")
        front = [record.label, record.method, record.learning_rate, record.seed, record.status]
        costs = [_plain(steps), _plain(norm), _plain(record.timings.get("train"))]
        writer.writerow([*front, *costs, record.error or "", *map(_plain, scores)])
    return buffer.getvalue()


def to_markdown(table: Table, title: str, sentences: Sequence[str]) -> str:
    """The title, the sentences as paragraphs, and the table; everything from records escaped."""
    columns = [*table.domain, *table.general]
    head = ["run", "learning rate", "seed", "status", *(axis.key for axis in columns)]
    head += ["steps", "update norm", "training time"]
    lines = [head, ["---"] * len(head), *map(_markdown_row, table.rows)]
    body = "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)
    failed = [f"- {_escape(r.label)} {r.learning_rate}: {_escape(r.error)}" for r in table.rows if r.error]
    parts = [f"# {_escape(title)}", *map(_escape, sentences), body, f"± is one standard error. {LEGEND}."]
    if failed:
        parts += ["## Failed runs", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _row(record: RunRecord, columns: Sequence[Axis], advised: bool) -> Row:
    steps = record.training.get("steps")
    return Row(
        record.label,
        rate(record.learning_rate),
        str(record.seed),
        record.status,
        [_cell(record, axis) for axis in columns],
        MISSING if steps is None else f"{steps:.0f}",
        number(record.training.get("update_norm")),
        duration(record.timings.get("train")),
        (record.error or "no error was recorded") if record.status == "failed" else "",
        advised,
    )


def _cell(record: RunRecord, axis: Axis) -> Cell:
    point, start = axis.point(record), axis.point(record, initial=True)
    change = difference(point, start)
    if point is None or change is None:
        return Cell(plus_minus(point))
    return Cell(plus_minus(point), plus_minus(change, signed=True), compare(axis, point, start))


def _markdown_row(row: Row) -> list[str]:
    cells = [f"{c.value} ({c.change} {c.sign})" if c.change else c.value for c in row.cells]
    name = f"**{row.label}**" if row.advised else row.label
    front = [name, row.learning_rate, row.seed, row.status]
    return [*front, *cells, row.steps, row.update_norm, row.time]


def _figures(point: Point | None, count: bool) -> list[float | None]:
    if point is None:
        return [None] * (3 if count else 2)
    return [point.value, point.stderr, point.n] if count else [point.value, point.stderr]


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _escape(text: str) -> str:
    flat = " ".join(text.split())
    return html.escape(flat, quote=False).replace("|", "\\|")
