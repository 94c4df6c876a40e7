"""LoRA through PEFT: a frozen base and trained low-rank products, merged at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gentletune.methods.base import Deviation, Method, Parameterisation, add_gradient
from gentletune.methods.reach import unread
from gentletune.methods.registry import check_number, register

if TYPE_CHECKING:
    from torch import Tensor


@register("lora", "Low-rank adaptation (LoRA)", "arXiv 2106.09685", "https://arxiv.org/abs/2106.09685")
def lora(r: int = 16, alpha: float = 32, dropout: float = 0.0, targets: str | list[str] = "all-linear") -> Method:
    """LoRA (arXiv 2106.09685) on all linear layers but the head.

    Args:
        r: rank ≥ 1.
        alpha: scale, > 0; the product is multiplied by alpha / r.
        dropout: in [0, 1).
        targets: PEFT's target modules.

    Raises:
        ValueError: a value outside its range.
    """
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise ValueError(f"r must be a whole number >= 1, got {r!r}")
    check_number("alpha", alpha, low=0, open_low=True)
    check_number("dropout", dropout, low=0, high=0.999)

    def wrap(model: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        left_out = sorted({name.rpartition(".")[0] for name in unread(model)}) or None  # the vision tower's layers
        config = LoraConfig(
            r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, exclude_modules=left_out,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        return get_peft_model(model, config)

    def unwrap(model: Any) -> Any:
        return model.merge_and_unload()

    return Method(
        parameterise=Parameterisation(wrap=wrap, deviations=product_deviations, unwrap=unwrap, needs_base=False)
    )


def product_deviations(model: Any, _base: Mapping[str, Tensor]) -> Iterator[Deviation]:
    """(alpha/r)·B·A of each adapted layer, one at a time: the effective θ - θ⁰, zero at the start."""
    import torch
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.active_adapters:
                with torch.enable_grad():
                    product = module.get_delta_weight(adapter)
                trained = [p for p in module.parameters() if p.requires_grad]
                yield Deviation(product.detach().clone(), partial(_to_factors, product, trained))


def _to_factors(product: Tensor, trained: Sequence[Tensor], gradient: Tensor) -> None:
    import torch

    # autograd.grad leaves alone DDP's hooks, which have already run.
    found = torch.autograd.grad(product, trained, gradient, allow_unused=True)
    for parameter, part in zip(trained, found, strict=True):
        if part is not None:
            add_gradient(parameter, part)
