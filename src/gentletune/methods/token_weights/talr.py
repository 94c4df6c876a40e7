"""TALR, token-adaptive loss reweighting: weight max(p^(1/τ), w_min), recomputed every step."""

from __future__ import annotations

from typing import Any

from gentletune.methods.base import Method, TokenBatch, Weighted
from gentletune.methods.registry import check_number, register


@register("talr", "Token-adaptive loss reweighting (TALR)", "arXiv 2509.20758", "https://arxiv.org/abs/2509.20758")
def talr(tau: float | str = "median", floor: float = 0.01, normalization: str = "count") -> Method:
    """TALR (arXiv 2509.20758): L = (1/Z) Σ sg[max(exp(-ℓ/τ), floor)] ℓ.

    Args:
        tau: `median` (of the sequences' mean NLL in this micro-batch, over all ranks), `lagged_median` (the same
            of the previous global batch: exact under gradient accumulation, and one pass), or a number of nats.
        floor: w_min in [0, 1].
        normalization: `count` (Z = number of label tokens) or `simplex` (Z = Σ w).

    Raises:
        ValueError: τ ≤ 0 or not a known name, floor outside [0, 1], unknown normalization.
    """
    if isinstance(tau, str) and tau not in ("median", "lagged_median"):
        raise ValueError(f"tau must be median, lagged_median or a number > 0, got {tau!r}")
    fixed = None if isinstance(tau, str) else check_number("tau", tau, low=0, open_low=True)
    w_min = check_number("floor", floor, low=0, high=1)
    if normalization not in ("count", "simplex"):
        raise ValueError(f"normalization must be count or simplex, got {normalization!r}")

    def weights(batch: TokenBatch) -> Weighted:
        import torch

        from gentletune.losses import batch_tau, talr_weights

        if fixed is not None:
            temperature = torch.as_tensor(fixed, dtype=batch.nll.dtype, device=batch.nll.device)
        else:
            statistic = batch.previous if tau == "lagged_median" else None
            temperature = batch_tau(batch.sequence_nll if statistic is None else statistic)
        values = talr_weights(batch.nll, temperature, w_min)
        floored = torch.exp(-batch.nll / temperature) < w_min
        return Weighted(values, {"tau": temperature, "floor_share": floored.float().mean()})

    slots: dict[str, Any] = {"normalization": normalization, "uses_previous": tau == "lagged_median"}
    return Method(token_weights=weights, pointwise=tau != "median", **slots)
