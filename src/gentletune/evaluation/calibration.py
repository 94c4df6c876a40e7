"""Entropy and calibration of next-token predictions: whether a model has sharpened, and whether it may.

Of each label token: the entropy of the prediction, its confidence (the probability of the most likely token) and
whether that token is the label. On answers that the initial model sampled itself it is calibrated by construction, up
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
from gentletune.data.batches import length_batches, pad_batch
from gentletune.data.encode import Encoded
from gentletune.lm.generate import Progress
from gentletune.lm.models import Head, hidden_states, lm_head
from gentletune.losses import label_tokens
from gentletune.stats import ratio_score

BINS = 15
_LOGITS = 2**24  # elements of a chunk of logits: 64 MiB in fp32
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

    Logits are whole for a bounded number of label positions at a time. Of equally likely tokens the one with the lowest
    id counts as the most likely.

    Raises:
        ValueError: a row without a label token.
    """
    count = [row.label_count for row in rows]
    if 0 in count:
        raise ValueError(f"row {count.index(0)} has no label token")
    found = np.zeros((len(rows), 1 + 3 * BINS))
    done, training = 0, model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in length_batches([len(row.input_ids) for row in rows], 0, batch_tokens, alike=True):
                found[batch] = _of_batch(model, pad_batch([rows[i] for i in batch], pad_id))
                done += len(batch)
                if progress:
                    progress(done, len(rows))
    finally:
        model.train(training)
    return Predictions(found[:, 0], *np.split(found[:, 1:], 3, axis=1))


def _of_batch(model: Any, batch: dict[str, torch.Tensor]) -> Array:
    batch = {key: value.to(model.device) for key, value in batch.items()}
    hidden = hidden_states(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    tokens, head = label_tokens(batch["labels"]), lm_head(model)
    states = tokens.gather(hidden)
    step = max(1, _LOGITS // head.weight.shape[0])
    parts = [_of_tokens(states[i : i + step], tokens.targets[i : i + step], head) for i in range(0, len(states), step)]
    entropy, confidence, right = (torch.cat(part) for part in zip(*parts, strict=True))
    place = tokens.sequence * BINS + ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    sums = [torch.zeros(tokens.sequences, dtype=torch.float64, device=hidden.device)]
    sums[0].index_add_(0, tokens.sequence, entropy)
    columns = [sums[0][:, None]]
    for values in (torch.ones_like(confidence), confidence, right):
        binned = torch.zeros(tokens.sequences * BINS, dtype=torch.float64, device=hidden.device)
        columns.append(binned.index_add_(0, place, values).view(tokens.sequences, BINS))
    result: Array = torch.cat(columns, 1).cpu().numpy()
    return result


def _of_tokens(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> tuple[torch.Tensor, ...]:
    """Entropy (nats), confidence and correctness (n,) of some tokens, in float64."""
    log_p = head.logits(hidden).float().log_softmax(-1)
    probability = log_p.exp()
    entropy = -torch.special.xlogy(probability, probability).sum(-1)
    confidence, likely = probability.max(-1)
    return entropy.double(), confidence.double(), (likely == targets).double()


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
