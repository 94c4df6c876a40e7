"""Code length against the model's own loss, and its rise over base worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from gentletune.core.errors import UserError
from gentletune.data.batches import pad_batch
from gentletune.data.encode import IGNORE, Encoded, encode_row
from gentletune.evaluation.code_length import (
    SequenceNLL,
    byte_change_score,
    code_length_scores,
    label_bytes,
    rise_score,
    sequence_nll,
    text_rows,
)
from tests.conftest import make_tokenizer

LN2 = math.log(2)


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> list[Encoded]:
    pairs = [("BMI?", "22.9"), ("Weight 70 kg, height 175 cm. BMI?", "70 / 3.0625 = 22.86\nAnswer: 22.9"), ("A", "B")]
    gaps = Encoded([5, 6, 7, 8, 9, 10], [5, IGNORE, 7, IGNORE, 9, IGNORE])
    return [*(encode_row({"prompt": p, "completion": c}, tokenizer) for p, c in pairs), gaps, Encoded([3, 4], [3, 4])]


def test_the_code_length_is_the_models_own_loss(tiny_model: Any, rows: list[Encoded]) -> None:
    expected = []
    with torch.no_grad():
        for row in rows:
            own = tiny_model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
            expected.append(own.loss.item() * row.label_count)
    for batch_tokens in (1, 50, 8192):
        found = sequence_nll(tiny_model, rows, pad_id=2, batch_tokens=batch_tokens)
        assert found.tokens == [row.label_count for row in rows]
        assert found.nll == pytest.approx(expected, abs=1e-4)
    assert found.means == pytest.approx([e / row.label_count for e, row in zip(expected, rows, strict=True)], abs=1e-4)


def test_the_padding_token_does_not_matter(tiny_model: Any, tokenizer: Any, rows: list[Encoded]) -> None:
    assert tokenizer.eos_token_id in rows[0].labels
    by_end, by_other = (sequence_nll(tiny_model, rows, pad_id=pad).nll for pad in (tokenizer.eos_token_id, 7))
    assert by_end == pytest.approx(by_other, abs=1e-5)


def test_rows_are_padded_on_the_right() -> None:
    batch = pad_batch([Encoded([4, 5, 6], [IGNORE, 5, 6]), Encoded([7], [7])], pad_id=6)
    assert batch["input_ids"].tolist() == [[4, 5, 6], [7, 6, 6]]
    assert batch["labels"].tolist() == [[IGNORE, 5, 6], [7, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(tiny_model: Any, rows: list[Encoded], training: bool) -> None:
    tiny_model.train(training)
    seen = []
    handle = tiny_model.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    found = sequence_nll(tiny_model, rows, pad_id=2)
    handle.remove()
    assert seen == [False]
    assert tiny_model.training == training
    assert all(value > 0 and math.isfinite(value) for value in found.nll)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("labels", [[IGNORE, IGNORE], [5, IGNORE]])
def test_a_row_without_a_label_is_named_and_the_mode_kept(
    tiny_model: Any, rows: list[Encoded], labels: list[int], training: bool
) -> None:
    tiny_model.train(training)
    with pytest.raises(ValueError, match="row 1 has no label token"):
        sequence_nll(tiny_model, [rows[0], Encoded([5, 6], labels)], pad_id=2)
    assert tiny_model.training == training


def test_progress_counts_rows(tiny_model: Any, rows: list[Encoded]) -> None:
    seen: list[tuple[int, int]] = []
    sequence_nll(tiny_model, rows, pad_id=2, batch_tokens=1, progress=lambda *at: seen.append(at))
    assert seen == [(i, len(rows)) for i in range(1, len(rows) + 1)]


def test_a_model_is_at_no_kl_from_itself(tiny_model: Any, rows: list[Encoded]) -> None:
    found = sequence_nll(tiny_model, rows, pad_id=2)
    score = rise_score(found, sequence_nll(tiny_model, rows, pad_id=2), task="kl_sampled")
    assert (score.value, score.stderr) == (0, 0)
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(3)
    moved = rise_score(sequence_nll(tiny_model, rows, pad_id=2), found, task="kl_sampled")
    assert moved.value != 0


def test_scores_by_hand() -> None:
    base = SequenceNLL([2 * LN2, 4 * LN2], [2, 4])
    tuned = SequenceNLL([5 * LN2, 7 * LN2], [2, 4])
    # 3 bits more on each sequence: 6 bits over 6 tokens; residuals 3 - 2 and 3 - 4, se = √(2/1 · 2) / 6
    rise = rise_score(tuned, base, task="nll_greedy")
    assert rise.value == pytest.approx(1)
    assert rise.stderr == pytest.approx(1 / 3)
    assert (rise.key, rise.side, rise.n, rise.higher_is_better) == (
        "nll_greedy/bits_per_token", "general", 2, False,
    )  # fmt: skip
    length = code_length_scores(tuned, task="clinic", side="domain")[0]
    # 12 bits over 6 tokens; residuals 5 - 4 and 7 - 8
    assert length.value == pytest.approx(2)
    assert length.stderr == pytest.approx(1 / 3)
    assert (length.key, length.side, length.higher_is_better) == ("clinic/bits_per_token", "domain", False)


def test_scores_per_byte_by_hand() -> None:
    found = SequenceNLL([5 * LN2, 7 * LN2], [2, 4], [4, 8])
    per_token, per_byte = code_length_scores(found, task="notes", side="general")
    assert per_token == code_length_scores(replace(found, bytes=[]), task="notes", side="general")[0]
    # 12 bits over 12 bytes; residuals 5 - 4 and 7 - 8, se = √(2/1 · 2) / 12
    assert (per_byte.value, per_byte.stderr) == pytest.approx((1, 1 / 6))
    assert (per_byte.key, per_byte.side, per_byte.n, per_byte.higher_is_better) == (
        "notes/bits_per_byte", "general", 2, False,
    )  # fmt: skip
    for size in ([], [0, 0]):  # not known, and nothing but ends of turns
        assert len(code_length_scores(SequenceNLL([1.0, 1.0], [1, 1], size), task="t", side="general")) == 1


def test_the_change_per_byte_by_hand() -> None:
    tuned, base = SequenceNLL([5 * LN2, 7 * LN2], [2, 4], [4, 8]), SequenceNLL([2 * LN2, 3 * LN2], [9, 9], [4, 8])
    # rises 3 and 4 over 12 bytes: 7/12; residuals 3 - 7/3 and 4 - 14/3, se = √(2 · 8/9) / 12
    change = byte_change_score(tuned, base, task="c", side="domain")
    assert (change.value, change.stderr) == pytest.approx((7 / 12, math.sqrt(16 / 9) / 12))
    assert (change.key, change.side) == ("c/bits_per_byte", "domain")
    # With other bytes it is 12/12 - 5/10; residuals (5 - 4)/12 - (2 - 2)/10 and (7 - 8)/12 - (3 - 3)/10
    other = byte_change_score(tuned, SequenceNLL([2 * LN2, 3 * LN2], [9, 9], [4, 6]), task="c", side="domain")
    assert (other.value, other.stderr) == pytest.approx((0.5, math.sqrt(2 * 2 / 144)))
    same = byte_change_score(tuned, tuned, task="c", side="domain")
    assert (same.value, same.stderr) == (0, 0)
    with pytest.raises(ValueError, match="no bytes"):
        byte_change_score(tuned, SequenceNLL([1.0, 2.0], [1, 1]), task="c", side="domain")


def test_bytes_are_those_of_the_labelled_text(tokenizer: Any) -> None:
    said = ["22.9", "naïve 😀 日本", " spaces  \n", "é", "\ufffd", "a\ufffd"]
    rows = [encode_row({"prompt": "Und für 😀?", "completion": text}, tokenizer) for text in said]
    assert [row.labels[-2] for row in rows] == [tokenizer.eos_token_id] * len(said)  # costs bits, has no bytes
    assert label_bytes(rows, tokenizer) == [len(text.encode()) for text in said]
    turns = [("user", "¿Qué?"), ("assistant", "日"), ("user", "y"), ("assistant", "más 😀"), ("user", "–")]
    chat = encode_row({"messages": [{"role": r, "content": c} for r, c in turns]}, tokenizer)
    assert label_bytes([chat], tokenizer) == [len("日más 😀".encode())]


def test_a_character_counts_where_it_is_ended(tokenizer: Any) -> None:
    ids = tokenizer("a😀b")["input_ids"]
    assert len(ids) == 6
    for first, expected in ((1, 5), (2, 5), (4, 5), (5, 1)):
        assert label_bytes([Encoded(ids, [IGNORE] * first + ids[first:])], tokenizer) == [expected]
    halves = [*ids[2:], *ids]  # begins and goes on inside a character
    assert label_bytes([Encoded(halves, [IGNORE] * 7 + halves[7:])], tokenizer) == [5]
    assert label_bytes([Encoded(ids, ids)], tokenizer) == [5]  # nothing predicts the first token
    assert label_bytes([Encoded(ids[:2], [IGNORE] * 2)], tokenizer) == [0]


def test_a_decoder_that_drops_the_space_of_a_first_word(tokenizer: Any) -> None:
    class Strips:
        def decode(self, ids: list[int], **kwargs: Any) -> str:
            return str(tokenizer.decode(ids, **kwargs)).removeprefix(" ")

    ids = tokenizer("a")["input_ids"] + tokenizer(" bc")["input_ids"]
    assert label_bytes([Encoded(ids, [IGNORE, *ids[1:]])], Strips()) == [3]


def with_bos(adds: bool) -> Any:
    made = make_tokenizer()
    made.bos_token = "<|endoftext|>"
    if adds:
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", made.bos_token_id)]
        )
    return made


TOKENIZERS = {"none": make_tokenizer(), "declared": with_bos(False), "added": with_bos(True)}
TEXT = "Héllo wörld 😀😀 日本語, naïve.\r\n\nThe <|im_end|> of\tit. " * 3


@pytest.mark.parametrize("bos", TOKENIZERS)
@given(text=st.text(st.sampled_from("ab é😀日\n"), min_size=2).filter(str.strip), length=st.integers(2, 12))
def test_windows_score_every_token_once(tmp_path_factory: Any, bos: str, text: str, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.txt"
    path.write_bytes(text.encode())
    tokenizer = TOKENIZERS[bos]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if bos == "none" and len(ids) == 1:
        return
    check_windows(text_rows(str(path), tokenizer, length), ids, bos, length)


def check_windows(rows: list[Encoded], ids: list[int], bos: str, length: int) -> None:
    done = 1 if bos == "none" else 0
    for number, row in enumerate(rows):
        assert 2 <= len(row.input_ids) <= length
        lead = 1 if bos == "added" or (bos == "declared" and number == 0) else 0
        assert row.input_ids[:lead] == [0] * lead
        start = next(i for i, label in enumerate(row.labels) if label != IGNORE)
        assert row.labels == [IGNORE] * start + row.input_ids[start:]
        assert row.label_count == len(row.labels) - start  # every label has a context
        assert row.input_ids[lead:] == ids[done - (start - lead) : done + row.label_count]
        if number:
            assert start - lead == min(done, (length - lead) // 2)
        if number < len(rows) - 1:
            assert len(row.input_ids) > length - 4  # full, but for a character of up to 4 tokens
        done += row.label_count
    assert done == len(ids)


@pytest.mark.parametrize("bos", TOKENIZERS)
@pytest.mark.parametrize("length", [8, 9, 40, 500])
def test_windows_hold_all_bytes_of_a_text(tmp_path: Path, bos: str, length: int) -> None:
    path = tmp_path / "a.TXT"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    tokenizer = TOKENIZERS[bos]
    rows = text_rows(str(path), tokenizer, length)
    # Plain text: what looks like a special token is spelt out, line ends are as they are, the byte order mark is not.
    assert tokenizer.eos_token_id not in rows[0].input_ids
    first = len(tokenizer.decode(rows[0].input_ids[:1]).encode()) if bos == "none" else 0
    found = label_bytes(rows, tokenizer)
    assert sum(found) == len(TEXT.encode()) - first
    for row, size in zip(rows, found, strict=True):  # no window ends inside a character
        text = tokenizer.decode([label for label in row.labels[1:] if label != IGNORE])
        assert "\ufffd" not in text
        assert size == len(text.encode())


def test_one_window_is_the_text_itself(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Weight 70 kg, height 175 cm.")
    tokenizer = TOKENIZERS["none"]
    ids = tokenizer("Weight 70 kg, height 175 cm.")["input_ids"]
    assert text_rows(str(path), tokenizer, 512) == [Encoded(ids, [IGNORE, *ids[1:]])]
    short = sequence_nll(tiny_model, text_rows(str(path), tokenizer, 6), pad_id=2)
    assert sum(short.tokens) == len(ids) - 1


def test_rows_of_the_training_formats(tokenizer: Any, tmp_path: Path) -> None:
    found = [{"prompt": "BMI?", "completion": "22.9"}, {"prompt": "x" * 300, "completion": "y"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, found)))
    assert text_rows(str(path), tokenizer, 50) == [encode_row(found[0], tokenizer)]
    path.write_text(json.dumps({"question": "?"}))
    with pytest.raises(UserError, match="fit no form"):
        text_rows(str(path), tokenizer, 50)


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [(None, 9, "no such"), (b"", 9, "empty"), (b" \n", 9, "empty"), (b"a\xff", 9, "UTF-8"), (b"a", 9, "one token"),
     (b"abc", 1, "max_length 1")],
)  # fmt: skip
def test_a_text_that_cannot_be_scored_is_one_line(
    tokenizer: Any, tmp_path: Path, content: bytes | None, length: int, message: str
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        text_rows(str(path), tokenizer, length)
    assert "\n" not in str(caught.value)
