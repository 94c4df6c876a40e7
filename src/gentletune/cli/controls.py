"""The command that makes a control's table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from gentletune.cli.check import check_recipe
from gentletune.cli.common import (
    ConfigOption,
    app,
    numbers,
    prepare,
    say,
    seed_list,
    split_methods,
    stages,
    stderr,
    stdout,
)
from gentletune.cli.flags import recipe_command
from gentletune.core.recipe import load_recipe


@recipe_command(app, "controls")
def controls_command(
    given: dict[str, Any],
    name: Annotated[str, typer.Argument(help="views, optimizer, normalization, norm or tau.")],
    config: ConfigOption = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, such as 0,1,2.")] = "0",
    output: Annotated[Path, typer.Option(help="Directory of the tables; runs lie in OUTPUT/NAME.")] = Path(
        "runs/controls"
    ),
    methods: Annotated[str, typer.Option(help='For views and norm, such as "sft,talr,l2(weight=0.1)".')] = "",
    rates: Annotated[str, typer.Option(help="For normalization: learning rates, such as 1e-5,1e-4.")] = "",
    taus: Annotated[str, typer.Option(help="For tau: temperatures in nats, such as 0.5,1,2.")] = "",
    executor: Annotated[str, typer.Option(help="local (this process), pool (processes, GPUs) or ray.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time; by default one a GPU.")] = None,
) -> None:
    """The controls beside a method: does it keep general skill, or only sharpen, or move the weights less?

    Run again, it does only what is missing.

    [bold]Examples[/bold]

      gentletune controls views -c recipe.yaml --seeds 0,1 --output controls

      gentletune controls norm -c recipe.yaml --lr 1e-4 --seeds 0,1

      gentletune controls tau --data clinic --max-steps 50 --taus 0.5,1,2
    """
    recipe = load_recipe(config, given)
    named, given, temperatures = split_methods(methods), numbers("--rates", rates), numbers("--taus", taus)
    chosen = seed_list(seeds)
    check_recipe(recipe, methods=[recipe.method, *named], tasks=recipe.evaluate)
    from gentletune.research.ablations.run import controls
    from gentletune.research.ablations.text import cells, sentences

    prepare()
    with stages() as stage:
        found = controls(
            name, recipe, chosen, output, methods=named, rates=given, taus=temperatures,
            executor=executor, workers=workers, stage=stage, say=say,
        )  # fmt: skip
    for title, changes in ((found.title, False), ("differences, 95 % intervals: ≠ significant, ≈ not", True)):
        head, rows = cells(found, changes=changes)
        # A setting a column: a terminal is high rather than wide.
        table = Table(title=title)
        for heading in [head[0], *(row[0] for row in rows)]:
            table.add_column(heading, overflow="fold")
        for i in range(1, len(head)):
            table.add_row(head[i].replace("/", " "), *(row[i] for row in rows))
        stdout.print(table)
    for line in [*found.notes, *sentences(found)]:
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)
    for row in found.rows:
        for what in row.failed:
            stderr.print(f"gentletune: {row.label}, {what}", style="red", soft_wrap=True, markup=False)
    say(f"table: {output / name}.md and .csv")
