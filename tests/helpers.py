"""Small recipes and studies for the tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gentletune import Recipe, RunRecord


def tiny_recipe(model: Path, output: Path, **changes: Any) -> Recipe:
    """A run of a few seconds: 6 steps on 12 clinic notes, measured on a handful of rows."""
    fields: dict[str, Any] = {
        "model": str(model), "data": "clinic", "train_rows": 12, "max_steps": 6, "batch_size": 2, "learning_rate": 1e-2,
        "test_rows": 4, "domain_tokens": 8, "general_prompts": 5, "general_tokens": 6, "task_tokens": 6,
        "general_rows": 3, "tasks": ("arithmetic", "instructions"),
        "probe_every": 3, "probe_rows": 2, "save_every": 2, "output": str(output),
    }  # fmt: skip
    return Recipe.parse(fields | changes)


def tiny_study(model: Path, **changes: Any) -> dict[str, Any]:
    """Two methods at two rates, and an average that takes the weights of the first."""
    base = tiny_recipe(model, Path(), tasks=("arithmetic",), general_prompts=3, general_rows=2, test_rows=2)
    study: dict[str, Any] = {
        "base": base.model_dump(exclude={"method", "learning_rate", "output"}),
        "axes": {"method": ["sft", "talr"], "learning_rate": [1e-3, 1e-2]},
        "also": [{"method": "wise_ft(alpha=0.25)", "learning_rate": 1e-3}],
    }
    return study | changes


def edit_config(directory: Path, **changes: Any) -> None:
    """Change keys of a saved model's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def comparable(record: RunRecord) -> dict[str, Any]:
    """A record without what differs from run to run: times, memory and places."""
    kept = record.model_dump(mode="json", exclude={"timings", "created", "git_commit", "hardware"})
    kept["recipe"].pop("output")
    return kept | {"training": untimed(kept["training"])}


def untimed(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures of a training, or of a line of its log, without what differs from run to run."""
    return {k: v for k, v in figures.items() if k not in ("tokens_per_second", "mfu", "peak_memory_gib")}


def child_sweep(study: dict[str, Any], output: Path, cache: Path, threads: int = 1, **how: Any) -> None:
    """What a child process does: a sweep with a cache of its own."""
    import torch

    from gentletune import sweep

    os.environ["GENTLETUNE_CACHE"] = str(cache)
    torch.set_num_threads(threads)
    sweep(study, output, **how)
