"""Plain supervised fine-tuning: L = (1/N) Σ ℓ. Every slot at its default."""

from __future__ import annotations

from gentletune.methods.base import Method
from gentletune.methods.registry import register


@register("sft")
def sft() -> Method:
    """Plain SFT, the baseline; with a small learning rate it is the paper's first guideline."""
    return Method()
