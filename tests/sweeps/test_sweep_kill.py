"""kill -9 of a sweep at any moment, the same command again: the records of a study that nobody interrupted."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from gentletune.core.cache import file_digest
from gentletune.core.records import load_records
from gentletune.training.callbacks.metrics import read_metrics
from tests.helpers import child_sweep, comparable, tiny_study


def study_of(tiny_dir: Path) -> dict[str, Any]:
    study = tiny_study(tiny_dir)
    study["axes"]["method"] = ["talr", "flow"]
    study["also"] = [{"method": "talr+wise_ft(alpha=0.25)", "learning_rate": 1e-3}]
    study["base"] |= {"max_steps": 10, "save_every": 3}
    return study


def run_to_the_end(processes: Any, study: dict[str, Any], output: Path, cache: Path) -> None:
    child = processes.Process(target=child_sweep, args=(study, output, cache))
    child.start()
    child.join(300)
    assert child.exitcode == 0


def killed_at(processes: Any, study: dict[str, Any], output: Path, cache: Path, moment: float, wait: float) -> bool:
    """Kill it `wait` seconds after its progress reached `moment`; False if it was done by then."""
    child = processes.Process(target=child_sweep, args=(study, output, cache))
    child.start()
    while child.is_alive() and progress(output) < moment:
        time.sleep(0.002)
    child.join(wait)
    alive = child.is_alive()
    child.kill()
    child.join()
    return bool(alive)


def progress(output: Path) -> int:
    """Steps logged and trials measured: the same on every machine, however busy."""
    steps = sum("loss" in line for run in output.glob("*/metrics.jsonl") for line in read_metrics(run))
    return steps + len(list(output.glob("*/record.json")))


def outcome(output: Path) -> tuple[list[dict[str, Any]], list[str], list[list[float]]]:
    """What must be the same: the records, the weights bit for bit, the losses."""
    weights = sorted(output.glob("*/model/model.safetensors"))
    losses = [
        [line["loss"] for line in read_metrics(run) if "loss" in line] for run in sorted(output.glob("*/metrics.jsonl"))
    ]
    return [comparable(r) for r in load_records([output])], [file_digest(w) for w in weights], losses


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_continued_equals_uninterrupted(
    moments: int, processes: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_dir)
    run_to_the_end(processes, study, tmp_path / "whole", tmp_path / "cache-whole")
    records, weights, losses = outcome(tmp_path / "whole")
    assert [r["status"] for r in records] == ["complete"] * 5
    assert len(weights) == 5
    end = progress(tmp_path / "whole")
    rng = random.Random(moments)
    interrupted = 0
    for number in range(moments):
        output, cache = tmp_path / f"killed-{number}", tmp_path / f"cache-{number}"
        # One moment in each stretch of the study, so that no phase is left out.
        moment = end * (number + rng.random()) / moments
        interrupted += killed_at(processes, study, output, cache, moment, rng.uniform(0, 0.1))
        run_to_the_end(processes, study, output, cache)
        assert outcome(output) == (records, weights, losses), f"killed at {moment:.1f} of {end}"
        assert not list(output.glob("*/.*"))
    assert interrupted >= moments * 0.6


def test_at_most_the_steps_since_the_last_checkpoint_are_lost(processes: Any, tiny_dir: Path, tmp_path: Path) -> None:
    """A trial of 40 steps with a checkpoint every 3, killed in its middle, does not begin anew."""
    study = study_of(tiny_dir)
    study["axes"], study["also"] = {"learning_rate": [1e-3]}, []
    study["base"] |= {"max_steps": 40, "probe_every": 0}
    metrics = tmp_path / "study" / "sft-lr0.001" / "metrics.jsonl"
    child = processes.Process(target=child_sweep, args=(study, tmp_path / "study", tmp_path / "cache"))
    child.start()
    while child.is_alive() and all(line["step"] < 20 for line in read_metrics(metrics)):
        time.sleep(0.002)
    child.kill()
    child.join()
    reached = max(line["step"] for line in read_metrics(metrics))
    assert 20 <= reached < 40
    (kept,) = (int(p.name.partition("-")[2]) for p in metrics.parent.glob("checkpoints/checkpoint-*"))
    assert reached - kept <= 3 + 1  # the step under way may have been logged before its checkpoint was whole
    run_to_the_end(processes, study, tmp_path / "study", tmp_path / "cache")
    assert [line["step"] for line in read_metrics(metrics) if "loss" in line] == list(range(1, 41))
