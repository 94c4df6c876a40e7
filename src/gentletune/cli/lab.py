"""The commands on the embedded base model: make one again from its seed, say what it can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gentletune.cli.check import check_output
from gentletune.cli.common import app, prepare, say, stdout
from gentletune.core.errors import UserError

lab_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="The embedded tiny base model, with its skills and its domain."
)
app.add_typer(lab_app, name="lab")


@lab_app.command("pretrain")
def pretrain_command(
    output: Annotated[Path, typer.Option(help="Directory of the new base model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of its weights and of the order of its rows.")] = 0,
    width: Annotated[int, typer.Option(help="Hidden size, a multiple of 24.")] = 96,
    layers: Annotated[int, typer.Option(min=1, help="Layers.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of AdamW.")] = 5000,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 110,
) -> None:
    """Train a lab base model from scratch, on one core. Without options, it is the one that ships.

    On one machine the same options give the same weights. It is a model like any other: give its directory as --model.

    [bold]Example[/bold]

      gentletune lab pretrain --seed 1 --output runs/lab-1
    """
    check_output(output)
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output {output} is not empty; give another directory")
    from gentletune.lab.pretrain import Pretraining, pretrain

    settings = Pretraining(seed=seed, width=width, layers=layers, steps=steps, batch=batch)
    prepare()
    pretrain(settings, output, say)
    say(f"base model: {output}; gentletune evaluate --model {output} --tasks lab_skills measures it")


@lab_app.command("info")
def info_command() -> None:
    """What the packaged base model can do, and the knobs of the lab domain.

    [bold]Example[/bold]

      gentletune lab info
    """
    from gentletune.lab import SKILLS, Knobs, lab_domain, skill_examples
    from gentletune.lm.model_files import resolve_model

    directory = resolve_model("lab")
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    stdout.print(f"--model lab: {directory}, {size / 1e6:.1f} MB", soft_wrap=True, highlight=False)
    table = Table(title="--tasks lab_skills, or by name")
    for heading in ("task", "skill", "the domain uses it", "prompt", "answer"):
        table.add_column(heading, overflow="fold")
    for skill in SKILLS.values():
        row = skill_examples(skill.name, 1, seed=0)[0]
        table.add_row(skill.name, skill.title, "yes" if skill.near else "no", row.prompt, row.completion)
    stdout.print(table)
    generate = lab_domain().generate
    assert generate is not None
    for row in generate(2, seed=0, cot=True, split="train"):
        stdout.print(f"--data lab: {row.prompt} → {row.completion}", soft_wrap=True, highlight=False)
    knobs = ", ".join(f"{name}={field.default}" for name, field in Knobs.__dataclass_fields__.items())
    stdout.print(f"its knobs, as they come: lab({knobs})", soft_wrap=True, highlight=False)
