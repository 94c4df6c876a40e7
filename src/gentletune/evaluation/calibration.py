"""Entropy and calibration of next-token predictions: whether a model has sharpened, and whether it may.

Of each label token: the entropy of the prediction, its confidence (the probability of the most likely token) and
whether that token is the label. On answers that the base model sampled itself it is calibrated by construction, up
to sampling noise: there its confidence *is* the probability of being right. What a tuned model does on the same
answers shows what tuning did to it, without a general data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gentletune.core.records import Score, Side
from gentletune.data.encode import Encoded
from gentletune.lm.generate import Progress
from gentletune.lm.label_tokens import by_row, label_logits
from gentletune.stats import ratio_score

BINS = 15
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """What S sequences' label tokens were predicted with, summed within each sequence.

    `entropy` (S,) nats. `count`, `confidence` and `right` (S, BINS): how many tokens have a confidence in the bin
    ((b/15, (b+1)/15], as Guo et al. have it), the sum of their confidences, and how many of them the most likely token
    got right.
    """

    entropy: Array
    count: Array
    confidence: Array
    right: Array

    @property
    def tokens(self) -> list[float]:
        """Label tokens of each sequence."""
        return [float(n) for n in self.count.sum(1)]


def predictions(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192, progress: Progress | None = None
) -> Predictions:
    """Entropy, confidence and correctness at each row's label tokens. The model is left in the mode it was in.

    Of equally likely tokens the one with the lowest id counts as the most likely.

    Raises:
        ValueError: a row without a label token.
    """
    counts = torch.tensor([row.label_count for row in rows], dtype=torch.long)
    found = by_row(_of_rows, model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress)
    none = torch.zeros(3, 0, dtype=torch.float64)
    entropy, confidence, right = torch.cat([none, *found], dim=1)
    row = torch.arange(len(rows)).repeat_interleave(counts)
    cell = row * BINS + ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)

    def binned(values: torch.Tensor) -> Array:
        table: Array = torch.bincount(cell, values, len(rows) * BINS).view(len(rows), BINS).numpy()
        return table

    total = torch.bincount(row, entropy, len(rows)).numpy()
    return Predictions(total, binned(torch.ones_like(confidence)), binned(confidence), binned(right))


def _of_rows(
    model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int, progress: Progress | None
) -> list[torch.Tensor]:
    """Entropy, confidence and correctness (3, n) of each row's n label tokens."""
    counts = [row.label_count for row in rows]
    values = torch.zeros(3, sum(counts), dtype=torch.float64)
    for found in label_logits(model, rows, pad_id=pad_id, batch_tokens=batch_tokens, progress=progress):
        values[:, found.place] = torch.stack(_of_tokens(found.logits, found.targets))
    return list(values.split(counts, dim=1))


def _of_tokens(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Entropy (nats), confidence and correctness (n,) of some tokens, in float64 on the host."""
    probability = logits.log_softmax(-1).exp()
    entropy = -torch.special.xlogy(probability, probability).sum(-1)
    confidence, likely = probability.max(-1)
    return entropy.double().cpu(), confidence.double().cpu(), (likely == targets).double().cpu()


def calibration_scores(found: Predictions, *, task: str, side: Side) -> list[Score]:
    """`entropy` (bits per token), `overconfidence` and `ece` of the predictions, each with its error by sequence.

    ECE = Σ_b n_b/N |mean confidence - share right| over 15 equal bins of the confidence (Guo et al. 2017, arXiv
    1706.04599, of the top-1 prediction). Overconfidence is the mean confidence minus the share right: the same without
    bins and with its sign. Entropy has no better direction. Tuning is feared to sharpen, so less of it never
    counts as a gain: higher is named better (our choice).

    The error of ECE is the infinitesimal jackknife's, the ratio with each bin's sign held (ours): deterministic, and of
    the same kind as every other score's, so that changes pair by sequence. Of finitely many tokens ECE is biased
    upwards, the more the closer to calibrated: noise alone keeps bins from 0. `details` of ECE gives `confidence`, the
    share right as `top1`, and the filled bins, each [tokens, mean confidence, share right].

    Raises:
        ValueError: no sequences.

    >>> calibrated = Predictions(*(np.zeros(s) for s in (2, (2, 15), (2, 15), (2, 15))))
    >>> calibrated.count[:, 7] = 10; calibrated.confidence[:, 7] = 5; calibrated.right[:, 7] = 5
    >>> [(s.metric, s.value) for s in calibration_scores(calibrated, task="t", side="general")]
    [('entropy', 0.0), ('overconfidence', 0.0), ('ece', 0.0)]
    """

    def score(numerators: Array, metric: str, higher: bool = False, details: dict[str, Any] | None = None) -> Score:
        return ratio_score(
            [float(v) for v in numerators], found.tokens, task=task, side=side, metric=metric,
            higher_is_better=higher, details=details,
        )  # fmt: skip

    gaps = found.confidence - found.right
    signs = np.sign(gaps.sum(0))
    counts, confidence, right = (part.sum(0) for part in (found.count, found.confidence, found.right))
    total = max(counts.sum(), 1)
    bins = [[int(n), float(c / n), float(r / n)] for n, c, r in zip(counts, confidence, right, strict=True) if n]
    details = {"confidence": float(confidence.sum() / total), "top1": float(right.sum() / total), "bins": bins}
    return [
        score(found.entropy / math.log(2), "entropy", higher=True),
        score(gaps.sum(1), "overconfidence"),
        score((gaps * signs).sum(1), "ece", details=details),
    ]
