"""What the commands share: the app, the recipe's flags, consoles, progress."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from gentletune.cli.commands import Commands
from gentletune.cli.start import collect_as_usual
from gentletune.core.errors import UserError

app = typer.Typer(
    cls=Commands, add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
)
stdout, stderr = Console(), Console(stderr=True)
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # where it is installed, it gives advice when imported

_RECIPE = "Recipe YAML; flags override it."
ConfigOption = Annotated[Path | None, typer.Option("-c", "--config", help=_RECIPE)]


def split_methods(text: str) -> list[str]:
    """Methods separated by commas or semicolons that stand in no bracket.

    >>> split_methods("sft, talr(tau=1, floor=0);lora")
    ['sft', 'talr(tau=1, floor=0)', 'lora']
    """
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign in ",;" and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def numbers(flag: str, text: str) -> list[float]:
    """A comma-separated list of numbers above 0; empty for an empty text. Raises `UserError` where one is none."""
    try:
        found = [float(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        found = [math.nan]
    if not all(0 < number < math.inf for number in found):
        raise UserError(f"{flag}: '{text}' is no list of numbers above 0 such as 1e-5,1e-4")
    return found


def seed_list(text: str) -> list[int]:
    """A comma-separated list of seeds, the value of --seeds. Raises `UserError` where one is no whole number ≥ 0."""
    try:
        found = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise UserError(f"--seeds: '{text}' is no list of whole numbers such as 0,1,2") from error
    if any(seed < 0 for seed in found):
        raise UserError(f"--seeds: '{text}' has a seed below 0; seeds are whole numbers from 0")
    return found


def prepare() -> None:
    """Quiet the libraries' own chatter and keep memory; before any model is touched."""
    from gentletune.lm.device import settle_memory

    warnings.filterwarnings("ignore", category=FutureWarning)
    settle_memory()
    collect_as_usual()


def say(line: str) -> None:
    stderr.print(f"gentletune: {line}", soft_wrap=True, highlight=False)


@contextmanager
def stages() -> Iterator[Callable[[str], Callable[[int, int], None] | None]]:
    """A progress line that names the stage under way, with its count and ETA."""
    from gentletune.training.callbacks.metrics import progress_bar

    bars: list[Progress] = []

    def stage(name: str) -> Callable[[int, int], None] | None:
        close()
        if not stderr.is_terminal:
            say(name)
            return None
        bar = progress_bar(stderr)
        bar.start()
        bars.append(bar)
        task = bar.add_task(name, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done >= total:
                bar.stop()

        return advance

    def close() -> None:
        while bars:
            bars.pop().stop()

    try:
        yield stage
    finally:
        close()
