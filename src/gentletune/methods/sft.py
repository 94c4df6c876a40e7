"""Plain supervised fine-tuning: L = (1/N) Σ ℓ. Every slot at its default."""

from __future__ import annotations

from gentletune.methods.base import Method
from gentletune.methods.registry import register


@register("sft", "Supervised fine-tuning", "arXiv 2509.20758, baselines", "https://arxiv.org/abs/2509.20758")
def sft() -> Method:
    """Plain SFT, the baseline; with a small learning rate it is the paper's first guideline."""
    return Method()
