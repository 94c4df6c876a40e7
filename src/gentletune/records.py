"""Scores and run records: what a run was and what came of it, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gentletune.errors import UserError

RECORD_FILE = "record.json"


class Score(BaseModel):
    """One measured number with its uncertainty.

    `value` and `stderr` share a unit, named by `metric` (`accuracy` in [0, 1], `bits_per_token` in bits);
    `stderr` is None when it cannot be estimated (fewer than two items).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    side: Literal["domain", "general"]
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool

    @property
    def key(self) -> str:
        """`task/metric`, the name of this score across runs."""
        return f"{self.task}/{self.metric}"


class RunRecord(BaseModel):
    """What a run was and what came of it. `scores` are the tuned model's, `initial_scores` the initial's.

    `method` is the canonical composed name (`talr+lora`), `recipe` every field of the recipe, `hashes` content
    hashes (SHA-256), `timings` in seconds. `label` names the point in a report when the method alone does not
    (a Wise-FT point: `sft+wise_ft(alpha=0.5)`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    scores: list[Score] = Field(default_factory=list)
    initial_scores: list[Score] = Field(default_factory=list)
    created: str = ""
    git_commit: str | None = None
    error: str | None = None

    def score(self, key: str, initial: bool = False) -> Score | None:
        """The score named `task/metric`, or None."""
        pool = self.initial_scores if initial else self.scores
        return next((s for s in pool if s.key == key), None)


def accuracy_score(right: Sequence[bool | float], *, task: str, side: Literal["domain", "general"]) -> Score:
    """Share of right answers. The standard error is Agresti and Coull's, from (k + 2) / (n + 4), so that a share
    of 0 or 1 among few items does not claim to be certain; with many items it is the usual √(p(1-p)/n).

    >>> s = accuracy_score([0, 0, 0, 0], task="t", side="domain")
    >>> s.value, round(s.stderr, 3)
    (0.0, 0.153)
    """
    n, k = len(right), math.fsum(right)
    if n == 0:
        raise ValueError(f"no items to score for task '{task}'")
    share = (k + 2) / (n + 4)
    stderr = math.sqrt(share * (1 - share) / (n + 4))
    return Score(task=task, side=side, metric="accuracy", value=k / n, stderr=stderr, n=n, higher_is_better=True)


def ratio_score(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    task: str,
    side: Literal["domain", "general"],
    metric: str,
    higher_is_better: bool,
) -> Score:
    """Ratio of sums Σa/Σb with a standard error by item (linearised), for per-token figures over sequences.

    Tokens of one sequence are not independent, so the item is the sequence:
    se = √(n/(n-1) · Σ(aᵢ - R·bᵢ)²) / Σb (Cochran, Sampling Techniques, §6.3).
    """
    n, total = len(numerators), math.fsum(denominators)
    if n == 0 or total <= 0:
        raise ValueError(f"no tokens to score for task '{task}'")
    ratio = math.fsum(numerators) / total
    spread = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    stderr = math.sqrt(n / (n - 1) * spread) / total if n > 1 else None
    return Score(
        task=task,
        side=side,
        metric=metric,
        value=ratio,
        stderr=stderr,
        n=n,
        higher_is_better=higher_is_better,
    )


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the whole new one.

    Raises `OSError` where the directory cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` of `text` in UTF-8."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """`write_text_atomic` of `value` as strict JSON (NaN refused)."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(directory: Path, record: RunRecord) -> None:
    """Write `record.json` into the run directory, whole or not at all."""
    write_json_atomic(directory / RECORD_FILE, record.model_dump(mode="json"))


def read_record(directory: Path) -> RunRecord | None:
    """The run's record, or None where there is none. Raises `UserError` on a broken file."""
    path = directory / RECORD_FILE
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a run record: {str(error).splitlines()[0]}; delete it to run again") from error


def load_records(directories: Iterable[Path]) -> list[RunRecord]:
    """Every `record.json` at or below the given directories, in path order.

    Raises `UserError` where a directory is missing or none is found.
    """
    records: list[RunRecord] = []
    roots = list(directories)
    for root in roots:
        if not root.is_dir():
            raise UserError(f"no such directory: {root}; give a run or study directory")
        for path in sorted(root.rglob(RECORD_FILE)):
            record = read_record(path.parent)
            if record is not None:
                records.append(record)
    if not records:
        raise UserError(f"no {RECORD_FILE} under {', '.join(map(str, roots))}; run `gentletune train` first")
    return records
