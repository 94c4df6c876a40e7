"""benchmarks/gpu.py on a CPU: its cheapest part runs, is not run twice, goes on, and what a machine lacks is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gentletune.sandbox.host import Isolation

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the scripts, as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module


def call(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "gpu.py"), "--cpu-dry-run", "--work", str(folder / "work"), *options]
    environment = os.environ | {"OUT": str(folder / "out")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_part_runs_once_and_its_errors_are_small(tmp_path: Path) -> None:
    first = call(tmp_path, "--stage", "correctness")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("correctness: done, ")
    assert "(0 of 24 further from fp64 than plain bf16)" in first.stdout
    answer = json.loads((tmp_path / "out" / "results.json").read_text())["correctness"]
    figures = answer["figures"]
    judged = [row for row in figures["rows"] if "ok" in row]
    assert figures["wrong"] == 0
    assert {row["backend"] for row in judged} >= {"reference", "chunked"}
    assert {row["loss"] for row in judged} >= {"sft", "talr, batch median", "talr, tau 1", "dft", "mask", "flow"}
    assert all(0 < row["gradient_error"] < 0.1 for row in judged)
    assert "torch" in answer["versions"]
    (tmp_path / "out" / "results.json").unlink()  # a machine may keep no more than what calls share
    later = call(tmp_path, "--stage", "correctness", "study", "--minutes", "0.01")
    assert later.stdout.startswith("correctness: done before")
    assert later.stdout.count("not begun (no time is left; call again)") == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "log.txt"}
    assert (tmp_path / "out" / "log.txt").read_text().count("\n") == 5


def test_tests_go_on_where_they_were_cut_off(tmp_path: Path) -> None:
    file, seen = tmp_path / "test_some.py", tmp_path / "work" / "seen.txt"
    file.write_text(
        "import os, pytest\n"
        "def test_good():\n    assert 'SECOND' not in os.environ\n"
        "def test_bad():\n    assert 'SECOND' in os.environ\n"
        "def test_none():\n    pytest.skip()\n"  # of the made-up file: the third way a test may end
    )
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(SCRIPTS), "GPU_TESTS_SEEN": str(seen)}
    outcomes = []
    for more in ({}, {"SECOND": "1"}):
        command = [sys.executable, "-m", "pytest", "-p", "gpu_tests", "-p", "no:cacheprovider", "-c", os.devnull]
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")} | alone | more
        done = subprocess.run([*command, str(file)], cwd=tmp_path, env=variables, capture_output=True, check=False)
        outcomes.append((done.returncode, sorted(line.rpartition("::")[2] for line in seen.read_text().split("\n"))))
    assert [code for code, _ in outcomes] == [1, 0]
    assert outcomes[0][1] == outcomes[1][1] == ["", "test_bad", "test_good", "test_none"]
    assert sorted(line.split()[0] for line in seen.read_text().splitlines()) == ["passed", "passed", "skipped"]


def test_where_nothing_isolates_programs_humaneval_is_left_out_and_said(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, given = script("gpu_study"), script("gpu_parts").Given
    monkeypatch.setattr("gentletune.sandbox.host.probe_isolation", lambda: Isolation("none", "", "unshare: not here"))
    monkeypatch.setitem(study.TINY, "tasks", ["lab_skills", "humaneval"])
    score = {"task": "lab", "side": "domain", "metric": "accuracy", "value": 0.5, "stderr": None, "n": 4}
    record = {"training": {}, "timings": {}, "scores": [score], "base_scores": [score]}

    def run(command: list[str], **_: Any) -> Any:
        asked = json.loads(Path(command[-1]).read_text())
        Path(asked["output"]).mkdir()
        (Path(asked["output"]) / "record.json").write_text(json.dumps(record | {"asked": asked["tasks"]}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(study.subprocess, "run", run)
    found = study.study("sft", 1e-3, given(dry=True, seconds=60, work=tmp_path))
    assert found["told"] == "HumanEval is left out: nothing isolates programs here (unshare: not here)"
    assert found["recipe"]["tasks"] == ["lab_skills"]
    assert json.loads((tmp_path / "sft-0.001" / "record.json").read_text())["asked"] == ["lab_skills"]


def test_what_is_to_be_carried_is_what_the_other_machine_lacks(script: Any, tmp_path: Path) -> None:
    lacking = script("lacking").lacking

    def names(installed: dict[str, str]) -> set[str]:
        return {line.partition("==")[0].lower().replace("_", "-") for line in lacking(installed)}

    bare = names({"torch": "2.11.0", "numpy": "2.5.2", "transformers": "5.16.0"})
    assert {"trl", "datasets", "multiprocess", "pydantic", "pydantic-core", "lm-eval", "pytest"} <= bare
    assert "transformers" in bare  # too old
    assert not {"torch", "numpy", "triton"} & bare
    there = {name: version(name) for name in ("datasets", "lm-eval")}
    assert not {"datasets", "multiprocess"} & names({"torch": "2.11.0", **there})


def test_without_a_gpu_it_says_what_does_run(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu = script("gpu")
    with pytest.raises(SystemExit, match="no GPU is visible here; --cpu-dry-run runs the same code at tiny sizes"):
        gpu.machine_name(dry=False)
    assert gpu.machine_name(dry=True) == "cpu-dry-run"
