"""A study of which nothing is left to do, told without torch: by the size and time of every file it came from.

The files of gentletune itself count as well, since an editable checkout changes without its version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gentletune.core.cache import digest
from gentletune.core.errors import UserError
from gentletune.core.paths import user_path
from gentletune.core.records import RECORD_FILE, RunRecord, read_record, write_json_atomic
from gentletune.core.yaml_file import read_yaml
from gentletune.lm.model_files import plain_directory, resolve_model
from gentletune.sweeps.plan import Trial

SOURCE = Path(__file__).parents[1]
STAMP_FILE = ".settled.json"
_NAMES = ("data_path", "test_path", "reference_path", "task_data", "chat_template")  # recipe keys that may name a file


def settle(study: Mapping[str, Any], output: Path, trials: Sequence[Trial]) -> None:
    """Note that the trials are complete and up to date: what they are, and the files they came from.

    Nothing is noted where something came from elsewhere than a file: only reading it again could tell that it is the
    same. Nor where gentletune is not installed, and has no version.
    """
    names = [trial.name for trial in trials]
    with suppress(OSError, UserError, PackageNotFoundError):
        inputs = {str(path) for trial in trials for path in _sources(trial)}
        if (signature := _signature(study, output, names, inputs)) is not None:
            write_json_atomic(output / STAMP_FILE, {"trials": names, "files": sorted(inputs), "signature": signature})


def settled(study: Mapping[str, Any], output: Path) -> list[RunRecord] | None:
    """The records of a study whose files and records all lie as they were noted; None where anything may be to do."""
    try:
        stamp = json.loads((output / STAMP_FILE).read_text(encoding="utf-8"))
        if _signature(study, output, stamp["trials"], stamp["files"]) != stamp["signature"]:
            return None
        records = [read_record(output / name) for name in stamp["trials"]]
    except (OSError, ValueError, LookupError, TypeError, UserError, PackageNotFoundError):
        return None
    found = [record for record in records if record is not None and record.status == "complete"]
    return found if found and len(found) == len(records) else None


def _signature(study: Mapping[str, Any], output: Path, names: Sequence[str], inputs: Iterable[str]) -> str | None:
    """Of the study, the versions that score it, and each file's size and time; None where a file is gone."""
    files: dict[str, Any] = {}
    for root in [*sorted(inputs), *(str(output / name / RECORD_FILE) for name in names)]:
        below = sorted(Path(root).rglob("*")) if Path(root).is_dir() else [Path(root)]
        for path in below:
            if not path.is_dir():
                stat = path.stat()
                files[str(path)] = [stat.st_size, stat.st_mtime_ns]
    versions = [version(package) for package in ("gentletune", "lm_eval", "transformers", "torch")]
    return digest([dict(study), versions, _edited(SOURCE), files])


def _edited(folder: Path) -> list[int]:
    """Count, bytes and newest time of the Python files in `folder`: its version stays while a checkout is edited."""
    stats = [path.stat() for path in folder.rglob("*.py")]
    return [len(stats), sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)]


def _sources(trial: Trial) -> list[Path]:
    """The files and folders a trial's result comes from. One that is not there has no signature, so none is noted."""
    recipe = trial.recipe
    named = [value for name in _NAMES if (value := getattr(recipe, name)) is not None]
    named += [path for source in recipe.sources if (path := source.fields["data_path"]) is not None]
    tasks = [path for task in recipe.tasks if task.endswith((".yaml", ".yml")) for path in _of_task(user_path(task))]
    model = resolve_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    return [model, plain_directory(model), *tasks, *(user_path(name) for name in named)]


def _of_task(path: Path) -> list[Path]:
    """A task's YAML file and the data file it names. Raises `UserError` where it names none, as lm-eval's own form."""
    if not (file := read_yaml(path).get("file")):
        raise UserError(f"{path} may take its questions from anywhere")
    return [path, path.parent / user_path(str(file))]
