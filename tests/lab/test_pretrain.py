"""A base model is made from its seed alone, and the packaged one can do what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gentletune.core.cache import file_digest
from gentletune.data.encode import encode_row
from gentletune.lab import SKILLS, skill_examples
from gentletune.lab.pretrain import CONTEXT, encoded
from gentletune.lab.tokenizer import make_tokenizer
from gentletune.lm.loaded import load_model, load_tokenizer
from tests.helpers import run_cli

TINY = ("--steps", "3", "--batch", "22", "--layers", "1")


def test_a_seed_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {}
    for name, seed in (("once", "3"), ("again", "3"), ("other", "4")):
        assert run_cli(monkeypatch, "lab", "pretrain", "--output", str(tmp_path / name), "--seed", seed, *TINY) == 0
        weights[name] = file_digest(tmp_path / name / "model.safetensors")
    assert weights["once"] == weights["again"] != weights["other"]


def test_a_base_of_another_width_is_a_model_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    assert run_cli(monkeypatch, "lab", "pretrain", "--output", str(base), "--width", "24", *TINY) == 0
    assert load_model(base).config.hidden_size == 24
    output = ["--output", str(tmp_path / "run"), "--json", str(tmp_path / "scores.json")]
    scores = ["--tasks", "lab_sort", "--limit", "5"]
    assert run_cli(monkeypatch, "evaluate", "--model", str(base), *scores, *output[2:]) == 0
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert [(score["task"], score["n"]) for score in found["scores"]] == [("lab_sort", 5)]


def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, told in (
        (["--output", str(tmp_path / "full")], "is not empty; give another directory"),
        (["--output", str(tmp_path / "new"), "--width", "25"], "width 25 is no multiple of 24"),
    ):
        assert run_cli(monkeypatch, "lab", "pretrain", *arguments) == 2
        assert told in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_packaged_model_has_its_skills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / "scores.json"
    asked = ["--tasks", "lab_skills", "--general-rows", "60", "--json", str(found)]
    assert run_cli(monkeypatch, "evaluate", "--model", "lab", *asked) == 0
    scores = json.loads(found.read_text(encoding="utf-8"))["scores"]
    asked_of = {score["task"]: (score["n"], score["value"] > 0.95) for score in scores if score["task"] in SKILLS}
    assert asked_of == dict.fromkeys(SKILLS, (60, True))


def test_info_names_every_skill(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "lab", "info") == 0
    said = capfd.readouterr().out
    assert [name for name in SKILLS if name not in said] == []
    assert "lab(formulas=20, hard=0.5, noise=0.0, wrong=0.0)" in said


def test_pretraining_sees_the_rows_that_fine_tuning_sees() -> None:
    tokenizer = make_tokenizer(CONTEXT)
    rows = [row for name in SKILLS for row in skill_examples(name, 10, seed=1, split="train")]
    assert encoded(rows, tokenizer) == [encode_row(row.row(), tokenizer) for row in rows]


def test_a_number_is_not_a_list_of_its_digits() -> None:
    tokenizer = load_tokenizer(Path(__file__).parents[2] / "src" / "gentletune" / "lab" / "base")
    for text in ("what is 47 plus 138", "sort 4 7 1 3 8", "note p 5 q 1 . explain balax"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
