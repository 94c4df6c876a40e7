"""Sample answers of a run: what its tasks asked, and what the base and the tuned model answered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gentletune.core.records import RunRecord, Score, Side, write_text_atomic

SAMPLES_FILE = "samples.jsonl"
LIMIT = 100  # items kept of a task: people read tens, the scores hold all
_CUT = 600  # characters kept of a text
_RIGHT = ("accuracy", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")  # metrics that say right or wrong


class Sample(BaseModel):
    """One item: what was asked, the answer wanted, and the answers of both models.

    `right` is None where no metric of the task says right or wrong of one answer.
    """

    model_config = ConfigDict(frozen=True)

    task: str
    side: Side
    item: int
    prompt: str
    target: str
    base: str
    tuned: str
    base_right: bool | None = None
    tuned_right: bool | None = None


def write_samples(
    directory: Path, base: Sequence[Mapping[str, Any]], tuned: Sequence[Mapping[str, Any]], scores: Iterable[Score]
) -> None:
    """Write the first items of each task beside the run's record; `base` and `tuned` are an evaluation's samples.

    `scores` tell the side of each task. Items that only one model was asked are left out.
    """
    sides: dict[str, Side] = {score.task: score.side for score in scores}
    before = {(sample["task"], sample["doc_id"]): sample for sample in base}
    kept: dict[str, int] = {}
    lines = []
    for sample in tuned:
        task, item = sample["task"], sample["doc_id"]
        start = before.get((task, item))
        if start is None or kept.setdefault(task, 0) >= LIMIT:
            continue
        kept[task] += 1
        made = Sample(
            task=task,
            side=sides.get(task, "general"),
            item=item,
            prompt=_cut(sample["prompt"]),
            target=_chosen(sample, sample["target"]),
            base=_answer(start),
            tuned=_answer(sample),
            base_right=_right(start),
            tuned_right=_right(sample),
        )
        lines.append(made.model_dump_json() + "\n")
    write_text_atomic(directory / SAMPLES_FILE, "".join(lines))


def read_samples(record: RunRecord) -> list[Sample]:
    """The samples beside a record that `load_records` found; none where it has none, or the file is not readable."""
    path = record.directory / SAMPLES_FILE if record.directory else None
    if path is None or not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON leaves other line ends in an answer as they are
        return [Sample.model_validate(json.loads(line)) for line in lines if line]
    except (OSError, ValueError, RecursionError):
        return []


def _answer(sample: Mapping[str, Any]) -> str:
    """What a model wrote, or of several choices the one it holds likeliest."""
    found = sample["responses"][0] if len(sample["responses"]) == 1 else sample["responses"]
    if not isinstance(found, list) or not found:
        return _cut(found)
    if len(found) == 1 and isinstance(found[0], str):
        return _cut(found[0])
    try:
        likelihoods = [float(one[0][0] if isinstance(one[0], list) else one[0]) for one in found]
    except (TypeError, ValueError, IndexError):
        return _cut(found[0])
    return _chosen(sample, max(range(len(found)), key=likelihoods.__getitem__))


def _chosen(sample: Mapping[str, Any], place: Any) -> str:
    """The text of a choice by its place; anything else as it is."""
    choices = sample.get("choices", ())
    return _cut(choices[place] if isinstance(place, int) and 0 <= place < len(choices) else place)


def _right(sample: Mapping[str, Any]) -> bool | None:
    return next((bool(sample[name]) for name in _RIGHT if isinstance(sample.get(name), (bool, int, float))), None)


def _cut(value: Any) -> str:
    text = str(value).strip()
    return text if len(text) <= _CUT else f"{text[: _CUT // 2]} […] {text[-_CUT // 2 :]}"
