"""Run records in, a report out: the trade-off between domain gain and lost general skill, and the safe choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gentletune.core.records import RunRecord, write_bytes_atomic, write_text_atomic
from gentletune.report.axes import Axis, Point, choose_axis, score_keys
from gentletune.report.files import runs_csv, settings_csv, to_markdown
from gentletune.report.findings import Excluded, Findings, Pick, Step
from gentletune.report.notes import notes
from gentletune.report.page import Part, render_page
from gentletune.report.pareto import pareto_front
from gentletune.report.picture import pareto_png
from gentletune.report.recommend import recommend
from gentletune.report.scene import build_scene
from gentletune.report.section import Section, split
from gentletune.report.table import runs_table, settings_table, volume_table
from gentletune.report.volume import area_note, volumes

__all__ = [
    "Axis",
    "Excluded",
    "Findings",
    "Pick",
    "Point",
    "Report",
    "Section",
    "Step",
    "choose_axis",
    "pareto_front",
    "recommend",
    "report",
    "score_keys",
    "split",
]


@dataclass(frozen=True)
class Report:
    """The files written, and a section for each base model and data set, with its axes and what it shows."""

    html: Path
    png: Path
    csv: Path
    settings: Path
    markdown: Path
    sections: tuple[Section, ...]

    @property
    def domain_axis(self) -> Axis | None:
        """The first section's domain axis; None where no complete run has a score."""
        return self.sections[0].domain

    @property
    def general_axis(self) -> Axis | None:
        """The first section's general axis; None where no complete run has a score."""
        return self.sections[0].general

    @property
    def findings(self) -> Findings:
        """What the first section shows; its indices are places in that section's records."""
        return self.sections[0].findings

    @property
    def answer(self) -> str:
        """The safe choice, the most domain gain and what must be known of the data, under each section's name."""
        if len(self.sections) == 1:
            return "\n".join(self.sections[0].answer)
        return "\n".join(line for section in self.sections for line in (f"{section.name}:", *section.answer))


def report(
    records: Sequence[RunRecord],
    output: Path,
    *,
    title: str = "Domain gain against general skill",
    domain: str | None = None,
    general: str | None = None,
    margin: float | None = None,
) -> Report:
    """Write `report.html`, `pareto.png`, `results.csv`, `settings.csv` and `results.md` into the directory `output`.

    `domain` and `general` choose the axes by score key (`clinic/accuracy`); without them accuracy leads where
    the model has any. `margin` is the loss of general skill that may be overlooked (`recommend`). Runs of different
    base models or data sets are not compared: each gets a section of its own.
    Raises `UserError` on an unknown key or a bad margin, `OSError` where `output` cannot be written.

        from gentletune.core.records import load_records
        print(report(load_records([Path("runs")]), Path("report"), margin=0.01).answer)
    """
    sections = split(records, domain, general, margin)
    scenes = [build_scene(s.records, s.domain, s.general, s.findings.index) for s in sections]
    parts = []
    for section, scene in zip(sections, scenes, strict=True):
        areas = volume_table(volumes(scene)) if scene else volume_table([])
        note = area_note(scene) if scene else ""
        runs = runs_table(section.records, section.findings.index)
        parts.append(Part(section, scene, notes(section), settings_table(scene), areas, note, runs))
    page = render_page(parts, title)
    made = Report(
        output / "report.html",
        output / "pareto.png",
        output / "results.csv",
        output / "settings.csv",
        output / "results.md",
        tuple(sections),
    )
    write_text_atomic(made.html, page)
    write_bytes_atomic(made.png, pareto_png([(p.section.name, p.scene) for p in parts], title))
    write_text_atomic(made.csv, runs_csv(sections))
    write_text_atomic(made.settings, settings_csv(sections, scenes))
    write_text_atomic(made.markdown, to_markdown(parts, title))
    return made
