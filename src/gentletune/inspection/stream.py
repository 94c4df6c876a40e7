"""The label tokens of rows under a model, row by row: probability, entropy, what it would have said, class, place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentletune.core.errors import UserError
from gentletune.data.chat import Labels
from gentletune.data.encode import IGNORE, Encoded, Fate, Truncate, encode_within
from gentletune.data.forms import Row
from gentletune.inspection.classes import CLASSES, classify
from gentletune.inspection.text import TokenText
from gentletune.inspection.weights import TOP_K, Tokens
from gentletune.lm.label_tokens import LabelLogits, label_logits
from gentletune.losses import topk_entropy

_BLOCK = 64  # rows sorted by length together, so that padding is small and order can be restored


@dataclass(frozen=True)
class RowTokens:
    """The label tokens of one row, which is the number `row` of those given, from 1.

    `tokens` are columns, an entry a token: `row`; `position` in its answer, from 1 (a chat has several answers);
    `token_id`; the `text` it adds; its `class`; `nll` and `entropy` in nats; `probability`; the most probable token as
    `top_token_id`, `top_text` and `top_probability`; `topk_entropy` in nats. `before` are the unlabelled texts in front
    of each answer.
    """

    row: int
    tokens: Tokens
    before: list[str]

    def answers(self) -> Iterator[tuple[str, Tokens]]:
        """Each answer's tokens, with the text before it."""
        starts = np.flatnonzero(self.tokens["position"] == 1)
        for before, start, stop in zip(self.before, starts, [*starts[1:], None], strict=True):
            yield before, {name: values[start:stop] for name, values in self.tokens.items()}


@dataclass
class Dropped:
    """Rows that were left out, by reason."""

    too_long: int = 0
    no_label: int = 0


@dataclass
class Source:
    """A model with its tokenizer, and how much of it is used at once."""

    model: Any
    tokenizer: Any
    max_length: int
    batch_tokens: int = 8192
    truncate: Truncate = "drop"
    labels: Labels = "assistant"
    text: TokenText = field(init=False)

    def __post_init__(self) -> None:
        self.text = TokenText(self.tokenizer)


def row_tokens(
    source: Source, rows: Iterable[Row], dropped: Dropped, advance: Callable[[int], None] | None = None
) -> Iterator[RowTokens]:
    """The label tokens of each row, in order; `dropped` counts rows that are too long or have no label.

    Only `_BLOCK` rows are held at a time. `advance` is called with the number of rows taken.

    Raises:
        UserError: the model's probabilities are not finite, or what `encode_within` refuses.
    """
    taken, numbered = 0, enumerate(rows, start=1)
    while block := list(islice(numbered, _BLOCK)):
        kept: list[tuple[int, Encoded]] = []
        for number, row in block:
            one, fate = encode_within(row, source.tokenizer, source.max_length, source.truncate, source.labels)
            if fate <= Fate.CUT:
                kept.append((number, one))
            dropped.too_long += fate == Fate.TOO_LONG
            dropped.no_label += fate == Fate.NO_LABEL
        yield from _block(source, kept)
        taken += len(block)
        if advance:
            advance(taken)


def _block(source: Source, rows: list[tuple[int, Encoded]]) -> Iterator[RowTokens]:
    encoded = [one for _, one in rows]
    how = {"pad_id": source.tokenizer.pad_token_id, "batch_tokens": source.batch_tokens}
    parts = [(found.place, _look(found)) for found in label_logits(source.model, encoded, **how)]
    if not parts:
        return
    order, start = torch.cat([place for place, _ in parts]).argsort(), 0
    whole = {name: torch.cat([found[name] for _, found in parts])[order].numpy() for name in parts[0][1]}
    for number, one in rows:
        stop = start + one.label_count
        yield _row(source.text, number, one, {name: values[start:stop] for name, values in whole.items()})
        start = stop


def _look(found: LabelLogits) -> dict[str, Tensor]:
    """What whole logits of a few tokens tell, on the host."""
    logits = found.logits
    log_p = logits.log_softmax(-1)
    best = log_p.max(-1)
    nll = (
        (-log_p.gather(-1, found.targets[:, None]).squeeze(-1)).double().clamp_min(0.0)
    )  # a probability rounded above 1
    columns = {
        "token_id": found.targets,
        "nll": nll,
        "probability": (-nll).exp(),
        "entropy": (-(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)).double().clamp_min(0.0),
        "top_token_id": best.indices,
        "top_probability": best.values.double().exp().clamp_max(1.0),
        "topk_entropy": topk_entropy(logits, min(TOP_K, logits.shape[-1])).double(),
    }
    return {name: values.cpu() for name, values in columns.items()}


def _row(text: TokenText, number: int, row: Encoded, found: Tokens) -> RowTokens:
    if not np.isfinite(found["nll"]).all():
        raise UserError(f"row {number}: the model's probabilities are not finite; it may have diverged in training")
    pieces: list[str] = []
    kind: list[int] = []
    position: list[int] = []
    before: list[str] = []
    end = 0
    for start, stop in _answers(row):
        ids = row.input_ids[start:stop]
        added = text.pieces(ids)
        pieces += added
        # A text row is labelled from its beginning and answers nothing.
        kind += classify(added, [token in text.special for token in ids], answer=row.labels[0] == IGNORE)
        position += range(1, len(ids) + 1)
        before.append(text.text(row.input_ids[end:start]))
        end = stop
    texts = {"text": pieces, "class": [CLASSES[i] for i in kind], "top_text": map(text.single, found["top_token_id"])}
    tokens = {"row": np.full(len(pieces), number), "position": np.array(position)} | found
    return RowTokens(number, tokens | {name: np.array(list(t), dtype=object) for name, t in texts.items()}, before)


def _answers(row: Encoded) -> list[tuple[int, int]]:
    """The runs of label tokens that something predicts, as half-open ranges.

    >>> _answers(Encoded([1, 2, 3, 4, 5], [-100, -100, 3, 4, -100]))
    [(2, 4)]
    """
    marks = [False, *(label != IGNORE for label in row.labels[1:]), False]
    edges = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))
