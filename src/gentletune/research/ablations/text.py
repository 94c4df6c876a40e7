"""A control's table as Markdown, CSV and sentences that follow from its figures."""

from __future__ import annotations

import csv
import math
from io import StringIO
from pathlib import Path

from gentletune.core.records import Side, write_text_atomic
from gentletune.research.ablations.table import OWN_ENTROPY, PREDICTIONS, ControlTable, Row
from gentletune.stats import Change, Mean

MISSING = "–"
_SIGNS = {True: "≠", False: "≈", None: "?"}
LEGEND = (
    "± is one standard error over items and seeds; brackets are 95 % intervals of the difference, paired by seed and "
    "item, each by itself: of twenty true zeros one is expected to be missed. ≠ significantly different, all rows of a "
    "column taken together (Holm), ≈ not, ? cannot tell. Of one seed, all holds for its weights only. Entropy has no "
    "better direction (less of it is sharper); overconfidence is mean confidence minus share right."
)
_VIEWS = {
    "drift_sampled/bits_per_token": "sampled drift",
    "drift_greedy/bits_per_token": "greedy drift",
    "reference/bits_per_token": "reference code length",
}


def figure(mean: Mean | None) -> str:
    """`0.812 ± 0.021`, the error to two digits.

    >>> figure(Mean(0.81234, 0.0213)), figure(Mean(2.0, None))
    ('0.812 ± 0.021', '2.000')
    """
    if mean is None:
        return MISSING
    if mean.stderr is None:
        return _fixed(mean.value, 3)
    places = _places(mean.stderr)
    return f"{_fixed(mean.value, places)} ± {_fixed(mean.stderr, places)}"


def difference(change: Change | None) -> str:
    """`−0.31 [−0.41, −0.21] ≠`: a change with its interval, and whether it is significant.

    >>> difference(Change(-0.31, 0.05, -0.41, -0.21, 100, True, p=1e-9))
    '−0.310 [−0.410, −0.210] ≠'
    """
    if change is None:
        return MISSING
    if change.stderr is None or change.low is None or change.high is None:
        return f"{_fixed(change.value, 3, signed=True)} ?"
    places = _places(change.stderr)
    value, low, high = (_fixed(x, places, signed=True) for x in (change.value, change.low, change.high))
    return f"{value} [{low}, {high}] {_SIGNS[change.significant]}"


def cells(table: ControlTable, *, changes: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of text: the values, or their differences from each row's baseline."""
    head = [
        "setting",
        *(["against"] if changes else ["seeds"]),
        "update norm",
        *(k.replace("_", " ") for k in table.keys),
    ]
    rows = []
    for row in table.rows:
        if changes and row.baseline is None:
            continue
        if changes:
            ratio = table.norm_ratio(row)
            second, norm = row.baseline or "", MISSING if ratio is None else f"× {ratio:.3g}"
            rest = [difference(table.change(row, key)) for key in table.keys]
        else:
            second, norm = str(len(row.records)), figure(table.norm(row))
            rest = [figure(table.mean(row, key)) for key in table.keys]
        rows.append([row.label, second, norm, *rest])
    return head, rows


def sentences(table: ControlTable) -> list[str]:
    """What the figures say of each row beside its baseline, whichever way they fall; figures that are significant."""
    return [_sentence(table, row) for row in table.rows if row.baseline is not None and row.records]


def _sentence(table: ControlTable, row: Row) -> str:
    parts = [f"update norm × {ratio:.3g}"] if (ratio := table.norm_ratio(row)) else []
    entropy, compared = table.change(row, OWN_ENTROPY), False
    if entropy is not None:
        parts.append(f"entropy on the initial model's own answers {difference(entropy)} bits per token")
    found: dict[Side, dict[bool, list[str]]] = {side: {True: [], False: []} for side in ("general", "domain")}
    for key in table.keys:
        (side, higher), name, change = table.directions[key], _skill(key), table.change(row, key)
        if name is None or change is None:
            continue
        compared = True
        if change.significant:
            parts.append(f"{name} {difference(change)}")
            found[side][(change.value > 0) == higher].append(name)
    if not compared:
        return f"{row.label}: no scores to compare."
    general, domain = (_direction(found[side], side) for side in ("general", "domain"))
    told = f" ({'; '.join(parts)})" if parts else ""
    return f"{row.label} against {row.baseline}: {general}{_sharpness(entropy)}; {domain}{told}."


def _direction(found: dict[bool, list[str]], side: Side) -> str:
    """What is significant on a side, in words."""
    skill = "general skill" if side == "general" else "the domain"
    better, worse = (", ".join(found[good]) for good in (True, False))
    if better and worse:
        return f"on {skill} the views disagree, better by {better}, worse by {worse}"
    if better or worse:
        return f"on {skill} significantly {'better' if better else 'worse'} by {better or worse}"
    return f"on {skill} not significantly different"


def _sharpness(entropy: Change | None) -> str:
    if entropy is None or entropy.significant is None:
        return ""
    if not entropy.significant:
        return ", and not significantly sharper or flatter"
    return f", and significantly {'sharper' if entropy.value < 0 else 'flatter'}"


def _skill(key: str) -> str | None:
    """A view of skill in words; None for what is none: entropy and calibration."""
    task, _, metric = key.partition("/")
    if metric in PREDICTIONS:
        return None
    return _VIEWS.get(key, f"{task.replace('_', ' ')} {metric.replace('_', ' ')}")


def to_markdown(table: ControlTable) -> str:
    """Title, notes, both tables, sentences and failures."""
    lines = [f"# {_escape(table.title)}", *map(_escape, table.notes)]
    for title, changes in (("Values", False), ("Differences", True)):
        head, rows = cells(table, changes=changes)
        body = [head, ["---"] * len(head), *rows]
        lines += [f"## {title}", "\n".join("| " + " | ".join(map(_escape, row)) + " |" for row in body)]
    lines += [LEGEND, "## Reading", "\n".join(f"- {_escape(line)}" for line in sentences(table))]
    failed = [f"- {_escape(row.label)}, {_escape(what)}" for row in table.rows for what in row.failed]
    lines += ["## Failed runs", "\n".join(failed)] if failed else []
    return "\n\n".join(line for line in lines if line) + "\n"


def to_csv(table: ControlTable) -> str:
    """A row a setting, numbers to six digits; each score with its error, its difference and that one's interval."""
    parts = ("", " stderr", " change", " change low", " change high", " significant")
    head = [
        "setting",
        "against",
        "method",
        "learning_rates",
        "seeds",
        "update_norm",
        "update_norm stderr",
        "norm_ratio",
    ]
    out: list[list[object]] = [[*head, *(key + part for key in table.keys for part in parts)]]
    for row in table.rows:
        rates = dict.fromkeys(f"{r.learning_rate:g}" for r in row.records)
        norm = table.norm(row)
        line: list[object] = [
            row.label, row.baseline or "", "" if row.initial or not row.records else row.records[0].label,
            "" if row.initial else " ".join(rates), " ".join(str(r.seed) for r in row.records),
            *map(_plain, (norm.value if norm else None, norm.stderr if norm else None, table.norm_ratio(row))),
        ]  # fmt: skip
        for key in table.keys:
            mean, change = table.mean(row, key), table.change(row, key)
            line += [_plain(mean.value if mean else None), _plain(mean.stderr if mean else None)]
            line += [_plain(x) for x in ((change.value, change.low, change.high) if change else (None,) * 3)]
            found = change.significant if change else None
            line.append("" if found is None else int(found))
        out.append(line)
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(out)
    return buffer.getvalue()


def write_control(table: ControlTable, directory: Path) -> tuple[Path, Path]:
    """Write NAME.md and NAME.csv into the directory, each whole or not at all; returns their paths."""
    markdown, sheet = directory / f"{table.name}.md", directory / f"{table.name}.csv"
    write_text_atomic(markdown, to_markdown(table))
    write_text_atomic(sheet, to_csv(table))
    return markdown, sheet


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _places(stderr: float) -> int:
    return min(max(1 - math.floor(math.log10(stderr)), 0), 8) if stderr > 0 else 3


def _fixed(value: float, places: int, signed: bool = False) -> str:
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    return text.replace("-", "−")
