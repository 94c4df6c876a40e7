"""TIES for one task: keep the largest changes of each tensor, and the base weights elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gentletune.methods.base import Method, Place, interpolated
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("ties", "Largest changes only (TIES)", "arXiv 2306.01708", "https://arxiv.org/abs/2306.01708")
def ties(density: float = 0.2, alpha: float = 1.0) -> Method:
    """TIES (arXiv 2306.01708) of one task: θ = θ⁰ + α·trim(θ - θ⁰), which keeps a share of the entries, the largest.

    With one task the election of signs has nothing to decide. The share is kept of each tensor, as mergekit has it;
    the authors' code trims all tensors together.

    Args:
        density: share of a tensor's entries that is kept, in (0, 1]; 0.2 is the paper's.
        alpha: what the kept entries are scaled by, ≥ 0.

    Raises:
        ValueError: a value outside its range.
    """
    share = check_number("density", density, low=0, high=1, open_low=True)
    scale = check_number("alpha", alpha, low=0)

    def merge(_place: Place, base: Tensor, tuned: Tensor) -> Tensor:
        import torch

        count = max(1, round(share * tuned.numel()))
        kept = interpolated(base, tuned, scale)
        if count == tuned.numel():
            return kept
        size = (tuned.double() - base.to(tuned.device).double()).abs().flatten()
        found = base.to(tuned).flatten()
        largest = torch.topk(size, count, sorted=False).indices
        found = found.index_copy(0, largest, kept.flatten()[largest])
        return found.view_as(tuned)

    return Method(merge=merge)
