"""The command that follows tokens by their initial difficulty: curriculum."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gentletune.cli.common import FREE, ConfigOption, app, overrides, prepare, say, stderr, stdout
from gentletune.errors import UserError
from gentletune.recipe import load_recipe


@app.command("curriculum", context_settings=FREE)
def curriculum_command(
    context: typer.Context,
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
    given = overrides(context.args)
    for name in ("method", "output"):
        if name in given:
            raise UserError(f"--{name} is one run's; give --{name if name == 'output' else 'methods'} to a curriculum")
    names, numbers = split_methods(methods), _seeds(seeds)
    recipe = load_recipe(config, given)
    from gentletune.study.curriculum import curriculum
    from gentletune.study.curriculum_table import verdicts

    prepare()
    found = curriculum(
        recipe, names, numbers, output, probe_rows=probe_rows, every=every, held_out=held_out, say=say
    )  # fmt: skip
    for sentence in verdicts(found.runs):
        stdout.print(sentence.replace("`", ""), soft_wrap=True, highlight=False, markup=False)
    for method, seed, error in found.failed:
        stderr.print(f"gentletune: {method}, seed {seed} failed: {error}", style="red", soft_wrap=True, markup=False)
    if found.markdown is None:
        raise typer.Exit(1)
    say(f"table, figures and picture: {found.markdown}, {found.csv}, {found.png}")


def split_methods(text: str) -> list[str]:
    """Method texts separated by commas or semicolons that stand in no bracket.

    >>> split_methods("sft, talr(tau=1.0, floor=0.0);mask")
    ['sft', 'talr(tau=1.0, floor=0.0)', 'mask']
    """
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"--seeds: '{text}' is no list of whole numbers such as 0,1,2") from error
    if any(number < 0 for number in numbers):
        raise UserError(f"--seeds: '{text}' has a seed below 0")
    return numbers
