"""Scores and run records: what a run was and what came of it, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from gentletune.core.errors import NotFiniteError, UserError, plainly, refusal

RECORD_FILE = "record.json"
SCHEMA = 3
MEAN = "general_mean"  # of the general accuracies, where there are several
FROM_BASE = ("kl_sampled", "nll_greedy")  # tasks that are changes from the base model already: it scores 0
_AGAIN = "once it is deleted, `gentletune train` makes it again"
Side = Literal["domain", "general"]
OwnMetric = Literal["accuracy", "balanced_accuracy", "chrf"]
OWN_SCORES = ("kl_sampled", "nll_greedy", "reference", "own_answers", MEAN, "domain_mean")
"""What scores of our own are called, which no data file and no task may be."""


class Score(BaseModel):
    """One measured number with its uncertainty.

    `value` and `stderr` share a unit, named by `metric` (`accuracy` in [0, 1], `bits_per_token` in bits);
    `stderr` is None when it cannot be estimated (fewer than two items, or than two groups of items).

    `items` are the n linearised items, in the value's unit: their mean is `value`, up to rounding, and the
    variance of their mean is that of `value` (`gentletune.stats`). `clusters` numbers the group of each
    item; empty, every item is its own. `details` holds breakdowns, fit for JSON. `skills` are what the task asks for,
    on the domain side what the data train: a general score that shares one says nothing of general skill. `chance` is
    the accuracy of guessing (`stats.guessing`), 0 where nothing is known of it.

    Raises `ValueError` where `items` are not n, or `clusters` not as many as the items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    side: Side
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    items: tuple[float, ...] = ()
    clusters: tuple[int, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    skills: tuple[str, ...] = ()
    chance: float = 0.0

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.items) not in (0, self.n):
            raise ValueError(f"score '{self.key}' has {len(self.items)} items, but n is {self.n}")
        if len(self.clusters) not in (0, len(self.items)):
            raise ValueError(f"score '{self.key}' has {len(self.clusters)} clusters for {len(self.items)} items")
        return self

    @property
    def key(self) -> str:
        """`task/metric`, the name of this score across runs."""
        return f"{self.task}/{self.metric}"

    @property
    def units(self) -> int:
        """How many independent units there are: groups of items, or the items where they are not grouped."""
        return len(set(self.clusters)) or self.n


class RunRecord(BaseModel):
    """What a run was and what came of it. `scores` are the tuned model's, `base_scores` its base model's.

    `method` is the canonical composed name (`talr+lora`), `recipe` every field of the recipe, `hashes` content
    hashes (SHA-256), `timings` in seconds. `label` names the point in a report when the method alone does not
    (a Wise-FT point: `sft+wise_ft(alpha=0.5)`). `sandbox` says what isolated generated code, where any was run.
    `curves` are what was logged in training, thinned: `{name: [(step, value), …]}`. `schema_version` changes with the
    meaning of a field; records of another are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    status: Literal["complete", "failed"]
    method: str
    label: str
    learning_rate: float
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, float] = Field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    scores: list[Score] = Field(default_factory=list)
    base_scores: list[Score] = Field(default_factory=list)
    created: str = ""
    git_commit: str | None = None
    sandbox: str = ""
    error: str | None = None
    _directory: Path | None = PrivateAttr(default=None)

    @property
    def directory(self) -> Path | None:
        """The run directory that it was read from or written to; None for one on no disk. A changed copy keeps it."""
        return self._directory

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, wherever they lie."""
        return isinstance(other, RunRecord) and self.__dict__ == other.__dict__

    def score(self, key: str, base: bool = False) -> Score | None:
        """The score named `task/metric`, or None."""
        pool = self.base_scores if base else self.scores
        return next((s for s in pool if s.key == key), None)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A scratch file that becomes `path` once the context ends well: a reader, or a crash, sees the old or the new one.

    Raises `OSError` where the directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o644)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, as `whole_file` does."""
    with whole_file(path) as scratch:
        scratch.write_bytes(data)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """`write_text_atomic` of `value` as strict JSON. Raises `NotFiniteError` with the place of a NaN or infinity."""
    if found := _not_finite(value):
        raise NotFiniteError(f"{path.name}: {'.'.join(found[0])} is {found[1]}, which JSON has no number for")
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _not_finite(value: Any) -> tuple[list[str], float] | None:
    """The keys that lead to the first number that is not finite, and the number."""
    if isinstance(value, float):
        return None if math.isfinite(value) else ([], value)
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    for key, part in parts:
        if found := _not_finite(part):
            return [str(key), *found[0]], found[1]
    return None


def write_record(directory: Path, record: RunRecord) -> None:
    """Write `record.json` into the run directory, whole or not at all."""
    write_json_atomic(directory / RECORD_FILE, record.model_dump(mode="json"))
    record._directory = directory


def read_record(directory: Path) -> RunRecord | None:
    """The run's record, or None where there is none. Raises `UserError` on a file that is broken or cannot be read."""
    path = directory / RECORD_FILE
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, parse_constant=_no_number)
        if not isinstance(values, dict) or values.get("schema_version") == SCHEMA:
            record = RunRecord.model_validate_json(text)
            record._directory = directory
            return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path} ({refusal(error)}); make it readable, or move it away") from error
    except (ValueError, RecursionError) as error:
        mend = f"it is damaged, or another version's; {_AGAIN}"
        raise UserError(f"{path} is not a run record: {_what_is_wrong(error)}; {mend}") from error
    other = values.get("schema_version", "none")
    raise UserError(f"{path} is not a record of this gentletune (schema {other}, not {SCHEMA}); {_AGAIN}")


def _what_is_wrong(error: Exception) -> str:
    """What a record failed on, in a line: of pydantic's errors the first, with the key it is about."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error).splitlines()[0]
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'"
    return f"{key}: {plainly(first)}" if key else plainly(first)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _record_files(root: Path) -> list[Path]:
    """Every `record.json` at or below a directory, in path order; then those behind links to directories elsewhere."""
    found, links = list[Path](), list[Path]()
    for folder, below, names in os.walk(root):
        found += [Path(folder, RECORD_FILE)] if RECORD_FILE in [*names, *below] else []
        links += [path for name in below if (path := Path(folder, name)).is_symlink()]
    here = root.resolve()
    outside = [path for path in sorted(links) if not _nested(path.resolve(), here)]
    return [*sorted(found), *(path for link in outside for path in sorted(link.rglob(RECORD_FILE)))]


def _nested(one: Path, other: Path) -> bool:
    """Whether one directory lies within the other."""
    return one.is_relative_to(other) or other.is_relative_to(one)


def load_records(directories: Iterable[Path]) -> list[RunRecord]:
    """Every `record.json` at or below the given directories, in path order; one below two of them once.

    Links to directories elsewhere are followed, one deep.

    Raises `UserError` where a directory is missing, a record cannot be read, or none is found.
    """
    records: list[RunRecord] = []
    roots, known = list(directories), set[Path]()
    for root in roots:
        if not root.is_dir():
            what = f"{root} is a file" if root.exists() else f"no such directory: {root}"
            raise UserError(f"{what}; give a run or study directory")
        for path in _record_files(root):
            record = read_record(path.parent) if path.resolve() not in known else None
            known.add(path.resolve())
            if record is not None:
                records.append(record)
    if not records:
        raise UserError(f"no {RECORD_FILE} under {', '.join(map(str, roots))}; run `gentletune train` first")
    return records
