"""A finished study, asked for again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import gentletune.sweeps.sweep
from gentletune.core.records import RECORD_FILE, load_records
from gentletune.sweeps import settled
from tests.helpers import run_cli, tiny_study

ROW = '{"question": "Say %d.", "answer": "%d"}\n'


@pytest.fixture(scope="module")
def finished(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a complete study, made by the command."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_dir, folder / "model")
    (folder / "mine.jsonl").write_text("".join(ROW % (i, i) for i in range(20)))
    study = tiny_study(folder / "model")
    study["base"] |= {"data": None, "data_path": str(folder / "mine.jsonl")}
    study["axes"] = {"method": ["sft"], "learning_rate": [1e-3]}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    assert _sweep(folder) == 0
    return folder


def _sweep(folder: Path) -> int:
    """The exit code of `gentletune sweep`."""
    with pytest.MonkeyPatch.context() as patch:
        return run_cli(patch, "sweep", "-c", str(folder / "study.yaml"), "--output", str(folder / "out"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the sweep itself, which does nothing here."""
    asked: list[Any] = []

    def sweep(study: Any, output: Path, **_: Any) -> list[Any]:
        asked.append(study)
        return load_records([output])

    monkeypatch.setattr(gentletune.sweeps.sweep, "sweep", sweep)
    return asked


def test_a_finished_study_is_told_without_running_it(
    finished: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _sweep(finished) == 0
    assert runs == []
    said = capsys.readouterr()
    assert "2 of 2 trials complete" in said.err
    assert "afe choice" in said.out


@pytest.mark.parametrize("changed", ["mine.jsonl", "model/model.safetensors", "study.yaml", "record", "gone"])
def test_anything_that_changed_runs_it(finished: Path, runs: list[Any], tmp_path: Path, changed: str) -> None:
    record = finished / "out" / "sft-lr0.001" / RECORD_FILE
    path = {"record": record, "gone": record}.get(changed, finished / changed)
    before = path.read_bytes()
    try:
        if changed == "gone":
            path.unlink()
        elif changed == "study.yaml":
            path.write_text(path.read_text() + "keep_models: false\n")
        else:
            path.write_bytes(before)  # as large as before, at another time
        _sweep(finished)
        assert len(runs) == 1
    finally:
        path.write_bytes(before)


def test_an_edited_checkout_runs_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    copy = tmp_path / "gentletune"
    shutil.copytree(settled.SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    monkeypatch.setattr(settled, "SOURCE", copy)
    assert _sweep(finished) == 0  # noted for this copy
    runs = request.getfixturevalue("runs")
    _sweep(finished)
    assert runs == []
    source = copy / "evaluation" / "scoring.py"
    source.write_text(source.read_text() + "\n")
    _sweep(finished)
    assert len(runs) == 1


def test_a_model_that_is_gone_costs_no_result_that_is_there(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished / "out" / "sft-lr0.001" / RECORD_FILE
    before = record.read_bytes()
    (finished / "model").rename(finished / "elsewhere")
    try:
        assert _sweep(finished) != 0
    finally:
        (finished / "elsewhere").rename(finished / "model")
    assert record.read_bytes() == before
    assert "no such model directory" in capsys.readouterr().err
