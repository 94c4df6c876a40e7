"""What becomes a label: all that the assistant says, the end of its turn, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from gentletune.core.errors import UserError
from gentletune.data import encode
from gentletune.data.batches import pad_batch
from gentletune.data.domains.clinic import clinic_examples
from gentletune.data.encode import IGNORE, Encoded, encode_prompt, encode_row, encode_rows
from tests.conftest import CHATML, make_tokenizer
from tests.data.chats import chat, spans

END = "<|im_end|>"


def marked(answer: str) -> str:
    """ChatML with generation marks, the assistant's turn rendered by `answer`."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}" + answer + "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


SAYS = "{{ m['content'] }}"
TEMPLATES = {
    "no marks": CHATML,
    "marks": marked(f"{{% generation %}}{SAYS}{END}{{% endgeneration %}}"),
    "stripping marks": marked(f"{{%- generation -%}}{SAYS}{END}{{%- endgeneration -%}}"),
    "end outside the marks": marked(f"{{% generation %}}{SAYS}{{% endgeneration %}}{END}"),
    "another end after the marks": marked(f"{{% generation %}}{SAYS}{END}{{% endgeneration %}}{END}"),
    "default system prompt": "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML,
}
CHATS: dict[str, list[tuple[str, str]]] = {
    "one turn": [("user", "Weight 70 kg?"), ("assistant", "70 kg.")],
    "two turns": [
        ("system", "Be brief."),
        ("user", "BMI?"),
        ("assistant", "22.9 kg/m^2\nAnswer: 22.9"),
        ("user", "22.9 kg/m^2\nAnswer: 22.9"),
        ("assistant", "Yes."),
    ],
    "assistant first": [("assistant", "end"), ("user", "end"), ("assistant", "en")],
    "two answers in a row": [("user", "Hi"), ("assistant", "Wait."), ("assistant", "Done.")],
    "spaces and lines": [("user", " a \n"), ("assistant", "b  \n\n c")],
    "open at the end": [("user", "a"), ("assistant", "b"), ("user", "c")],
}


@pytest.fixture(scope="module", params=TEMPLATES)
def templated(request: pytest.FixtureRequest) -> Any:
    return make_tokenizer(TEMPLATES[request.param])


@pytest.fixture(scope="module")
def plain() -> Any:
    return make_tokenizer(None)


@pytest.mark.parametrize("turns", CHATS.values(), ids=CHATS)
def test_labels_are_what_the_assistant_says_and_its_end(templated: Any, turns: list[tuple[str, str]]) -> None:
    row = encode_row(chat(turns), templated)
    assert spans(row, templated) == [content + END for role, content in turns if role == "assistant"]
    text = templated.apply_chat_template(chat(turns)["messages"], tokenize=False)
    assert templated.decode(row.input_ids) == text


def test_a_prompt_with_its_completion_is_a_chat_of_one_turn(templated: Any) -> None:
    row = encode_row({"prompt": "BMI?", "completion": "22.9"}, templated)
    assert row == encode_row(chat([("user", "BMI?"), ("assistant", "22.9")]), templated)
    assert row.label_count == sum(label != IGNORE for label in row.labels)


@pytest.mark.parametrize("template", [None, *TEMPLATES.values()], ids=["no template", *TEMPLATES])
def test_the_encoded_prompt_begins_the_encoded_row(template: str | None) -> None:
    tokenizer = make_tokenizer(template)
    for example in clinic_examples(6, seed=1, cot=True, split="train"):
        prompt, row = encode_prompt(example.prompt, tokenizer), encode_row(example.row(), tokenizer)
        assert row.input_ids[: len(prompt)] == prompt
        assert set(row.labels[: len(prompt)]) == {IGNORE}
        assert row.labels[len(prompt)] != IGNORE


def test_an_empty_mask_is_refused() -> None:
    tokenizer = make_tokenizer(marked(f"{{% generation %}}{{% endgeneration %}}{SAYS}{END}"))
    with pytest.raises(UserError, match="empty assistant mask"):
        encode_row(chat(CHATS["one turn"]), tokenizer)


def test_a_template_that_rewrites_earlier_turns_needs_marks() -> None:
    tokenizer = make_tokenizer(CHATML.replace("in messages", "in (messages[2:] if messages|length > 2 else messages)"))
    assert spans(encode_row(chat(CHATS["one turn"]), tokenizer), tokenizer) == ["70 kg." + END]
    with pytest.raises(UserError, match="no assistant mask"):
        encode_row(chat(CHATS["two turns"]), tokenizer)


def test_a_row_the_template_refuses_is_one_line() -> None:
    tokenizer = make_tokenizer("{{ raise_exception('roles must\nalternate') }}")
    with pytest.raises(UserError, match=r"user, assistant.*roles must") as caught:
        encode_row(chat(CHATS["one turn"]), tokenizer)
    assert "\n" not in str(caught.value)


def test_chat_messages_need_a_template(plain: Any) -> None:
    with pytest.raises(UserError, match="no chat template"):
        encode_row(chat(CHATS["one turn"]), plain)


def test_without_a_template_the_completion_follows_the_prompt(plain: Any) -> None:
    row = encode_row({"prompt": "BMI? ", "completion": "22.9"}, plain)
    assert plain.decode(row.input_ids) == "BMI? 22.9" + END
    assert spans(row, plain) == ["22.9" + END]


def test_every_token_of_a_text_is_a_label(templated: Any) -> None:
    row = encode_row({"text": "Weight 70 kg."}, templated)
    assert row.labels == row.input_ids
    assert templated.decode(row.input_ids) == "Weight 70 kg." + END
    assert row.label_count == len(row.labels) - 1


@pytest.fixture(scope="module")
def ending() -> Any:
    """A tokenizer without a template that ends every text with the end token."""
    tokenizer = make_tokenizer(None)
    single = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = single
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return tokenizer


@pytest.mark.parametrize("text", ["Weight 70 kg.", f"Weight 70 kg.{END}"])
def test_one_end_token_ends_a_row_whatever_adds_it(ending: Any, plain: Any, text: str) -> None:
    for tokenizer in (ending, plain):
        row = encode_row({"text": text}, tokenizer)
        assert tokenizer.decode(row.input_ids) == f"Weight 70 kg.{END}"
        pair = encode_row({"prompt": "Weight? ", "completion": text}, tokenizer)
        assert tokenizer.decode(pair.input_ids) == f"Weight? Weight 70 kg.{END}"
        assert spans(pair, tokenizer) == [f"Weight 70 kg.{END}"]
        assert tokenizer.decode(encode_prompt("Weight? ", tokenizer)) == "Weight? "


def test_rows_too_long_or_without_a_label_are_dropped_and_counted(tokenizer: Any) -> None:
    rows = [{"text": "ab " * 50}, {"text": "fine"}, {"text": ""}, {"text": "also fine"}]
    limit = len(encode_row(rows[3], tokenizer).input_ids)
    found = encode_rows(rows, tokenizer, max_length=limit)
    assert found.kept == [1, 3]
    assert found.rows == [encode_row(rows[i], tokenizer) for i in (1, 3)]
    assert found.counts == {"rows": 2, "dropped_too_long": 1, "dropped_no_label": 1}


def test_a_row_whose_only_label_has_no_context_is_dropped(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([Encoded([5, 6], [5, IGNORE]), Encoded([5, 6], [IGNORE, IGNORE]), Encoded([5, 6], [IGNORE, 6])])
    monkeypatch.setattr(encode, "encode_row", lambda row, tokenizer, labels: next(made))
    found = encode_rows([{"text": "a"}] * 3, tokenizer, max_length=8)
    assert (found.kept, found.no_label) == ([2], 2)


def test_nothing_left_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"notes\.csv: no row left to use: 2 longer than max_length 3"):
        encode_rows([{"text": "Weight 70 kg, height 175 cm."}] * 2, tokenizer, max_length=3, where="notes.csv")


def test_padding_with_the_end_token_keeps_the_end_labels(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    texts = ("70", "Long: 175 cm.")
    rows = [encode_row({"prompt": "Q", "completion": text}, tokenizer) for text in texts]
    batch = pad_batch(rows, tokenizer.pad_token_id)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        labels = batch["labels"][i]
        assert tokenizer.decode(labels[labels != IGNORE]) == text + END
        assert batch["attention_mask"][i].sum() == len(row.input_ids)
        assert batch["input_ids"][i, len(row.input_ids) :].eq(tokenizer.pad_token_id).all()
        assert labels[len(row.input_ids) :].eq(IGNORE).all()
