"""What a recipe may not ask of its micro-batches: uneven shares, a size that changes the method, gradients let go."""

from __future__ import annotations

from gentletune.core.devices import launched
from gentletune.core.errors import UserError
from gentletune.core.optimizers import BY_WEIGHT
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method


def check_micro_batch(recipe: Recipe, method: Method, processes: int = 1) -> None:
    """Refuse a `global_batch` that processes cannot share, and `batch_size: auto` where it would change the update.

    And `gradient_release` where something has to see the whole gradient.

    Raises:
        UserError: with the mend.
    """
    if recipe.gradient_release:
        _check_release(recipe, method, processes)
    if recipe.global_batch is None:
        return
    share, rest = divmod(recipe.global_batch, processes)
    size = 1 if recipe.batch_size == "auto" else recipe.batch_size
    if rest or share % size:
        each = f" with batch_size {size}" if size > 1 else ""
        raise UserError(
            f"global_batch {recipe.global_batch} cannot be shared evenly by {processes} processes{each}; "
            f"take a multiple of {processes * size}"
        )
    if recipe.batch_size == "auto" and not method.one_pass:
        raise UserError(
            f"batch_size: auto would change what method '{method.label}' does: its τ is of a micro-batch; give "
            "batch_size, or take tau=lagged_median"
        )


def _check_release(recipe: Recipe, method: Method, processes: int) -> None:
    if recipe.max_grad_norm:
        raise UserError("gradient_release lets gradients go before clipping has seen them all; set max_grad_norm: 0")
    if recipe.gradient_accumulation > 1 or recipe.global_batch is not None:
        raise UserError(
            "gradient_release steps in every backward pass, so a step is one micro-batch; leave gradient_accumulation "
            "and global_batch out"
        )
    if max(processes, launched(), recipe.processes if isinstance(recipe.processes, int) else 1) > 1:
        raise UserError(
            "gradient_release is of one process, before gradients are added up over several; take strategy: fsdp2, "
            "which shares them out, or leave it out"
        )
    if method.parameterise is not None:
        raise UserError(f"gradient_release saves next to nothing where '{method.name}' trains so little; leave it out")
    whole = (method.penalty, method.replay, method.base_kl or None, method.update_rule, method.control)
    if method.normalization == "simplex" or any(slot is not None for slot in whole):
        raise UserError(
            f"method '{method.label}' works on the whole gradient of a step, which gradient_release does not keep; "
            "leave one of them out"
        )
    if recipe.optimizer not in BY_WEIGHT:
        raise UserError(
            f"optimizer '{recipe.optimizer}' cannot step for one weight at a time, as gradient_release needs it; take "
            f"one of {', '.join(sorted(BY_WEIGHT))}"
        )
