"""Wise-FT: average the base and the tuned weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gentletune.methods.base import Method, Place, interpolated
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register(
    "wise_ft",
    "Average of base and tuned weights (Wise-FT)",
    "arXiv 2109.01903",
    "https://arxiv.org/abs/2109.01903",
)
def wise_ft(alpha: float = 0.5) -> Method:
    """Wise-FT (arXiv 2109.01903): θ = (1-α) θ⁰ + α θ_ft. One fine-tuned model serves every α.

    Args:
        alpha: in [0, 1]; 0 is the base model, 1 the tuned one.

    Raises:
        ValueError: α outside [0, 1].
    """
    share = check_number("alpha", alpha, low=0, high=1)

    def merge(_place: Place, base: Tensor, tuned: Tensor) -> Tensor:
        return interpolated(base, tuned, share)

    return Method(merge=merge)
