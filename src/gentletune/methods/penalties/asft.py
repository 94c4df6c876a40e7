"""ASFT, anchored supervised fine-tuning: DFT's weights, held near the base model by a KL."""

from __future__ import annotations

from gentletune.methods.base import BaseKL, Method
from gentletune.methods.registry import check_number, register
from gentletune.methods.token_weights.dft import dft


@register("asft", "Anchored supervised fine-tuning (ASFT)", "arXiv 2509.23753", "https://arxiv.org/abs/2509.23753")
def asft(weight: float = 0.05) -> Method:
    """L = (1/N) Σ (sg[p] ℓ + λ KL(p_θ⁰ ‖ p_θ)) (arXiv 2509.23753), the KL in the direction of its public code.

    Args:
        weight: λ ≥ 0.

    Raises:
        ValueError: λ < 0.
    """
    anchor = BaseKL(check_number("weight", weight, low=0))
    found = dft()
    return Method(token_weights=found.token_weights, pointwise=found.pointwise, base_kl=(anchor,))
