"""Which hidden states predict a label, and which sequence each label belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class LabelTokens:
    """The N label tokens of a batch, after the causal shift.

    `index` (N,) points into the flattened (batch·length) positions that predict them, `targets` (N,) are
    their ids, `sequence` (N,) numbers the sequence each belongs to in 0…sequences-1.
    """

    index: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int

    def gather(self, values: Tensor) -> Tensor:
        """`values` (batch, length, …) at the predicting positions: (N, …)."""
        return values.flatten(0, 1)[self.index]


def label_tokens(labels: Tensor, position_ids: Tensor | None = None) -> LabelTokens:
    """Find the label tokens of `labels` (batch, length), where -100 means no label.

    A row is one sequence unless `position_ids` (batch, length) restart within it, as they do in packed rows;
    the first token of a packed sequence is no label, since nothing of its own sequence predicts it.

    >>> found = label_tokens(torch.tensor([[1, -100, 5, 6]]))
    >>> found.targets.tolist(), found.index.tolist()
    ([5, 6], [1, 2])
    """
    batch, length = labels.shape
    if position_ids is None:
        sequence = torch.arange(batch, device=labels.device)[:, None].expand(batch, length)
        starts = torch.zeros_like(labels, dtype=torch.bool)
    else:
        starts = position_ids == 0
        starts[:, 0] = True
        sequence = starts.flatten().cumsum(0).view(batch, length) - 1
    valid = (labels != IGNORE) & ~starts
    valid[:, 0] = False
    index = valid.flatten().nonzero().squeeze(1)
    number = sequence.flatten()[index]
    # Renumber, so that sequences without a label token do not count.
    present, number = number.unique(return_inverse=True)
    return LabelTokens(index - 1, labels.flatten()[index], number, int(present.numel()))


def sequence_means(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Mean of `values` (N,) within each sequence: (sequences,). Every sequence has at least one token.

    >>> sequence_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [2.0, 5.0]
    """
    total = values.new_zeros(sequences).index_add_(0, sequence, values)
    count = values.new_zeros(sequences).index_add_(0, sequence, torch.ones_like(values))
    return total / count
