"""What is wrong with a recipe's names, files and rows, told before torch is imported.

The commands look again when they read for good; a mistake must not take the ten seconds that torch and its kin load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentletune.cli.common import say
from gentletune.core.errors import UserError
from gentletune.core.optimizers import check_installed
from gentletune.core.recipe import Recipe
from gentletune.core.schedule import EarlyStop
from gentletune.data.files import is_text, read_rows, read_text
from gentletune.data.forms import shaped_rows
from gentletune.data.load import load_data, replay_source
from gentletune.data.templates import read_template
from gentletune.lab import lab_domain  # noqa: F401 - its import makes the domain `lab` known
from gentletune.lm.export import check_export
from gentletune.lm.model_files import resolve_model
from gentletune.methods.adapted import check_adapted
from gentletune.methods.controlled import check_controlled
from gentletune.methods.micro_batch import check_micro_batch
from gentletune.methods.replay import check_anchored

if TYPE_CHECKING:
    from gentletune.sweeps.plan import Trial


def check_recipe(
    recipe: Recipe,
    *,
    methods: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    data: bool = True,
    tasks: bool = False,
    trains: bool = True,
    here: bool = True,
) -> None:
    """Parse the methods, read the data, find the models and name the tasks, cheapest first.

    `methods` and `models` stand for the recipe's own where they are given; `data` and `tasks` say whether the command
    reads the recipe's, and `trains` whether it trains, `here` or on another machine. Raises `UserError`.
    """
    from gentletune.methods import parse_method

    check_export(recipe)
    for method in [recipe.method] if methods is None else methods:
        parse_method(method)
    if trains:
        if here:
            check_installed(recipe.optimizer)
        if methods is None:
            check_adapted(recipe, parse_method(recipe.method), here=here)
            check_anchored(recipe, parse_method(recipe.method))
            check_controlled(recipe, parse_method(recipe.method))
            check_micro_batch(recipe, parse_method(recipe.method))
    if recipe.chat_template is not None:
        read_template(recipe.chat_template)
    if data:
        found = load_data(recipe)
        replay = parse_method(recipe.method).replay if trains and methods is None else None
        if replay is not None:
            replay_source(recipe, replay.source, replay.rows, found)
    if tasks and recipe.reference_path is not None:
        check_file(recipe.reference_path)
    for model in [recipe.model] if models is None else models:
        resolve_model(model, trust_remote_code=recipe.trust_remote_code)
    if tasks:
        from gentletune.evaluation.harness import resolve_tasks

        known = resolve_tasks(recipe)
        if data and recipe.early_stop is not None:
            EarlyStop.parse(recipe.early_stop).check_task([found.name, *(task.name for task in known)])
    if data:
        if found.recognised:
            say(found.recognised)
        if found.scored and tasks:
            told = recipe.domain_metric == "auto" and found.examples
            say(found.scored + ("; domain_metric changes that" if told else ""))


def check_output(run: Path) -> None:
    """Raises `UserError` where a run directory is a file, or another process is at it."""
    from gentletune.core.locks import check_free

    with suppress(OSError):  # what the file system refuses is told by whoever writes there
        if run.is_file():
            raise UserError(f"output {run} is a file; give a directory")
        check_free(run)


def check_file(path: str) -> None:
    """Read a file of rows or of plain text. Raises `UserError`."""
    if is_text(path):
        read_text(path)
    else:
        shaped_rows(read_rows(path), path)


def check_study(study: Mapping[str, Any], output: Path, where: str, *, files: bool = True) -> list[Trial]:
    """Plan a study and, with `files`, check the recipe of its first trial unless that is done; the trials.

    Raises `UserError`.
    """
    from gentletune.core.records import read_record
    from gentletune.sweeps.plan import plan, read_settings
    from gentletune.sweeps.search import read_search

    read_settings(study, where)
    search, trials = read_search(study, where), plan(study, output, where)
    if not files:
        return trials
    if trials:
        record = read_record(output / trials[0].name)
        if record is None or record.status == "failed":
            check_recipe(trials[0].recipe, tasks=trials[0].recipe.evaluate)
    elif search is not None and not output.exists():  # its trials are yet to be asked for
        base = {key: value for key, value in study["base"].items() if key not in search.space and key != "method"}
        recipe = Recipe.parse(base, where=where)
        check_recipe(recipe, tasks=recipe.evaluate)
    return trials
