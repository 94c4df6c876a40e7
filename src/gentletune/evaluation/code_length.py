"""Code length: the bits an arithmetic coder driven by the model would spend on the label tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gentletune.data.batches import length_batches, pad_batch
from gentletune.data.encode import Encoded
from gentletune.evaluation.generate import Progress
from gentletune.losses import label_tokens, token_nll
from gentletune.models import hidden_states, lm_head
from gentletune.records import Score, ratio_score


@dataclass(frozen=True)
class SequenceNLL:
    """Sum of the NLL (nats) and number of label tokens of each sequence."""

    nll: list[float]
    tokens: list[int]

    @property
    def means(self) -> list[float]:
        """Mean NLL of each sequence, nats per token."""
        return [total / count for total, count in zip(self.nll, self.tokens, strict=True)]


def sequence_nll(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> SequenceNLL:
    """NLL of each row's label tokens, head only on label positions. The model is left in the mode it was in.

    Raises:
        ValueError: a row without a label token.
    """
    total, count = [0.0] * len(rows), [row.label_count for row in rows]
    if 0 in count:
        raise ValueError(f"row {count.index(0)} has no label token")
    done, training = 0, model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in length_batches([len(row.input_ids) for row in rows], 0, batch_tokens):
                sums = _batch_nll(model, pad_batch([rows[i] for i in batch], pad_id))
                for i, value in zip(batch, sums, strict=True):
                    total[i] = value
                done += len(batch)
                if progress:
                    progress(done, len(rows))
    finally:
        model.train(training)
    return SequenceNLL(total, count)


def _batch_nll(model: Any, batch: dict[str, torch.Tensor]) -> list[float]:
    batch = {key: value.to(model.device) for key, value in batch.items()}
    hidden = hidden_states(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    tokens = label_tokens(batch["labels"])
    head = lm_head(model)
    nll = token_nll(tokens.gather(hidden), head.weight, tokens.targets, **head.options).nll
    sums = torch.zeros(tokens.sequences, dtype=torch.float64, device=nll.device)
    result: list[float] = sums.index_add_(0, tokens.sequence, nll.double()).tolist()
    return result


def code_length_score(found: SequenceNLL, *, task: str, side: Literal["domain", "general"]) -> Score:
    """Bits per label token, with a standard error by sequence."""
    bits = [value / math.log(2) for value in found.nll]
    return ratio_score(bits, found.tokens, task=task, side=side, metric="bits_per_token", higher_is_better=False)


def drift_score(found: SequenceNLL, initial: SequenceNLL, *, task: str) -> Score:
    """Rise of the code length over the initial model's on the same sequences, bits per token, paired.

    On the initial model's own answers sampled at temperature 1 it estimates KL(initial‖tuned) per token
    (arXiv 2509.20758, code length; `docs/theory.md`).
    """
    rise = [(a - b) / math.log(2) for a, b in zip(found.nll, initial.nll, strict=True)]
    return ratio_score(rise, found.tokens, task=task, side="general", metric="bits_per_token", higher_is_better=False)
