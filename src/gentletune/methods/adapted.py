"""What a recipe may ask only where its method trains adapters: a quantised base, and an adapter-only result."""

from __future__ import annotations

from importlib.util import find_spec

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method


def keeps_adapter(recipe: Recipe) -> bool:
    """Whether the trained adapter comes out of training apart: to be saved alone, or to go into unquantised weights."""
    return recipe.quantization is not None or recipe.save == "adapter"


def check_adapted(recipe: Recipe, method: Method) -> None:
    """Refuse `quantization` and `save: adapter` where the recipe's method, or this machine, cannot do them.

    Raises:
        UserError: no LoRA in the method, something that needs whole weights, no bitsandbytes.
    """
    adapted, name = method.parameterise is not None, method.name
    if recipe.quantization is not None:
        key = f"quantization: {recipe.quantization}"
        if not adapted:
            raise UserError(
                f"{key} holds a frozen base, and '{name}' trains its weights; add +lora, or leave quantization out"
            )
        if find_spec("bitsandbytes") is None:
            raise UserError(f"{key} needs bitsandbytes; pip install 'gentletune[quant]'")
    if recipe.save == "adapter":
        if not adapted:
            raise UserError(
                f"save: adapter needs LoRA, and '{name}' trains whole weights; add +lora, or leave save out"
            )
        if method.merge is not None:
            raise UserError(f"save: adapter cannot hold the whole weights that '{name}' ends with; leave save out")
        if recipe.backend == "vllm" and recipe.evaluate:
            raise UserError("backend: vllm needs whole weights, and save: adapter leaves none; leave one of them out")
