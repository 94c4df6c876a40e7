"""Rows longer than max_length: dropped or cut, their labels alike, and counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import gentletune.lm.loaded
from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.data import encode_row, encode_rows
from gentletune.data.encode import IGNORE
from gentletune.lm.loaded import ROW_LENGTH, Loaded
from gentletune.runs.inputs import Inputs
from tests.cli.test_cli import run
from tests.helpers import edit_json, write_jsonl

LONG, LAST = "word " * 30, "The end."
CHAT = {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": LAST}]}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": LONG}]}
SHORT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def test_the_left_goes_and_labels_with_it(tokenizer: Any) -> None:
    whole = encode_row(CHAT, tokenizer)
    found = encode_rows([SHORT, CHAT], tokenizer, max_length=40, truncate="left")
    cut = found.rows[1]
    assert (cut.input_ids, cut.labels) == (whole.input_ids[-40:], whole.labels[-40:])
    assert tokenizer.decode([i for i in cut.labels if i != IGNORE]).endswith(f"{LAST}<|im_end|>")
    assert found.counts == {"rows": 2, "dropped_too_long": 0, "dropped_no_label": 0, "truncated": 1}


def test_the_right_goes_and_a_row_without_a_label_left_is_dropped(tokenizer: Any) -> None:
    whole = encode_row(TALK, tokenizer)
    found = encode_rows([SHORT, CHAT, TALK], tokenizer, max_length=40, truncate="right")
    assert found.kept == [0, 2]
    assert (found.rows[1].input_ids, found.rows[1].labels) == (whole.input_ids[:40], whole.labels[:40])
    assert found.counts == {"rows": 2, "dropped_too_long": 0, "dropped_no_label": 1, "truncated": 1}
    dropped = encode_rows([SHORT, CHAT, TALK], tokenizer, max_length=40)
    assert (dropped.kept, dropped.counts) == ([0], {"rows": 1, "dropped_too_long": 2, "dropped_no_label": 0})
    with pytest.raises(UserError, match="0 longer than max_length 40 tokens, 1 without a label token"):
        encode_rows([CHAT], tokenizer, max_length=40, truncate="right")


def test_a_cut_that_leaves_one_label_that_nothing_predicts_drops_the_row(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="without a label token"):
        encode_rows([{"text": LONG}], tokenizer, max_length=1, truncate="left")


def test_a_run_cuts_as_its_recipe_says(tiny_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n}? {LONG}"}, SHORT["messages"][1]]} for n in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    quick: dict[str, Any] = {"max_steps": 1, "batch_size": 2, "evaluate": False, "probe_every": 0, "test_rows": 1}
    recipe = Recipe(model=str(tiny_dir), data=str(file), output=str(tmp_path / "run"), max_length=40, **quick)
    with pytest.raises(UserError, match="no row left to use: 5 longer than max_length 40"):
        train(recipe)
    record = train(recipe.override({"truncate": "left"}))
    assert record.data["train"] == {"rows": 5, "dropped_too_long": 0, "dropped_no_label": 0, "truncated": 5}


def test_a_line_says_how_many_rows_were_longer(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [TALK if n < 3 else SHORT for n in range(5)]
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}, row["messages"][1]]} for n, row in enumerate(rows)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(SHORT), encoding="utf-8")
    call = ["train", "--model", str(tiny_dir), "--data", str(file), "--test-path", str(held), "--max-length", "40",
            "--max-steps", "1", "--no-evaluate", "--probe-every", "0", "--output"]  # fmt: skip
    assert run(monkeypatch, *call, str(tmp_path / "run"), "--truncate", "left") == 0
    told = "3 of 5 training rows are longer than 40 tokens and"
    assert f"{told} cut on the left; max_length raises that\n" in capfd.readouterr().err
    dropping = Recipe(model=str(tiny_dir), data=str(file), test_path=str(held), max_length=40, evaluate=False)
    assert Inputs(dropping).longer == [f"{told} left out (truncate: left or right cuts them); max_length raises that"]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_held_out_rows_that_are_too_long_are_told_of(
    command: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}, SHORT["messages"][1]]} for n in range(5)]
    data, held = write_jsonl(tmp_path / "rows.jsonl", chats), write_jsonl(tmp_path / "t.jsonl", [TALK, SHORT, CHAT])
    call = [command, "--model", str(tiny_dir), "--data", data, "--test-path", held, "--max-length", "40"]
    more = ["--max-steps", "1", "--no-evaluate", "--probe-every", "0", "--output", str(tmp_path / "run")]
    if command == "evaluate":
        more = ["--base", str(tiny_dir), "--tasks", "", "--general-prompts", "2", "--domain-tokens", "4"]
    assert run(monkeypatch, *call, *more) == 0
    assert "2 of 3 held-out rows are longer than 40 tokens and left out" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_rows_beyond_the_models_context_are_told_what_helps(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{n} " * 200, "completion": "1"} for n in range(6)]
    call = [command, "--model", "lab", "--data", write_jsonl(tmp_path / "long.jsonl", rows)]
    assert run(monkeypatch, *call, *(["--output", str(tmp_path / "run")] if command == "train" else [])) == 2
    said = capfd.readouterr().err
    assert "longer than max_length 128 tokens" in said
    assert "truncate: left or right cuts longer ones, max_length keeps them up to the model's context" in said
    assert "Token indices sequence length" not in said


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "lab"], "task 'lab': answers of 160 tokens leave no room for a question in a context of 128;"),
        (["--data", "lab"], "; give domain_tokens 107 or less"),
        (["--data", "lab", "--domain-tokens", "9", "--tasks", "arithmetic", "--task-tokens", "128"],
         "task 'arithmetic': answers of 128 tokens leave no room for a question in a context of 128; give"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_answers_as_long_as_the_context_are_refused_before_anything_is_measured(
    flags: list[str], words: str, command: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gentletune.lm.loaded, "load_model", None)
    more = ["--output", str(tmp_path / "run")] if command == "train" else ["--base", "lab"]
    assert run(monkeypatch, command, "--model", "lab", *flags, *more) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_rows_have_a_length_that_a_step_can_hold_unless_more_is_asked_for(tiny_dir: Path, tmp_path: Path) -> None:
    assert Loaded(str(tiny_dir)).encoding["max_length"] == 512  # the model's context
    model = Path(shutil.copytree(tiny_dir, tmp_path / "copy"))
    edit_json(model / "config.json", max_position_embeddings=131072)
    base = Loaded(str(model))
    assert (base.max_length, base.encoding["max_length"]) == (131072, ROW_LENGTH)
    assert Loaded(str(model), max_length=10_000).encoding["max_length"] == 10_000
