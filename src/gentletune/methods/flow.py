"""FLOW: sequences that the base model finds easy weigh more; the weights are computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gentletune.methods.base import Method
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register(
    "flow",
    "Sequence weights by the base model's loss (FLOW)",
    "arXiv 2502.02797",
    "https://arxiv.org/abs/2502.02797",
)
def flow(tau: float | str = "median") -> Method:
    """FLOW (arXiv 2502.02797): u_s = sg[exp(-ℓ̄_s(θ⁰)/τ_F)], L = (1/N) Σ_s u_s Σ_t ℓ_t.

    Args:
        tau: τ_F, `median` (over the training set) or a number of nats.

    Raises:
        ValueError: τ_F ≤ 0 or another name than `median`.
    """
    if isinstance(tau, str) and tau != "median":
        raise ValueError(f"tau must be median or a number > 0, got {tau!r}")
    fixed = None if isinstance(tau, str) else check_number("tau", tau, low=0, open_low=True)

    def weights(base_sequence_nll: Tensor) -> Tensor:
        from gentletune.losses import flow_weights

        return flow_weights(base_sequence_nll, fixed)

    return Method(sequence_weights=weights)
