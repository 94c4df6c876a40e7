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


def length_batches(lengths: Sequence[int], extra: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each at most `batch_tokens` once padded (at least one row).

    >>> list(length_batches([5, 1, 5, 1], extra=0, batch_tokens=10))
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * (lengths[batch[0]] + extra) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
