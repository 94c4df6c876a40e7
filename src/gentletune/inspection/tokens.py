"""Statistics of a handful of encoded rows, for which every probability can be kept (`inspect` keeps none)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gentletune.data import Encoded
from gentletune.data.batches import length_batches, pad_batch
from gentletune.lm.models import hidden_states, lm_head
from gentletune.losses import batch_tau, effective_sample_size, label_tokens, talr_weights, token_nll

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
    found = list(_row_nlls(model, rows, pad_id, batch_tokens))
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


def _row_nlls(model: Any, rows: Sequence[Encoded], pad_id: int, batch_tokens: int) -> Iterator[Tensor]:
    """NLL of each row's label tokens, in batch order."""
    head = lm_head(model)
    with torch.inference_mode():
        for index in length_batches([len(row.input_ids) for row in rows], 0, batch_tokens):
            batch = {k: v.to(model.device) for k, v in pad_batch([rows[i] for i in index], pad_id).items()}
            hidden = hidden_states(model, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            tokens = label_tokens(batch["labels"])
            nll = token_nll(tokens.gather(hidden), head.weight, tokens.targets, **head.options).nll
            yield from (nll[tokens.sequence == i].cpu() for i in range(tokens.sequences))
