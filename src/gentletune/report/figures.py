"""The interactive figures, as plotly JSON. Colours named `$ink` and so on are filled in by the page's theme."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from gentletune.records import RunRecord
from gentletune.report.axes import Axis, Point, Side, score_keys, single_axis
from gentletune.report.numbers import plus_minus, rate
from gentletune.report.pareto import Candidate, initial_of
from gentletune.report.scene import MARKERS, Scene, axis_title, styles

WIDTH, HEIGHT = 860.0, 440.0  # the plot area that label offsets are worked out for, in pixels
CHARACTER, LINE = 6.6, 15.0  # of a 12-pixel sans font

Figure = dict[str, Any]


def scatter_figure(scene: Scene) -> Figure:
    """Domain against general skill: one trace per method, the front as steps, the initial model as a star."""
    front = [scene.options[i] for i in scene.front]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [c.x.value for c in front],
            "y": [c.y.value for c in front],
            "line": {"shape": "vh", "dash": "6px,4px", "width": 1.5, "color": "$muted"},
            "hoverinfo": "skip",
        }
    ]
    for method in dict.fromkeys(c.method for c in scene.options):
        traces.append(_trace(scene, method, [c for c in scene.options if c.method == method]))
    layout = {
        "xaxis": _axis(axis_title(scene.domain, "→"), scene.x_range),
        "yaxis": _axis(axis_title(scene.general, "↑"), scene.y_range),
        "annotations": _annotations(scene),
        "hovermode": "closest",
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "margin": {"l": 70, "r": 20, "t": 20, "b": 60},
        "height": 560,
    }
    return {"data": traces, "layout": _theme(layout)}


def view_figures(records: Sequence[RunRecord], side: Side) -> list[tuple[Axis, Figure]]:
    """One small figure per score of a side: every complete run with its error bar, the initial model dashed."""
    done = [r for r in records if r.status == "complete"]
    axes = [single_axis(records, key) for key in score_keys(done, side)]
    return [(axis, _view(done, axis, styles(records))) for axis in axes]


def _trace(scene: Scene, method: str, options: Sequence[Candidate]) -> Figure:
    colour, shape = scene.styles.get(method, ("$ink", 0))
    initial = options[0].index is None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _text(method),
        "x": [c.x.value for c in options],
        "y": [c.y.value for c in options],
        "error_x": _bars([c.x for c in options], colour),
        "error_y": _bars([c.y for c in options], colour),
        "marker": {
            "color": colour,
            "size": 17 if initial else 11,
            "symbol": "star" if initial else MARKERS[shape][0],
        },
        "text": [_hover(scene, c) for c in options],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(scene: Scene, option: Candidate) -> str:
    name = _text(option.name)
    domain = f"{_text(scene.domain.label)}: {plus_minus(option.x)} {_text(scene.domain.unit)}"
    general = f"{_text(scene.general.label)}: {plus_minus(option.y)} {_text(scene.general.unit)}"
    return f"<b>{name}</b><br>{domain}<br>{general}"


def _annotations(scene: Scene) -> list[Figure]:
    places = scene.labelled()
    names = [scene.options[i].name for i in places]
    sizes = [(len(name) * CHARACTER, LINE) for name in names]
    offsets = scene.offsets(places, (WIDTH, HEIGHT), sizes)
    return [
        {
            "x": scene.options[i].x.value,
            "y": scene.options[i].y.value,
            "text": _text(name),
            "ax": dx,
            "ay": -dy,
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 0.7,
            "arrowcolor": "$muted",
            "standoff": 7,
            "font": {"size": 12, "color": "$ink"},
        }
        for i, name, (dx, dy) in zip(places, names, offsets, strict=True)
    ]


def _view(records: Sequence[RunRecord], axis: Axis, looks: dict[str, tuple[str, int]]) -> Figure:
    found = [(r, point) for r in records if (point := axis.point(r)) is not None]
    start = initial_of(records, axis)
    rows = list(range(len(found)))
    names = [_text(f"{r.label} {rate(r.learning_rate)}") for r, _ in found]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [p.value for _, p in found],
        "y": rows,
        "error_x": _bars([p for _, p in found], "$muted"),
        "marker": {"color": [looks[r.label][0] for r, _ in found], "size": 9},
        "text": [f"<b>{name}</b><br>{plus_minus(p)}" for name, (_, p) in zip(names, found, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    traces = [trace, _initial_trace(start, len(found))] if start else [trace]
    layout = {
        "xaxis": {**_quiet_axis(), "nticks": 5},
        "yaxis": {
            "tickvals": [*rows, len(found)] if start else rows,
            "ticktext": [*names, "initial model"] if start else names,
            "range": [len(found) + 0.6, -0.6],
            "fixedrange": True,
            **_quiet_axis(),
        },
        "shapes": [_line(start.value)] if start else [],
        "showlegend": False,
        "margin": {"l": 10, "r": 15, "t": 10, "b": 30},
        "height": 60 + 24 * (len(found) + 1),
    }
    return {"data": traces, "layout": _theme(layout)}


def _initial_trace(start: Point, row: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [start.value],
        "y": [row],
        "error_x": _bars([start], "$muted"),
        "marker": {"color": "$ink", "size": 13, "symbol": "star"},
        "text": [f"<b>initial model</b><br>{plus_minus(start)}"],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _line(value: float) -> Figure:
    style = {"color": "$muted", "width": 1, "dash": "dot"}
    return {"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper", "line": style}


def _bars(points: Sequence[Point], colour: str) -> Figure:
    return {
        "type": "data",
        "array": [p.stderr or 0.0 for p in points],
        "visible": True,
        "thickness": 1.2,
        "width": 3,
        "color": colour,
    }


def _axis(title: Sequence[str], span: tuple[float, float]) -> Figure:
    return {
        **_quiet_axis(),
        "title": {"text": "<br>".join(map(_text, title)), "standoff": 12},
        "range": list(span),
    }


def _quiet_axis() -> Figure:
    return {"gridcolor": "$grid", "linecolor": "$grid", "zeroline": False, "automargin": True}


def _text(text: str) -> str:
    """Text that plotly, which reads a little HTML, shows as it is (it does not know `&quot;`)."""
    return html.escape(text, quote=False)


def _theme(layout: Figure) -> Figure:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "$ink"},
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "$muted", "activecolor": "$ink"},
        **layout,
    }
