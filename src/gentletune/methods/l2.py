"""L2 to the initial weights: L + λ Σ‖θ - θ⁰‖²."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from gentletune.methods.base import Method, squared_norm
from gentletune.methods.registry import check_number, register


@register("l2")
def l2(weight: float = 1e-3) -> Method:
    """L2 to the initial weights (arXiv 2509.20758, baselines).

    Args:
        weight: λ ≥ 0, per unit of Σ‖θ - θ⁰‖². With LoRA the deviation is that of the product, which starts at 0.

    Raises:
        ValueError: λ < 0.
    """
    strength = check_number("weight", weight, low=0)

    def penalty(deviations: Iterable[Tensor]) -> Tensor:
        return strength * squared_norm(deviations)

    return Method(penalty=penalty)
