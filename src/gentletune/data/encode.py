"""Rows to token ids and labels: only what the assistant says is a label, its end-of-turn token included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from gentletune.data.files import Row
from gentletune.errors import UserError

IGNORE = -100  # the label that torch's losses skip


@dataclass(frozen=True)
class Encoded:
    """Token ids with labels of the same length; -100 where there is no label."""

    input_ids: list[int]
    labels: list[int]

    @property
    def label_count(self) -> int:
        """Label tokens that something predicts (the first token of a sequence has no context)."""
        return sum(label != IGNORE for label in self.labels[1:])


@dataclass(frozen=True)
class EncodedRows:
    """What became of a list of rows. `kept` holds the index of each encoded row in the list."""

    rows: list[Encoded]
    kept: list[int]
    too_long: int
    no_label: int

    @property
    def counts(self) -> dict[str, int]:
        """Counts for the record."""
        return {"rows": len(self.rows), "dropped_too_long": self.too_long, "dropped_no_label": self.no_label}


def encode_rows(rows: Sequence[Row], tokenizer: Any, *, max_length: int, where: str = "data") -> EncodedRows:
    """Encode rows of any shape; rows longer than `max_length` tokens or without a label are dropped and counted.

    Raises:
        UserError: nothing is left, or the chat template does not tell what the assistant says.
    """
    kept: list[int] = []
    encoded: list[Encoded] = []
    too_long = no_label = 0
    for number, row in enumerate(rows):
        one = encode_row(row, tokenizer)
        if len(one.input_ids) > max_length:
            too_long += 1
        elif one.label_count == 0:
            no_label += 1
        else:
            encoded.append(one)
            kept.append(number)
    if not encoded:
        raise UserError(
            f"{where}: no row left to use: {too_long} longer than max_length {max_length} tokens, "
            f"{no_label} without a label token; raise max_length or look at the rows"
        )
    return EncodedRows(encoded, kept, too_long, no_label)


def encode_row(row: Row, tokenizer: Any) -> Encoded:
    """One row as ids and labels.

    `messages`, and `prompt`/`completion` where the tokenizer has a chat template, are rendered by it, and what
    the assistant says up to and including the end of its turn is the label. Without a template the completion
    is appended to the prompt, followed by the end token. In `text` every token is a label.
    """
    if "messages" in row:
        if not tokenizer.chat_template:
            raise UserError("the rows are chat messages, but the tokenizer has no chat template; use another model")
        return _encode_chat(row["messages"], tokenizer)
    if "text" in row:
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        return Encoded(ids, list(ids))
    if tokenizer.chat_template:
        return _encode_chat(as_messages(row["prompt"], row["completion"]), tokenizer)
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    completion = [*completion, tokenizer.eos_token_id]
    return Encoded(prompt + completion, [IGNORE] * len(prompt) + completion)


def as_messages(prompt: str, completion: str | None = None) -> list[dict[str, str]]:
    """A prompt, and its answer if given, as chat messages."""
    messages = [{"role": "user", "content": prompt}]
    return messages if completion is None else [*messages, {"role": "assistant", "content": completion}]


def encode_prompt(prompt: str, tokenizer: Any) -> list[int]:
    """Token ids of a user's prompt, up to where the assistant begins to answer."""
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(as_messages(prompt), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)


def _encode_chat(messages: list[dict[str, str]], tokenizer: Any) -> Encoded:
    marked = "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template
    try:
        return _by_generation_markers(messages, tokenizer) if marked else _by_prefixes(messages, tokenizer)
    except jinja2.TemplateError as error:  # a template may refuse a system message, or two of one role in a row
        roles = ", ".join(m["role"] for m in messages)
        raise UserError(f"the chat template refuses a row of {roles}: {' '.join(str(error).split())}") from error


def _by_generation_markers(messages: list[dict[str, str]], tokenizer: Any) -> Encoded:
    """The template marks what the assistant says."""
    out = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    ids, mask = out["input_ids"], list(out["assistant_masks"])
    if not any(mask):
        raise UserError(
            "the chat template's {% generation %} marks give an empty assistant mask, so nothing would be trained; "
            "mend the template"
        )
    ends = end_tokens(tokenizer)
    for i in range(1, len(ids)):  # some templates leave the end of the turn outside the marks
        if mask[i - 1] and not mask[i] and ids[i] in ends and ids[i - 1] not in ends:
            mask[i] = 1
    return Encoded(ids, [token if kept else IGNORE for token, kept in zip(ids, mask, strict=True)])


def _by_prefixes(messages: list[dict[str, str]], tokenizer: Any) -> Encoded:
    """The template has no marks: what an assistant message adds to the text rendered before it is the label."""
    render = tokenizer.apply_chat_template
    text: str = render(messages, tokenize=False)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        after = render(messages[: i + 1], tokenize=False)
        if i:
            before = render(messages[:i], tokenize=False, add_generation_prompt=True)
        else:  # nothing to render before it: its header is what stands in front of any content
            before = render([{**message, "content": "\0"}], tokenize=False).partition("\0")[0]
        if not (text.startswith(after) and after.startswith(before)):
            raise UserError(
                "the chat template gives no assistant mask: it has no {% generation %} marks and rewrites earlier "
                "turns; add the marks to the template"
            )
        spans.append((len(before), len(after)))
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = out["input_ids"], end_tokens(tokenizer)
    labels = [IGNORE] * len(ids)
    for start, stop in spans:
        inside = [i for i, (a, _) in enumerate(out["offset_mapping"]) if start <= a < stop]
        last = max((i for i in inside if ids[i] in ends), default=None)
        for i in inside:
            if last is None or i <= last:  # the newline after the end of the turn is never generated
                labels[i] = ids[i]
    return Encoded(ids, labels)


def end_tokens(tokenizer: Any) -> set[int]:
    """Tokens that end a turn: the end token, and the usual end-of-turn tokens the vocabulary has."""
    known = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>", "<turn|>", "<|end_of_turn|>")
    special = tokenizer.get_added_vocab()  # the whole vocabulary would cost 30 ms a call
    return {tokenizer.eos_token_id, *(special[token] for token in known if token in special)}
