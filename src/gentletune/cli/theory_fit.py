"""`theory fit`: real fine-tuning read as exponential tilting."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gentletune.cli.check import check_recipe
from gentletune.cli.common import ConfigOption, numbers, prepare, say, seed_list, stages, stdout
from gentletune.cli.flags import recipe_command
from gentletune.cli.theory import theory_app
from gentletune.core.recipe import load_recipe


@recipe_command(theory_app, "fit")
def fit_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    rates: Annotated[str, typer.Option(help="Learning rates, with commas between.")] = "1e-5,3e-5,1e-4,3e-4",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between; the first one's run is the target.")] = "0,1",
    every: Annotated[int, typer.Option(help="Steps between the checkpoints compared.")] = 2,
    output: Annotated[Path, typer.Option(help="Directory of figures and tables; finished runs in it are kept.")] = Path(
        "tilting"
    ),
    budget: Annotated[float, typer.Option(help="Drift a safe range stays within, bits per token.")] = 0.05,
    general_positions: Annotated[int, typer.Option(help="Contexts compared in the initial model's own answers.")] = 384,
    domain_positions: Annotated[int, typer.Option(help="Contexts compared in held-out labels.")] = 256,
) -> None:
    """How nearly real fine-tuning is a tilt of the initial model: effective λ, the bounds at it, the safe range.

    Trains at every rate and seed, with chain of thought and label-only, and compares checkpoints over the whole
    vocabulary with the initial model and a target. Run again, it goes on with the runs that are missing.

    [bold]Example[/bold]

      gentletune theory fit --data clinic --max-steps 12 --rates 3e-5,1e-4,3e-4 --seeds 0,1 --output runs/tilting
    """
    recipe = load_recipe(config, given)
    learning_rates, chosen = numbers("--rates", rates), seed_list(seeds)
    from gentletune.research.tilting.check import check_fit

    check_fit(recipe, learning_rates, chosen, (True, False), every, budget, general_positions, domain_positions)
    check_recipe(recipe)
    from gentletune.research.tilting.files import write_tilting
    from gentletune.research.tilting.reading import reading
    from gentletune.research.tilting.run import fit_tilting

    prepare()
    with stages() as stage:
        study = fit_tilting(
            recipe,
            learning_rates,
            chosen,
            output=output,
            every=every,
            budget=budget,
            general_positions=general_positions,
            domain_positions=domain_positions,
            say=say,
            stage=stage,
        )
    write_tilting(study, output)
    for paragraph in reading(study):
        stdout.print(paragraph.replace("**", ""), markup=False, highlight=False)
    say(f"tables, checkpoints and figure: {output}")
