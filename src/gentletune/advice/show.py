"""A proposal on a terminal: the curve it was read from, the forecasts, then what to start with and why."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gentletune.advice.advisor import Proposal
from gentletune.advice.reasons import told
from gentletune.core.records import Score


def print_proposal(console: Console, found: Proposal) -> None:
    """Two tables, the proposal, its reasons and what it cost."""
    asked = found.general is not None
    probes = Table(title="probes against the base model, ± one standard error by item; bits per token")
    for heading in ("method", "learning rate", "steps", "domain gain", "KL from base", "general accuracy"):
        if asked or heading != "general accuracy":
            probes.add_column(heading, justify="left" if heading == "method" else "right")
    for p in found.points:
        row = [p.method, f"{p.learning_rate:g}", str(p.steps), _figure(p.gain), _figure(p.kl)]
        probes.add_row(*row, *([_figure(p.general)] if p.general else []))
    for rate in found.diverged:
        probes.add_row("", f"{rate:g}", "", "diverged", "")
    if found.general is not None:
        probes.add_row("base model", "", "", "", "", _figure(found.general))
    console.print(probes)
    full = Table(title=f"forecast of the full run of {found.full_steps} steps")
    what = "general loss" if asked else "KL from base"
    for heading in ("learning rate", what, f"chance of more than {2 * found.margin:g}", ""):
        full.add_column(heading, justify="right")
    for f in found.forecasts:
        mark = "← start here" if f.learning_rate == found.learning_rate else ""
        full.add_row(f"{f.learning_rate:g}", f"{f.loss:.3f}", f"{f.risk:.0%}", mark)
    console.print(full)
    start = f"Start from learning rate {found.learning_rate:g} with {found.method}."
    for line in (start, *found.reasons, *told("cost", found=found)):
        console.print(line, soft_wrap=True, highlight=False)


def _figure(score: Score) -> str:
    return f"{score.value:.3f} ± {'?' if score.stderr is None else f'{score.stderr:.3f}'}"
