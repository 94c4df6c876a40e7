"""Where models are compared in full: some label positions of a list of rows, and the log-probabilities there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.data.encode import IGNORE, Encoded
from gentletune.lm.label_tokens import label_logits

_SEED = 20250920  # the positions are the same in every run


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
    table: Tensor | None = None
    for found in label_logits(model, positions.rows, pad_id=pad_id, batch_tokens=batch_tokens):
        block = found.logits.double().log_softmax(-1).float()
        table = block.new_empty(len(positions), block.shape[1]) if table is None else table
        table[found.place] = block
    assert table is not None  # there is at least one position
    return table


def token_log_probs(table: Tensor, positions: Positions) -> Tensor:
    """The entries of a table (T, V) at the positions' own tokens: (T,) in float64."""
    return table.gather(-1, positions.tokens.to(table.device)[:, None]).squeeze(-1).double()
