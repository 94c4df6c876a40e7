"""The other figures: scores as bars, over learning rate and steps, training curves, drift against update norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gentletune.core.records import RunRecord
from gentletune.report.axes import GENERAL_FALLBACK, Axis, Point, complete, score_keys, single_axis
from gentletune.report.marks import Figure, bars, dots, figure, line, quiet_axis, rate_axis, score_axis, text, title
from gentletune.report.numbers import plus_minus, rate
from gentletune.report.pareto import in_order, initial_of, labels_of, short_name
from gentletune.report.scene import styles
from gentletune.report.settings import Setting, read_all, settings_of, told_apart
from gentletune.report.table import score_axes

Looks = dict[str, tuple[str, int]]
Named = tuple[str, Figure]  # a heading (plain text) and its figure
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
CURVES = {
    "loss": "training loss, as the method weighs it",
    "nll": "training loss, unweighted (nats per token)",
    "domain_nll": "loss on held-out domain rows (nats per token)",
    "drift_bits_per_token": "drift on text that the initial model samples (bits per token)",
    "update_norm": "distance of the weights from the initial model",
    "grad_norm": "gradient norm before clipping",
}


def score_bars(records: Sequence[RunRecord]) -> list[tuple[Axis, Figure]]:
    """For every score, a bar a setting, by learning rate; the initial model dotted."""
    done, looks = complete(records), styles(records)
    return [(axis, _bars(axis, in_order(settings_of(done, axis)), done, looks)) for axis in score_axes(done)]


def over_rate(records: Sequence[RunRecord], axes: Sequence[Axis]) -> list[Named]:
    """Each axis against the learning rate, a line for each method; none where there is one rate only."""
    if len({record.learning_rate for record in complete(records)}) < 2:
        return []
    return [(axis.label, _lines(records, axis, rate_axis(), lambda s: s.learning_rate)) for axis in axes]


def over_steps(records: Sequence[RunRecord], axes: Sequence[Axis]) -> list[Named]:
    """Each axis against the steps taken, where settings differ in nothing but epochs or steps."""

    def length(setting: Setting) -> float:
        return setting.records[0].training.get("steps", 0.0)

    settings = settings_of(records, *axes)
    alike: dict[tuple[str, float], set[float]] = {}
    for setting in settings:
        alike.setdefault((setting.label, setting.learning_rate), set()).add(length(setting))
    if not any(len(lengths) > 1 for lengths in alike.values()):
        return []
    across = {**quiet_axis(), "title": title("Optimiser steps"), "rangemode": "tozero"}
    return [(axis.label, _lines(records, axis, across, length, by_rate=True)) for axis in axes]


def training_curves(records: Sequence[RunRecord]) -> list[Named]:
    """Every kind of curve that a record holds: a line a run, coloured by method and dashed by learning rate."""
    names = dict.fromkeys(name for record in records for name in record.curves)
    ordered = [name for name in CURVES if name in names]
    looks, rates = styles(records), sorted({record.learning_rate for record in records})
    return [(CURVES[name], _curves(records, name, looks, rates)) for name in ordered]


def dashes_told(records: Sequence[RunRecord]) -> str:
    """Which dash stands for which learning rate."""
    rates = sorted({record.learning_rate for record in records})
    named = (f"{rate(r)} {_DASHES[i % len(_DASHES)]}" for i, r in enumerate(rates))
    return f"learning rates: {', '.join(named)}" if len(rates) > 1 else ""


def drift_by_norm(records: Sequence[RunRecord]) -> list[Named]:
    """Drift against how far the weights moved, a point a run; none where no run has both."""
    done = [record for record in complete(records) if record.training.get("update_norm", 0) > 0]
    keys = score_keys(done, "general")
    key = next((k for k in GENERAL_FALLBACK if k in keys), None)
    if key is None:
        return []
    axis, looks, traces = single_axis(done, key), styles(records), []
    for label in labels_of(done):
        found = [(r, p) for r in done if r.label == label and (p := axis.point(r)) is not None]
        points = [p for _, p in found]
        hover = [f"<b>{text(_run(r))}</b><br>{plus_minus(p)}" for r, p in found]
        norms = [r.training["update_norm"] for r, _ in found]
        error = {"error_y": bars(points, looks[label][0])}
        traces.append(dots(label, norms, [p.value for p in points], hover, looks[label], **error))
    across = {**quiet_axis(), "type": "log", "title": title("Update norm ‖θ − θ₀‖"), "tickformat": "~g", "nticks": 8}
    return [(axis.label, figure(traces, xaxis=across, yaxis=_score_up(axis), height=420))]


def _bars(axis: Axis, settings: Sequence[Setting], records: Sequence[RunRecord], looks: Looks) -> Figure:
    start, traces = initial_of(records, axis), []
    readings = dict(zip(map(id, settings), read_all(settings, axis), strict=True))
    rates = [(s.learning_rate, told_apart(s, settings)) for s in sorted(settings, key=lambda s: s.learning_rate)]
    for label in dict.fromkeys(s.label for s in settings):
        mine = [(s, reading.point) for s in settings if s.label == label and (reading := readings[id(s)])]
        traces.append({
            "type": "bar",
            "name": text(label),
            "x": [_rate(s.learning_rate, told_apart(s, settings)) for s, _ in mine],
            "y": [p.value for _, p in mine],
            "error_y": bars([p for _, p in mine], "$muted"),
            "marker": {"color": looks[label][0], "pattern": {"shape": ("", "/", ".", "x")[looks[label][1]]}},
            "text": [f"<b>{text(short_name(s, settings))}</b>{_seeds(s)}<br>{plus_minus(p)}" for s, p in mine],
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
        })  # fmt: skip
    order = list(dict.fromkeys(_rate(*one) for one in rates))
    across = {**quiet_axis(), "type": "category", "categoryorder": "array", "categoryarray": order}
    across["title"] = title("Learning rate")
    return figure(
        traces,
        barmode="group",
        bargap=0.25,
        xaxis=across,
        yaxis={**quiet_axis(), "zeroline": True, "zerolinecolor": "$grid"},
        shapes=[line(start.value)] if start else [],
        height=340,
        showlegend=len(traces) > 1,
    )


def _lines(
    records: Sequence[RunRecord], axis: Axis, across: Figure, place: Callable[[Setting], float], by_rate: bool = False
) -> Figure:
    done, looks = complete(records), styles(records)
    settings = in_order(settings_of(done, axis))
    found = [(s, r.point) for s, r in zip(settings, read_all(settings, axis), strict=True) if r]
    groups: dict[tuple[str, str], list[tuple[Setting, Point]]] = {}
    for s, point in found:
        told = "" if by_rate else told_apart(s, settings)
        groups.setdefault((s.label, rate(s.learning_rate) if by_rate else told), []).append((s, point))
    traces = []
    for k, ((label, told), mine) in enumerate(groups.items()):
        mine.sort(key=lambda pair: place(pair[0]))
        colour = looks[label][0]
        # Side by side by a little, so that error bars at one rate can be told apart.
        shift = 1.0 if by_rate else 1.04 ** (k - (len(groups) - 1) / 2)
        hover = [f"<b>{text(short_name(s, settings))}</b>{_seeds(s)}<br>{plus_minus(p)}" for s, p in mine]
        name = " ".join(part for part in (label, told) if part)
        more = {"mode": "lines+markers", "line": {"color": colour, "width": 1.5}}
        more["error_y"] = bars([p for _, p in mine], colour)
        xs = [place(s) * shift for s, _ in mine]
        traces.append(dots(name, xs, [p.value for _, p in mine], hover, looks[label], **more))
    start = initial_of(done, axis)
    return figure(traces, xaxis=across, yaxis=_score_up(axis), shapes=[line(start.value)] if start else [], height=400)


def _curves(records: Sequence[RunRecord], name: str, looks: Looks, rates: Sequence[float]) -> Figure:
    traces: list[Figure] = []
    shown: set[str] = set()
    labels = labels_of(records)
    for record in sorted(records, key=lambda r: labels.index(r.label)):
        curve = record.curves.get(name, [])
        if not curve:
            continue
        colour, dash = looks[record.label][0], _DASHES[rates.index(record.learning_rate) % len(_DASHES)]
        traces.append({
            "type": "scatter",
            "mode": "lines" if len(curve) > 1 else "markers",
            "name": text(record.label),
            "legendgroup": text(record.label),
            "showlegend": record.label not in shown,
            "x": [step for step, _ in curve],
            "y": [float(f"{value:.4g}") for _, value in curve],
            "line": {"color": colour, "width": 1.3, "dash": dash},
            "text": text(_run(record)),
            "hovertemplate": "<b>%{text}</b><br>step %{x}: %{y:.4g}<extra></extra>",
        })  # fmt: skip
        shown.add(record.label)
    low = min(value for trace in traces for value in trace["y"])
    down = {**quiet_axis(), "nticks": 6}
    if low > 0:
        down |= {"type": "log", "tickformat": "~g"}
    return figure(traces, xaxis={**quiet_axis(), "title": title("Step")}, yaxis=down, height=380)


def _score_up(axis: Axis) -> Figure:
    made = score_axis(axis, "↑", named=False)
    return made if axis.higher_is_better else {**made, "autorange": "reversed"}


def _rate(learning_rate: float, told: str) -> str:
    return f"{rate(learning_rate)}<br>{text(told)}" if told else rate(learning_rate)


def _run(record: RunRecord) -> str:
    return f"{record.label} {rate(record.learning_rate)}, seed {record.seed}{' (failed)' * (record.status == 'failed')}"


def _seeds(setting: Setting) -> str:
    return f", mean of {setting.seeds} seeds" if setting.seeds > 1 else ""
