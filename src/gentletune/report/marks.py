"""What the interactive figures are made of. Colours named `$ink` and so on are filled in by the page's theme."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from gentletune.report.axes import Axis, Point
from gentletune.report.scene import MARKERS, axis_title

Figure = dict[str, Any]


def dots(
    name: str, x: Sequence[float], y: Sequence[float], hover: Sequence[str], look: tuple[str, int], **more: Any
) -> Figure:
    """Markers of one colour and shape, with what hovering or tapping says of each; `more` goes over it."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": text(name),
        "x": list(x),
        "y": list(y),
        "marker": {"color": look[0], "size": 9, "symbol": MARKERS[look[1]][0]},
        "text": list(hover),
        "hovertemplate": "%{text}<extra></extra>",
        **more,
    }


def bars(points: Sequence[Point], colour: str) -> Figure:
    """Error bars of one standard error."""
    return {
        "type": "data",
        "array": [short(p.stderr or 0.0) for p in points],
        "visible": True,
        "thickness": 1.2,
        "width": 3,
        "color": colour,
    }


def score_axis(axis: Axis, arrow: str, *, named: bool = True) -> Figure:
    """An axis of a score: its name unless the heading has it, unit and direction."""
    words = axis_title(axis, arrow)[0 if named else 1 :]
    return {**quiet_axis(), "title": title("<br>".join(map(text, words)))}


def rate_axis() -> Figure:
    """A logarithmic axis of learning rates."""
    form = {"type": "log", "exponentformat": "e", "dtick": 1}
    return {**quiet_axis(), **form, "title": title("Learning rate")}


def quiet_axis() -> Figure:
    """An axis in the page's colours."""
    return {"gridcolor": "$grid", "linecolor": "$grid", "zeroline": False, "automargin": True}


def title(words: str) -> Figure:
    """An axis title; `words` are plotly's HTML."""
    return {"text": words, "standoff": 12}


def line(value: float) -> Figure:
    """A dotted horizontal line: the initial model."""
    style = {"color": "$muted", "width": 1, "dash": "dot"}
    return {"type": "line", "y0": value, "y1": value, "x0": 0, "x1": 1, "xref": "paper", "line": style}


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
