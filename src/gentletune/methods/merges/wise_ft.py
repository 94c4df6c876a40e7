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
def wise_ft(alpha: float | str = 0.5, budget: float | None = None) -> Method:
    """Wise-FT (arXiv 2109.01903): θ = (1-α) θ⁰ + α θ_ft. One fine-tuned model serves every α.

    Args:
        alpha: in [0, 1]; 0 is the base model, 1 the tuned one. `auto`: the largest whose KL from base stays within
            the budget, by an upper bound from the base model's answers to the steering prompts.
        budget: with `auto`, KL from base in bits per token, > 0.

    Raises:
        ValueError: α outside [0, 1], `auto` without a budget, a budget without `auto`.
    """
    if alpha == "auto":
        if budget is None:
            raise ValueError("alpha=auto needs a budget: KL from base in bits per token, such as budget=0.05")
        within = check_number("budget", budget, low=0, open_low=True)
        return Method(merge=lambda _place, _base, tuned: tuned, budget=within)
    if budget is not None:
        raise ValueError(f"a budget chooses alpha, and alpha is {alpha!r}; write alpha=auto, or leave budget out")
    share = check_number("alpha", alpha, low=0, high=1)

    def merge(_place: Place, base: Tensor, tuned: Tensor) -> Tensor:
        return interpolated(base, tuned, share)

    return Method(merge=merge)
