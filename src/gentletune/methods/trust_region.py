"""A trust region in KL from base: the learning rate goes by it, and the update is cut back to the budget."""

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
    """A ceiling on the learning rate, moved by KL from base; then the largest share of the update within the budget.

    Training is held within four budgets: where it was beyond, the update is cut back and the ceiling comes down. After
    it the update is cut back to one, as `wise_ft(alpha=auto)` does.
    Ours; named after the trust regions in KL of TRPO (arXiv 1502.05477).

    Args:
        budget: KL from base in bits per token, > 0; what counts at the end is its upper bound for other prompts.
        looks: how often it is measured in a training, evenly, from 1; at first also after 1, 2, 4, … steps.
        answers: of the base model to the steering prompts, on which it is measured each time: from 2, at most 120.

    Raises:
        ValueError: a value outside its range.
    """
    within = check_number("budget", budget, low=0, open_low=True)
    for name, value, low, high in (("looks", looks, 1, 10**6), ("answers", answers, 2, 120)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
    return Method(control=TrustRegion(within, looks, answers), merge=lambda _place, _base, tuned: tuned, budget=within)
