"""OPLoRA: LoRA whose product leaves the main directions of each weight alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from gentletune.core.errors import UserError
from gentletune.methods.base import Method
from gentletune.methods.parameters.peft import KINDS, RATE_SCALE, Layers, adapted_layers, adapter, in_full
from gentletune.methods.registry import check_whole, register

if TYPE_CHECKING:
    from torch import Tensor


@register(
    "oplora",
    "LoRA beside the main directions of each weight (OPLoRA)",
    "arXiv 2510.13003",
    "https://arxiv.org/abs/2510.13003",
)
def oplora(
    k: int = 8,
    r: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: str | list[str] = "all-linear",
    layers: Layers = None,
    rate_scale: float = RATE_SCALE,
) -> Method:
    """OPLoRA (arXiv 2510.13003): ΔW = (alpha/r) (I - U_k U_kᵀ) B A (I - V_k V_kᵀ), so that W keeps its k largest
    singular values and their vectors.

    U_k and V_k are those of the base weight, found once by a whole SVD; B and A are projected in every forward pass.
    What is saved alone is a plain LoRA adapter, its factors projected.

    Args:
        k: directions that are kept, ≥ 1; less than the smaller side of every weight. The default is ours.
        r, alpha, dropout, targets, layers, rate_scale: as of `lora`.

    Raises:
        ValueError: a value outside its range.
    """
    count = check_whole("k", k, low=1)
    if r is None or alpha is None:
        raise ValueError("r and alpha must be numbers")
    plain = adapter(KINDS["lora"], "oplora", r, alpha, dropout, targets, layers, rate_scale)

    def wrap(model: Any) -> Any:
        from torch.nn.utils import parametrize

        wrapped = plain.wrap(model)
        for layer in adapted_layers(wrapped):
            left, right = _main_directions(layer, count)
            for name in layer.lora_A:
                parametrize.register_parametrization(layer.lora_A[name], "weight", _beside()(right, rows=True))
                parametrize.register_parametrization(layer.lora_B[name], "weight", _beside()(left, rows=False))
        return wrapped

    # A base in few bits has other directions than the one that the adapter is merged into.
    return Method(parameterise=replace(plain, wrap=wrap, settle=_settle, quantizable=False, shardable=False))


def _main_directions(layer: Any, count: int) -> tuple[Tensor, Tensor]:
    """The first singular vectors of a layer's weight: of its outputs (out, count) and of its inputs (in, count)."""
    import torch

    weight = in_full(layer.get_base_layer()).weight.detach()
    weight = weight.T if layer.fan_in_fan_out else weight
    if count >= min(weight.shape):
        raise UserError(
            f"method oplora: k={count} leaves nothing of a weight of {weight.shape[0]} x {weight.shape[1]}; take a "
            f"k below {min(weight.shape)}"
        )
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :count].contiguous(), right[:count].T.contiguous()


@cache
def _beside() -> Any:
    """The parametrisation that takes directions out of a factor; a class made late, since torch is imported late."""
    import torch

    class Beside(torch.nn.Module):
        basis: Tensor

        def __init__(self, basis: Tensor, *, rows: bool) -> None:
            super().__init__()
            self.register_buffer("basis", basis, persistent=False)  # found again from the base weights
            self.rows = rows

        def forward(self, factor: Tensor) -> Tensor:
            basis = self.basis.to(factor.dtype)
            if self.rows:
                return factor - (factor @ basis) @ basis.T
            return factor - basis @ (basis.T @ factor)

    return Beside


def _settle(model: Any) -> Any:
    """The projected factors in the place of those that were trained: a plain LoRA adapter."""
    from torch.nn.utils import parametrize

    for layer in adapted_layers(model):
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return model
