"""`gentletune research theory verify`: its table, its file and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gentletune.research import RiseBound, Tuning
from gentletune.research.theory import bounds
from tests.helpers import run_cli


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_cli(monkeypatch, "research", "theory", *arguments)


def test_verify_prints_a_table_and_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "verify.json"
    assert command(monkeypatch, "verify", "--trees", "30", "--seed", "2", "--json", str(path)) == 0
    out = capfd.readouterr().out
    assert "30 random trees, seed 2" in out
    assert "violations" in out
    found = json.loads(path.read_text())
    assert (found["trees"], found["seed"]) == (30, 2)
    assert {finding["statement"].split()[0] for finding in found["findings"]} >= {"Proposition:", "1a", "1b", "2"}
    assert sum(finding["violations"] for finding in found["findings"]) == 0


def test_verify_fails_on_a_counterexample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    true_bound = bounds.rise_bound

    def broken(tuning: Tuning) -> RiseBound:
        bound = true_bound(tuning)
        return RiseBound(bound.linear, 0.5 * bound.quadratic)

    monkeypatch.setattr(bounds, "rise_bound", broken)
    path = tmp_path / "verify.json"
    assert command(monkeypatch, "verify", "--trees", "50", "--json", str(path)) == 1
    error = capfd.readouterr().err
    assert "VIOLATED: 1a rise" in error
    assert "--seed 0 --trees" in error.replace("\n", " ")
    assert any(finding["counterexample"] for finding in json.loads(path.read_text())["findings"])


@pytest.mark.parametrize("option", [("--trees", "0"), ("--trees", "many"), ("--seed", "-1")])
def test_bad_numbers_are_refused_in_one_line(
    option: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "verify", *option) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("gentletune: ")
    assert option[0] in error
    assert "\n" not in error


def test_the_command_is_light_to_import() -> None:
    code = (
        "import sys, gentletune.cli.research;print('torch' in sys.modules, 'gentletune.research.theory' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
