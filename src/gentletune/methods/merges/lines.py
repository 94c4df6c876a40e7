"""LiNeS: keep less of what was trained in shallow layers than in deep ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gentletune.methods.base import Method, Place, interpolated
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("lines", "Layer-increasing scaling (LiNeS)", "arXiv 2410.17146", "https://arxiv.org/abs/2410.17146")
def lines(alpha: float = 0.1, beta: float | None = None) -> Method:
    """LiNeS (arXiv 2410.17146): θ_l = θ⁰_l + (α + β·l/(L-1)) (θ_l - θ⁰_l) for layer l = 0, …, L-1.

    The embedding is scaled as the first layer, the last norm and the head as the last; the authors' code scales all
    three by α.

    Args:
        alpha: what is kept of the first layer's change, in [0, 1]; 0.1 is the authors' example.
        beta: how much more is kept of the last one's, ≥ 0. None: 1 - α, so that the last layer stays as trained.

    Raises:
        ValueError: a value outside its range.
    """
    least = check_number("alpha", alpha, low=0, high=1)
    more = 1 - least if beta is None else check_number("beta", beta, low=0)

    def merge(place: Place, base: Tensor, tuned: Tensor) -> Tensor:
        return interpolated(base, tuned, least + more * place.depth)

    return Method(merge=merge)
