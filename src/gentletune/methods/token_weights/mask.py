"""Hard-token masking: no gradient from tokens the model finds improbable."""

from __future__ import annotations

from gentletune.methods.base import Method, TokenBatch, Weighted
from gentletune.methods.registry import check_number, register


@register("mask", "Hard-token masking", "arXiv 2509.20758, Figure 3", "https://arxiv.org/abs/2509.20758")
def mask(p_min: float = 0.1) -> Method:
    """L = (1/N) Σ 1[p > p_min] ℓ, p recomputed every step: the truncation of arXiv 2509.20758, Figure 3.

    Args:
        p_min: tokens at or below this probability get no gradient; in [0, 1].

    Raises:
        ValueError: p_min outside [0, 1].
    """
    threshold = check_number("p_min", p_min, low=0, high=1)

    def weights(batch: TokenBatch) -> Weighted:
        from gentletune.losses import mask_weights

        return Weighted(mask_weights(batch.nll, threshold))

    return Method(token_weights=weights, pointwise=True)
