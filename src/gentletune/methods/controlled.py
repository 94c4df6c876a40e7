"""What a recipe may not ask beside a running average of the weights."""

from __future__ import annotations

from gentletune.core.devices import sharing
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method


def check_controlled(recipe: Recipe, method: Method) -> None:
    """Refuse what would leave the recipe's method without the weights that it is to end with.

    Raises:
        UserError: an average beside early stopping, shares of the weights, or an optimiser that averages already.
    """
    if method.average is None:
        return
    name = f"method '{method.label}'"
    if recipe.early_stop is not None:
        raise UserError(
            f"{name} ends with an average to the last step, and early_stop with the weights of its best one; leave one "
            "of them out"
        )
    if recipe.optimizer.startswith("schedule_free"):
        raise UserError(f"{name}: optimizer {recipe.optimizer} averages the weights already; leave +ema out")
    if (kind := sharing(recipe)) != "ddp":
        raise UserError(
            f"{name} keeps an average of whole weights, and {kind} holds shares of them; take strategy: ddp"
        )
