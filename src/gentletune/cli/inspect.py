"""The command that looks at a data set's tokens under a model: inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from gentletune.cli.check import check_files, check_recipe
from gentletune.cli.common import ConfigOption, app, prepare, say, stages, stdout
from gentletune.cli.flags import recipe_command
from gentletune.core.recipe import load_recipe
from gentletune.core.records import write_json_atomic

if TYPE_CHECKING:
    from gentletune.inspection import Inspection
    from gentletune.inspection.tables import Table

_HARDEST = 10  # on the terminal


@recipe_command(app, "inspect")
def inspect_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Look at this many training rows, evenly spread; by default all.")
    ] = None,
    compare_cot: Annotated[
        bool | None,
        typer.Option(
            help="Labels with their chain of thought beside labels alone; by default where every row has both."
        ),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Probability below which to count tokens; may be given several times.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with coloured tokens to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one row per token to this CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write one row per token to this Parquet file.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
    coloured: Annotated[int, typer.Option(min=0, help="Rows of each set that the page shows token by token.")] = 20,
) -> None:
    """How probable the model finds the training labels: hard tokens, where they are, and each method's weights.

    --model DIR looks through a tuned model. Every recipe key is a flag.

    [bold]Example[/bold]

      gentletune inspect --data clinic --train-rows 100 --html tokens.html
    """
    recipe = load_recipe(config, given)
    outputs = [path for path in (html, csv, parquet, json_path) if path is not None]
    check_files(*outputs)
    check_recipe(recipe, trains=False)
    from gentletune.inspection import inspect, write_page
    from gentletune.inspection.summary import THRESHOLDS

    prepare()
    with stages() as stage:
        found = inspect(
            recipe, compare_cot=compare_cot, rows=rows, thresholds=sorted(set(threshold or THRESHOLDS)),
            coloured=coloured if html else 0, csv=csv, parquet=parquet, stage=stage,
        )  # fmt: skip
    _print(found)
    if html:
        write_page(found, html)
    if json_path:
        write_json_atomic(json_path, found.as_dict())
    for path in outputs:
        say(f"wrote {path}")


def _print(found: Inspection) -> None:
    from gentletune.inspection import tables

    _show(tables.overview(found))
    _show(tables.histogram(found), bars=True)
    for one in found.sets:
        for table in (tables.by_class(one), tables.by_position(one), tables.weights(one)):
            _show(table)
        _show_hardest(one)


def _show(table: Table, *, bars: bool = False) -> None:
    # Ten columns are to fit into 80 characters.
    shown = RichTable(title=escape(table.title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, heading in enumerate([table.cells.index.name or "", *table.cells.columns]):
        shown.add_column(heading, justify="left" if i == 0 or bars else "right", no_wrap=i == 0 or not bars)
    for (name, *cells), shares in zip(table.cells.itertuples(), table.shares.to_numpy(), strict=True):
        drawn = [f"{cell:>5} {'█' * round(20 * s)}" for cell, s in zip(cells, shares, strict=True)] if bars else cells
        shown.add_row(*map(escape, [name, *drawn]))
    stdout.print(shown)


def _show_hardest(found: Inspection) -> None:
    from gentletune.inspection.tables import hardest

    shown = RichTable(title=f"The hardest tokens, {found.name}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("row : token", "p", "in context", "the model would say (p)"):
        shown.add_column(heading)
    for token, probability, said in hardest(found, _HARDEST):
        context = Text.assemble(_visible(token.before[-30:]), (f"«{_visible(token.text)}»", "bold red"))
        context.append(_visible(token.after[:15]))
        shown.add_row(f"{token.row} : {token.position}", probability, context, Text(said))
    stdout.print(shown)


def _visible(text: str) -> str:
    return text.replace("\n", "↵")
