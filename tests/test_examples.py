"""The examples run as a user would run them, on a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(script: Path, tiny_dir: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_dir), "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss" in done.stdout
    if "Trainer" in script.read_text(encoding="utf-8"):
        assert list(tmp_path.glob("runs/*/model/model.safetensors"))
