"""KL to base on the domain's rows: L + λ · (1/N) Σ_t KL(p_θ⁰ ‖ p_θ)."""

from __future__ import annotations

from gentletune.methods.base import BaseKL, Method
from gentletune.methods.registry import check_number, register


@register("kl", "KL to the base model", "arXiv 2605.29498", "https://arxiv.org/abs/2605.29498")
def kl(weight: float = 0.1, target: str = "kept") -> Method:
    """KL(p_θ⁰ ‖ p_θ) over the vocabulary at the label tokens, from the base model's 64 most probable tokens of each.

    Args:
        weight: λ ≥ 0, of the mean over the label tokens of the global batch, nats.
        target: `kept`, or `masked`: both distributions without the token that stands there, each made to add up to 1
            (arXiv 2605.29498), so that the penalty does not pull against learning it.

    Raises:
        ValueError: λ < 0, another target.
    """
    if target not in ("kept", "masked"):
        raise ValueError(f"target must be kept or masked, got {target!r}")
    return Method(base_kl=(BaseKL(check_number("weight", weight, low=0), target == "masked"),))
