"""What a recipe may ask only of some methods: a quantised base, an adapter-only result, shares, other optimisers."""

from __future__ import annotations

from gentletune.core.devices import sharing
from gentletune.core.errors import UserError
from gentletune.core.optimizers import check_package
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method

_ADAMW = ("adamw_torch", "adamw_torch_fused")


def keeps_adapter(recipe: Recipe) -> bool:
    """Whether the trained adapter comes out of training apart: to be saved alone, or to go into unquantised weights."""
    return recipe.quantization is not None or recipe.save == "adapter"


def check_adapted(recipe: Recipe, method: Method, *, here: bool = True) -> None:
    """Refuse `quantization`, `save: adapter` and shares where the recipe's method, or this machine, cannot do them.

    `here`: it is this machine that is to train.

    Raises:
        UserError: no LoRA in the method, something that needs whole weights, no bitsandbytes, an update rule that is
            not of this optimiser.
    """
    adapted, name = method.adapter, method.name
    _check_shares(recipe, method)
    if method.update_rule is not None:
        _check_update_rule(recipe, name)
    if recipe.quantization is not None:
        key = f"quantization: {recipe.quantization}"
        if not adapted:
            raise UserError(
                f"{key} holds a frozen base, and '{name}' trains its weights; add +lora, or leave quantization out"
            )
        if not method.parameterisation.quantizable:
            raise UserError(f"{key} is for lora, rslora and dora, not for '{method.label}'; leave it out")
        if here:
            check_package("bitsandbytes", key)
    if recipe.save == "adapter":
        if not adapted:
            raise UserError(
                f"save: adapter needs LoRA, and '{name}' trains whole weights; add +lora, or leave save out"
            )
        if method.merge is not None:
            raise UserError(f"save: adapter cannot hold the whole weights that '{name}' ends with; leave save out")
        if recipe.backend == "vllm" and recipe.evaluate:
            raise UserError("backend: vllm needs whole weights, and save: adapter leaves none; leave one of them out")


def _check_shares(recipe: Recipe, method: Method) -> None:
    kind = sharing(recipe)
    if kind == "ddp":
        return
    if method.update_rule is not None or not method.parameterisation.shardable:
        raise UserError(f"method '{method.label}' needs whole weights, and {kind} cuts them; take strategy: ddp")


def _check_update_rule(recipe: Recipe, name: str) -> None:
    """Raises `UserError` where the method's own AdamW could not take the place of the recipe's optimiser."""
    if recipe.optimizer not in _ADAMW:
        raise UserError(f"'{name}' filters AdamW's steps, and optimizer is {recipe.optimizer}; leave optimizer out")
    if recipe.weights == "bf16":
        raise UserError(f"'{name}' has nothing that keeps what bf16 weights cannot take in; set weights: fp32")
