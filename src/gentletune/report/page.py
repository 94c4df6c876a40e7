"""The self-contained HTML page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gentletune.report.axes import Axis
from gentletune.report.charts import dashes_told, drift_by_norm, over_rate, over_steps, score_bars, training_curves
from gentletune.report.figures import SINGLE, scatter_figure
from gentletune.report.marks import Figure
from gentletune.report.repeat import commands, provenance
from gentletune.report.scene import Scene
from gentletune.report.section import Section
from gentletune.report.table import LEGEND, Table, error_of


@dataclass(frozen=True)
class Part:
    """All that the page shows of a section."""

    section: Section
    scene: Scene | None
    notes: Sequence[str]
    settings: Table
    areas: Table
    area_note: str
    runs: Table


@dataclass(frozen=True)
class Chart:
    """A figure's place on the page: its element's id, heading, height in pixels, and a line under the heading."""

    id: str
    heading: str
    height: int
    note: str = ""


def render_page(parts: Sequence[Part], title: str) -> str:
    """The whole page as text: figures, data and plotly.js inside, so that it opens without a network.

    plotly.js is compressed, which the browser undoes. The page's own policy allows only the two scripts named by
    hash, so nothing in a record can run.
    """
    figures: dict[str, Figure] = {}
    views = [_view(part, f"s{k}", figures) for k, part in enumerate(parts)]
    library, script = get_plotlyjs(), _resource("table.js") + _resource("report.js")
    return _template().render(
        title=title,
        views=views,
        single=SINGLE,
        legend=LEGEND,
        figures=Markup(embedded_json(figures)),
        plotly=base64.b64encode(gzip.compress(library.encode(), mtime=0)).decode(),
        script=Markup(script),
        style=Markup(_resource("report.css")),
        policy=" ".join(f"'sha256-{_digest(text)}'" for text in (library, script)),
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: no character can close it or open a comment.

    >>> embedded_json({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _view(part: Part, prefix: str, figures: dict[str, Figure]) -> Mapping[str, Any]:
    """What the template shows of a part; its figures are added to `figures`."""
    section = part.section
    records, axes = section.records, section.axes

    def place(kind: str, found: Sequence[tuple[str, Figure]], notes: Sequence[str] = ()) -> list[Chart]:
        charts = []
        for i, (heading, made) in enumerate(found):
            name = f"{prefix}-{kind}-{i}"
            figures[name] = made
            words = heading[:1].upper() + heading[1:]
            charts.append(Chart(name, words, made["layout"]["height"], notes[i] if notes else ""))
        return charts

    bars, curves = score_bars(records), training_curves(records)
    groups = [
        ("Over the learning rate", place("rate", over_rate(records, axes))),
        ("Over the steps of training", place("steps", over_steps(records, axes))),
    ]
    for side, heading in (("general", "General skill, view by view"), ("domain", "Domain skill, view by view")):
        found = [(axis, made) for axis, made in bars if axis.side == side]
        groups.append((heading, place(side, [(a.label, f) for a, f in found], [_key(a) for a, _ in found])))
    groups += [
        ("Training curves", place("curve", curves, [dashes_told(records)] * len(curves))),
        ("Drift against how far the weights moved", place("drift", drift_by_norm(records))),
    ]
    return {
        "part": part,
        "prefix": prefix,
        "name": section.name,
        "answer": section.answer,
        "findings": section.findings,
        "tradeoff": place("tradeoff", [("", scatter_figure(part.scene, records))] if part.scene else []),
        "singles": part.scene is not None and any(c.seeds > 1 for c in part.scene.options),
        "groups": [(heading, charts) for heading, charts in groups if charts],
        "failed": [(r, error_of(r)) for r in records if r.status == "failed"],
        "commands": commands(records),
        "provenance": provenance(records),
    }


def _key(axis: Axis) -> str:
    return f"{axis.key} ({axis.unit}, {'higher' if axis.higher_is_better else 'lower'} is better)"


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("template.html.j2"))


def _resource(name: str) -> str:
    return files("gentletune.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
