"""Which turns of a chat are labels: all of the assistant's, the last, every token; and turns that a file marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.data import encode_row, load_data
from gentletune.data.encode import IGNORE, Encoded
from gentletune.data.forms import shaped_rows
from gentletune.data.templates import set_chat_template
from tests.conftest import CHATML, make_tokenizer
from tests.data.chats import chat, spans
from tests.data.families import FAMILIES
from tests.data.test_tools import TOOL, USES_TOOL

DATE = "2024-07-26"
TURNS = [("user", "BMI?"), ("assistant", "22.9"), ("user", "22.9"), ("assistant", "Yes."), ("user", "?"),
         ("assistant", "22.9")]  # fmt: skip


def marked(turns: list[tuple[str, str]], **flags: Any) -> dict[str, Any]:
    """A chat as a file has it: the flags `a1={"weight": 0}` are those of message 1."""
    row = chat(turns)
    for name, flag in flags.items():
        row["messages"][int(name[1:])] |= flag
    return row


def shaped(row: dict[str, Any]) -> dict[str, Any]:
    return shaped_rows([row], "rows.jsonl").rows[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_turn_of_weight_0_is_no_label_and_the_others_stay(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    whole = encode_row(chat(TURNS), speaking)
    every = spans(whole, speaking)
    for place, answer in enumerate((1, 3, 5)):
        found = encode_row(shaped(marked(TURNS, **{f"a{answer}": {"weight": 0}})), speaking)
        assert found.input_ids == whole.input_ids
        assert spans(found, speaking) == [span for i, span in enumerate(every) if i != place]
    two = marked(TURNS, a1={"train": False}, a3={"weight": 1}, a5={"train": False}, a0={"train": False})
    assert spans(encode_row(shaped(two), speaking), speaking) == [every[1]]
    assert spans(encode_row(chat(TURNS), speaking, "last"), speaking) == [every[2]]
    assert spans(encode_row(shaped(marked(TURNS, a5={"weight": 0})), speaking, "last"), speaking) == [every[1]]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.call])
def test_calls_of_tools_are_turns_as_others_are(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    row = {"messages": USES_TOOL, "tools": [TOOL]}
    call, *answers = spans(encode_row(row, speaking), speaking)
    flagged = [m | ({"weight": 0} if i == 1 else {}) for i, m in enumerate(USES_TOOL)]
    assert spans(encode_row(shaped(row | {"messages": flagged}), speaking), speaking) == answers
    flagged = [m | ({"weight": 0} if i in (3, 5) else {}) for i, m in enumerate(USES_TOOL)]
    assert spans(encode_row(shaped(row | {"messages": flagged}), speaking), speaking) == [call]
    assert spans(encode_row(row, speaking, "last"), speaking) == answers[-1:]


@pytest.mark.parametrize("name", FAMILIES)
def test_all_makes_every_token_a_label_up_to_the_end(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    plain, found = encode_row(chat(TURNS), speaking), encode_row(chat(TURNS), speaking, "all")
    assert found.input_ids == plain.input_ids
    last = max(i for i, label in enumerate(plain.labels) if label != IGNORE)
    assert found.labels[: last + 1] == found.input_ids[: last + 1]
    assert not speaking.decode([i for i in found.labels[last + 1 :] if i != IGNORE], skip_special_tokens=True).strip()


def test_all_leaves_out_what_a_marked_message_says() -> None:
    tokenizer = make_tokenizer(CHATML)
    row = shaped(marked(TURNS, a2={"train": False}, a3={"weight": 0}))
    assert spans(encode_row(row, tokenizer, "all"), tokenizer) == [
        "<|im_start|>user\nBMI?<|im_end|>\n<|im_start|>assistant\n22.9<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n22.9<|im_end|>",
    ]


def test_two_turns_with_nothing_between_them_are_parted() -> None:
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}")
    turns = [("user", "a"), ("assistant", "b"), ("assistant", "bb"), ("assistant", "b")]
    for answer, left in ((1, ["bb<|im_end|>b<|im_end|>"]), (2, ["b<|im_end|>", "b<|im_end|>"])):
        found = encode_row(shaped(marked(turns, **{f"a{answer}": {"weight": 0}})), tokenizer)
        assert spans(found, tokenizer) == left


def test_pairs_and_texts() -> None:
    tokenizer, bare = make_tokenizer(CHATML), make_tokenizer(None)
    pair = {"prompt": "BMI?", "completion": "22.9"}
    assert encode_row(pair, tokenizer, "last") == encode_row(pair, tokenizer)
    every = encode_row(pair, bare, "all")
    assert every == Encoded(every.input_ids, every.input_ids)
    assert every.input_ids == encode_row(pair, bare).input_ids
    assert encode_row({"text": "a b"}, bare, "last") == encode_row({"text": "a b"}, bare)


@pytest.mark.parametrize(
    ("message", "flag", "expected"),
    [
        (1, {"weight": 0.5}, "'weight' must be 0 or 1, got 0.5"),
        (1, {"weight": True}, "'weight' must be 0 or 1, got True"),
        (1, {"weight": "1"}, "'weight' must be 0 or 1, got '1'"),
        (1, {"train": 1}, "'train' must be true or false, got 1"),
        (1, {"weight": 1, "train": False}, "has 'weight' 1 and 'train' false; give one"),
        (0, {"weight": 1}, "role 'user' is marked to be trained on; only the assistant's may be"),
    ],
)
def test_marks_that_are_none_name_the_row(tmp_path: Path, message: int, flag: dict[str, Any], expected: str) -> None:
    rows = [chat(TURNS), marked(TURNS, **{f"a{message}": flag})]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.jsonl: row 2: ") as caught:
        load_data(Recipe(data=str(file)))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_marks_of_sharegpt_count_and_are_gone_before_the_template_sees_them() -> None:
    shows = make_tokenizer("{% for m in messages %}{{ m | string + '<|im_end|>' }}{% endfor %}")
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0},
                             {"from": "gpt", "value": "c", "train": True}]}  # fmt: skip
    found = shaped(row)
    assert found["silent"] == [1]
    text = shows.decode(encode_row(found, shows).input_ids)
    assert "weight" not in text
    assert "train" not in text


def test_the_answer_that_is_scored_is_one_that_is_trained_on(tmp_path: Path) -> None:
    rows = [marked([("user", f"{n}?"), ("assistant", str(n)), ("user", "Sure?"), ("assistant", "No")],
                   a3={"weight": 0}) for n in range(9)]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load_data(Recipe(data=str(file)))
    assert {example.completion for example in found.examples} <= set(map(str, range(9)))


@pytest.mark.parametrize("labels", ["assistant", "last", "all"])
def test_a_run_trains_on_what_its_recipe_says(tiny_dir: Path, tmp_path: Path, labels: str) -> None:
    rows = [marked([("user", f"{n}?"), ("assistant", str(n)), ("user", "Sure?"), ("assistant", "Yes")],
                   a1={"weight": n % 2}) for n in range(6)]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    quick = {"max_steps": 1, "batch_size": 2, "evaluate": False, "probe_every": 0, "test_rows": 1}
    places = {"model": str(tiny_dir), "data": str(file), "output": str(tmp_path / "run")}
    recipe = Recipe.parse({**places, "labels": labels, **quick})
    record = train(recipe)
    tokenizer, data = AutoTokenizer.from_pretrained(tiny_dir), load_data(recipe)
    expected = sum(encode_row(row, tokenizer, labels).label_count for row in data.train)
    assert record.data["label_tokens"] == expected
    other = "last" if labels != "last" else "all"
    with pytest.raises(UserError, match=r"another recipe \(different: labels\)"):
        train(recipe.override({"labels": other}))
