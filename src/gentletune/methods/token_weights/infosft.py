"""InfoSFT: tokens of medium probability learn most, known and far-off ones little."""

from __future__ import annotations

from gentletune.methods.base import Method, TokenBatch, Weighted
from gentletune.methods.registry import register


@register(
    "infosft", "Information-aware token weights (InfoSFT)", "arXiv 2605.14967", "https://arxiv.org/abs/2605.14967"
)
def infosft(p_max: float = 0.93) -> Method:
    """InfoSFT (arXiv 2605.14967): L = (1/N) Σ sg[p · max(0, 1 - logit(p) / logit(p_max))] ℓ.

    Args:
        p_max: tokens at or above this probability get no gradient; in (0.5, 1).

    Raises:
        ValueError: p_max outside (0.5, 1).
    """
    if not isinstance(p_max, float) or not 0.5 < p_max < 1:
        raise ValueError(f"p_max must be a number in (0.5, 1), got {p_max!r}")

    def weights(batch: TokenBatch) -> Weighted:
        from gentletune.losses import infosft_weights

        return Weighted(infosft_weights(batch.nll, p_max))

    return Method(token_weights=weights, pointwise=True)
