"""DARE: drop changes at random, and scale up the rest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from gentletune.methods.base import Method, Place, interpolated
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("dare", "Drop and rescale changes (DARE)", "arXiv 2311.03099", "https://arxiv.org/abs/2311.03099")
def dare(p: float = 0.5, alpha: float = 1.0, seed: int = 0) -> Method:
    """DARE (arXiv 2311.03099): θ = θ⁰ + α·m ⊙ (θ - θ⁰)/(1-p), each entry of m 0 with probability p, else 1.

    Which entries are dropped follows from the seed and the tensor's name alone, on any device.

    Args:
        p: in [0, 1).
        alpha: what is scaled besides, ≥ 0.
        seed: of the draw.

    Raises:
        ValueError: a value outside its range.
    """
    dropped = check_number("p", p, low=0, high=1)
    if dropped == 1:
        raise ValueError("p must be below 1: 1 would drop every change")
    scale = check_number("alpha", alpha, low=0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")

    def merge(place: Place, base: Tensor, tuned: Tensor) -> Tensor:
        import torch

        drawn = hashlib.sha256(f"{seed}/{place.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn[:8]) >> 1)
        stays = torch.rand(tuned.shape, generator=generator) >= dropped
        kept = interpolated(base, tuned, scale / (1 - dropped))
        return torch.where(stays.to(tuned.device), kept, base.to(tuned))

    return Method(merge=merge)
