"""benchmarks/gpu.py on a CPU: its cheapest part runs, is not run twice, and what a machine lacks is said."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def call(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, env=os.environ | {"OUT": str(out)}, capture_output=True, text=True, check=False)


def test_a_part_runs_once_and_its_errors_are_small(tmp_path: Path) -> None:
    first = call(tmp_path, "--cpu-dry-run", "--stage", "correctness")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("correctness: done, ")
    answer = json.loads((tmp_path / "cpu-dry-run" / "correctness.json").read_text())
    figures = answer["figures"]
    judged = [row for row in figures["rows"] if "ok" in row]
    assert figures["wrong"] == 0
    assert {row["backend"] for row in judged} >= {"reference", "chunked"}
    assert {row["loss"] for row in judged} >= {"sft", "talr, batch median", "talr, tau 1", "dft", "mask", "flow"}
    assert all(0 < row["gradient_error"] < 0.1 for row in judged)
    assert "torch" in answer["versions"]
    second = call(tmp_path, "--cpu-dry-run", "--stage", "correctness", "--minutes", "0.01")
    assert second.stdout.startswith("correctness: done before")
    later = call(tmp_path, "--cpu-dry-run", "--stage", "study", "--minutes", "0.01")
    assert later.stdout.count("not begun (no time is left; call again)") == 4
    assert (tmp_path / "cpu-dry-run" / "log.txt").read_text().count("\n") == 6


def test_without_a_gpu_it_says_what_does_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(SystemExit, match="no GPU is visible here; --cpu-dry-run runs the same code at tiny sizes"):
        script["machine_name"](dry=False)
    assert script["machine_name"](dry=True) == "cpu-dry-run"
