"""What `global_batch` and `batch_size: auto` may not be: uneven, or chosen where the method goes by a micro-batch."""

from __future__ import annotations

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method


def check_micro_batch(recipe: Recipe, method: Method, processes: int = 1) -> None:
    """Refuse a `global_batch` that processes cannot share, and `batch_size: auto` where it would change the update.

    Raises:
        UserError: with the mend.
    """
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
