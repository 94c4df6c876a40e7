"""The commands for research: the theory checked and measured, token dynamics, ablations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gentletune.cli.check import check_files, check_folder, check_output, check_recipe
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
from gentletune.cli.scores import show_frame
from gentletune.core.errors import UserError
from gentletune.core.recipe import load_recipe
from gentletune.core.records import write_json_atomic

research_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Theory, token dynamics and ablations: for those who ask why."
)
theory_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Code lengths along fine-tuning: checked, and measured."
)
app.add_typer(research_app, name="research")
research_app.add_typer(theory_app, name="theory")


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

      gentletune research theory verify --trees 10000 --seed 0 --json verify.json
    """
    check_files(json_path)
    from gentletune.research.theory.verify import verify

    found = verify(trees, seed)
    show_frame(found.frame(), f"{found.trees} random trees, seed {found.seed}, {found.seconds:.0f} s", justify="right")
    _print(found.observations)
    if json_path:
        write_json_atomic(json_path, found.as_dict())
    for finding in found.broken:
        say(f"VIOLATED: {finding.statement}: {finding.counterexample}")
    if found.broken:
        raise typer.Exit(1)


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
    budget: Annotated[float, typer.Option(help="KL from base a safe range stays within, bits per token.")] = 0.05,
    general_positions: Annotated[int, typer.Option(help="Contexts compared in the base model's own answers.")] = 384,
    domain_positions: Annotated[int, typer.Option(help="Contexts compared in held-out labels.")] = 256,
) -> None:
    """How close real fine-tuning is to a tilt of the base model: effective λ, bounds, the safe range.

    Trains at every rate and seed, with chain of thought and label-only, and compares checkpoints over the whole
    vocabulary with the base model and a target. Run again, it does only what is missing.

    [bold]Example[/bold]

      gentletune research theory fit --data clinic --max-steps 12 --rates 3e-5,1e-4 --seeds 0,1 --output runs/tilting
    """
    recipe = load_recipe(config, given)
    learning_rates, chosen = numbers("--rates", rates), seed_list(seeds)
    check_output(output)
    from gentletune.research.tilting.study import check_fit

    check_fit(recipe, learning_rates, chosen, (True, False), every, budget, general_positions, domain_positions)
    check_recipe(recipe)
    from gentletune.research.tilting.pages import reading
    from gentletune.research.tilting.run import fit

    prepare()
    with stages() as stage:
        study = fit(
            recipe, learning_rates, chosen, output=output, every=every, budget=budget,
            general_positions=general_positions, domain_positions=domain_positions, say=say, stage=stage,
        )  # fmt: skip
    _print([reading(study).replace("**", "")])
    say(f"tables, checkpoints and figure: {output}")


@recipe_command(research_app, "dynamics")
def dynamics_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    methods: Annotated[str, typer.Option(help="Methods, with commas between.")] = "sft,talr,mask(p_min=0.1)",
    seeds: Annotated[
        str, typer.Option(help="Training seeds, with commas between; the rows stay those of --seed.")
    ] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Directory of the tables, the picture and the runs.")] = Path(
        "runs/dynamics"
    ),
    probe_rows: Annotated[int, typer.Option(min=1, help="Rows whose label tokens are followed.")] = 16,
    every: Annotated[int, typer.Option(min=1, help="Optimiser steps between measurements of them.")] = 4,
    held_out: Annotated[bool, typer.Option("--held-out", help="Follow held-out rows, not training rows.")] = False,
) -> None:
    """Does each method learn the hardest tokens? Their probability, weight and share of the gradient, by step.

    Run again, it does only what is missing.

    [bold]Examples[/bold]

      gentletune research dynamics --data clinic --train-rows 100 --epochs 3 --lr 1e-4 --output runs/dynamics

      gentletune research dynamics -c recipe.yaml --methods "sft, talr(tau=1.0, floor=0.0), mask(p_min=0.1)"
    """
    if "method" in given:
        raise UserError("--method names the one of a run; token dynamics take several: give --methods")
    names, chosen = split_methods(methods), seed_list(seeds)
    if not names or not chosen:  # told before a model is looked for
        raise UserError("token dynamics need at least one method and one seed; give --methods and --seeds")
    recipe = load_recipe(config, given)
    check_folder(output)
    check_recipe(recipe, methods=names)
    from gentletune.research.dynamics.run import token_dynamics

    prepare()
    found = token_dynamics(
        recipe, names, chosen, output, probe_rows=probe_rows, every=every, held_out=held_out, say=say
    )
    _print(sentence.replace("`", "") for sentence in found.sentences())
    for method, seed, error in found.failed:
        _complain(f"{method}, seed {seed} failed: {error}")
    if not found.runs:
        raise typer.Exit(1)
    say(f"table, figures and picture: {output}/dynamics.md, .csv and .png")


@recipe_command(research_app, "ablations")
def ablations_command(
    given: dict[str, Any],
    name: Annotated[str, typer.Argument(help="views, optimizer, normalization, norm or tau.")],
    config: ConfigOption = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, such as 0,1,2.")] = "0",
    output: Annotated[Path, typer.Option(help="Directory of the tables; runs lie in OUTPUT/NAME.")] = Path(
        "runs/ablations"
    ),
    methods: Annotated[str, typer.Option(help='For views and norm, such as "sft,talr,l2(weight=0.1)".')] = "",
    rates: Annotated[str, typer.Option(help="For normalization: learning rates, such as 1e-5,1e-4.")] = "",
    taus: Annotated[str, typer.Option(help="For tau: temperatures in nats, such as 0.5,1,2.")] = "",
    executor: Annotated[str, typer.Option(help="local (this process), pool (processes, GPUs) or ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; by default one per GPU, on a CPU 2.")
    ] = None,
) -> None:
    """Ablations of a method: does it keep general skill, or only sharpen the model, or move the weights less?

    Run again, it does only what is missing.

    [bold]Examples[/bold]

      gentletune research ablations views -c recipe.yaml --seeds 0,1 --output ablations

      gentletune research ablations norm -c recipe.yaml --lr 1e-4 --seeds 0,1

      gentletune research ablations tau --data clinic --max-steps 50 --taus 0.5,1,2
    """
    recipe = load_recipe(config, given)
    named, learning_rates, temperatures = split_methods(methods), numbers("--rates", rates), numbers("--taus", taus)
    chosen = seed_list(seeds)
    check_folder(output)
    check_recipe(recipe, methods=[recipe.method, *named], tasks=recipe.evaluate)
    from gentletune.research.ablations.run import ablation

    prepare()
    with stages() as stage:
        found = ablation(
            name, recipe, chosen, output, methods=named, rates=learning_rates, taus=temperatures,
            executor=executor, workers=workers, stage=stage, say=say,
        )  # fmt: skip
    differences = "differences, 95 % intervals: ≠ significant, ≈ not"
    for title, frame in ((found.title, found.values()), (differences, found.differences())):
        # A setting a column: a terminal is high rather than wide.
        turned = frame.set_index("setting").rename(columns=lambda head: head.replace("/", " ")).T.reset_index()
        show_frame(turned, title)
    _print([*found.notes, *found.sentences()])
    for row in found.rows:
        for what in row.failed:
            _complain(f"{row.label}, {what}")
    say(f"table: {output / name}.md and .csv")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)


def _complain(line: str) -> None:
    stderr.print(f"gentletune: {line}", style="red", soft_wrap=True, markup=False)
