"""kill -9 at any moment, the same command again: the same weights, bit for bit."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from gentletune import Recipe
from gentletune.core.cache import file_digest
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import tiny_recipe


def run(recipe: Recipe) -> None:
    """What each child process does."""
    import torch

    from gentletune.runs.run import train

    torch.set_num_threads(1)
    train(recipe)


def finish(processes: Any, recipe: Recipe) -> Path:
    child = processes.Process(target=run, args=(recipe,))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    return Path(str(recipe.output))


def kill_at(processes: Any, recipe: Recipe, step: int, wait: float) -> bool:
    """Start the run, kill -9 it `wait` seconds after it logged `step`; False if it was done by then."""
    child = processes.Process(target=run, args=(recipe,))
    child.start()
    metrics = Path(str(recipe.output)) / "metrics.jsonl"
    while child.is_alive() and all(line["step"] < step for line in read_metrics(metrics)):
        time.sleep(0.002)
    child.join(wait)
    alive = child.is_alive()
    child.kill()
    child.join()
    return bool(alive)


@pytest.mark.parametrize(
    ("method", "kills"),
    [("talr(tau=lagged_median)+flow+l2", 3), ("talr+lora(r=4, dropout=0.1)+wise_ft", 2)],
)
def test_killed_and_continued_equals_uninterrupted(
    method: str, kills: int, processes: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    plain = tiny_recipe(tiny_dir, tmp_path / "plain", method=method, max_steps=12, train_rows=10, epochs=3)
    whole = finish(processes, plain)
    rng = random.Random(7)
    interrupted = 0
    for number in range(kills):
        recipe = plain.override({"output": str(tmp_path / f"killed-{number}")})
        for step in sorted(rng.sample(range(1, 12), 2)):  # the second kill hits the resumed run
            interrupted += kill_at(processes, recipe, step, rng.uniform(0, 0.1))
        again = finish(processes, recipe)
        for file in ("model/model.safetensors", "model/config.json"):
            assert file_digest(again / file) == file_digest(whole / file), f"{file} after kill {number}"
        assert json.loads((again / "record.json").read_text())["status"] == "complete"
        lines = {line["step"]: line["loss"] for line in read_metrics(again / "metrics.jsonl") if "loss" in line}
        expected = {line["step"]: line["loss"] for line in read_metrics(whole / "metrics.jsonl") if "loss" in line}
        assert lines == expected
        assert not list(again.glob(".*"))
    assert interrupted >= kills  # most kills hit a run that was still going
