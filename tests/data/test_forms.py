"""The forms that people's files come in: each is recognised, said so, and trained on as what it means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gentletune import Recipe, evaluate
from gentletune.core.errors import UserError
from gentletune.data import encode_row, load_data
from gentletune.data.templates import trl_templates
from tests.conftest import CHATML, make_model, make_tokenizer
from tests.data.chats import chat, spans
from tests.helpers import run_cli, tiny_recipe, write_jsonl

BMI = {"type": "function", "function": {"name": "bmi", "parameters": {"type": "object", "properties": {}}}}
CALL = {"name": "bmi", "arguments": {"kg": 70}}
USER, ANSWER = {"role": "user", "content": "q{i}"}, {"role": "assistant", "content": "a{i}"}
GREETED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]

# A row of the form, the row it means ({i} counts), and how the form is called.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "alpaca": (
        {"id": 1, "instruction": "Add.", "input": "q{i}", "output": "a{i}"},
        {"prompt": "Add.\n\nq{i}", "completion": "a{i}"},
        "in Alpaca's form (instruction, input, output); not used: id",
    ),
    "alpaca without input": (
        {"instruction": "q{i}", "input": "", "output": "a{i}"},
        {"prompt": "q{i}", "completion": "a{i}"},
        "in Alpaca's form (instruction, input, output)",
    ),
    "dolly": (
        {"instruction": "q{i}", "context": None, "response": "a{i}", "category": "qa"},
        {"prompt": "q{i}", "completion": "a{i}"},
        "in Alpaca's form (instruction, context, response); not used: category",
    ),
    "sharegpt": (
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "q{i}"}, {"from": "gpt", "value": "a{i}"}]},
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]},
        "in ShareGPT's form (system, conversations)",
    ),
    "sharegpt with tools": (
        {
            "conversations": [
                {"from": "human", "value": "q{i}"},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "22.9"},
                {"from": "gpt", "value": "a{i}"},
            ],
            "tools": json.dumps([BMI]),
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
                {"role": "tool", "content": "22.9"},
                ANSWER,
            ],
            "tools": [BMI],
        },
        "in ShareGPT's form with tool calls (conversations, tools)",
    ),
    "chat with tools": (
        {"messages": [USER, ANSWER], "tools": [BMI]},
        {"messages": [USER, ANSWER], "tools": [BMI]},
        "of chat messages with tool calls (messages, tools)",
    ),
    "openai/gsm8k": (
        {"question": "q{i}", "answer": "<<1+1=2>>2.\n#### 2"},
        {"prompt": "q{i}", "completion": "<<1+1=2>>2.\n#### 2"},
        "of questions with answers (question, answer)",
    ),
    "numbers": (
        {"Question": "q{i}", " Answer ": 4.5},
        {"prompt": "q{i}", "completion": "4.5"},
        "of questions with answers (Question,  Answer )",
    ),
    "query and response": (
        {"query": "q{i}", "response": True},
        {"prompt": "q{i}", "completion": "true"},
        "of questions with answers (query, response)",
    ),
    "question in a context": (
        {"context": "It is 5.", "question": "q{i}", "answer": "a{i}"},
        {"prompt": "It is 5.\n\nq{i}", "completion": "a{i}"},
        "of questions with answers (context, question, answer)",
    ),
    "conversational": (
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER]},
        "of prompts with completions (prompt, completion)",
    ),
    "conversational, several turns": (
        {"prompt": GREETED, "completion": [ANSWER]},
        {"messages": [*GREETED, ANSWER], "given": 3},
        "of prompts with completions (prompt, completion)",
    ),
    "pair": (
        {"prompt": "q{i}", "completion": "a{i}"},
        {"prompt": "q{i}", "completion": "a{i}"},
        "of prompts with completions (prompt, completion)",
    ),
    "label": (
        {"text": "q{i}", "label": 1},
        {"prompt": "q{i}", "completion": "1"},
        "of texts with labels (text, label)",
    ),
    "text": ({"text": "q{i}", "url": "-"}, {"text": "q{i}"}, "of plain text (text); not used: url"),
}  # fmt: skip


def numbered(row: Any, i: int) -> Any:
    return json.loads(json.dumps(row).replace("{i}", str(i)))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_told_by_its_columns(tmp_path: Path, name: str) -> None:
    row, meant, called = FORMS[name]
    file = write_jsonl(tmp_path / "mine.jsonl", [numbered(row, i) for i in range(10)])
    found = load_data(Recipe(data=file))
    assert (found.name, found.recognised) == ("mine", f"{file}: 10 rows {called}")
    rows = [dict(row) for row in [*found.train, *found.test]]
    own = name in ("pair", "text") or "messages" in meant  # the rest has a question and an answer that nothing parts
    assert {row.pop("joint", "") for row in rows} == {"" if own else "\n"}
    assert sorted(rows, key=str) == sorted((numbered(meant, i) for i in range(10)), key=str)


@pytest.mark.parametrize(
    ("text", "rows", "called"),
    [
        ("One.\nOn.\n\n \nTwo.\n\n\nThree.\n", ["One.\nOn.", "Two.", "Three."], "3 rows of plain text (paragraph)"),
        ("\ufeffOne.\r\n\r\nTwo.", ["One.", "Two."], "2 rows of plain text (paragraph)"),
        ("One.\nTwo.\n", ["One.", "Two."], "2 rows of plain text (line)"),
    ],
)  # fmt: skip
def test_a_text_file_is_its_paragraphs(tmp_path: Path, text: str, rows: list[str], called: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="utf-8", newline="")
    found = load_data(Recipe(data=str(file)))
    assert found.recognised == f"{file}: {called}"
    assert sorted(row["text"] for row in [*found.train, *found.test]) == sorted(rows)
    assert found.examples == []


def test_a_csv_holds_chats_as_json(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    cell = json.dumps(turns).replace('"', '""')
    (tmp_path / "mine.csv").write_text(f'conversations\n"{cell}"\n"{cell.replace("q", "r")}"\n', encoding="utf-8")
    found = load_data(Recipe(data=str(tmp_path / "mine.csv")))
    assert {row["messages"][0]["content"] for row in [*found.train, *found.test]} == {"q", "r"}


def test_a_later_row_may_have_what_the_first_lacks(tmp_path: Path) -> None:
    rows = [{"instruction": f"Add {i}.", "output": "a"} | ({"input": "to 2"} if i else {}) for i in range(6)]
    found = load_data(Recipe(data=write_jsonl(tmp_path / "mine.jsonl", rows)))
    assert {row["prompt"] for row in [*found.train, *found.test]} >= {"Add 0.", "Add 3.\n\nto 2"}
    rows = [{"query": f"q{i}", "answer": "a"} | ({"question": "else"} if i else {}) for i in range(6)]
    found = load_data(Recipe(data=write_jsonl(tmp_path / "mine.jsonl", rows)))
    assert {row["prompt"] for row in [*found.train, *found.test]} == {f"q{i}" for i in range(6)}


BAD: dict[str, tuple[list[Any], str]] = {
    "unknown columns": (
        [{"frage": "q", "antwort": "a"}],
        "row 1: columns frage, antwort fit no form; known: messages; conversations; instruction and output;",
    ),
    "another form": (
        [FORMS["alpaca"][0], FORMS["pair"][0]],
        "row 2: columns prompt, completion, a row of prompts with completions; the first row is one in Alpaca's form, "
        "with instruction, output",
    ),
    "an answer that is a list": ([{"question": "q", "answer": ["a"]}], "row 1: 'answer' must be text, got list"),
    "no answer": ([{"question": "q", "answer": "a"}, {"question": "q", "answer": None}], "row 2: 'answer' must be"),
    "an empty cell": ([{"question": "q", "answer": float("nan")}], "row 1: 'answer' must be text, got float"),
    "another spelling": (
        [{"query": "q", "answer": "a"}, {"question": "q", "answer": "a"}],
        "row 2: columns question, answer, a row of questions with answers; the first row is one of questions with "
        "answers, with query, answer",
    ),
    "an empty output": ([{"instruction": "q", "output": " "}], "row 1: the output is empty"),
    "an unknown speaker": ([{"conversations": [{"from": "cat", "value": "miau"}]}], "row 1: unknown role 'cat'"),
    "a broken call": (
        [{"conversations": [{"from": "function_call", "value": "{"}]}],
        "row 1: a 'function_call' is no JSON object",
    ),
    "a call of nothing": (
        [{"conversations": [{"from": "function_call", "value": "7"}]}], "row 1: 'tool_calls' must be a list of calls"),
    "conversations no list": ([{"conversations": "hello"}], "row 1: 'conversations' must be a non-empty list"),
    "nothing said": (
        [{"prompt": GREETED, "completion": [USER]}],
        "row 1: 'completion' needs a message of the assistant, and 'prompt' one to answer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_with_the_row(tmp_path: Path, case: str) -> None:
    rows, expected = BAD[case]
    with pytest.raises(UserError) as caught:
        load_data(Recipe(data=write_jsonl(tmp_path / "mine.jsonl", rows)))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_stands_in_a_prompt_is_no_label() -> None:
    tokenizer = make_tokenizer(CHATML)
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "BMI?"), ("assistant", "22.9")]
    whole, asked = chat(turns), {**chat(turns), "given": 3}
    assert spans(encode_row(whole, tokenizer), tokenizer) == ["Hello<|im_end|>", "22.9<|im_end|>"]
    assert spans(encode_row(asked, tokenizer), tokenizer) == ["22.9<|im_end|>"]
    assert encode_row(asked, tokenizer).input_ids == encode_row(whole, tokenizer).input_ids


def test_without_a_template_a_line_end_parts_question_and_answer(tmp_path: Path) -> None:
    plain, file = (
        make_tokenizer(None),
        write_jsonl(tmp_path / "mine.jsonl", [numbered(FORMS["alpaca"][0], i) for i in range(9)]),
    )
    make_model(len(plain)).save_pretrained(tmp_path / "model")
    plain.save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(tmp_path / "model", tmp_path, data=file, tasks=())
    (held,) = load_data(recipe).test
    assert plain.decode(encode_row(held, plain).input_ids) == f"{held['prompt']}\n{held['completion']}<|im_end|>"
    (sample,) = evaluate(recipe, str(tmp_path / "model")).samples
    assert sample["prompt"] == f"{held['prompt']}\n"


def test_calls_in_sharegpts_form_are_labels(tmp_path: Path) -> None:
    row, _, _ = FORMS["sharegpt with tools"]
    found = load_data(Recipe(data=write_jsonl(tmp_path / "mine.jsonl", [numbered(row, i) for i in range(10)])))
    qwen = make_tokenizer(trl_templates()["qwen3"])
    said = spans(encode_row(found.train[0], qwen), qwen)
    assert len(said) == 2
    assert '"name": "bmi", "arguments": {"kg": 70}' in said[0]


SMALL = ("--max-steps", "1", "--batch-size", "2", "--domain-tokens", "4", "--general-prompts", "2", "--tasks", "",
         "--general-tokens", "3", "--probe-every", "0")  # fmt: skip


@pytest.mark.parametrize("name", ["sharegpt", "alpaca", "conversational, several turns"])
def test_train_takes_a_file_and_says_what_it_is(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, name: str
) -> None:
    row, _, called = FORMS[name]
    file = write_jsonl(tmp_path / "mine.jsonl", [numbered(row, i) for i in range(10)])
    options = ["--model", str(tiny_dir), "--data", file, *SMALL, "--output", str(tmp_path / "run")]
    assert run_cli(monkeypatch, "train", *options) == 0
    said = capfd.readouterr().err
    assert f"{file}: 10 rows {called}\n" in said
    assert f"{file}: answers are one line: scored by accuracy" in said
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["data"]["recognised"] == f"{file}: 10 rows {called}"
    domain = {s["metric"]: s["n"] for s in record["scores"] if s["side"] == "domain"}
    assert domain == {"accuracy": 2, "bits_per_token": 2, "bits_per_byte": 2}


def test_a_task_of_the_files_name_is_refused(tiny_dir: Path, tmp_path: Path, monkeypatch: Any, capfd: Any) -> None:
    file = write_jsonl(tmp_path / "arithmetic.jsonl", [numbered(FORMS["pair"][0], i) for i in range(10)])
    options = ["--model", str(tiny_dir), "--data", file, "--tasks", "arithmetic", "--output", str(tmp_path / "run")]
    assert run_cli(monkeypatch, "train", *options) == 2
    assert "already measures; take it out of tasks, or rename the file" in capfd.readouterr().err
