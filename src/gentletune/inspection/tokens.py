"""Statistics of a handful of encoded rows, for which every probability can be kept (`inspect` keeps none)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.data import Encoded
from gentletune.lm.label_tokens import label_nll
from gentletune.losses import batch_tau, effective_sample_size, talr_weights

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
THRESHOLDS = (0.001, 0.01, 0.1, 0.5)


@dataclass(frozen=True)
class TokenStatistics:
    """Label-token probabilities of a data set under a model.

    `quantiles` maps a quantile to a probability, `hard_share` a threshold to the share of tokens below it,
    `mean_nll` and `tau` (the median over sequences of their mean NLL) are in nats, `talr_ess_share` is the
    effective sample size of TALR's weights at that τ over the number of tokens.
    """

    rows: int
    tokens: int
    mean_nll: float
    tau: float
    quantiles: dict[float, float]
    hard_share: dict[float, float]
    talr_ess_share: float


def token_statistics(model: Any, rows: Sequence[Encoded], *, pad_id: int, batch_tokens: int = 8192) -> TokenStatistics:
    """Statistics of the label tokens of `rows` (at least one) under `model`, in one forward pass over them."""
    found = label_nll(model, rows, pad_id=pad_id, batch_tokens=batch_tokens)
    nll = torch.cat(found)
    probability = torch.exp(-nll)
    tau = batch_tau(torch.stack([row.mean() for row in found]))
    weights = talr_weights(nll, tau)
    return TokenStatistics(
        rows=len(rows),
        tokens=nll.numel(),
        mean_nll=float(nll.mean()),
        tau=float(tau),
        quantiles={q: _quantile(probability, q) for q in QUANTILES},
        hard_share={t: float((probability < t).float().mean()) for t in THRESHOLDS},
        talr_ess_share=float(effective_sample_size(weights)) / nll.numel(),
    )


def _quantile(values: Tensor, q: float) -> float:
    """Nearest-rank quantile; torch.quantile refuses large inputs."""
    return float(values.kthvalue(max(1, round(q * values.numel()))).values)
