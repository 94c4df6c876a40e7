"""A study file of the wrong shape, and what a search left broken, at the command line: one line each, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from gentletune.sweeps.plan import plan, read_study
from tests.cli.test_cli import refused, run, write

SEARCH = "search: {trials: 2, space: {tau: {low: 0.5, high: 2}}}\n"


@pytest.mark.parametrize(
    ("study", "words"),
    [
        ("base: lab", "base must be a mapping, such as base: {data: clinic}, got 'lab'"),
        ("base: [1]", "base must be a mapping"),
        (f"base: lab\n{SEARCH}", "base must be a mapping"),
        ("axes: [method, lr]", "axes must be a mapping, such as axes: {method: [sft], learning_rate: [1e-5]}, got"),
        ("axes: sft", "axes must be a mapping"),
        ("also: [sft, talr]", "also must be a list of mappings, such as also: [{method: talr, learning_rate: 1e-5}]"),
        ("also: sft", "also must be a list of mappings"),
        ("also: [null]", "also must be a list of mappings"),
        ("search: [1]", "search must be a mapping, such as search: {trials: 20, "),
        ("resources: 1", "resources must be a mapping, such as resources: {gpus: 1}, got 1"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--model", "lab"]])
def test_a_study_of_another_shape(
    study: str, words: str, more: list[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = write(tmp_path / "study.yaml", study)
    call = ["sweep", "-c", file, *more, "--output", str(tmp_path / "out"), "--dry-run", "--no-probe"]
    assert refused(monkeypatch, capfd, *call).startswith(f"gentletune: {file}: {words}")


def test_keys_without_a_value_say_nothing_and_the_model_goes_into_an_empty_base(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    write(file, "base:\naxes:\nalso:\nsearch:\nresources:\nkeep_models:\n")
    assert [trial.recipe.model for trial in plan(read_study(file, "lab"), tmp_path)] == ["lab"]


def test_a_search_may_leave_out_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "study.yaml", "base:\nsearch: {trials: 1, space: {lr: [1e-5]}}\n")
    assert "no data; give data" in refused(monkeypatch, capfd, "sweep", "-c", file, "--output", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("content", "words"),
    [("[]", "no mapping of keys to values"), ("{", "Expecting"), ('{"learning_rate": 1e-5}', "no value for 'tau'")],
)
def test_a_broken_question_of_a_search(
    content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "study.yaml", f'base: {{data: clinic, method: "talr(tau={{tau}})"}}\n{SEARCH}')
    call = ["sweep", "-c", file, "--output", str(tmp_path / "out"), "--dry-run", "--no-probe"]
    assert run(monkeypatch, *call) == 0
    (tmp_path / "out" / ".search").mkdir(parents=True)
    question = tmp_path / "out" / ".search" / "000.json"
    write(question, content)
    capfd.readouterr()
    error = refused(monkeypatch, capfd, *call)
    assert error.startswith(f"gentletune: {question} is broken ({words}")
    assert error.endswith("; delete it and those after it to ask again")
