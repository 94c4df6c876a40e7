"""EAFT, entropy-adaptive fine-tuning: weight by the entropy of the most probable tokens."""

from __future__ import annotations

from gentletune.methods.base import Method, TokenBatch, Weighted
from gentletune.methods.registry import check_number, check_whole, register


@register("eaft", "Entropy-adaptive fine-tuning (EAFT)", "arXiv 2601.02151", "https://arxiv.org/abs/2601.02151")
def eaft(alpha: float = 1.0, k: int = 20) -> Method:
    """EAFT (arXiv 2601.02151): L = (1/N) Σ sg[(H_topk / ln k)^alpha] ℓ: tokens that the model is sure of learn little.

    H is the entropy of the k most probable tokens, normalised among themselves, under the model as it is at this step.

    Args:
        alpha: exponent ≥ 0; 0 is plain SFT.
        k: tokens that count, ≥ 2.

    Raises:
        ValueError: a value outside its range.
    """
    exponent = check_number("alpha", alpha, low=0)
    count = check_whole("k", k, low=2)

    def weights(batch: TokenBatch) -> Weighted:
        from gentletune.losses import eaft_weights

        assert batch.topk_entropy is not None
        return Weighted(eaft_weights(batch.topk_entropy, count, exponent))

    return Method(token_weights=weights, pointwise=True, top_k=count)
