"""Run records in, a report out: the trade-off between domain gain and lost general skill, and what to ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gentletune.records import RunRecord, write_bytes_atomic, write_text_atomic
from gentletune.report.axes import Axis, Point, both_axes, choose_axis, compare, score_keys
from gentletune.report.notes import notes
from gentletune.report.page import render_page
from gentletune.report.pareto import pareto_front
from gentletune.report.picture import pareto_png
from gentletune.report.recommend import Advice, recommend
from gentletune.report.scene import build_scene
from gentletune.report.table import build_table, to_csv, to_markdown

__all__ = [
    "Advice",
    "Axis",
    "Point",
    "Report",
    "choose_axis",
    "compare",
    "pareto_front",
    "recommend",
    "report",
    "score_keys",
]


@dataclass(frozen=True)
class Report:
    """The files written, the axes chosen (None where no complete run has a score) and the advice."""

    html: Path
    png: Path
    csv: Path
    markdown: Path
    domain_axis: Axis | None
    general_axis: Axis | None
    advice: Advice

    @property
    def sentence(self) -> str:
        """The advice in one sentence."""
        return self.advice.sentence


def report(
    records: Sequence[RunRecord],
    output: Path,
    *,
    title: str = "Domain gain against general skill",
    domain: str | None = None,
    general: str | None = None,
) -> Report:
    """Write `report.html`, `pareto.png`, `results.csv` and `results.md` into the directory `output`.

    `domain` and `general` choose the axes by score key (`clinic/accuracy`); without them accuracy leads where
    the model has any. Raises `UserError` on an unknown key, `OSError` where `output` cannot be written.

        from gentletune.records import load_records
        print(report(load_records([Path("runs")]), Path("report")).sentence)
    """
    domain_axis, general_axis = both_axes(records, domain, general)
    advice = recommend(records, domain_axis, general_axis)
    scene = build_scene(records, domain_axis, general_axis, advice.index)
    table = build_table(records, advice.index)
    said = notes(records, domain_axis, general_axis)
    page = render_page(records, title=title, advice=advice, notes=said, scene=scene, table=table)
    made = Report(
        output / "report.html",
        output / "pareto.png",
        output / "results.csv",
        output / "results.md",
        domain_axis,
        general_axis,
        advice,
    )
    write_text_atomic(made.html, page)
    write_bytes_atomic(made.png, pareto_png(scene, title))
    write_text_atomic(made.csv, to_csv(records))
    write_text_atomic(made.markdown, to_markdown(table, title, [advice.sentence, *said]))
    return made
