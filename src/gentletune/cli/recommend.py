"""`gentletune recommend`: the safe choice among finished runs, on the terminal or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gentletune.cli.common import app, stdout
from gentletune.core.records import RunRecord, load_records


def _margin(value: float | None) -> float | None:
    """The value of --margin, refused before a run is read or made."""
    if value is not None:
        from gentletune.reporting.recommend import check_margin

        check_margin(value)
    return value


MarginOption = Annotated[
    float | None,
    typer.Option(
        callback=_margin,
        help="Loss of general skill that may be overlooked, in its score's unit. "
        "By default 0.02 of accuracy or 0.05 bits per token.",
    ),
]
DomainOption = Annotated[str | None, typer.Option(help="Score of the domain axis, e.g. clinic/accuracy.")]
GeneralOption = Annotated[str | None, typer.Option(help="Score of the general axis, e.g. instructions/accuracy.")]


@app.command("recommend")
def recommend_command(
    runs: Annotated[list[Path], typer.Argument(help="Run or study directories.")],
    margin: MarginOption = None,
    domain: DomainOption = None,
    general: GeneralOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, and nothing else.")] = False,
) -> None:
    """The safe choice and the most domain gain, each with its price, and why the other settings are out.

    [bold]Examples[/bold]

      gentletune recommend runs/study

      gentletune recommend runs/study --margin 0.01 --json
    """
    records = load_records(runs)
    if not as_json:
        print_answer(records, margin, domain, general, full=True)
        return
    from gentletune.reporting import recommend
    from gentletune.reporting.recommend import to_json

    print(to_json(recommend(records, margin=margin, domain=domain, general=general)))


def print_answer(
    records: Sequence[RunRecord],
    margin: float | None = None,
    domain: str | None = None,
    general: str | None = None,
    *,
    full: bool = False,
) -> None:
    """The safe choice and the most domain gain of each base model and data set; `full` with why the rest is out."""
    from gentletune.reporting import split
    from gentletune.reporting.words import full_answer

    sections = split(records, domain, general, margin)
    for place, section in enumerate(sections):
        heading = [f"{section.name}:"] if len(sections) > 1 else []
        lines = full_answer(section.findings) if full else section.answer
        for line in [*([""] if place else []), *heading, *lines]:
            stdout.print(line, soft_wrap=True, highlight=False, markup=False)
