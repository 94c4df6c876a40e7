"""The command that follows tokens by their initial difficulty: curriculum."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gentletune.cli.check import check_recipe
from gentletune.cli.common import (
    ConfigOption,
    app,
    prepare,
    say,
    seed_list,
    split_methods,
    stderr,
    stdout,
)
from gentletune.cli.flags import recipe_command
from gentletune.core.errors import UserError
from gentletune.core.recipe import load_recipe


@recipe_command(app, "curriculum")
def curriculum_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    methods: Annotated[str, typer.Option(help="Methods, by comma or semicolon.")] = "sft,talr,mask(p_min=0.1)",
    seeds: Annotated[str, typer.Option(help="Training seeds, by comma; the rows stay those of --seed.")] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Directory of the tables, the picture and the runs.")] = Path(
        "runs/curriculum"
    ),
    probe_rows: Annotated[int, typer.Option(min=1, help="Rows whose label tokens are followed.")] = 16,
    every: Annotated[int, typer.Option(min=1, help="Optimiser steps between looks.")] = 4,
    held_out: Annotated[bool, typer.Option("--held-out", help="Follow held-out rows, not training rows.")] = False,
) -> None:
    """Whether each method learns the hardest tokens: their probability, weight and share of the gradient by step.

    Run again, it trains only what is missing.

    [bold]Examples[/bold]

      gentletune curriculum --data clinic --train-rows 100 --epochs 3 --lr 1e-4 --output runs/curriculum

      gentletune curriculum -c recipe.yaml --methods "sft, talr(tau=1.0, floor=0.0), mask(p_min=0.1)" --seeds 0,1,2
    """
    for name in ("method", "output"):
        if name in given:
            raise UserError(f"--{name} is one run's; give --{name if name == 'output' else 'methods'} to a curriculum")
    names, chosen = split_methods(methods), seed_list(seeds)
    if not names or not chosen:  # told before a model is looked for
        raise UserError("a curriculum needs at least one method and one seed")
    recipe = load_recipe(config, given)
    check_recipe(recipe, methods=names)
    from gentletune.research.dynamics.run import curriculum
    from gentletune.research.dynamics.table import verdicts

    prepare()
    found = curriculum(
        recipe, names, chosen, output, probe_rows=probe_rows, every=every, held_out=held_out, say=say
    )  # fmt: skip
    for sentence in verdicts(found.runs):
        stdout.print(sentence.replace("`", ""), soft_wrap=True, highlight=False, markup=False)
    for method, seed, error in found.failed:
        stderr.print(f"gentletune: {method}, seed {seed} failed: {error}", style="red", soft_wrap=True, markup=False)
    if found.markdown is None:
        raise typer.Exit(1)
    say(f"table, figures and picture: {found.markdown}, {found.csv}, {found.png}")
