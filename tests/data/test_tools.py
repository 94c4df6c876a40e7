"""Chats with tools: what is rendered and labelled of them, as TRL does, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import remove_none_values

from gentletune import Recipe, train
from gentletune.core.errors import UserError
from gentletune.data import encode_row, encode_rows, load_data
from gentletune.data.encode import IGNORE
from gentletune.data.templates import has_marks, set_chat_template, training_template, trl_templates
from tests.conftest import make_model, make_tokenizer
from tests.data.chats import spans
from tests.data.families import FAMILIES, beyond, trl_mask

DATE = "2024-07-26"
TOOL = {
    "type": "function",
    "function": {
        "name": "bmi",
        "description": "Body mass index",
        "parameters": {"type": "object", "properties": {"kg": {"type": "number"}}, "required": ["kg"]},
    },
}
CALL = {"type": "function", "function": {"name": "bmi", "arguments": {"kg": 70}}}
USES_TOOL = [
    {"role": "user", "content": "BMI at 70 kg?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "bmi", "content": "22.9"},
    {"role": "assistant", "content": "It is 22.9"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes"},
]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.call])
def test_calls_of_tools_are_labels_and_their_results_are_not(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    family = FAMILIES[name]
    found = encode_row({"messages": USES_TOOL, "tools": [TOOL]}, speaking)
    answers = [family.turn.format("It is 22.9"), (family.last or family.turn).format("Yes")]
    assert spans(found, speaking) == [family.call, *answers]
    assert "Body mass index" in speaking.decode(found.input_ids) or name == "deepseekv3"
    messages = USES_TOOL
    if name == "deepseekv3":  # it reads a content that TRL leaves out where it is null
        messages = [{**m, "content": m["content"] or ""} for m in USES_TOOL]
    ids, mask = trl_mask(messages, speaking, [TOOL])
    assert found.input_ids == ids
    if has_marks(training_template(speaking.chat_template)):
        assert beyond(found, mask, speaking) <= family.more


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.call])
def test_a_template_that_would_lose_tools_is_refused(every_token: Any, name: str) -> None:
    speaking = set_chat_template(every_token, name, DATE)
    with pytest.raises(UserError, match=r"leaves out the call of 'bmi'|refuses a row of user, assistant, tool"):
        encode_row({"messages": USES_TOOL, "tools": [TOOL]}, speaking)
    if name != "lfm2":  # which shows tools
        with pytest.raises(UserError, match="leaves out the tool 'bmi'"):
            encode_row({"messages": PLAIN, "tools": [TOOL]}, speaking)


@pytest.fixture(scope="module")
def qwen() -> Any:
    return make_tokenizer(trl_templates()["qwen3"])


GFR = {
    "type": "function",
    "function": {"name": "gfr", "parameters": {"type": "object", "properties": {"mg": {"type": "number"}}}},
}
ASKS_GFR = [
    {"role": "user", "content": "GFR?"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "gfr", "arguments": {"mg": 1.5}}}]},
    {"role": "tool", "content": "90"},
    {"role": "assistant", "content": "90"},
]
PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROWS: list[dict[str, Any]] = [
    {"messages": USES_TOOL, "tools": [TOOL]},
    {"messages": ASKS_GFR, "tools": [TOOL, GFR]},
    {"messages": PLAIN, "tools": None},
]


def without_space_after_ends(labels: list[int], tokenizer: Any) -> list[int]:
    """TRL's labels less the newline that Qwen3's template puts after the end of a turn, which no model is asked for."""
    newline, end = tokenizer("\n")["input_ids"][0], tokenizer.convert_tokens_to_ids("<|im_end|>")
    pairs = zip([IGNORE, *labels], labels, strict=False)
    return [IGNORE if before == end and label == newline else label for before, label in pairs]


def test_ids_and_labels_are_those_of_trls_trainer(qwen: Any, tmp_path: Path) -> None:
    config = SFTConfig(str(tmp_path), assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True)
    rows = Dataset.from_list([{**row, "tools": json.dumps(row["tools"])} for row in ROWS[:1]])
    trainer = SFTTrainer(make_model(len(qwen)), config, train_dataset=rows, processing_class=copy.deepcopy(qwen))
    theirs = trainer.train_dataset[0]
    ours = encode_row(ROWS[0], qwen)
    assert ours.input_ids == theirs["input_ids"]
    assert ours.labels == without_space_after_ends(theirs["labels"], qwen)


def write(path: Path, form: str) -> Path:
    """The rows in a file, tools as a list or as JSON text."""
    rows = [{**row, "tools": json.dumps(row["tools"])} if "text" in form else row for row in ROWS]
    file = path / f"rows.{form.split()[0]}"
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


@pytest.mark.parametrize("form", ["jsonl", "jsonl text", "parquet", "parquet text"])
def test_tools_come_from_every_format_without_padding(qwen: Any, tmp_path: Path, form: str) -> None:
    file = write(tmp_path, form)
    if file.suffix == ".parquet":
        padded = pyarrow.parquet.read_table(file).to_pylist()[0]["messages"][1]["tool_calls"][0]
        assert padded["function"]["arguments"] == {"kg": 70, "mg": None}
    data = load_data(Recipe(data_path=str(file), test_rows=1))
    found = {row["messages"][0]["content"]: row for row in [*data.train, *data.test]}
    for row in ROWS:
        mine = encode_row(found[row["messages"][0]["content"]], qwen)
        plain = remove_none_values(row)
        ids, _ = trl_mask(plain["messages"], qwen, plain.get("tools"))
        assert mine.input_ids == ids
    assert "tools" not in found["Hi"]
    assert "null" not in json.dumps(list(found.values()))


def test_other_tools_are_other_rows(tmp_path: Path) -> None:
    hashes = set()
    for tool in (TOOL, GFR):
        file = tmp_path / "rows.jsonl"
        rows = [{"messages": [{"role": "user", "content": str(n)}, PLAIN[1]], "tools": [tool]} for n in range(4)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        hashes.add(load_data(Recipe(data_path=str(file), test_rows=1)).train_hash)
    assert len(hashes) == 2


def test_rows_with_tools_train(tiny_dir: Path, tmp_path: Path) -> None:
    """From a file to a record, under the template that the recipe names, which is saved."""
    model = shutil.copytree(tiny_dir, tmp_path / "longer")  # Qwen3's words about tools alone fill the tiny one
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    quick = {"max_steps": 1, "batch_size": 2, "evaluate": False, "probe_every": 0, "test_rows": 1}
    rows = [{"messages": [{"role": "user", "content": f"{n} kg?"}, *USES_TOOL[1:]], "tools": [TOOL]} for n in range(4)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    record = train(
        Recipe(model=str(model), data_path=str(file), output=str(tmp_path / "run"), chat_template="qwen3", **quick)
    )
    assert record.status == "complete"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert tokenizer.chat_template == trl_templates()["qwen3"]
    ids, mask = trl_mask(rows[0]["messages"], tokenizer, [TOOL])
    labels = without_space_after_ends([i if held else IGNORE for i, held in zip(ids, mask, strict=True)], tokenizer)
    assert record.data["label_tokens"] == 3 * sum(label != IGNORE for label in labels)


CALLS_NOTHING = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no content and no call": ({"messages": [USES_TOOL[0], {"role": "assistant", "content": None}]}, "text 'content'"),
    "empty content and no call": (
        {"messages": [USES_TOOL[0], {"role": "assistant", "content": " ", "tool_calls": []}]},
        "assistant message is empty",
    ),
    "a call without a name": ({"messages": [USES_TOOL[0], CALLS_NOTHING]}, "'tool_calls' must be a list"),
    "calls that are no list": ({"messages": [USES_TOOL[0], {**USES_TOOL[1], "tool_calls": CALL}]}, "must be a list"),
    "a user who calls": (
        {"messages": [{**USES_TOOL[0], "tool_calls": [CALL]}, *PLAIN]},
        "role 'user' has 'tool_calls'",
    ),
    "tools that are no JSON": ({"messages": PLAIN, "tools": "[{"}, "'tools' is no JSON list"),
    "tools without a name": ({"messages": PLAIN, "tools": [{"type": "function"}]}, "'tools' must be a list"),
    "tools of a pair": ({"prompt": "a", "completion": "b", "tools": {"name": "bmi"}}, "'tools' must be a list"),
}


@pytest.mark.parametrize(("row", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_tools_name_the_row(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    good = {"messages": PLAIN} if "messages" in row else {"prompt": "a", "completion": "b"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [good, row])), encoding="utf-8")
    with pytest.raises(UserError, match=expected) as caught:
        load_data(Recipe(data_path=str(file)))
    assert "row 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_template_cannot_write_is_one_line_that_names_the_row(every_token: Any) -> None:
    """GLM's writes each argument of a call: as text, as OpenAI's interface gives them, they have no names."""
    tokenizer = set_chat_template(every_token, "glm4moe", DATE)
    call = {"type": "function", "function": {"name": "bmi", "arguments": '{"kg": 70}'}}
    row = {"messages": [USES_TOOL[0], {"role": "assistant", "content": "", "tool_calls": [call]}]}
    with pytest.raises(UserError, match=r"notes: row 2 of 2: the chat template refuses a row of user, assistant"):
        encode_rows([{"messages": PLAIN}, row], tokenizer, max_length=999, where="notes")
    assert spans(encode_row(row, set_chat_template(every_token, "qwen3", DATE)), tokenizer)[0].endswith(
        '"arguments": {"kg": 70}}\n</tool_call><|im_end|>'
    )


def test_a_header_within_the_marks_is_no_label_where_a_thought_before_it_goes(every_token: Any) -> None:
    """gpt-oss drops the thought beside a call once the answer is there, so what stood before it is rewritten."""
    tokenizer = set_chat_template(every_token, "gptoss", DATE)
    messages = [USES_TOOL[0], {**USES_TOOL[1], "reasoning_content": "Call it."}, *USES_TOOL[2:4]]
    assert spans(encode_row({"messages": messages, "tools": [TOOL]}, tokenizer), tokenizer) == [
        ' to=functions.bmi<|channel|>commentary json<|message|>{"kg": 70}<|call|>',
        "<|channel|>final<|message|>It is 22.9<|return|>",
    ]


def test_results_that_a_template_leaves_out_are_refused(every_token: Any) -> None:
    tokenizer = set_chat_template(every_token, "phi3", DATE)
    with pytest.raises(UserError, match="leaves out what tools answer"):
        encode_row({"messages": [*PLAIN, {"role": "tool", "content": "22.9"}, PLAIN[1]]}, tokenizer)


def test_a_template_that_shows_tools_but_no_calls_takes_rows_without_calls(every_token: Any) -> None:
    tokenizer = set_chat_template(every_token, "lfm2", DATE)
    assert "Body mass index" in tokenizer.decode(encode_row({"messages": PLAIN, "tools": [TOOL]}, tokenizer).input_ids)
