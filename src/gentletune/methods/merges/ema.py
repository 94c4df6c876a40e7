"""EMA: a running average of the weights while they are trained."""

from __future__ import annotations

from gentletune.methods.base import Method
from gentletune.methods.registry import check_number, register


@register(
    "ema",
    "Exponential moving average of the weights (EMA)",
    "Polyak and Juditsky, 1992; of language models arXiv 2508.00180",
    "https://arxiv.org/abs/2508.00180",
)
def ema(decay: float = 0.99) -> Method:
    """A running average of the trained weights: v₁ = θ₁, v_t = decay·v_(t-1) + (1-decay)·θ_t; training ends with v_T.

    The average is over about 1/(1-decay) steps. It starts with the weights after the first step, as
    `torch.optim.swa_utils` has it, so that a short training does not end with its start. A merge follows it.

    Args:
        decay: in [0, 1); of LoRA the adapter is averaged.

    Raises:
        ValueError: a decay outside its range.
    """
    kept = check_number("decay", decay, low=0, high=1)
    if kept == 1:
        raise ValueError("decay must be below 1: 1 would keep the first step's weights")
    return Method(average=kept)
