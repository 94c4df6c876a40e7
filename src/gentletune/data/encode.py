"""Rows to token ids and labels: only what the assistant says is a label, its end-of-turn token included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from gentletune.core.errors import UserError
from gentletune.data.chat import Labels, encode_chat, render_prompt
from gentletune.data.forms import Row

IGNORE = -100  # the label that torch's losses skip
Truncate = Literal["drop", "left", "right"]
MANY_ROWS = 2000  # from so many on, rows are encoded by all cores and kept on disk


class Fate(IntEnum):
    """What becomes of a row: it is used as it is, used after it was cut, or dropped."""

    KEPT = 0
    CUT = 1
    TOO_LONG = 2
    NO_LABEL = 3


@dataclass(frozen=True)
class Encoded:
    """Token ids with labels of the same length; -100 where there is no label."""

    input_ids: list[int]
    labels: list[int]

    @property
    def label_count(self) -> int:
        """Label tokens that something predicts (the first token of a sequence has no context)."""
        return sum(label != IGNORE for label in self.labels[1:])

    def cut(self, length: int, side: Truncate) -> Encoded:
        """The row without what is too much on the left or the right, labels alike.

        >>> Encoded([1, 2, 3], [IGNORE, 2, 3]).cut(2, "left")
        Encoded(input_ids=[2, 3], labels=[2, 3])
        """
        kept = slice(-length, None) if side == "left" else slice(length)
        return Encoded(self.input_ids[kept], self.labels[kept])


@dataclass(frozen=True)
class EncodedRows:
    """What became of a list of rows. `kept` holds the index of each encoded row in the list; `cut` were longer."""

    rows: Sequence[Encoded]
    kept: list[int]
    too_long: int
    no_label: int
    cut: int = 0

    @property
    def count(self) -> int:
        """Rows of the list."""
        return len(self.rows) + self.too_long + self.no_label

    @property
    def counts(self) -> dict[str, int]:
        """Counts for the record."""
        dropped = {"dropped_too_long": self.too_long, "dropped_no_label": self.no_label}
        return {"rows": len(self.rows), **dropped} | ({"truncated": self.cut} if self.cut else {})


def row_lengths(rows: Sequence[Encoded]) -> list[int]:
    """Tokens of each row, without reading those that lie on disk."""
    return rows.lengths if hasattr(rows, "lengths") else [len(row.input_ids) for row in rows]


def label_counts(rows: Sequence[Encoded]) -> list[int]:
    """Label tokens of each row, without reading those that lie on disk."""
    return rows.label_counts if hasattr(rows, "label_counts") else [row.label_count for row in rows]


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    max_length: int,
    where: str = "data",
    truncate: Truncate = "drop",
    labels: Labels = "assistant",
    rows_hash: str | None = None,
    keep: bool = False,
) -> EncodedRows:
    """Encode rows of any shape; rows longer than `max_length` tokens or without a label are dropped and counted.

    `truncate` says which side of a longer row is cut instead, `labels` what of a row is trained on. Many rows are
    encoded once, by all cores, and stay on disk (`data/disk`), as do few with `keep`; `rows_hash` is their `digest`,
    where it is known.

    Raises:
        UserError: nothing is left, or the chat template does not tell what the assistant says, refuses a row or leaves
            out its tools.
    """
    how: dict[str, Any] = {"max_length": max_length, "truncate": truncate, "labels": labels}
    found = None
    if (keep or len(rows) >= MANY_ROWS) and tokenizer.is_fast:
        from gentletune.data.disk.encoded import rows_on_disk  # Arrow takes a second to load

        found = rows_on_disk(rows, tokenizer, where=where, rows_hash=rows_hash, **how)
    if found is None:
        found = _rows_in_memory(rows, tokenizer, where, how)
    if not found.rows:
        raise UserError(f"{where}: no row left to use: {why_none(found.too_long, found.no_label, max_length)}")
    return found


def why_none(too_long: int, no_label: int, max_length: int) -> str:
    """Why all rows were left out, and the mend, for the end of a line."""
    mend = "look at the rows"
    if too_long:
        mend = "truncate: left or right cuts longer ones, max_length keeps them up to the model's context"
    return f"{too_long} longer than max_length {max_length} tokens, {no_label} without a label token; {mend}"


def _rows_in_memory(rows: Sequence[Row], tokenizer: Any, where: str, how: dict[str, Any]) -> EncodedRows:
    kept, encoded, fates = list[int](), list[Encoded](), list[Fate]()
    for number, row in enumerate(rows):
        try:
            one, fate = encode_within(row, tokenizer, **how)
        except UserError as error:
            raise UserError(f"{where}: row {number + 1} of {len(rows)}: {error}") from error
        fates.append(fate)
        if fate <= Fate.CUT:
            encoded.append(one)
            kept.append(number)
    return EncodedRows(encoded, kept, *(fates.count(fate) for fate in (Fate.TOO_LONG, Fate.NO_LABEL, Fate.CUT)))


def encode_within(
    row: Row, tokenizer: Any, max_length: int, truncate: Truncate = "drop", labels: Labels = "assistant"
) -> tuple[Encoded, Fate]:
    """One row within `max_length` tokens, and what becomes of it. Raises `UserError` as `encode_rows` does."""
    one = encode_row(row, tokenizer, labels)
    longer = len(one.input_ids) > max_length
    if longer and truncate == "drop":
        return one, Fate.TOO_LONG
    one = one.cut(max_length, truncate) if longer else one
    return one, Fate.NO_LABEL if one.label_count == 0 else Fate.CUT if longer else Fate.KEPT


def encode_row(row: Row, tokenizer: Any, labels: Labels = "assistant") -> Encoded:
    """One row as ids and labels.

    `messages`, and `prompt`/`completion` where the tokenizer has a chat template, are rendered by it (with the row's
    `tools`, if any), and what the assistant says up to and including the end of its turn is the label. Without a
    template the completion is appended to the prompt (and the row's `joint`), followed by the end token. In `text`
    every token is a label. Of `messages`, the first `given` are the prompt, and no labels, nor are the turns at the
    places `silent`. `labels` of `last` leaves the assistant's last turn alone a label, `all` makes the prompt one, too.
    """
    if "messages" in row:
        if not tokenizer.chat_template:
            raise UserError(
                "the rows are chat messages, but the tokenizer has no chat template; use another model, or give "
                "chat_template"
            )
        return _encode_chat(row, row["messages"], tokenizer, labels)
    end = tokenizer.eos_token_id
    if "text" in row:
        ids = [*_without_ends(tokenizer(row["text"])["input_ids"], end), end]
        return Encoded(ids, list(ids))
    if tokenizer.chat_template:
        return _encode_chat(row, as_messages(row["prompt"], row["completion"]), tokenizer, labels)
    prompt = encode_prompt(row["prompt"] + row.get("joint", ""), tokenizer)
    completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    completion = [*_without_ends(completion, end), end]
    return Encoded(prompt + completion, (prompt if labels == "all" else [IGNORE] * len(prompt)) + completion)


def as_messages(prompt: str, completion: str | None = None) -> list[dict[str, str]]:
    """A prompt, and its answer if given, as chat messages."""
    messages = [{"role": "user", "content": prompt}]
    return messages if completion is None else [*messages, {"role": "assistant", "content": completion}]


def encode_prompt(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids of a user's prompt, up to where the assistant begins to answer."""
    if tokenizer.chat_template:
        return list(tokenizer(render_prompt(as_messages(prompt), tokenizer), add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(prompt)["input_ids"])
    adds_end = tokenizer("")["input_ids"][-1:] == [tokenizer.eos_token_id]  # some tokenizers end every text
    return ids[:-1] if adds_end else ids


def _without_ends(ids: list[int], end: int) -> list[int]:
    """The ids without end tokens at their end: one will be added, whether the text or the tokenizer has one or not."""
    stop = len(ids)
    while stop and ids[stop - 1] == end:
        stop -= 1
    return ids[:stop]


def _encode_chat(row: Row, messages: list[Any], tokenizer: Any, labels: Labels) -> Encoded:
    given, silent = row.get("given", 0), row.get("silent", ())
    ids, mask = encode_chat(messages, tokenizer, row.get("tools"), given, silent=silent, labels=labels)
    return Encoded(ids, [token if said else IGNORE for token, said in zip(ids, mask, strict=True)])
