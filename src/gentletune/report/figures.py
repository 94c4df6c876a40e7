"""The trade-off as an interactive figure (plotly JSON)."""

from __future__ import annotations

from collections.abc import Sequence

from gentletune.core.records import RunRecord
from gentletune.report.marks import Figure, bars, dots, figure, score_axis, short, text
from gentletune.report.numbers import plus_minus, rate
from gentletune.report.pareto import Candidate
from gentletune.report.scene import Scene

WIDTH, HEIGHT = 860.0, 440.0  # the plot area that label offsets are worked out for, in pixels
CHARACTER, LINE = 6.6, 15.0  # of a 12-pixel sans font
SINGLE = "single runs"


def scatter_figure(scene: Scene, records: Sequence[RunRecord]) -> Figure:
    """Domain against general skill: the front with its band, a line for each method over its learning rates.

    Single runs are there, too, but hidden until asked for, where settings have several seeds.
    """
    traces = [_band(scene), _front(scene)]
    traces += [_method(scene, method) for method in scene.methods]
    traces += [_trace(scene, [c for c in scene.options if not c.setting], 17, "star")]
    traces += [_singles(scene, records)] if any(c.seeds > 1 for c in scene.options) else []
    return figure(
        [t for t in traces if t["x"]],
        xaxis={**score_axis(scene.domain, "→"), "range": list(scene.x_range)},
        yaxis={**score_axis(scene.general, "↑"), "range": list(scene.y_range)},
        annotations=_annotations(scene),
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        height=560,
    )


def _band(scene: Scene) -> Figure:
    low = [(x, y) for x, y, _ in scene.band]
    high = [(x, y) for x, _, y in scene.band]
    around = [*low, *reversed(high)]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "95 % band of the front",
        "x": [short(x) for x, _ in around],
        "y": [short(y) for _, y in around],
        "fill": "toself",
        "fillcolor": "$band",
        "line": {"width": 0, "color": "$band"},
        "hoverinfo": "skip",
    }


def _front(scene: Scene) -> Figure:
    front = [scene.options[i] for i in scene.front]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [c.x.value for c in front],
        "y": [c.y.value for c in front],
        "line": {"shape": "vh", "dash": "6px,4px", "width": 2, "color": "$muted"},
        "hoverinfo": "skip",
    }


def _method(scene: Scene, method: str) -> Figure:
    options, (colour, _) = scene.of(method), scene.styles[method]
    more = {"mode": "lines+markers", "line": {"color": colour, "width": 1}}
    return {**_trace(scene, options, 11), **more}


def _trace(scene: Scene, options: Sequence[Candidate], size: int, symbol: str | None = None) -> Figure:
    method = options[0].method if options else ""
    look = scene.styles.get(method, ("$ink", 0))
    made = dots(
        method,
        [c.x.value for c in options],
        [c.y.value for c in options],
        [_hover(scene, c) for c in options],
        look,
        error_x=bars([c.x for c in options], look[0]),
        error_y=bars([c.y for c in options], look[0]),
    )
    made["marker"] |= {"size": size} | ({"symbol": symbol} if symbol else {})
    return made


def _singles(scene: Scene, records: Sequence[RunRecord]) -> Figure:
    rows = []
    for index in (i for c in scene.options for i in c.indices):
        record = records[index]
        x, y = scene.domain.point(record), scene.general.point(record)
        if x is not None and y is not None:
            name = f"<b>{text(record.label)} {rate(record.learning_rate)}, seed {record.seed}</b>"
            colour = scene.styles[record.label][0]
            rows.append((x.value, y.value, f"{name}<br>{plus_minus(x)}<br>{plus_minus(y)}", colour))
    made = dots(SINGLE, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], ("$muted", 0))
    marker = {"color": [r[3] for r in rows], "size": 7, "symbol": "circle-open"}
    return {**made, "marker": marker, "visible": "legendonly"}


def _hover(scene: Scene, option: Candidate) -> str:
    seeds = f", mean of {option.seeds} seeds" if option.seeds > 1 else ""
    name = f"<b>{text(option.name)}</b>{seeds}"
    domain = f"{text(scene.domain.label)}: {plus_minus(option.x)} {text(scene.domain.unit)}"
    general = f"{text(scene.general.label)}: {plus_minus(option.y)} {text(scene.general.unit)}"
    return f"{name}<br>{domain}<br>{general}"


def _annotations(scene: Scene) -> list[Figure]:
    places = scene.labelled()
    names = [scene.options[i].name for i in places]
    sizes = [(len(name) * CHARACTER, LINE) for name in names]
    offsets = scene.offsets(places, (WIDTH, HEIGHT), sizes)
    return [
        {
            "x": scene.options[i].x.value,
            "y": scene.options[i].y.value,
            "text": f"<b>{text(name)}</b>" if i == scene.advised else text(name),
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
