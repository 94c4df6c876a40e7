"""Wise-FT: average the initial and the tuned weights."""

from __future__ import annotations

from torch import Tensor

from gentletune.methods.base import Method, StateDict
from gentletune.methods.registry import check_number, register


@register("wise_ft")
def wise_ft(alpha: float = 0.5) -> Method:
    """Wise-FT (arXiv 2109.01903): θ = (1-α) θ⁰ + α θ_ft. One fine-tuned model serves every α.

    Args:
        alpha: in [0, 1]; 0 is the initial model, 1 the tuned one.

    Raises:
        ValueError: α outside [0, 1].
    """
    share = check_number("alpha", alpha, low=0, high=1)

    def finish(initial: StateDict, tuned: StateDict) -> dict[str, Tensor]:
        if initial.keys() != tuned.keys():
            raise ValueError("the initial and the tuned model have different weights")
        return {name: _average(initial[name], tuned[name], share) for name in tuned}

    return Method(finish=finish)


def _average(initial: Tensor, tuned: Tensor, share: float) -> Tensor:
    if share == 0:  # the end points are exact
        return initial
    if share == 1 or not tuned.is_floating_point():
        return tuned
    return initial.to(tuned.device).lerp(tuned, share)
