"""What is wrong with the settings of a fit, told before torch is imported or a model is looked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods import parse_method


def check_fit(
    recipe: Recipe, rates: Sequence[float], seeds: Sequence[int], cots: Sequence[bool], every: int, budget: float,
    general_positions: int, domain_positions: int,
) -> None:  # fmt: skip
    """Raises `UserError` where `fit_tilting` cannot begin with these; needs neither torch nor files."""
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise UserError("rates must be numbers above 0, at least one")
    if not seeds or min(seeds) < 0:
        raise UserError("seeds must be whole numbers from 0, at least one")
    for name, values in (("rates", [f"{rate:g}" for rate in rates]), ("seeds", seeds), ("kinds of data", cots)):
        if len(set(values)) < len(values):
            raise UserError(f"{name} must differ from one another, got {', '.join(map(str, values))}")
    if not cots:
        raise UserError("give at least one kind of data: with chain of thought, or without")
    for name, count in (("every", every), ("general and domain positions", min(general_positions, domain_positions))):
        if count < 1:
            raise UserError(f"{name} must be 1 or more, got {count}")
    if not (math.isfinite(budget) and budget > 0):
        raise UserError(f"budget must be a number of bits per token above 0, got {budget:g}")
    method = parse_method(recipe.method)
    if method.merge is not None or method.sequence_weights is not None:
        raise UserError(
            f"method {recipe.method}: a fit follows training step by step, without a merge (wise_ft) and without "
            "weights of sequences (flow); leave them out"
        )
