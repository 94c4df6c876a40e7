"""A domain is one file: registered here, it trains, evaluates and inspects through the doors users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gentletune import train
from gentletune.core.errors import UserError
from gentletune.data import Answer, Domain, Example, domain_names, domains, register_domain
from gentletune.evaluation.scoring import is_right, said
from tests.helpers import run_cli

from ..helpers import tiny_recipe

COLOURS = ("red", "green")


def paint(row: Any, *, cot: bool, where: str) -> Example:
    """A row `{"thing": …, "colour": …}` as an example."""
    if row.get("colour") not in COLOURS:
        raise UserError(f"{where}: unknown colour '{row.get('colour')}'")
    answer = Answer("choice", row["colour"], domain="paint")
    said = f"It is {row['colour']}.\nAnswer: {row['colour']}" if cot else row["colour"]
    return Example(f"What colour is {row['thing']}?", said, answer, group=row["thing"], category=row["colour"])


def colour(text: str, first: bool) -> str | None:
    named = [word.strip(".") for word in text.lower().split() if word.strip(".") in COLOURS]
    return named[0 if first else -1] if named else None


def groups(train_rows: Any, test_rows: Any) -> set[str]:
    return {row["thing"] for row in train_rows} & {row["thing"] for row in test_rows}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The domain `paint`, for one test, and its official files."""
    monkeypatch.setattr(domains, "_DOMAINS", dict(domains._DOMAINS))
    official = {"train": ("paint/train.jsonl",), "test": ("paint/test.csv", "paint/test.jsonl")}
    register_domain(
        Domain(
            "paint", example=paint, files=official, shared=groups, read=colour, metric="balanced_accuracy",
            both_completions=True, skills=("colours",),
        )
    )  # fmt: skip
    (tmp_path / "paint").mkdir()
    for name, numbers in (("train", range(12)), ("test", range(10, 16))):
        rows = [json.dumps({"thing": f"thing {i}", "colour": COLOURS[i % 2]}) for i in numbers]
        (tmp_path / "paint" / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_it_trains_and_is_measured(files: Path, tiny_dir: Path) -> None:
    where = {"data_path": str(files / "paint" / "train.jsonl"), "test_path": str(files / "paint" / "test.jsonl")}
    small = {"max_steps": 2, "train_rows": None, "test_rows": 6, "probe_every": 0, "tasks": ()}
    record = train(tiny_recipe(tiny_dir, files / "run", data="paint", **where, **small))
    assert record.status == "complete"
    assert record.data["dropped_leaked"] == 2  # thing 10 and thing 11
    score = record.score("paint/balanced_accuracy")
    assert score is not None
    assert (score.side, score.n) == ("domain", 6)
    assert record.score("paint/bits_per_token") is not None


def test_it_is_a_task(files: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model", str(tiny_dir), "--tasks", "paint", "--task-data", str(files), "--max-gen-toks", "2"]
    assert run_cli(monkeypatch, "evaluate", *options, "--drop-leaked", "--json", str(files / "scores.json")) == 0
    text = (files / "scores.json").read_text(encoding="utf-8")
    (score,) = (s for s in _scores(json.loads(text)) if s["task"] == "paint")
    assert (score["metric"], score["side"], score["n"]) == ("balanced_accuracy", "domain", 4)
    assert (score["details"]["leaked_notes"], score["details"]["leaked_items"]) == (2, 2)


def _scores(value: Any) -> list[dict[str, Any]]:
    """Every score in what was written, wherever it is."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    here = [value] if isinstance(value, dict) and "metric" in value and "task" in value else []
    return here + [score for part in parts for score in _scores(part)]


def test_inspect_looks_at_both_completions(files: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["--data", "paint", "--data-path", str(files / "paint" / "train.jsonl"), "--train-rows", "3"]
    assert run_cli(monkeypatch, "inspect", "--model", str(tiny_dir), *rows, "--json", str(files / "found.json")) == 0
    found = json.loads((files / "found.json").read_text(encoding="utf-8"))
    assert (found["name"], found["compared"]["name"]) == ("CoT", "label only")


def test_its_choices_are_read_by_its_own_words(files: Path) -> None:
    answer = Answer("choice", "red", domain="paint")
    assert is_right("Not green but\nAnswer: red.", answer)
    assert said("red or green", answer) == "green"
    assert said("E", answer) is None
    register_domain(Domain("paint", example=paint))
    with pytest.raises(UserError, match="domain 'paint' has answers to choose from and no `read`"):
        said("red", answer)
    with pytest.raises(ValueError, match="the choice 'red' names no domain"):
        Answer("choice", "red")


def test_what_is_told_of_a_domain(files: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert domain_names() == sorted(domain_names())
    assert {"clinic", "esci", "helpdesk", "lab", "medcalc", "paint"} <= set(domain_names())
    for choice in ({}, {"example": paint, "generate": lambda *_, **__: []}):
        with pytest.raises(ValueError, match="domain 'none' needs generate or example"):
            Domain("none", **choice)
    assert run_cli(monkeypatch, "train", "--model", str(tiny_dir), "--data", "pain", "--output", str(files / "o")) == 2
    assert "did you mean 'paint'" in capfd.readouterr().err
    register_domain(Domain("bare", example=paint))
    assert run_cli(monkeypatch, "evaluate", "--model", str(tiny_dir), "--tasks", "bare") == 2
    assert "task 'bare': the domain has no official test file" in capfd.readouterr().err


def test_skills_are_kept() -> None:
    assert domains.domain("clinic").skills == domains.domain("medcalc").skills == ("arithmetic",)
    assert domains.domain("esci").skills == ()
