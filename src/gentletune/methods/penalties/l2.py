"""L2 to the base weights: L + λ Σ‖θ - θ⁰‖²."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gentletune.methods.base import Method, squared_norm
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("l2", "L2 to the base weights", "arXiv 2509.20758, baselines", "https://arxiv.org/abs/2509.20758")
def l2(weight: float = 1e-3) -> Method:
    """L2 to the base weights (arXiv 2509.20758, baselines).

    Args:
        weight: λ ≥ 0, per unit of Σ‖θ - θ⁰‖². With LoRA the deviation is that of the product, which starts at 0.

    Raises:
        ValueError: λ < 0.
    """
    strength = check_number("weight", weight, low=0)

    def penalty(deviation: Tensor) -> tuple[Tensor, Tensor]:
        value = strength * squared_norm(deviation)
        return value, deviation.mul_(2 * strength)

    return Method(penalty=penalty)
