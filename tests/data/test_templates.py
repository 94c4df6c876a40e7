"""Chats under every template that TRL ships: which tokens are labels, on which day, and what is saved."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as rendering
from transformers import AutoTokenizer
from trl.chat_template_utils import get_training_chat_template

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.data import encode_prompt, encode_row
from gentletune.data.chat import end_tokens
from gentletune.data.encode import IGNORE
from gentletune.data.templates import (
    has_marks,
    prompted_hash,
    set_chat_template,
    training_template,
    trl_templates,
    with_date,
)
from tests.conftest import CHATML, make_tokenizer
from tests.data.chats import chat, spans
from tests.data.families import FAMILIES, beyond, trl_mask
from tests.helpers import edit_json

DATE = "2024-07-26"
SHIPPED = sorted(name for name in trl_templates() if not name.endswith("_training"))
PARTS = ("idefics3", "llava_next", "smolvlm")  # contents as lists of parts, which TRL makes in processors only
CHATS: dict[str, list[tuple[str, str]]] = {
    "one turn": [("user", "Weight 70 kg?"), ("assistant", "70 kg.")],
    "two turns": [("user", "BMI?"), ("assistant", "22.9"), ("user", "22.9"), ("assistant", "Yes.")],
    "system": [("system", "Be brief."), ("user", "BMI?"), ("assistant", "22.9"), ("user", "?"), ("assistant", "No.")],
    "open at the end": [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
}


def parts(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def test_the_table_has_every_template_that_trl_ships() -> None:
    assert sorted(FAMILIES) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_variant_to_train_with_is_trls(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    speaking.chat_template = bare = trl_templates()[name]
    try:
        theirs = get_training_chat_template(speaking) or bare
    except ValueError:  # one that TRL ships and does not patch
        theirs = bare
    assert training_template(bare) == theirs


@pytest.mark.parametrize("turns", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_assistants_turns_with_their_end(
    every_token: Any, name: str, turns: list[tuple[str, str]]
) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    family, row = FAMILIES[name], chat(turns)
    if turns[0][0] == "system" and not family.system:
        with pytest.raises(UserError, match="the chat template refuses a row of system, user"):
            encode_row(row, speaking)
        return
    found = encode_row(row, speaking)
    expected = [family.turn.format(content) for role, content in turns if role == "assistant"]
    if turns[-1][0] == "assistant" and family.last:
        expected[-1] = family.last.format(turns[-1][1])
    assert spans(found, speaking) == expected
    ids, mask = trl_mask(parts(row["messages"]) if name in PARTS else row["messages"], speaking)
    assert found.input_ids == ids
    if has_marks(training_template(speaking.chat_template)):
        assert beyond(found, mask, speaking) <= family.more


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_begins_the_row_where_the_family_promises_it(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    family = FAMILIES[name]
    prompt, row = encode_prompt("BMI?", speaking), encode_row({"prompt": "BMI?", "completion": "22.9"}, speaking)
    begins = row.input_ids[: len(prompt)] == prompt
    assert begins == family.prompt
    if begins:
        assert set(row.labels[: len(prompt)]) == {IGNORE}
        assert row.labels[len(prompt)] != IGNORE


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_where_the_last_turn_does(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    family = FAMILIES[name]
    row = encode_row(chat(CHATS["two turns"]), speaking)
    last = next(label for label in reversed(row.labels) if label != IGNORE)
    assert end_tokens(speaking) == {speaking.eos_token_id, last}
    assert (family.last or family.turn).endswith(speaking.decode([last]))


THOUGHTS = {
    "gemma4_v5": ["A.<turn|>", "<|channel>thought\nHm two.\n<channel|>B.<turn|>"],
    "glm4moe": ["\n<think></think>\nA.<|user|>", "\n<think>Hm two.</think>\nB.<|user|>"],
    "gptoss": [
        "<|channel|>final<|message|>A.<|end|>",
        "<|channel|>analysis<|message|>Hm two.<|end|><|start|>assistant<|channel|>final<|message|>B.<|return|>",
    ],
    "nemotron_3_nano": ["</think>\nA.<|im_end|>", "Hm two.\n</think>\nB.<|im_end|>"],
    "qwen3": ["<think>\nHm one.\n</think>\n\nA.<|im_end|>", "<think>\nHm two.\n</think>\n\nB.<|im_end|>"],
    "qwen3_5_think": ["Hm one.\n</think>\n\nA.<|im_end|>", "Hm two.\n</think>\n\nB.<|im_end|>"],
}


@pytest.mark.parametrize(("name", "expected"), THOUGHTS.items(), ids=THOUGHTS)
def test_thoughts_are_labels_where_they_are_rendered(every_token: Any, name: str, expected: list[str]) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    messages = chat([("user", "a?"), ("assistant", "A."), ("user", "b?"), ("assistant", "B.")])["messages"]
    messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "Hm one.", "Hm two."
    assert spans(encode_row({"messages": messages}, speaking), speaking) == expected


# --- the date

DATED = ("gptoss", "llama3_2", "muse_glimmer")
CLOCK = ("%d %b %Y", "%A %-d %B %y, %j", "%F %H:%M:%S", "%a %m/%d")


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the day that transformers takes for today."""

    def say(day: str) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromisoformat(day)

        monkeypatch.setattr(rendering, "datetime", Clock)

    return say


@pytest.mark.parametrize("name", DATED)
def test_a_row_is_the_same_on_any_day(every_token: Any, name: str, today: Callable[[str], None]) -> None:
    row = {"messages": chat(CHATS["one turn"])["messages"]}
    found = []
    for day in ("2031-05-06", "2032-07-08"):
        today(day)
        fixed = set_chat_template(every_token, name, DATE)
        found.append((encode_row(row, fixed), encode_prompt("BMI?", fixed)))
    assert found[0] == found[1]
    assert "2024" in fixed.decode(found[0][0].input_ids)
    assert encode_row(row, set_chat_template(every_token, name, "2025-01-02")) != found[0][0]


@pytest.mark.parametrize("variant", [name for name in trl_templates() if name.startswith((*DATED, "llama3_1"))])
def test_a_fixed_date_is_as_if_it_were_that_day(every_token: Any, variant: str, today: Callable[[str], None]) -> None:
    today("2025-03-04")
    messages, own = chat(CHATS["two turns"])["messages"], trl_templates()[variant]
    every_token.chat_template = own
    for prompt in (False, True):
        how = {"tokenize": False, "add_generation_prompt": prompt}
        expected = every_token.apply_chat_template(messages, **how)
        if variant == "llama3_1":  # it does not look at the clock
            expected = expected.replace("26 Jul 2024", "04 Mar 2025")
        dated = every_token.apply_chat_template(messages, chat_template=with_date(own, "2025-03-04"), **how)
        assert dated == expected


@pytest.mark.parametrize("day", ["2024-02-29", "2026-12-01"])
@pytest.mark.parametrize("form", CLOCK)
def test_every_way_to_write_a_day(every_token: Any, form: str, day: str) -> None:
    every_token.chat_template = with_date("{{ strftime_now('" + form + "') }}", day)
    text = every_token.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == datetime.datetime.fromisoformat(day).strftime(form)


@pytest.mark.parametrize("name", [name for name in SHIPPED if not name.startswith((*DATED, "llama3_1"))])
def test_a_template_without_a_date_stays_as_it_is(name: str) -> None:
    assert with_date(trl_templates()[name], DATE) == trl_templates()[name]


@pytest.mark.parametrize(("name", "counts"), [("llama3_2", True), ("gptoss", True), ("qwen3", False)])
def test_the_date_counts_where_it_is_printed(every_token: Any, name: str, counts: bool) -> None:
    one, other = (prompted_hash("model", set_chat_template(every_token, name, day)) for day in (DATE, "2025-01-02"))
    assert (one != other) == counts
    assert one != prompted_hash("model", set_chat_template(every_token, "phi3", DATE))
    assert one != prompted_hash("other", set_chat_template(every_token, name, DATE))


# --- templates of the user's own


def test_a_template_is_a_file_a_name_or_jinja(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML, encoding="utf-8")
    for given, expected in ((str(file), CHATML), (CHATML, CHATML), ("qwen3", trl_templates()["qwen3"])):
        assert set_chat_template(make_tokenizer(None), given, DATE).chat_template == expected
    assert set_chat_template(make_tokenizer(None), None, DATE).chat_template is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nowhere/mine.jinja", "no such file: nowhere/mine.jinja"),
        ("qwen33", "did you mean 'qwen3"),
        ("{% for m in messages %}\n{{ m['content'] }}\n{% endif %}", "line 3: broken Jinja"),
    ],
)
def test_a_template_that_is_none_is_one_line(given: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        set_chat_template(make_tokenizer(CHATML), given, DATE)
    assert "\n" not in str(caught.value)


def test_a_variant_that_trl_does_not_know_is_labelled_as_it_renders() -> None:
    """Qwen3's template, changed: no marks, and a thought only in the last turn."""
    tokenizer = make_tokenizer(trl_templates()["qwen3"] + "{# mine #}")
    found = encode_row(chat(CHATS["system"]), tokenizer)
    assert spans(found, tokenizer) == ["22.9<|im_end|>", "<think>\n\n</think>\n\nNo.<|im_end|>"]
    assert tokenizer.decode(found.input_ids).count("<think>") == 1


PLAIN = "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"


def test_where_nothing_ends_the_last_turn_the_end_token_does() -> None:
    tokenizer = make_tokenizer(PLAIN + "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}")
    found = encode_row(chat(CHATS["two turns"]), tokenizer)
    assert spans(found, tokenizer) == ["22.9\n", "Yes.\n<|im_end|>"]
    assert found.input_ids[-1] == tokenizer.eos_token_id
    assert spans(encode_row(chat(CHATS["open at the end"]), tokenizer), tokenizer) == ["b\n", "d\n"]


def test_a_tokenizer_with_a_template_for_tools_has_two() -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = {"default": CHATML, "tool_use": trl_templates()["llama3_2"]}
    set_chat_template(tokenizer, None, "2025-01-02")
    row = chat(CHATS["one turn"])
    assert spans(encode_row(row, tokenizer), tokenizer) == ["70 kg.<|im_end|>"]
    tool = {"type": "function", "function": {"name": "bmi", "parameters": {}}}
    text = tokenizer.decode(encode_row({**row, "tools": [tool]}, tokenizer).input_ids)
    assert "Today Date: 02 Jan 2025" in text
    assert '"name": "bmi"' in text


# --- through a run


@pytest.fixture
def qwen_dir(tiny_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with Qwen3's template, whose end of a turn is not the tokenizer's end token."""
    directory = shutil.copytree(tiny_dir, tmp_path / "qwen")
    (directory / "chat_template.jinja").write_text(trl_templates()["qwen3"], encoding="utf-8")
    for name, end in (("tokenizer_config", {"eos_token": "<|endoftext|>"}), ("generation_config", {"eos_token_id": 0})):
        edit_json(directory / f"{name}.json", **end)
    return directory


def recipe(model: Path, tmp_path: Path, rows: list[dict[str, Any]], **fields: Any) -> Recipe:
    """One step on `rows`, nothing measured."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    quick = {"max_steps": 1, "batch_size": 2, "evaluate": False, "probe_every": 0, "test_rows": 1}
    return Recipe.parse(
        {"model": str(model), "data_path": str(data), "output": str(tmp_path / "run"), **quick} | fields
    )


CONVERSATIONS = [
    chat([("user", f"{n}?"), ("assistant", str(n)), ("user", "Sure?"), ("assistant", "Yes")]) for n in range(6)
]


def test_conversations_train_under_qwen3(qwen_dir: Path, tmp_path: Path) -> None:
    record = train(recipe(qwen_dir, tmp_path, CONVERSATIONS))
    assert record.status == "complete"
    tokenizer = AutoTokenizer.from_pretrained(qwen_dir)
    thought = "<think>\n\n</think>\n\n"
    row = encode_row(CONVERSATIONS[0], tokenizer)
    assert spans(row, tokenizer) == [f"{thought}0<|im_end|>", f"{thought}Yes<|im_end|>"]
    assert record.data["train"]["rows"] == 5
    assert record.data["label_tokens"] == 5 * row.label_count
    saved = tmp_path / "run" / "model"
    assert (saved / "chat_template.jinja").read_text() == trl_templates()["qwen3"]  # as it is served, not trained
    ends = json.loads((saved / "generation_config.json").read_text())["eos_token_id"]
    assert ends == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])  # inference stops at both


def test_a_recipes_template_and_date_identify_the_run_and_are_saved(
    tiny_dir: Path, tmp_path: Path, today: Callable[[str], None]
) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }}\n" + CHATML
    mine = recipe(tiny_dir, tmp_path, CONVERSATIONS, chat_template=dated)
    record = train(mine)
    assert record.status == "complete"
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == dated
    today("2031-05-06")
    assert train(mine) == record
    for change in ({"date": "2025-01-02"}, {"chat_template": dated.replace("-%d", "")}):
        with pytest.raises(UserError, match=r"another recipe \(different: chat_template\)"):
            train(mine.override(change))
