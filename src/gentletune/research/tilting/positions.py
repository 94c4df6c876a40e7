"""Where models are compared in full: some label positions of a list of rows, and the log-probabilities there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.data.batches import length_batches, pad_batch
from gentletune.data.encode import IGNORE, Encoded
from gentletune.lm.models import hidden_states, lm_head
from gentletune.losses import label_tokens

_SEED = 20250920  # the positions are the same in every run
_ROWS = 64  # positions whose float64 logits are held at a time


@dataclass(frozen=True)
class Positions:
    """Rows whose labels are kept at the drawn positions alone; `tokens` (T,) are those labels, row by row."""

    rows: list[Encoded]
    tokens: Tensor

    def __len__(self) -> int:
        return int(self.tokens.numel())


def draw_positions(rows: Sequence[Encoded], limit: int, least_rows: int = 16) -> Positions:
    """At most `limit` label positions, drawn evenly from as many rows as hold that many, always the same ones.

    Rows come in random order, and at least `least_rows` of them where there are that many: tokens of one row are much
    alike. A row is cut after its last position, since nothing behind it is read.

    Raises:
        ValueError: no label in any row.

    >>> len(draw_positions([Encoded([1, 2, 3, 4], [IGNORE, 2, 3, 4])] * 9, limit=5))
    5
    """
    rng = random.Random(_SEED)
    found: list[tuple[int, int]] = []
    for count, number in enumerate(rng.sample(range(len(rows)), len(rows))):
        if count >= least_rows and len(found) >= limit:
            break
        found += [(number, at) for at, label in enumerate(rows[number].labels) if at and label != IGNORE]
    if not found:
        raise ValueError("no label token to compare models at")
    drawn = sorted(rng.sample(found, min(limit, len(found))))
    places: dict[int, list[int]] = {}
    for number, at in drawn:
        places.setdefault(number, []).append(at)
    kept = [_only(rows[number], at) for number, at in places.items()]
    return Positions(kept, torch.tensor([rows[number].labels[at] for number, at in drawn]))


def _only(row: Encoded, places: Sequence[int]) -> Encoded:
    labels = [IGNORE] * (places[-1] + 1)
    for at in places:
        labels[at] = row.labels[at]
    return Encoded(row.input_ids[: places[-1] + 1], labels)


def log_probs(model: Any, positions: Positions, *, pad_id: int, batch_tokens: int = 8192) -> Tensor:
    """Log-probabilities of every token at the positions, nats: (T, V), float32, on the model's device.

    The head runs at the positions only; the softmax is taken in float64. The model is left in the mode it was in.
    """
    rows = positions.rows
    ends = torch.tensor([row.label_count for row in rows]).cumsum(0).tolist()
    head, training = lm_head(model), model.training
    table: Tensor | None = None
    model.eval()
    try:
        with torch.no_grad():
            for batch in length_batches([len(row.input_ids) for row in rows], 0, batch_tokens, alike=True):
                padded = {k: v.to(model.device) for k, v in pad_batch([rows[i] for i in batch], pad_id).items()}
                hidden = hidden_states(model, input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
                tokens = label_tokens(padded["labels"])
                places = [at for i in batch for at in range(ends[i] - rows[i].label_count, ends[i])]
                for some, where in zip(tokens.gather(hidden).split(_ROWS), _chunks(places), strict=True):
                    found = head.logits(some).double().log_softmax(-1).float()
                    if table is None:
                        table = found.new_empty(len(positions), found.shape[1])
                    table[where] = found
    finally:
        model.train(training)
    assert table is not None  # there is at least one position
    return table


def token_log_probs(table: Tensor, positions: Positions) -> Tensor:
    """The entries of a table (T, V) at the positions' own tokens: (T,) in float64."""
    return table.gather(-1, positions.tokens.to(table.device)[:, None]).squeeze(-1).double()


def _chunks(places: Sequence[int]) -> list[list[int]]:
    return [list(places[at : at + _ROWS]) for at in range(0, len(places), _ROWS)]
