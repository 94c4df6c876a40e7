"""Chats, and what of them is a label."""

from __future__ import annotations

from typing import Any

from gentletune.data.encode import IGNORE, Encoded


def chat(turns: list[tuple[str, str]]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def spans(row: Encoded, tokenizer: Any) -> list[str]:
    """The text of each unbroken run of labels."""
    runs: list[list[int]] = []
    for i, label in enumerate(row.labels):
        if label == IGNORE:
            continue
        assert label == row.input_ids[i]
        if i and row.labels[i - 1] != IGNORE:
            runs[-1].append(label)
        else:
            runs.append([label])
    return [tokenizer.decode(run) for run in runs]
