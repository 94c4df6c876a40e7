"""The interactive figures as plotly JSON; colours named `$ink` and so on are filled in by the page's theme."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from gentletune.core.records import RunRecord
from gentletune.reporting.axes import Axis, Point, complete
from gentletune.reporting.pareto import BASE_LABEL, Candidate, base_point, in_order, labels_of, short_name
from gentletune.reporting.scene import BASE_LOOK, ROLES, Look, Looks, Scene, axis_title
from gentletune.reporting.settings import Setting, read_all, settings_of, told_apart
from gentletune.stats.numbers import plus_minus, rate

Figure = dict[str, Any]
Box = tuple[float, float, float, float]
SINGLE = "single runs"
CURVES = ("nll", "domain_nll", "kl_bits_per_token", "update_norm", "grad_norm")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
WIDTH, HEIGHT = 860.0, 440.0  # the plot area that places of names are worked out for, in pixels
_WAYS = tuple((dx * right, dy * up) for dx, dy in ((24, 34), (40, 60), (60, 95)) for up in (1, -1) for right in (1, -1))
_APART = 0.09  # of an axis: closer ticks of learning rates go without their words


# ------------------------------------------------------------------------------------------ the trade-off


def tradeoff(scene: Scene, records: Sequence[RunRecord]) -> Figure:
    """Domain against general skill: the front with its band, a line for each method over its learning rates.

    What the findings name is drawn last and ringed. Single runs are there, too, but hidden until asked for, where
    settings have several seeds.
    """
    traces = [_band(scene), _front(scene)]
    for method in scene.methods:
        look = scene.looks[method]
        more = {"mode": "lines+markers", "line": {"color": look.colour, "width": 1}}
        traces.append({**_points(scene, method, scene.of(method), look, 11), **more})
    traces += [_singles(scene, records)] if any(c.seeds > 1 for c in scene.options) else []
    traces.append(_points(scene, BASE_LABEL, [c for c in scene.options if not c.setting], BASE_LOOK, 17))
    for i, role in sorted(scene.marks.items(), key=lambda mark: list(ROLES).index(mark[1]), reverse=True):
        option = scene.options[i]
        look = scene.looks[option.method]
        ring = {"color": "rgba(0,0,0,0)", "size": 24, "symbol": "circle", "line": {"color": "$accent", "width": 3}}
        again = {"showlegend": False, "legendgroup": ROLES[role]}
        traces.append({**_points(scene, ROLES[role], [option], look, 13), **again})
        ringed = dots(ROLES[role], [option.x.value], [option.y.value], [], look, marker=ring, hoverinfo="skip")
        traces.append(ringed | {"legendgroup": ROLES[role], "hovertemplate": None})
    return figure(
        [t for t in traces if t["x"]],
        xaxis={**score_axis(scene.domain, "→"), "range": list(scene.x_range)},
        yaxis={**score_axis(scene.general, "↑"), "range": list(scene.y_range)},
        annotations=_names(scene),
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        height=560,
    )


def _band(scene: Scene) -> Figure:
    around = [*((x, low) for x, low, _ in scene.band), *((x, high) for x, _, high in reversed(scene.band))]
    line = {"width": 0, "color": "$band"}
    filled = {"fill": "toself", "fillcolor": "$band", "line": line, "hoverinfo": "skip"}
    xs, ys = [short(x) for x, _ in around], [short(y) for _, y in around]
    return {"type": "scatter", "mode": "lines", "name": "95 % band of the front", "x": xs, "y": ys, **filled}


def _front(scene: Scene) -> Figure:
    front = [scene.options[i] for i in scene.front]
    line = {"shape": "vh", "dash": "6px,4px", "width": 2, "color": "$muted"}
    xs, ys = [c.x.value for c in front], [c.y.value for c in front]
    return {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "x": xs, "y": ys, "line": line, "hoverinfo": "skip",
    }  # fmt: skip


def _points(scene: Scene, name: str, options: Sequence[Candidate], look: Look, size: int) -> Figure:
    hover = []
    for option in options:
        seeds = f", mean of {option.seeds} seeds" if option.seeds > 1 else ""
        lines = [f"<b>{text(option.name)}</b>{seeds}"]
        for axis, point in ((scene.domain, option.x), (scene.general, option.y)):
            lines.append(f"{text(axis.label)}: {plus_minus(point)} {text(axis.unit)}")
        hover.append("<br>".join(lines))
    xs, ys = [c.x for c in options], [c.y for c in options]
    made = dots(name, [x.value for x in xs], [y.value for y in ys], hover, look)
    made["marker"]["size"] = size
    return made | {"error_x": errors(xs, look.colour), "error_y": errors(ys, look.colour)}


def _singles(scene: Scene, records: Sequence[RunRecord]) -> Figure:
    rows = []
    for record in (records[i] for c in scene.options for i in c.indices):
        x, y = scene.domain.point(record), scene.general.point(record)
        if x is not None and y is not None:
            words = f"<b>{text(run_name(record))}</b><br>{plus_minus(x)}<br>{plus_minus(y)}"
            rows.append((x.value, y.value, words, scene.looks[record.label].colour))
    made = dots(SINGLE, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], BASE_LOOK)
    marker = {"color": [r[3] for r in rows], "size": 7, "symbol": "circle-open"}
    return {**made, "marker": marker, "visible": "legendonly"}


def _names(scene: Scene) -> list[Figure]:
    """Names beside the base model and what the findings name, where they hide no point and none of each other."""
    spots = [(WIDTH * x, HEIGHT * y) for x, y in map(scene.place, scene.options)]
    taken: list[Box] = []
    made = []
    for i in scene.named:
        name = ROLES[scene.marks[i]] if i in scene.marks else BASE_LABEL

        def cost(way: tuple[int, int], spot: tuple[float, float] = spots[i], name: str = name) -> int:
            left, low, right, high = box = _box(spot, way, name)
            hidden = sum(left - 8 < u < right + 8 and low - 8 < v < high + 8 for u, v in spots)
            crossed = sum(left < b[2] and b[0] < right and low < b[3] and b[1] < high for b in taken)
            return 10 * crossed + 3 * hidden + 4 * (min(box) < 0 or right > WIDTH or high > HEIGHT)

        dx, dy = min(_WAYS, key=cost)
        taken.append(_box(spots[i], (dx, dy), name))
        made.append({
            "x": scene.options[i].x.value, "y": scene.options[i].y.value, "ax": dx, "ay": -dy,
            "xanchor": "right" if dx < 0 else "left", "text": f"<b>{name}</b>" if i in scene.marks else name,
            "showarrow": True, "arrowhead": 0, "arrowwidth": 0.8, "arrowcolor": "$muted", "standoff": 12,
            "font": {"size": 12, "color": "$ink"}, "bgcolor": "$veil",
        })  # fmt: skip
    return made


def _box(spot: tuple[float, float], way: tuple[int, int], name: str) -> Box:
    """Left, bottom, right and top of a name that much aside of a spot, in pixels."""
    (x, y), wide = (spot[0] + way[0], spot[1] + way[1]), 8.0 * len(name)
    left = x - wide if way[0] < 0 else x
    return left, y - 9, left + wide, y + 9


# ------------------------------------------------------------------------------------------ scores and curves


def over_rate(records: Sequence[RunRecord], axes: Sequence[Axis], looks: Looks) -> list[tuple[Axis, Figure]]:
    """Each axis against the learning rate, a line for each method, the base model dotted."""
    rates = sorted({record.learning_rate for record in complete(records)})
    return [(axis, _lines(records, axis, rate_axis(rates), lambda s: s.learning_rate, looks)) for axis in axes]


def over_steps(records: Sequence[RunRecord], axes: Sequence[Axis], looks: Looks) -> list[tuple[Axis, Figure]]:
    """Each axis against the steps taken, where settings differ in nothing but epochs or steps."""

    def length(setting: Setting) -> float:
        return setting.records[0].training.get("steps", 0.0)

    alike: dict[tuple[str, float], set[float]] = {}
    for setting in settings_of(records, *axes):
        alike.setdefault((setting.label, setting.learning_rate), set()).add(length(setting))
    if not any(len(lengths) > 1 for lengths in alike.values()):
        return []
    across = {**quiet_axis(), "title": title("Optimiser steps"), "rangemode": "tozero"}
    return [(axis, _lines(records, axis, across, length, looks, by_rate=True)) for axis in axes]


def _lines(
    records: Sequence[RunRecord], axis: Axis, across: Figure, place: Callable[[Setting], float], looks: Looks,
    by_rate: bool = False,
) -> Figure:  # fmt: skip
    done = complete(records)
    settings = in_order(settings_of(done, axis))
    groups: dict[tuple[str, str], list[tuple[Setting, Point]]] = {}
    for s, reading in zip(settings, read_all(settings, axis), strict=True):
        told = rate(s.learning_rate) if by_rate else told_apart(s, settings)
        if reading:
            groups.setdefault((s.label, told), []).append((s, reading.point))
    traces = []
    for k, ((label, told), mine) in enumerate(groups.items()):
        mine.sort(key=lambda pair: place(pair[0]))
        look = looks[label]
        # Side by side by a little, so that error bars at one rate can be told apart.
        shift = 1.0 if by_rate else 1.04 ** (k - (len(groups) - 1) / 2)
        seeds = [f", mean of {s.seeds} seeds" if s.seeds > 1 else "" for s, _ in mine]
        hover = [
            f"<b>{text(short_name(s, settings))}</b>{n}<br>{plus_minus(p)}"
            for (s, p), n in zip(mine, seeds, strict=True)
        ]
        name = " ".join(part for part in (label, told) if part)
        made = dots(name, [place(s) * shift for s, _ in mine], [p.value for _, p in mine], hover, look)
        line = {"color": look.colour, "width": 1.5}
        traces.append(
            made | {"mode": "lines+markers", "line": line, "error_y": errors([p for _, p in mine], look.colour)}
        )
    start = base_point(done, axis)
    if start:
        traces.append(base_line([place(s) for mine in groups.values() for s, _ in mine], start.value))
    up = score_axis(axis, "↑", named=False) | ({} if axis.higher_is_better else {"autorange": "reversed"})
    return figure(traces, xaxis=across, yaxis=up, height=380)


def curves(records: Sequence[RunRecord], looks: Looks) -> list[tuple[str, Figure]]:
    """Every kind of curve that a record holds: one line per run, coloured by method and dashed by learning rate."""
    rates = sorted({record.learning_rate for record in records})
    held = dict.fromkeys(name for record in records for name in record.curves)
    names = [*(name for name in CURVES if name in held), *(name for name in held if "/" in name)]
    return [(name, _curves(records, name, looks, rates)) for name in names]


def dashes(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Which dash stands for which learning rate; none where there is one rate only."""
    rates = sorted({record.learning_rate for record in records})
    return [(rate(r), _DASHES[i % len(_DASHES)]) for i, r in enumerate(rates)] if len(rates) > 1 else []


def _curves(records: Sequence[RunRecord], name: str, looks: Looks, rates: Sequence[float]) -> Figure:
    traces: list[Figure] = []
    shown: set[str] = set()
    labels = labels_of(records)
    for record in sorted(records, key=lambda r: labels.index(r.label)):
        curve = record.curves.get(name, [])
        if not curve:
            continue
        look, dash = looks[record.label], _DASHES[rates.index(record.learning_rate) % len(_DASHES)]
        made = dots(record.label, [step for step, _ in curve], [short(value) for _, value in curve], [], look)
        traces.append(made | {
            "mode": "lines" if len(curve) > 1 else "markers", "legendgroup": text(record.label),
            "showlegend": record.label not in shown, "line": {"color": look.colour, "width": 1.3, "dash": dash},
            "text": text(run_name(record)), "hovertemplate": "<b>%{text}</b><br>step %{x}: %{y:.4g}<extra></extra>",
        })  # fmt: skip
        shown.add(record.label)
    values = [value for trace in traces for value in trace["y"]]
    up = log_axis(min(values), max(values)) if 0 < 8 * min(values) < max(values) else quiet_axis()
    return figure(traces, xaxis={**quiet_axis(), "title": title("Step")}, yaxis=up, height=380)


def by_norm(records: Sequence[RunRecord], axis: Axis | None, looks: Looks) -> Figure | None:
    """The KL from base against how far the weights moved, a point a run; None where no run has both."""
    found = [
        (r, p) for r in complete(records) if axis and r.training.get("update_norm", 0) > 0 and (p := axis.point(r))
    ]
    if axis is None or not found:
        return None
    traces = []
    for label in labels_of([r for r, _ in found]):
        mine = [(r, p) for r, p in found if r.label == label]
        hover = [f"<b>{text(run_name(r))}</b><br>{plus_minus(p)}" for r, p in mine]
        made = dots(
            label, [r.training["update_norm"] for r, _ in mine], [p.value for _, p in mine], hover, looks[label]
        )
        traces.append(made | {"error_y": errors([p for _, p in mine], looks[label].colour)})
    norms = [r.training["update_norm"] for r, _ in found]
    across = {**log_axis(min(norms), max(norms)), "title": title("Update norm ‖θ − θ⁰‖")}
    up = {**score_axis(axis, "↑", named=False), "autorange": "reversed"}
    return figure([*traces, base_line(norms, 0.0)], xaxis=across, yaxis=up, height=420)


# ------------------------------------------------------------------------------------------ marks


def dots(name: str, x: Sequence[float], y: Sequence[float], hover: Sequence[str], look: Look, **more: Any) -> Figure:
    """Markers of one colour and shape, with what hovering or tapping says of each; `more` goes over it."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": text(name),
        "x": list(x),
        "y": list(y),
        "marker": {"color": look.colour, "size": 9, "symbol": look.symbol},
        "text": list(hover),
        "hovertemplate": "%{text}<extra></extra>",
        **more,
    }


def errors(points: Sequence[Point], colour: str) -> Figure:
    """Error bars of one standard error; none reaches below 0 where its value does not."""
    up = [short(p.stderr or 0.0) for p in points]
    down = [short(min(e, p.value) if p.value >= 0 else e) for e, p in zip(up, points, strict=True)]
    style = {"visible": True, "thickness": 1.2, "width": 3, "color": colour}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **style}


def score_axis(axis: Axis, arrow: str, *, named: bool = True) -> Figure:
    """An axis of a score: its name unless the heading has it, unit and direction."""
    words = axis_title(axis, arrow)[0 if named else 1 :]
    return {**quiet_axis(), "title": title("<br>".join(map(text, words)))}


def rate_axis(rates: Sequence[float]) -> Figure:
    """A logarithmic axis with a tick at every learning rate, and words at those that have room for them."""
    width = max(math.log(rates[-1] / rates[0]), 1e-9) if rates and rates[0] > 0 else 1.0
    words: list[str] = []
    last = -math.inf
    for r in rates:
        at = math.log(r / rates[0]) / width if r > 0 else 0.0
        words.append(rate(r) if at - last >= _APART else "")
        last = at if words[-1] else last
    ticks = {"tickmode": "array", "tickvals": list(rates), "ticktext": words, "ticks": "outside", "tickcolor": "$muted"}
    room = {"range": [math.log10(rates[0]) - 0.3, math.log10(rates[-1]) + 0.3]} if rates and rates[0] > 0 else {}
    return {**quiet_axis(), "type": "log", **ticks, **room, "title": title("Learning rate")}


def log_axis(low: float, high: float) -> Figure:
    """A logarithmic axis whose ticks stand apart: powers of ten, with 2 and 5 between them where these are few."""
    decades = math.log10(high / low) if high > low else 0.0
    steps = (1,) if decades > 2.5 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [short(step * 10.0**power) for power in powers for step in steps]
    return {
        **quiet_axis(),
        "type": "log",
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [f"{t:g}" for t in ticks],
    }


def quiet_axis() -> Figure:
    """An axis in the page's colours."""
    return {"gridcolor": "$grid", "linecolor": "$grid", "zeroline": False, "automargin": True}


def title(words: str) -> Figure:
    """An axis title; `words` are plotly's HTML."""
    return {"text": words, "standoff": 12}


def base_line(xs: Sequence[float], value: float) -> Figure:
    """A dotted line with its name, as wide as the points: the base model."""
    line = {"color": "$muted", "width": 1.4, "dash": "dot"}
    words = {"text": ["", BASE_LABEL], "textposition": "top left", "textfont": {"size": 11, "color": "$muted"}}
    more = {
        "mode": "lines+text",
        "line": line,
        "showlegend": False,
        "hovertemplate": f"{BASE_LABEL}: %{{y:.3g}}<extra></extra>",
    }
    ends = [min(xs), max(xs)] if xs else []  # nothing was measured: no line
    return dots(BASE_LABEL, ends, [value] * len(ends), [], BASE_LOOK) | words | more


def run_name(record: RunRecord) -> str:
    """`talr 1e-5, seed 0`, and that it failed."""
    return f"{record.label} {rate(record.learning_rate)}, seed {record.seed}{' (failed)' * (record.status == 'failed')}"


def text(words: str) -> str:
    """Text that plotly, which reads a little HTML, shows as it is (it does not know `&quot;`)."""
    return html.escape(words, quote=False)


def short(value: float) -> float:
    """Six significant digits: no eye sees more, and the page is smaller."""
    return float(f"{value:.6g}")


def figure(traces: Sequence[Figure], **layout: Any) -> Figure:
    """A figure in the page's theme."""
    return {
        "data": list(traces),
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "$ink"},
            "hoverlabel": {"align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "$muted", "activecolor": "$ink"},
            "hovermode": "closest",
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
            "margin": {"l": 60, "r": 15, "t": 10, "b": 50},
            "height": 360,
            **layout,
        },
    }
