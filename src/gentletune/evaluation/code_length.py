"""Code length: the bits an arithmetic coder driven by the model would spend on the label tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gentletune.core.errors import UserError
from gentletune.core.records import Score, Side
from gentletune.data.encode import IGNORE, Encoded, EncodedRows, encode_rows
from gentletune.data.files import is_text, read_rows, read_text
from gentletune.data.forms import shaped_rows
from gentletune.lm.generate import Progress
from gentletune.lm.label_tokens import label_nll
from gentletune.lm.model_files import quiet
from gentletune.stats import ratio_score


@dataclass(frozen=True)
class SequenceNLL:
    """Sum of the NLL (nats) and number of label tokens of each sequence, and its UTF-8 bytes where known.

    `bytes` is `label_bytes` of the rows, or empty: the NLL itself needs no tokenizer.
    """

    nll: list[float]
    tokens: list[int]
    bytes: list[int] = field(default_factory=list)

    @property
    def bits(self) -> list[float]:
        """Code length of each sequence, bits."""
        return [value / math.log(2) for value in self.nll]

    @property
    def means(self) -> list[float]:
        """Mean NLL of each sequence, nats per token."""
        return [total / count for total, count in zip(self.nll, self.tokens, strict=True)]


def sequence_nll(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> SequenceNLL:
    """NLL of each row's label tokens, head only on label positions. The model is left in the mode it was in.

    Raises:
        ValueError: a row without a label token.
    """
    found = label_nll(model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress)
    return SequenceNLL([float(nll.sum()) for nll in found], [len(nll) for nll in found])


def label_bytes(rows: Sequence[Encoded], tokenizer: Any) -> list[int]:
    """UTF-8 bytes of each row's label tokens, as text without special tokens.

    The end of the turn is a label and costs bits, but has no bytes: the text is what is stored, and the end says where
    it stops. A span's text is what its tokens add to the text before them, since a tokenizer may split a
    character over tokens and spell a space by where it stands. A character begun before a span and ended in it
    counts whole. The first token of a row is never a label (`Encoded.label_count`).

    >>> label_bytes([encode_row({"prompt": "?", "completion": "naïve"}, tokenizer)], tokenizer)  # doctest: +SKIP
    [6]
    """

    def text(ids: Sequence[int]) -> str:
        found: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    counts = []
    for row in rows:
        marks = [False, *(label != IGNORE for label in row.labels[1:]), False]
        edges = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
        total = 0
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            before, after = text(row.input_ids[:start]), text(row.input_ids[:stop])
            if not after.startswith(before):  # the decoder shows half a character as replacement characters
                before = before.rstrip("\ufffd")
            total += len(after.encode()) - len(before.encode())
        counts.append(total)
    return counts


def code_length_scores(found: SequenceNLL, *, task: str, side: Side) -> list[Score]:
    """Bits per label token and, where the bytes are known (and there are any), bits per UTF-8 byte.

    Both have standard errors by sequence. Per byte, models with different tokenizers can be compared.

    >>> [s.value for s in code_length_scores(SequenceNLL([math.log(8)], [2], [4]), task="t", side="general")]
    [1.5, 0.75]
    """
    scores = [_ratio(found.bits, found.tokens, "bits_per_token", task, side)]
    if any(found.bytes):
        scores.append(_ratio(found.bits, found.bytes, "bits_per_byte", task, side))
    return scores


def rise_score(found: SequenceNLL, base: SequenceNLL, *, task: str) -> Score:
    """Rise of the code length over the base model's on the same sequences, bits per token, paired.

    On the base model's own answers sampled at temperature 1 it estimates KL(base‖tuned) per token
    (arXiv 2509.20758, code length; `docs/theory.md`).
    """
    rise = [a - b for a, b in zip(found.bits, base.bits, strict=True)]
    return _ratio(rise, found.tokens, "bits_per_token", task, "general")


def byte_change_score(found: SequenceNLL, base: SequenceNLL, *, task: str, side: Side) -> Score:
    """Rise of the code length over the base model's on the same texts, bits per UTF-8 byte, paired.

    Defined between different tokenizers, too. The bytes of a text can then differ a little (a first token without
    context is longer in one of them): the value is the difference of the two rates, its items are the
    differences of theirs (linearised), which for equal bytes is the ratio of the paired differences.
    """
    size, base_size = sum(found.bytes), sum(base.bytes)
    if not (size and base_size):
        raise ValueError(f"no bytes to score for task '{task}'")
    rate, scale = sum(base.bits) / base_size, size / base_size
    pairs = zip(found.bits, found.bytes, base.bits, base.bytes, strict=True)
    rise = [a - b * scale + rate * (old * scale - new) for a, new, b, old in pairs]
    return _ratio(rise, found.bytes, "bits_per_byte", task, side)


def _ratio(bits: Sequence[float], sizes: Sequence[int], metric: str, task: str, side: Side) -> Score:
    return ratio_score(bits, sizes, task=task, side=side, metric=metric, higher_is_better=False)


def text_rows(path: str, tokenizer: Any, max_length: int) -> list[Encoded]:
    """Rows to measure from any file: the training formats in any of their shapes, or plain text.

    Text (`.txt`, UTF-8) is no training format. It is tokenised once, as plain text even where it spells special
    tokens, and cut into windows of at most `max_length` tokens that between them score every token once. A window
    after the first begins with up to `max_length // 2` tokens that the one before it scored, as context. Windows end
    between characters, not inside one. The first token's context is the tokenizer's BOS; without one it has no
    code length and is no label. Later windows begin with BOS where the tokenizer puts it before any text. No end
    token is added. The windows are our choice: a longer context would give a shorter code.

    Raises:
        UserError: missing or empty file, not UTF-8, nothing to score, or what `read_rows`, `shaped_rows`,
            `encode_rows` refuse.
    """
    return list(encoded_file(path, tokenizer, max_length).rows)


def encoded_file(path: str, tokenizer: Any, max_length: int) -> EncodedRows:
    """`text_rows` with what was kept and dropped. Raises `UserError` as that does."""
    if is_text(path):
        rows = _windows(read_text(path), tokenizer, max_length)
        if not rows:
            raise UserError(f"{path}: one token alone has no code length; give a longer text")
        return EncodedRows(rows, list(range(len(rows))), 0, 0)
    found = shaped_rows(read_rows(path), path)
    return encode_rows(found.rows, tokenizer, max_length=max_length, where=path)


def _windows(text: str, tokenizer: Any, max_length: int) -> list[Encoded]:
    if max_length < 2:
        raise UserError(f"max_length {max_length} leaves no room for a token and one before it; raise it to 2 or more")
    with quiet():  # no advice about a text longer than the model's context
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    ids, spans = list(found["input_ids"]), found["offset_mapping"]
    lead = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    later = lead if tokenizer("a")["input_ids"][:1] == lead else []  # some models are lost without it
    rows, scored = list[Encoded](), 1 - len(lead)
    while scored < len(ids):
        room = max_length - len(lead)
        start = max(0, scored - room // 2) if rows else 0
        stop = limit = min(start + room, len(ids))
        while scored < stop < len(ids) and spans[stop][0] < spans[stop - 1][1]:  # the same character goes on
            stop -= 1
        stop = limit if stop == scored else stop
        rows.append(Encoded(lead + ids[start:stop], [IGNORE] * (len(lead) + scored - start) + ids[scored:stop]))
        scored, lead = stop, later
    return rows
