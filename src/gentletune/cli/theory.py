"""Commands on the theory: `gentletune theory verify` (others add theirs to `theory_app`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gentletune.cli.common import app, say, stdout
from gentletune.core.records import write_json_atomic

if TYPE_CHECKING:
    from gentletune.research.theory.tally import Finding
    from gentletune.research.theory.verify import Verification

theory_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Code lengths along fine-tuning: the theorems, checked."
)
app.add_typer(theory_app, name="theory")


@theory_app.command("verify")
def verify_command(
    trees: Annotated[int, typer.Option(min=1, help="Random settings to draw.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file, too.")] = None,
) -> None:
    """Check every statement of docs/theory.md on random token trees; exit code 1 where one fails.

    Tightness is bound over actual value. The last column is the λ from which a bound is idle: it exceeds λ R(1), which
    convexity gives; for noise, it allows more than the noise-free rise itself.

    [bold]Example[/bold]

      gentletune theory verify --trees 10000 --seed 0 --json verify.json
    """
    from gentletune.research.theory.verify import verify

    found = verify(trees, seed)
    _print_findings(found)
    if json_path:
        write_json_atomic(json_path, found.as_dict())
    for finding in found.broken:
        say(f"VIOLATED: {finding.statement}: {finding.counterexample}")
    if found.broken:
        raise typer.Exit(1)


def _print_findings(found: Verification) -> None:
    table = Table(title=f"{found.trees} random trees, seed {found.seed}, {found.seconds:.0f} s")
    table.add_column("statement", overflow="fold")
    for heading in ("checks", "violations", "tightness (5-95 %)", "idle from λ (5-95 %)"):
        table.add_column(heading, justify="right")
    for finding in found.findings:
        table.add_row(*_cells(finding))
    stdout.print(table)
    for line in found.observations:
        stdout.print(line, soft_wrap=True, highlight=False)


def _cells(finding: Finding) -> tuple[str, ...]:
    tight = _range(finding.tightness)
    if finding.worst_error is not None:
        tight = f"error ≤ {finding.worst_error:.0e}"
    return finding.statement, f"{finding.checks}", f"{finding.violations}", tight, _range(finding.uninformative)


def _range(quantiles: tuple[float, float, float] | None) -> str:
    if quantiles is None:
        return ""
    low, middle, high = quantiles
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"
