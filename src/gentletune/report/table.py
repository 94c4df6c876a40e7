"""The tables: settings with their paired changes, each method's area, and every run with every score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gentletune.core.records import RunRecord
from gentletune.report.axes import Axis, Verdict, score_keys, single_axis
from gentletune.report.bootstrap import Estimate
from gentletune.report.changes import from_initial, from_plain, of_runs
from gentletune.report.numbers import MISSING, duration, number, plus_minus, rate, with_interval
from gentletune.report.pareto import INITIAL_LABEL, Candidate, initial_of, labels_of
from gentletune.report.scene import Scene
from gentletune.report.settings import told_apart, verdict
from gentletune.report.volume import Volume
from gentletune.stats import Change

SIGNS: dict[Verdict, str] = {"better": "▲", "worse": "▼", "tied": "≈", "unknown": "?"}
LEGEND = (
    "± is one standard error, brackets are 95 % intervals, each by itself: ▲ significantly better, among all of its "
    "column (Holm), ▼ significantly worse, by itself, ≈ no significant difference, ? cannot tell"
)


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
class Column:
    """A column's name, with a note under it."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row, every entry ready to show but not escaped; `kind` is `run`, `initial` or `failed`."""

    cells: list[Cell]
    kind: str = "run"
    advised: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row."""

    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def settings_table(scene: Scene | None) -> Table:
    """One row a setting: both axes, their changes against the initial model and plain SFT, how often on the front."""
    if scene is None:
        return Table()
    axes, settings = (scene.domain, scene.general), [c.setting for c in scene.options if c.setting]
    columns = [Column("Setting"), Column("Learning rate"), Column("Seeds")]
    columns += [Column(axis.side.capitalize(), f"{axis.key}: {_about(axis)}") for axis in axes]
    starts = [from_initial(settings, axis) for axis in axes]
    compared = [(axis, from_plain(settings, axis)) for axis in axes]
    compared = [(axis, found) for axis, found in compared if any(found)]
    columns += [
        Column(f"{axis.side.capitalize()} − SFT", "plain SFT at the same learning rate") for axis, _ in compared
    ]
    columns += [Column("On the front", "share of draws"), Column("Steps"), Column("Update norm")]
    rows = []
    place = 0
    for option, share, i in zip(scene.options, scene.shares, range(len(scene.options)), strict=True):
        s = option.setting
        front = Cell(f"{share:.0%}", share)
        if s is None:
            cells = [Cell(option.name, option.name), Cell(MISSING), Cell(MISSING), *_points(option)]
            cells += [*(Cell(MISSING) for _ in compared), front, Cell(MISSING), Cell(MISSING)]
            rows.append(Row(cells, "initial"))
            continue
        told = told_apart(s, settings)
        name = f"{s.label} ({told})" if told else s.label
        cells = [Cell(name, name), Cell(rate(s.learning_rate), s.learning_rate)]
        cells.append(Cell(str(s.seeds), s.seeds))
        cells += [
            _changed(cell, found[place], axis) for cell, found, axis in zip(_points(option), starts, axes, strict=True)
        ]
        cells += [_difference(found[place], axis) for axis, found in compared]
        cells += [front, _mean(s.records, "steps"), _mean(s.records, "update_norm")]
        rows.append(Row(cells, advised=i == scene.advised))
        place += 1
    return Table(columns, rows)


def volume_table(found: Sequence[Volume]) -> Table:
    """One row a method."""
    if not found:
        return Table()
    against = any(v.against for v in found)
    columns = [Column("Method"), Column("Settings"), Column("Area", "share of the box, 95 % interval")]
    columns += [Column("Area − plain SFT", "95 % interval")] if against else []
    rows = [
        Row([
            Cell(v.method, v.method), Cell(str(v.points), v.points), Cell(_estimate(v.area), v.area.value),
            *([_apart(v.against)] if against else []),
        ])
        for v in found
    ]  # fmt: skip
    return Table(columns, rows)


def runs_table(records: Sequence[RunRecord], advised: int | None) -> Table:
    """Every run and every score, the initial model first where it is known; `advised` is the recommended run."""
    axes = score_axes(records)
    broken = any(record.status == "failed" for record in records)
    columns = [Column("Run"), Column("Learning rate"), Column("Seed"), Column("Status")]
    columns += [Column(axis.key, f"{axis.side}; {_about(axis)}") for axis in axes]
    columns += [Column("Steps"), Column("Update norm"), Column("Training time")]
    columns += [Column("Error")] if broken else []
    labels = labels_of(records)
    order = sorted(range(len(records)), key=lambda i: _run_key(records[i], labels))
    changes = [of_runs(records, axis) for axis in axes]
    rows = [_run_row(records[i], axes, [found[i] for found in changes], broken, i == advised) for i in order]
    starts = [initial_of(records, axis) for axis in axes]
    if any(starts):
        cells = [Cell(INITIAL_LABEL, INITIAL_LABEL), Cell(MISSING), Cell(MISSING), Cell("initial", "initial")]
        cells += [Cell(plus_minus(point), point.value if point else None) for point in starts]
        cells += [Cell(MISSING)] * (4 if broken else 3)
        rows.insert(0, Row(cells, "initial"))
    return Table(columns, rows)


def score_axes(records: Sequence[RunRecord]) -> list[Axis]:
    """An axis for every score, the domain's first."""
    keys = [*score_keys(records, "domain"), *score_keys(records, "general")]
    return [single_axis(records, key) for key in keys]


def error_of(record: RunRecord) -> str:
    """Why a run failed; empty for one that did not."""
    return (record.error or "no error was recorded") if record.status == "failed" else ""


def _run_key(record: RunRecord, labels: Sequence[str]) -> tuple[int, float, int]:
    return labels.index(record.label), record.learning_rate, record.seed


def _run_row(
    record: RunRecord, axes: Sequence[Axis], changes: Sequence[Change | None], broken: bool, advised: bool
) -> Row:
    steps, norm, took = record.training.get("steps"), record.training.get("update_norm"), record.timings.get("train")
    cells = [
        Cell(record.label, record.label),
        Cell(rate(record.learning_rate), record.learning_rate),
        Cell(str(record.seed), record.seed),
        Cell(record.status, record.status),
        *(_score(record, axis, change) for axis, change in zip(axes, changes, strict=True)),
        Cell(MISSING if steps is None else f"{steps:.0f}", steps),
        Cell(number(norm), norm),
        Cell(duration(took), took),
        *([Cell(error_of(record), error_of(record) or None)] if broken else []),
    ]
    return Row(cells, "failed" if record.status == "failed" else "run", advised)


def _score(record: RunRecord, axis: Axis, change: Change | None) -> Cell:
    point = axis.point(record)
    return _changed(Cell(plus_minus(point), point.value if point else None), change, axis)


def _points(option: Candidate) -> list[Cell]:
    return [Cell(plus_minus(point), point.value) for point in (option.x, option.y)]


def _changed(cell: Cell, change: Change | None, axis: Axis) -> Cell:
    if change is None:
        return cell
    return Cell(cell.text, cell.sort, with_interval(change), verdict(axis, change))


def _difference(change: Change | None, axis: Axis) -> Cell:
    if change is None:
        return Cell(MISSING)
    told = verdict(axis, change)
    return Cell(f"{with_interval(change)} {SIGNS[told]}", change.value, verdict=told)


def _apart(found: Estimate | None) -> Cell:
    if found is None:
        return Cell(MISSING)
    told: Verdict = "tied" if found.low <= 0 <= found.high else "better" if found.value > 0 else "worse"
    return Cell(f"{_estimate(found, True)} {SIGNS[told]}", found.value, verdict=told)


def _estimate(found: Estimate, signed: bool = False) -> str:
    form = "{:+.2f}" if signed else "{:.2f}"
    value, low, high = (form.format(x).replace("-", "−") for x in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _mean(records: Sequence[RunRecord], name: str) -> Cell:
    values = [record.training[name] for record in records if name in record.training]
    if len(values) < len(records):
        return Cell(MISSING)
    mean = math.fsum(values) / len(values)
    return Cell(f"{mean:.0f}" if name == "steps" else number(mean), mean)


def _about(axis: Axis) -> str:
    return f"{axis.unit}, {'higher' if axis.higher_is_better else 'lower'} is better"
