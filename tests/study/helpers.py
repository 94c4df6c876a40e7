"""Small recipes for the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentletune import Recipe


def tiny_recipe(model: Path, output: Path, **changes: Any) -> Recipe:
    """A run of a few seconds: 6 steps on 12 clinic notes, measured on a handful of rows."""
    fields: dict[str, Any] = {
        "model": str(model), "data": "clinic", "train_rows": 12, "max_steps": 6, "batch_size": 2, "learning_rate": 1e-2,
        "test_rows": 4, "domain_tokens": 8, "general_prompts": 5, "general_tokens": 6, "task_tokens": 6,
        "general_rows": 3, "probe_every": 3, "probe_rows": 2, "save_every": 2, "output": str(output),
    }  # fmt: skip
    return Recipe.parse(fields | changes)
