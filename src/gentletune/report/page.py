"""The self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gentletune.records import RunRecord
from gentletune.report.axes import Axis, Side
from gentletune.report.figures import scatter_figure, view_figures
from gentletune.report.recommend import Advice
from gentletune.report.scene import Scene
from gentletune.report.table import LEGEND, Table

SECTIONS: dict[Side, str] = {
    "general": "General skill, view by view",
    "domain": "Domain skill, view by view",
}


def render_page(
    records: Sequence[RunRecord],
    *,
    title: str,
    advice: Advice,
    notes: Sequence[str],
    scene: Scene | None,
    table: Table,
) -> str:
    """The whole page as text: figures, data and plotly.js inside, so that it opens without a network.

    The page's own policy allows only the two scripts named by hash, so nothing in a record can run.
    """
    views = [(SECTIONS[side], view_figures(records, side)) for side in SECTIONS]
    figures: dict[str, Any] = {"tradeoff": scatter_figure(scene)} if scene else {}
    sections: list[tuple[str, list[tuple[str, Axis]]]] = []
    for number, (heading, found) in enumerate(views):
        named = [(f"view-{number}-{i}", axis) for i, (axis, _) in enumerate(found)]
        figures |= {name: figure for (name, _), (_, figure) in zip(named, found, strict=True)}
        if named:
            sections.append((heading, named))
    scripts = [get_plotlyjs(), _resource("report.js")]
    return _template().render(
        title=title,
        advice=advice,
        notes=notes,
        scene=scene,
        sections=sections,
        table=table,
        legend=LEGEND,
        provenance=provenance(records),
        figures=Markup(embedded_json(figures)),
        plotly=Markup(scripts[0]),
        script=Markup(scripts[1]),
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: no character can close it or open a comment.

    >>> embedded_json({"label": "</script>"})
    '{"label": "\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def provenance(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections of (name, value) from the first record, with a remark where other runs differ."""
    if not records:
        return []
    first = records[0]
    general = [(name, _varying(records, name)) for name in ("created", "git_commit") if getattr(first, name)]
    sections = [("Origin", general)]
    for heading, field in (("Versions", "versions"), ("Hardware", "hardware"), ("Content hashes", "hashes")):
        names = getattr(first, field)
        sections.append((heading, [(name, _varying(records, field, name)) for name in names]))
    return [(heading, entries) for heading, entries in sections if entries]


def _varying(records: Sequence[RunRecord], field: str, key: str | None = None) -> str:
    def read(record: RunRecord) -> Any:
        value = getattr(record, field)
        return value if key is None else value.get(key)

    first = read(records[0])
    others = sum(read(record) != first for record in records)
    return f"{first} (differs in {others} other run{'s' if others > 1 else ''})" if others else str(first)


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("template.html.j2"))


def _resource(name: str) -> str:
    return files("gentletune.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
