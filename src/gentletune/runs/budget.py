"""A budget of KL from base: what it is measured by, and the largest share of an update that keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gentletune.core.errors import NotFiniteError
from gentletune.core.records import Score
from gentletune.evaluation.finite import of_model
from gentletune.evaluation.steering import Steering, steering_answers
from gentletune.lm.base_weights import base_weights
from gentletune.methods.base import Method, Place, interpolated, merge_weights
from gentletune.runs.inputs import Inputs
from gentletune.stats import compare, zero_of
from gentletune.training.control.rate import Steer

MOST = 6  # measurements of a budget
CLOSE = 0.95  # of the budget: near enough
_TRIED = "kl_upper(alpha="


class BudgetError(Exception):
    """No part of the update that was tried stays within the budget."""


def steering_of(inputs: Inputs) -> Steering | None:
    """The base model's steering answers where the recipe has a budget to keep; from the cache where they are there."""
    if inputs.method.budget is None:
        return None
    with inputs.alone(), of_model(f"the base model {inputs.recipe.model}"):
        return steering_answers(inputs.base, inputs.recipe)


def steer(inputs: Inputs) -> Steer | None:
    """KL from base of a model in training, on as many steering answers as the recipe asks for."""
    region, steering = inputs.method.control, steering_of(inputs)
    if region is None or steering is None:
        return None
    return _measured_on(steering.head(region.answers), inputs)


def _measured_on(steering: Steering, inputs: Inputs) -> Steer:
    how = {"pad_id": inputs.base.tokenizer.pad_token_id, "batch_tokens": inputs.recipe.eval_batch_tokens}
    return lambda model: steering.kl(model, **how)


def upper_bound(score: Score) -> float:
    """Below what KL from base on as many other prompts is found in 97.5 of 100 cases; infinite where nothing tells.

    That is √2 times as far as the upper end of its 95 % interval: other prompts have an error, too.
    """
    high = compare(score, zero_of(score)).high
    return math.inf if high is None else score.value + math.sqrt(2) * (high - score.value)


def merge_within(inputs: Inputs, model: Any, tuned: Path) -> dict[str, float]:
    """Keep the largest share α of the update, after the method's merges, that stays within its budget; figures of it.

    `model` comes with the weights that lie in `tuned`, from which they are read again for each α.

    Raises:
        BudgetError: no α that was tried is within the budget.
    """
    method, steering = inputs.method, steering_of(inputs)
    assert steering is not None
    assert method.merge is not None
    assert method.budget is not None
    measured, weights = _measured_on(steering, inputs), base_weights(model, tuned)

    def put(alpha: float) -> float:
        return merge_weights(model, inputs.base.weights, _scaled(method, alpha), weights)

    def at(alpha: float) -> float:
        put(alpha)
        try:
            return upper_bound(measured(model))
        except NotFiniteError:  # so far out that it has no probabilities
            return math.inf

    alpha, tried = largest_share(at, method.budget)
    norm = put(alpha)
    known = {f"{_TRIED}{a:.4g})": high for a, high in tried.items() if math.isfinite(high)}
    return {"update_norm": norm, "alpha": alpha} | known


def before_merge(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of a training without those of a share that was found for its merge."""
    return {name: value for name, value in figures.items() if name != "alpha" and not name.startswith(_TRIED)}


def _scaled(method: Method, alpha: float) -> Callable[[Place, Any, Any], Any]:
    merge = method.merge
    assert merge is not None
    return lambda place, base, tuned: interpolated(base, merge(place, base, tuned), alpha)


def largest_share(at: Callable[[float], float], budget: float, most: int = MOST) -> tuple[float, dict[float, float]]:
    """The largest α in (0, 1] found whose upper bound `at(α)` is within the budget, and that bound of each α tried.

    The whole update first; then a bracket is narrowed, by interpolation of the square root, which is straight in α
    where the update is small (it is KL's leading term), and farther towards an end that stays where it is. It ends
    within 5 % of the budget, or after `most` measurements.

    Raises:
        BudgetError: none of them is within it.
    """
    tried: dict[float, float] = {}
    low, high = (0.0, 0.0), (1.0, math.inf)
    alpha, row = 1.0, 0  # how often in a row it was within the budget; below 0, beyond it
    while len(tried) < most:
        tried[alpha] = bound = at(alpha)
        low, high = ((alpha, bound), high) if bound <= budget else (low, (alpha, bound))
        row = max(row, 0) + 1 if bound <= budget else min(row, 0) - 1
        if (alpha == 1.0 and bound <= budget) or CLOSE * budget <= low[1]:
            break
        alpha = _between(low, high, budget, row)
    if not low[0]:
        raise BudgetError(
            f"no share of the update down to {high[0]:.2g} keeps KL from base within {budget:g} bits per token (its "
            f"upper bound there is {high[1]:.2g}); raise the budget"
        )
    return low[0], tried


def _between(low: tuple[float, float], high: tuple[float, float], budget: float, row: int) -> float:
    """Where √bound would meet a little less than the budget on a straight line, inside the bracket."""
    (a, under), (b, over) = (low[0], max(0.0, low[1])), high  # an estimate without bias may lie below zero
    target = math.sqrt((1 + CLOSE) / 2 * budget)
    share = (target - math.sqrt(under)) / (math.sqrt(over) - math.sqrt(under)) if math.isfinite(over) else 0.5
    share = share * 0.5 ** (-row - 1) if row < 0 else 1 - (1 - share) * 0.5 ** (row - 1)
    least = 0.02 if not a else 0.1  # from nothing it may be far
    return a + (b - a) * min(0.9, max(least, share))
