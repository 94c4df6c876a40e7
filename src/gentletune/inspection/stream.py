"""The label tokens of rows under a model, row by row: probability, entropy, what it would have said, class, place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gentletune.core.errors import UserError
from gentletune.data.batches import length_batches, pad_batch
from gentletune.data.encode import IGNORE, Encoded, encode_row
from gentletune.data.files import Row
from gentletune.inspection.classes import classify
from gentletune.inspection.text import TokenText
from gentletune.inspection.weights import EAFT_K
from gentletune.lm.models import Head, hidden_states, lm_head
from gentletune.losses import eaft_weights, label_tokens

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

_BLOCK = 64  # rows sorted by length together, so that padding is small and order can be restored
_LOGITS = 2**24  # at once: 64 MiB in fp32, 341 tokens of a vocabulary of 49 152


class _Found(NamedTuple):
    """(N,) each: NLL and entropy in nats, the most probable token and its probability, EAFT's weight."""

    nll: Tensor
    entropy: Tensor
    top: Tensor
    top_probability: Tensor
    eaft: Tensor


@dataclass(frozen=True)
class RowTokens:
    """The N label tokens of one row.

    `row` counts the rows given from 1, `position` the tokens of an answer from 1 (a chat has several answers). `kind`
    indexes `CLASSES`. `nll` and `entropy` are in nats. `before` are the unlabelled texts in front of each answer.
    """

    row: int
    token: Counts
    position: Counts
    pieces: list[str]
    kind: Counts
    nll: Array
    entropy: Array
    top: Counts
    top_text: list[str]
    top_probability: Array
    eaft: Array
    before: list[str]

    @property
    def probability(self) -> Array:
        """exp(-nll), (N,)."""
        return np.exp(-self.nll)


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
    text: TokenText = field(init=False)

    def __post_init__(self) -> None:
        self.text = TokenText(self.tokenizer)


def row_tokens(
    source: Source, rows: Iterable[Row], dropped: Dropped, advance: Callable[[int], None] | None = None
) -> Iterator[RowTokens]:
    """The label tokens of each row, in order; `dropped` counts rows that are too long or have no label.

    Only `_BLOCK` rows are held at a time. `advance` is called with the number of rows taken.

    Raises:
        UserError: the model's probabilities are not finite, or what `encode_row` refuses.
    """
    taken, numbered = 0, enumerate(rows, start=1)
    while block := list(islice(numbered, _BLOCK)):
        kept: list[tuple[int, Encoded]] = []
        for number, row in block:
            one = encode_row(row, source.tokenizer)
            if len(one.input_ids) > source.max_length:
                dropped.too_long += 1
            elif one.label_count == 0:
                dropped.no_label += 1
            else:
                kept.append((number, one))
        yield from _block(source, kept)
        taken += len(block)
        if advance:
            advance(taken)


def _block(source: Source, rows: list[tuple[int, Encoded]]) -> Iterator[RowTokens]:
    found: dict[int, _Found] = {}
    lengths = [len(one.input_ids) for _, one in rows]
    for index in length_batches(lengths, 0, source.batch_tokens, alike=True):
        parts = _batch(source.model, [rows[i][1] for i in index], source.tokenizer.pad_token_id)
        found.update(zip(index, parts, strict=True))
    for i, (number, one) in enumerate(rows):
        yield _row(source.text, number, one, found.pop(i))


@torch.inference_mode()
def _batch(model: Any, rows: list[Encoded], pad_id: int) -> list[_Found]:
    """What is found of each row; the head is computed at label positions only, some at a time."""
    batch = {key: value.to(model.device) for key, value in pad_batch(rows, pad_id).items()}
    hidden = hidden_states(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    tokens = label_tokens(batch["labels"])
    states, head = tokens.gather(hidden), lm_head(model)
    step = max(1, _LOGITS // head.weight.shape[0])
    parts = [_look(head, a, b) for a, b in zip(states.split(step), tokens.targets.split(step), strict=True)]
    whole = _Found(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))
    counts = torch.bincount(tokens.sequence.cpu(), minlength=len(rows)).tolist()
    return [_Found(*values) for values in zip(*(value.split(counts) for value in whole), strict=True)]


def _look(head: Head, hidden: Tensor, targets: Tensor) -> _Found:
    """What whole logits of a few tokens tell. Shapes: hidden (n, D), targets (n,)."""
    logits = head.logits(hidden).float()
    eaft = eaft_weights(logits, k=min(EAFT_K, logits.shape[-1]))
    log_p = logits.log_softmax(-1)
    best = log_p.max(-1)
    nll = -log_p.gather(-1, targets[:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
    return _Found(nll, entropy, best.indices, best.values.exp(), eaft)


def _row(text: TokenText, number: int, row: Encoded, found: _Found) -> RowTokens:
    if not bool(torch.isfinite(found.nll).all()):
        raise UserError(f"row {number}: the model's probabilities are not finite; it may have diverged in training")
    pieces: list[str] = []
    kind: list[int] = []
    position: list[int] = []
    before: list[str] = []
    answers, end = _answers(row), 0
    for start, stop in answers:
        ids = row.input_ids[start:stop]
        added = text.pieces(ids)
        pieces += added
        # A text row is labelled from its beginning and answers nothing.
        kind += classify(added, [token in text.special for token in ids], answer=row.labels[0] == IGNORE)
        position += range(1, len(ids) + 1)
        before.append(text.text(row.input_ids[end:start]))
        end = stop
    top = found.top.numpy()
    return RowTokens(
        row=number,
        token=np.array([token for start, stop in answers for token in row.input_ids[start:stop]]),
        position=np.array(position),
        pieces=pieces,
        kind=np.array(kind),
        nll=np.maximum(found.nll.double().numpy(), 0.0),  # a probability rounded above 1
        entropy=np.maximum(found.entropy.double().numpy(), 0.0),
        top=top,
        top_text=[text.single(int(token)) for token in top],
        top_probability=np.minimum(found.top_probability.double().numpy(), 1.0),
        eaft=found.eaft.double().numpy(),
        before=before,
    )


def _answers(row: Encoded) -> list[tuple[int, int]]:
    """The runs of label tokens that something predicts, as half-open ranges.

    >>> _answers(Encoded([1, 2, 3, 4, 5], [-100, -100, 3, 4, -100]))
    [(2, 4)]
    """
    marks = [False, *(label != IGNORE for label in row.labels[1:]), False]
    edges = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))
