"""The commands by name, and the module of each, which is imported when its command is called: help comes at once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer.main
from typer.core import TyperCommand, TyperGroup


class Command(NamedTuple):
    """The module of `gentletune.cli` that adds a command to the app, and what the list of commands says of it."""

    module: str
    about: str


COMMANDS: Mapping[str, Command] = {
    "train": Command("runs", "Train one recipe, measure domain gain and general loss, and write its run directory."),
    "plan": Command(
        "plan",
        "What a recipe takes: memory per device, disk and, with --probe, time; and the nearest recipe that fits.",
    ),
    "evaluate": Command(
        "runs", "Domain and general scores of any model, with standard errors, beside those of its base model."
    ),
    "sweep": Command("runs", "Run every trial of a study; run again, it does only what is missing or failed."),
    "compare": Command(
        "compare", "Every method at several rates and seeds, beside SFT: at equal steps, and at an equal domain score."
    ),
    "report": Command(
        "runs", "The safe choice, the trade-off and tables of finished runs: one HTML file, PNG, CSV and Markdown."
    ),
    "recommend": Command(
        "recommend",
        "The safe choice and the most domain gain, each with its price, and why the other settings are out.",
    ),
    "advise": Command(
        "runs", "Propose a learning rate and a method from short probes: domain gain against general loss."
    ),
    "inspect": Command(
        "inspect",
        "How probable the model finds the training labels: hard tokens, where they are, and each method's weights.",
    ),
    "code-length": Command(
        "texts", "Bits per token and per byte of a file under a model, and their change from the model it came from."
    ),
    "export": Command("export", "Upload a model, or write it in bf16 or as GGUF."),
    "lab": Command("lab", "The embedded tiny base model, with its skills and its domain."),
    "research": Command("research", "Theory, token dynamics and ablations: for those who ask why."),
}


class Commands(TyperGroup):
    """The app's commands: listed by what the table says, made by their module when one is called."""

    def __init__(self, **kwargs: Any) -> None:
        listed = {name: TyperCommand(name, help=command.about) for name, command in COMMANDS.items()}
        super().__init__(**{**kwargs, "commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in COMMANDS:
            self.commands[args[0]] = _made(args[0])
        return super().resolve_command(ctx, args)


def _made(name: str) -> Any:
    """The command as its module gives it to the app."""
    from gentletune.cli.common import app

    import_module(f"gentletune.cli.{COMMANDS[name].module}")
    how: dict[str, Any] = {"pretty_exceptions_short": True, "rich_markup_mode": "rich"}
    for command in app.registered_commands:
        if command.name == name:
            return typer.main.get_command_from_info(command, **how)
    group = next(group for group in app.registered_groups if group.name == name)
    return typer.main.get_group_from_info(group, suggest_commands=True, **how)
