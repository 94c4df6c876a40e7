"""A proposal on a terminal: the curve it was read from, the forecasts, then what to start with and why."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from gentletune.advice.advisor import Proposal
from gentletune.advice.reasons import told
from gentletune.core.records import Score


def print_proposal(console: Console, found: Proposal) -> None:
    """Two tables in bits per token, the proposal, its reasons and what it cost."""
    probes = Table(title="probes: bits per token against the base model, ± one standard error by sequence")
    for heading in ("method", "learning rate", "steps", "domain gain", "KL from base"):
        probes.add_column(heading, justify="left" if heading == "method" else "right")
    for p in found.points:
        probes.add_row(p.method, f"{p.learning_rate:g}", str(p.steps), _figure(p.gain), _figure(p.kl))
    for rate in found.diverged:
        probes.add_row("", f"{rate:g}", "", "diverged", "")
    console.print(probes)
    full = Table(title=f"forecast of the full run of {found.full_steps} steps")
    for heading in ("learning rate", "domain gain", "KL from base", ""):
        full.add_column(heading, justify="right")
    for f in found.forecasts:
        marks = ["← start here"] if f.learning_rate == found.learning_rate else []
        marks += ["beyond the probes"] if f.beyond else []
        full.add_row(f"{f.learning_rate:g}", f"{f.gain:.3f}", f"{f.kl:.3f}", ", ".join(marks))
    console.print(full)
    start = f"Start from learning rate {found.learning_rate:g} with {found.method}."
    for line in (start, *found.reasons, *told("cost", found=found)):
        console.print(line, soft_wrap=True, highlight=False)


def _figure(score: Score) -> str:
    return f"{score.value:.3f} ± {'?' if score.stderr is None else f'{score.stderr:.3f}'}"
