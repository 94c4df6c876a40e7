"""DFT, dynamic fine-tuning: weight p. The whole of what it takes to add a method is this one file."""

from __future__ import annotations

from gentletune.methods.base import Method, TokenBatch, Weighted
from gentletune.methods.registry import register


@register("dft", "Dynamic fine-tuning (DFT)", "arXiv 2508.05629", "https://arxiv.org/abs/2508.05629")
def dft() -> Method:
    """DFT (arXiv 2508.05629): L = (1/N) Σ sg[p] ℓ."""

    def weights(batch: TokenBatch) -> Weighted:
        from gentletune.losses import dft_weights

        return Weighted(dft_weights(batch.nll))

    return Method(token_weights=weights, pointwise=True)
