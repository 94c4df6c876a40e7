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
from gentletune.data.encode import IGNORE, Encoded, encode_row
from gentletune.data.files import Row
from gentletune.inspection.classes import classify
from gentletune.inspection.text import TokenText
from gentletune.inspection.weights import EAFT_K
from gentletune.lm.label_tokens import LabelLogits, label_logits
from gentletune.losses import eaft_weights

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

_BLOCK = 64  # rows sorted by length together, so that padding is small and order can be restored


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
    encoded = [one for _, one in rows]
    how = {"pad_id": source.tokenizer.pad_token_id, "batch_tokens": source.batch_tokens}
    parts = [(found.place, _look(found)) for found in label_logits(source.model, encoded, **how)]
    if not parts:
        return
    order = torch.cat([place for place, _ in parts]).argsort()
    whole = [torch.cat(values)[order] for values in zip(*(found for _, found in parts), strict=True)]
    split = [values.split([one.label_count for one in encoded]) for values in whole]
    for (number, one), found in zip(rows, zip(*split, strict=True), strict=True):
        yield _row(source.text, number, one, _Found(*found))


def _look(found: LabelLogits) -> _Found:
    """What whole logits of a few tokens tell, on the host."""
    logits = found.logits
    eaft = eaft_weights(logits, k=min(EAFT_K, logits.shape[-1]))
    log_p = logits.log_softmax(-1)
    best = log_p.max(-1)
    nll = -log_p.gather(-1, found.targets[:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)
    return _Found(*(values.cpu() for values in (nll, entropy, best.indices, best.values.exp(), eaft)))


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
