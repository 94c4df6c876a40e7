"""The examples run as a user would run them, on a tiny model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(
    script: Path, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_dir), "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert "loss" in capfd.readouterr().out
    if "Trainer" in script.read_text(encoding="utf-8"):
        assert list(tmp_path.glob("runs/*/model/model.safetensors"))
    if "report(" in script.read_text(encoding="utf-8"):
        assert list(tmp_path.glob("runs/*/report.html"))
        assert list(tmp_path.glob("runs/*/*/model/model.safetensors"))
