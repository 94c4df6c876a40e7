"""Rows into padded batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gentletune.data.encode import IGNORE, Encoded


def pad_batch(rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and labels (batch, length)."""
    width = max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids[i, :n] = torch.tensor(row.input_ids)
        labels[i, :n] = torch.tensor(row.labels)
        mask[i, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


_WORTH_A_PASS = 512  # padded tokens that a pass should have before a shorter row begins the next


def length_batches(
    lengths: Sequence[int], extra: int, batch_tokens: int, *, alike: bool = False
) -> Iterator[list[int]]:
    """Indices in batches of similar length, each at most `batch_tokens` once padded (at least one row).

    `alike` ends a batch of some size early where the next row is less than four fifths as long: for single passes,
    where padding costs what tokens do.

    >>> list(length_batches([5, 1, 5, 1], extra=0, batch_tokens=10))
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] + extra if batch else 0
        short = alike and 5 * (lengths[i] + extra) < 4 * longest and len(batch) * longest >= _WORTH_A_PASS
        if batch and (short or (len(batch) + 1) * longest > batch_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
