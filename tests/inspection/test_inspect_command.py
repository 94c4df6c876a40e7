"""`gentletune inspect`: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers import run_cli


def run(monkeypatch: pytest.MonkeyPatch, tiny_dir: Path, *arguments: str) -> int:
    """The exit code of `gentletune inspect` on a few rows."""
    few = ["--model", str(tiny_dir), "--data", "clinic", "--train-rows", "5"]
    return run_cli(monkeypatch, "inspect", *few, *arguments)


def test_everything_at_once(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    outputs = [f"--{kind}={tmp_path / f'out.{kind}'}" for kind in ("html", "csv", "parquet", "json")]
    options = ["--rows", "4", "--threshold", "0.3", "--threshold", "0.0001", "--coloured", "1"]
    assert run(monkeypatch, tiny_dir, *outputs, *options) == 0
    said = capfd.readouterr()
    for part in (
        "share of tokens with p < 0.3", "label only", "By token class, CoT", "By place in the answer, label only",
        "effective size", "mask", "The hardest tokens, CoT", "the model would say",
    ):  # fmt: skip
        assert part in said.out
    assert "p < 0.5" not in said.out
    assert "wrote" in said.err
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (found["rows"], list(found["hard_share"])) == (4, ["0.0001", "0.3"])
    assert (tmp_path / "out.html").read_text(encoding="utf-8").count("<article>") == 2
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.DictReader(file)) == found["tokens"] + found["compared"]["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.html", "out.json", "out.parquet"]


def test_label_only_alone(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tiny_dir, "--no-cot", "--no-compare-cot") == 0
    out = capfd.readouterr().out
    assert "By token class, label only" in out
    assert "CoT" not in out


def test_refusals_come_before_the_model(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "is a directory; give a file to write": ["--html", str(tmp_path)],
        "two outputs go to one file": ["--csv", str(tmp_path / "a"), "--json", str(tmp_path / "a")],
        "No such option: --treshold (Possible options: ": ["--treshold", "0.1"],
        "thresholds must be probabilities": ["--threshold", "2"],
    }
    for message, arguments in cases.items():
        assert run(monkeypatch, tiny_dir, *arguments) == 2
        error = capfd.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
    assert list(tmp_path.iterdir()) == []
