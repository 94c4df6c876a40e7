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
class Table:
    """Log-probabilities, nats: of every token at T positions (T, V), float32, on the model's device, and of the tokens
    that stand there, `own` (T,), float64, on the host.
    """

    log_p: Tensor
    own: Tensor


def draw_positions(rows: Sequence[Encoded], limit: int, least_rows: int = 16) -> list[Encoded]:
    """At most `limit` label positions, drawn evenly from as many rows as hold that many, always the same ones.

    Rows come in random order, and at least `least_rows` of them where there are that many: tokens of one row are much
    alike. Labels are kept at the drawn positions alone; a row is cut after its last one, since nothing behind it is
    read. Raises `ValueError` where no row has a label.

    >>> [row.label_count for row in draw_positions([Encoded([1, 2, 3, 4], [IGNORE, 2, 3, 4])] * 2, limit=5)]
    [3, 2]
    """
    rng = random.Random(_SEED)
    found: list[tuple[int, int]] = []
    for count, number in enumerate(rng.sample(range(len(rows)), len(rows))):
        if count >= least_rows and len(found) >= limit:
            break
        found += [(number, at) for at, label in enumerate(rows[number].labels) if at and label != IGNORE]
    if not found:
        raise ValueError("no label token to compare models at")
    places: dict[int, list[int]] = {}
    for number, at in sorted(rng.sample(found, min(limit, len(found)))):
        places.setdefault(number, []).append(at)
    kept = []
    for number, drawn in places.items():
        ids, labels = rows[number].input_ids[: drawn[-1] + 1], rows[number].labels
        kept.append(Encoded(ids, [labels[at] if at in drawn else IGNORE for at in range(len(ids))]))
    return kept


def predictions(model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192) -> Table:
    """What a model predicts at every label of `rows`; it is left in the mode it was in.

    The head runs at the labels only; the softmax is taken in float64.
    """
    own = torch.empty(sum(row.label_count for row in rows), dtype=torch.float64)
    table = torch.empty(0)
    for found in label_logits(model, rows, pad_id=pad_id, batch_tokens=batch_tokens):
        exact = found.logits.double().log_softmax(-1)
        if not len(table):
            table = exact.new_empty(len(own), exact.shape[1], dtype=torch.float32)
        table[found.place] = exact.float()
        own[found.place] = exact.gather(-1, found.targets[:, None]).squeeze(-1).cpu()
    return Table(table, own)
