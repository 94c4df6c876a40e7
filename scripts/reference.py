"""Write the reference pages of the site from the code: docs/reference/{recipe,cli,python}.md. Called by `make docs`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import gentletune
from gentletune.cli.commands import COMMANDS, Commands
from gentletune.cli.flags import default_text, metavar
from gentletune.core.recipe import ALIASES, Recipe, groups

PAGES = Path(__file__).parents[1] / "docs" / "reference"
FROM = "*This page is made from the code.*\n\n"


def recipe_page() -> str:
    """Every recipe key with its values, default and meaning, in the order of the command's help."""
    parts = [
        "# Recipe keys\n\n" + FROM,
        "Every key is a line of a YAML recipe (`max_steps: 50`), a flag (`--max-steps 50`) "
        "and an argument of `Recipe(max_steps=50)`. "
        "`gentletune train --help` shows the same. "
        "Keys of *output* change neither weights nor scores; keys of *measurement* change scores only.\n",
    ]
    for group, keys in groups().items():
        parts.append(f"\n## {group.capitalize()}\n\n| key | values | default | what |\n|---|---|---|---|\n")
        for key in keys:
            field = Recipe.model_fields[key]
            if key == "mixture":
                continue
            short = "".join(f", `{alias}`" for alias, meant in ALIASES.items() if meant == key)
            values = "on, off" if field.annotation in (bool, bool | None) else metavar(field.annotation)
            cells = [f"`{key}`{short}", code(values), code(default_text(key, field)), field.description or ""]
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def cli_page() -> str:
    """Every command with its arguments and own options."""
    context: Any = None
    parts = [
        "# Command line\n\n" + FROM,
        "Exit codes: 0 done; 1 the run failed, as its record says; 2 bad input, told in one line; 130 interrupted. "
        "The same command, called again, goes on where it stopped.\n",
    ]
    for name in COMMANDS:
        parts += command_parts(f"gentletune {name}", Commands().resolve_command(context, [name])[1], 2)
    return "".join(parts)


def command_parts(path: str, command: Any, level: int) -> list[str]:
    parts = [f"\n{'#' * level} {path}\n\n", help_text(command.help or ""), "\n"]
    inner = getattr(command, "commands", {})
    for name, one in inner.items():
        parts += command_parts(f"{path} {name}", one, level + 1)
    if inner:
        return parts
    own = [one for one in command.params if not str(getattr(one, "rich_help_panel", "") or "").startswith("Recipe:")]
    rows = [row(one) for one in own if one.name != "help"]
    if rows:
        parts += ["\n| option | what |\n|---|---|\n", *rows]
    if len(own) < len(command.params):
        parts.append("\nAnd every [recipe key](recipe.md) as a flag.\n")
    return parts


def help_text(text: str) -> str:
    """A docstring as Markdown: its bold headings stand, and its examples become one block."""
    before, *examples = re.split(r"\[bold\]Examples?\[/bold\]", inspect.cleandoc(text))
    block = "\n".join(line.strip() for line in "".join(examples).splitlines() if line.strip())
    return before.strip() + (f"\n\n```\n{block}\n```\n" if examples else "\n")


def row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    about = " ".join((parameter.help or "").replace("[dim]", "").replace("[/dim]", "").replace("\\[", "[").split())
    return "| " + names + " | " + about.replace("|", "\\|") + " |\n"


def python_page() -> str:
    """The public names of the package."""
    lines = [
        "# Python\n\n" + FROM,
        "What `from gentletune import …` gives. Losses for any loop are in `gentletune.losses`; "
        "a method of your own is [one function](../methods.md#adding-a-method).\n",
    ]
    for name in gentletune.__all__:
        lines += [f"\n## `{name}`\n\n", shown(f"{gentletune._LAZY[name]}.{name}")]
    return "".join([*lines, "\n## `gentletune.losses`\n\n", shown("gentletune.losses")])


def shown(path: str) -> str:
    """What mkdocstrings puts a docstring in the place of."""
    options = ("heading_level: 3", "show_root_heading: false", "show_root_toc_entry: false")
    return f"::: {path}\n    options:\n" + "".join(f"      {option}\n" for option in options)


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for name, page in (("recipe", recipe_page), ("cli", cli_page), ("python", python_page)):
        (PAGES / f"{name}.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
