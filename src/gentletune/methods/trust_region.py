"""A trust region in KL from base: the learning rate shrinks as the budget is used up."""

from __future__ import annotations

from gentletune.methods.base import Method, TrustRegion
from gentletune.methods.registry import check_number, register


@register(
    "trust_region",
    "Learning rate by a budget of KL from base",
    "ours, after arXiv 1502.05477",
    "https://arxiv.org/abs/1502.05477",
)
def trust_region(budget: float = 0.05, looks: int = 20, answers: int = 48) -> Method:
    """The scheduled learning rate times a factor in [0.1, 1] that aims at ending within a budget of KL from base.

    Ours; named after the trust regions in KL of TRPO (arXiv 1502.05477).

    Args:
        budget: KL from base in bits per token, > 0; what counts is its upper 95 % bound.
        looks: how often it is measured in a training, evenly, from 1; at first also after 1, 2, 4, … steps.
        answers: of the base model to the steering prompts, on which it is measured each time: from 2, at most 120.

    Raises:
        ValueError: a value outside its range.
    """
    within = check_number("budget", budget, low=0, open_low=True)
    for name, value, low, high in (("looks", looks, 1, 10**6), ("answers", answers, 2, 120)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
    return Method(control=TrustRegion(within, looks, answers))
