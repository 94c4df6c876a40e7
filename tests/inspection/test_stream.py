"""Tokens row by row: figures against whole logits, texts against the decoder, order, and what is left out."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

from gentletune.core.errors import UserError
from gentletune.data import encode_row
from gentletune.inspection import stream
from gentletune.inspection.stream import Dropped, RowTokens, Source, row_tokens
from gentletune.inspection.text import TokenText
from gentletune.lm import label_tokens
from gentletune.losses import topk_entropy
from tests.conftest import make_model

ROWS = [
    {"prompt": "Weight?", "completion": "It is 71.5 kg.\nAnswer: 71.5"},
    {"prompt": "Age, in years, of the patient in the note?", "completion": "45"},
    {"prompt": "Say naïve 😀.", "completion": "naïve 😀 – 37 °C"},
]
CHAT = {
    "messages": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "It is 2"},
    ]
}


@pytest.fixture
def source(tokenizer: Any) -> Source:
    model = make_model(len(tokenizer))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)  # so that some tokens are likely
    return Source(model, tokenizer, 512, batch_tokens=64)


def tokens(source: Source, rows: list[Any], dropped: Dropped | None = None) -> list[RowTokens]:
    return list(row_tokens(source, rows, dropped or Dropped()))


def of(found: RowTokens, column: str) -> torch.Tensor:
    return torch.from_numpy(found.tokens[column])


def test_figures_are_those_of_whole_logits(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_tokens, "_LOGITS", 3 * len(source.tokenizer))  # three tokens at a time
    for row, found in zip(ROWS, tokens(source, ROWS), strict=True):
        one = encode_row(row, source.tokenizer)
        with torch.inference_mode():
            logits = source.model(input_ids=torch.tensor([one.input_ids])).logits[0, :-1].double()
        labels = torch.tensor(one.labels[1:])
        kept = labels != -100
        logits, labels = logits[kept], labels[kept]
        p = logits.softmax(-1)
        assert found.tokens["token_id"].tolist() == labels.tolist()
        same = torch.testing.assert_close
        at = p[torch.arange(len(labels)), labels]
        same(of(found, "probability"), at, rtol=1e-4, atol=1e-7)
        same(of(found, "entropy"), torch.distributions.Categorical(p).entropy(), rtol=1e-4, atol=1e-5)
        same(of(found, "top_probability"), p.max(-1).values, rtol=1e-4, atol=1e-7)
        assert found.tokens["top_token_id"].tolist() == p.argmax(-1).tolist()
        same(of(found, "topk_entropy"), topk_entropy(logits, k=20), rtol=1e-4, atol=1e-5)


def test_rows_come_in_order_whatever_the_batches(source: Source) -> None:
    many = [ROWS[i % 3] for i in range(2 * stream._BLOCK + 3)]
    found = tokens(source, many)
    assert [row.row for row in found] == list(range(1, len(many) + 1))
    whole = tokens(dataclasses.replace(source, batch_tokens=10_000), many)
    for a, b in zip(found, whole, strict=True):
        assert a.tokens["text"].tolist() == b.tokens["text"].tolist()
        torch.testing.assert_close(of(a, "nll"), of(b, "nll"), rtol=1e-4, atol=1e-5)


def test_pieces_are_the_decoded_answer_and_its_context(source: Source) -> None:
    for row, found in zip(ROWS, tokens(source, ROWS), strict=True):
        assert "".join(found.tokens["text"]) == f"{row['completion']}<|im_end|>"
        assert found.before == [f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"]
        assert found.tokens["position"].tolist() == list(range(1, len(found.tokens["text"]) + 1))
        assert found.tokens["top_text"].tolist() == [source.text.single(i) for i in found.tokens["top_token_id"]]
        assert found.tokens["class"][0] == "first"
        assert found.tokens["class"][-1] == "special"


def test_an_emoji_split_over_tokens_is_told_where_it_ends(source: Source) -> None:
    ids = source.tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    assert len(ids) > 3
    pieces = source.text.pieces(ids)
    assert "".join(pieces) == "a😀b"
    assert pieces[-2:] == ["😀", "b"]
    assert source.text.pieces(ids[:-2]) == ["a", *[""] * (len(ids) - 4), "\ufffd"]  # cut inside the character
    broken = source.text.pieces([*ids[:2], ids[-1]])
    assert broken == ["a", "\ufffd", "b"]


def test_each_answer_of_a_chat_begins_anew(source: Source) -> None:
    (found,) = tokens(source, [CHAT])
    starts = [i for i, position in enumerate(found.tokens["position"]) if position == 1]
    assert len(starts) == 2
    assert found.tokens["class"][starts].tolist() == ["first", "first"]
    assert "".join(found.tokens["text"][: starts[1]]) == "1<|im_end|>"
    assert found.before[1] == "\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"


def test_a_text_row_has_no_first_token(source: Source) -> None:
    (found,) = tokens(source, [{"text": "The dose is 5 mg."}])
    assert "first" not in set(found.tokens["class"])
    assert set(found.tokens["class"]) >= {"number", "unit"}


def test_what_is_left_out_is_counted(source: Source) -> None:
    dropped = Dropped()
    rows = [ROWS[1], {"prompt": "long " * 600, "completion": "x"}, ROWS[1]]
    assert [row.row for row in tokens(source, rows, dropped)] == [1, 3]
    assert (dropped.too_long, dropped.no_label) == (1, 0)
    assert tokens(source, []) == []


def test_progress_counts_rows(source: Source) -> None:
    told: list[int] = []
    list(row_tokens(source, [ROWS[1]] * (stream._BLOCK + 1), Dropped(), told.append))
    assert told == [stream._BLOCK, stream._BLOCK + 1]


def test_a_diverged_model_is_refused(source: Source) -> None:
    with torch.no_grad():
        source.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match="row 1: the model's probabilities are not finite"):
        tokens(source, ROWS)


def test_a_tokenizer_that_drops_the_first_space_keeps_it() -> None:
    class Dropping:
        """As sentencepiece decodes: no space at the very beginning."""

        words = ("a", " b", " c")
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}
        eos_token_id = 2
        chat_template = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0]}

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(self.words[i] for i in ids).removeprefix(" ")

    assert TokenText(Dropping()).pieces([1, 2]) == [" b", " c"]
