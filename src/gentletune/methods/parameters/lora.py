"""LoRA through PEFT: a frozen base and trained low-rank products, merged at the end. `peft(kind=lora)`, in short."""

from __future__ import annotations

from gentletune.methods.base import Method
from gentletune.methods.parameters.peft import KINDS, RATE_SCALE, Layers, adapter
from gentletune.methods.registry import register


@register("lora", "Low-rank adaptation (LoRA)", "arXiv 2106.09685", "https://arxiv.org/abs/2106.09685")
def lora(
    r: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    layers: Layers = None,
    rate_scale: float = RATE_SCALE,
) -> Method:
    """LoRA (arXiv 2106.09685) on all linear layers but the head.

    Args:
        r: rank ≥ 1.
        alpha: scale, > 0; the product is multiplied by alpha / r.
        dropout: in [0, 1).
        targets: PEFT's target modules.
        layers: which layers, from 0: `0-11`, a number, or a list. None: all.
        rate_scale: the optimiser's rate is the recipe's learning_rate times this; adapters are usually trained at
            about ten times the rate of whole weights.

    Raises:
        ValueError: a value outside its range.
    """
    if r is None or alpha is None:
        raise ValueError("r and alpha must be numbers")
    return Method(parameterise=adapter(KINDS["lora"], "lora", r, alpha, dropout, targets, layers, rate_scale))
