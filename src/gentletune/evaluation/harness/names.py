"""Whether lm-eval has a task of a name, from the text of its task files: its own index takes ten seconds to build."""

from __future__ import annotations

import functools
import os
import re
from importlib.util import find_spec
from pathlib import Path

_NAMES = re.compile(rb"""^[ \t-]*["']?(?:task|group|tag)["']?:[ \t]*["']?([\w.+-]+)""", re.MULTILINE)
_NO_TASKS = (".py", ".pyc", ".md", ".json", ".jsonl", ".txt", ".csv")


def tasks_folder() -> Path:
    """Where lm-eval's task files lie; lm-eval is not imported."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def may_be_a_task(name: str) -> bool:
    """False where no task file has the name anywhere, so that no task can have it."""
    return name.encode() in _text()


def written_names() -> list[str]:
    """The names that the task files give to tasks, groups and tags where they spell them out: nearly all."""
    return sorted({name.decode() for name in _NAMES.findall(_text())})


@functools.cache
def _text() -> bytes:
    found = []
    for folder, _, files in os.walk(tasks_folder()):
        found += [Path(folder, file).read_bytes() for file in files if not file.endswith(_NO_TASKS)]
    return b"\n".join(found)
