"""Run records in, a report out: the trade-off between domain gain and lost general skill, and the safe choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gentletune.core.provenance import explain_choice
from gentletune.core.records import RunRecord, write_bytes_atomic, write_text_atomic
from gentletune.reporting.axes import Axis, Point, choose_axis, score_keys
from gentletune.reporting.findings import Excluded, Findings, Pick, Step
from gentletune.reporting.page import make_part, render_markdown, render_page
from gentletune.reporting.pareto import pareto_front
from gentletune.reporting.picture import pareto_png
from gentletune.reporting.recommend import recommend
from gentletune.reporting.scene import looks_of
from gentletune.reporting.section import Section, split
from gentletune.reporting.tables import csv
from gentletune.reporting.words import say

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
    refresh: int | None = None,
) -> Report:
    """Write `report.html`, `pareto.png`, `results.csv`, `settings.csv` and `results.md` into the directory `output`.

    `domain` and `general` choose the axes by score key (`clinic/accuracy`); without them accuracy leads where
    the model has any. `margin` is the loss of general skill that may be overlooked (`recommend`). Runs of different
    base models or data sets are not compared: each gets a section of its own. Sample answers are shown of records
    that `load_records` found, and the model card of the safe choice is told why it is named. With `refresh` the page,
    where it is open, loads itself again every so many seconds: for a study that is not finished.

    Raises `UserError` on an unknown key or a bad margin, `OSError` where `output` cannot be written.

        from gentletune.core.records import load_records
        print(report(load_records([Path("runs")]), Path("report"), margin=0.01).answer)
    """
    sections, looks = split(records, domain, general, margin), looks_of(records)
    parts = [make_part(section, looks) for section in sections]
    page = render_page(parts, title, refresh)
    made = Report(
        output / "report.html",
        output / "pareto.png",
        output / "results.csv",
        output / "settings.csv",
        output / "results.md",
        tuple(sections),
    )
    write_text_atomic(made.html, page)
    write_bytes_atomic(made.png, pareto_png([(part.section.name, part.scene) for part in parts], title))
    write_text_atomic(made.csv, csv(((part.section.name, part.runs) for part in parts), base=False))
    write_text_atomic(made.settings, csv((part.section.name, part.settings) for part in parts))
    write_text_atomic(made.markdown, render_markdown(parts, title))
    for section in sections:
        _explain(section)
    return made


def _explain(section: Section) -> None:
    """Tell in the model card of the safe choice why it is named, and in no other."""
    found = section.findings
    why = [say("safe_line", found), say("axes_line", found)]
    for place, record in enumerate(section.records):
        if record.directory:
            chosen = found.safe is not None and place in found.safe.indices
            explain_choice(record.directory / "model" / "README.md", why if chosen else [])
