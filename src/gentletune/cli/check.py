"""What is wrong with a recipe's names, files and rows, told before torch is imported.

The commands look again when they read for good; a mistake must not take the ten seconds that torch and its kin load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentletune.cli.common import say
from gentletune.core.errors import UserError
from gentletune.core.optimizers import check_installed
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.core.schedule import EarlyStop
from gentletune.core.sources import Source
from gentletune.data.files import is_text, read_rows, read_text
from gentletune.data.forms import shaped_rows
from gentletune.data.hub import is_hub_name
from gentletune.data.load import load_data, replay_source
from gentletune.data.templates import read_template
from gentletune.lab import lab_domain  # noqa: F401 - its import makes the domain `lab` known
from gentletune.lm.export import check_export
from gentletune.lm.model_files import BUNDLES, is_adapter, resolve_model
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
    download: bool = True,
) -> None:
    """Parse the methods, read the data, find the models and name the tasks, cheapest first.

    `methods` and `models` stand for the recipe's own where they are given; `data` and `tasks` say whether the command
    reads the recipe's, and `trains` whether it trains, `here` or on another machine. Without `download` nothing is
    looked at that would have to be fetched. Raises `UserError`.
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
    replay = parse_method(recipe.method).replay if trains and methods is None else None
    readable = download or not _on_hub(recipe, replay.source if replay else None)
    data = data and readable
    if data:
        found = load_data(recipe)
        if replay is not None:
            replay_source(recipe, replay.source, replay.rows, found)
    if tasks and readable and recipe.reference_path is not None:
        check_file(recipe.reference_path)
    for model in [recipe.model] if models is None else models:
        if download or _is_here(model):
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


def _on_hub(recipe: Recipe, replayed: str | None) -> bool:
    """Whether data that the recipe names, or rows to be `replayed`, are a data set of the hub."""
    sources = [*recipe.sources, *([Source(path=replayed)] if replayed else [])]
    named = [recipe.data_path, recipe.test_path, recipe.reference_path]
    paths = [*named, *(source.fields["data_path"] for source in sources)]
    return any(path and is_hub_name(path) and not user_path(path).exists() for path in paths)


def _is_here(model: str) -> bool:
    """Whether `resolve_model` finds a model, or finds that there is none, without a download."""
    local = user_path(model)
    if model in BUNDLES or is_adapter(local):  # whose base model may be anywhere
        return False
    return local.exists() or model.count("/") != 1 or model.startswith((".", "/", "~"))


def check_output(run: Path) -> None:
    """Raises `UserError` where a run directory cannot be written into, or another process is at it."""
    from gentletune.core.locks import check_free
    from gentletune.core.records import RECORD_FILE

    if not (run / RECORD_FILE).exists():  # a finished run is only read, maybe from where nothing can be written
        check_folder(run)
    with suppress(OSError):  # what the file system refuses is told by whoever writes there
        check_free(run)


def check_folder(path: Path) -> None:
    """Raises `UserError` where a directory to write into is a file, or could not be made or written into."""
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file; give a directory")
    _check_room(path, path)


def check_files(*paths: Path | None) -> None:
    """Raises `UserError` where a file to write is something else, could not be written, or is another one, too."""
    given = [path for path in paths if path is not None]
    for path in given:
        if path.exists() and not path.is_file():  # what is written whole would take the place of a device
            raise UserError(f"{path} is a {'directory' if path.is_dir() else 'device'}; give a file to write")
        _check_room(path, path.parent)
    if len({path.resolve() for path in given}) < len(given):
        raise UserError(f"two outputs go to one file ({', '.join(map(str, given))}); give each its own")


def _check_room(path: Path, folder: Path) -> None:
    """Raises `UserError`, about `path`, where `folder` takes no new files or, if it is not there, cannot be made."""
    above = next(place for place in (folder, *folder.parents) if place.exists())
    if not above.is_dir():
        raise UserError(f"cannot write to {path} ({above} is a file); give another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path} ({above.absolute()} may not be written to); give another path")


def check_file(path: str) -> None:
    """Read a file of rows or of plain text. Raises `UserError`."""
    if is_text(path):
        read_text(path)
    else:
        shaped_rows(read_rows(path), path)


def check_study(
    study: Mapping[str, Any], output: Path, where: str, *, files: bool = True, download: bool = True
) -> list[Trial]:
    """Plan a study and, with `files`, check the recipe of its first trial unless that is done; the trials.

    `download` is that of `check_recipe`; without it the study may be for another machine. Raises `UserError`.
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
            check_recipe(trials[0].recipe, tasks=trials[0].recipe.evaluate, download=download, here=download)
    elif search is not None and not output.exists():  # its trials are yet to be asked for
        base = {key: value for key, value in study["base"].items() if key not in search.space and key != "method"}
        recipe = Recipe.parse(base, where=where)
        check_recipe(recipe, tasks=recipe.evaluate, download=download, here=download)
    return trials
