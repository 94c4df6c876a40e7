"""Small recipes and studies for the tiny model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gentletune import Recipe, RunRecord

if TYPE_CHECKING:
    import torch


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


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `gentletune ARGUMENTS`, in this process."""
    from gentletune.cli import main

    monkeypatch.setattr(sys, "argv", ["gentletune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


class StoppedError(Exception):
    """A kill, as the training sees it."""


def assert_same(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """The model's parameters are these, bit for bit."""
    import torch

    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        assert torch.equal(parameters[name], value), name


def saved_weights(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved model."""
    from safetensors.torch import load_file

    return dict(load_file(directory / "model.safetensors"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> str:
    """A row a line; the path as text, as a recipe takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, such as a saved model's config.json."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


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
