"""What a recipe may not ask beside a running average of the weights, or a budget that the learning rate goes by."""

from __future__ import annotations

from gentletune.core.devices import sharing
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method


def check_controlled(recipe: Recipe, method: Method) -> None:
    """Refuse what would leave the recipe's method without the weights that it is to end with.

    Raises:
        UserError: an average or a budget where ranks hold shares of the weights; a budget in training beside
            quantisation; an average beside early stopping, or an optimiser that averages already.
    """
    if method.average is None and method.control is None:
        return
    name, kind = f"method '{method.label}'", sharing(recipe)
    if kind != "ddp":
        raise UserError(f"{name} needs the whole weights in each process, and {kind} shares them; take strategy: ddp")
    if method.control is not None and recipe.optimizer.startswith("schedule_free"):
        raise UserError(
            f"{name} cuts updates back, and optimizer {recipe.optimizer} holds weights of its own; take another one"
        )
    if method.control is not None and recipe.quantization:
        raise UserError(
            f"{name} needs the base model of full precision while it trains, which quantization: {recipe.quantization} "
            "gives back before the first step; take +wise_ft(alpha=auto, budget=…), which measures what is saved"
        )
    if method.average is None:
        return
    if method.control is not None:
        raise UserError(
            f"{name}: the budget is kept by the weights in training, and what is shipped is their average; "
            "leave one of them out"
        )
    if recipe.early_stop is not None:
        raise UserError(
            f"{name} ends with an average to the last step, and early_stop with the weights of its best one; leave one "
            "of them out"
        )
    if recipe.optimizer.startswith("schedule_free"):
        raise UserError(f"{name}: optimizer {recipe.optimizer} averages the weights already; leave +ema out")
