"""Replay: beside each step's domain rows, rows of what the model could do before, its own samples by default."""

from __future__ import annotations

from typing import Literal, cast

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.methods.base import Method, Replay
from gentletune.methods.registry import check_number, check_whole, register


@register("replay", "Replay of the base model's own samples", "arXiv 2605.26097", "https://arxiv.org/abs/2605.26097")
def replay(
    share: float = 0.2,
    source: str = "self",
    loss: str = "nll",
    weight: float = 1.0,
    rows: int = 256,
    tokens: int = 64,
) -> Method:
    """L + weight · 1/max(N, R) · Σ over R replayed tokens of ℓ_t, or of KL(p_θ⁰‖p_θ) (arXiv 2605.26097, 2602.20162).

    N are the step's label tokens of the domain: a replayed token weighs as much as one of them, and all together no
    more than all of them. The papers' code has the mean over the R, which few and short rows make a term of a large and
    noisy gradient (docs/methods.md).

    Args:
        share: of a step's rows, the domain's included, that are replayed; in (0, 1), at least one row a step.
        source: `self` (the base model's own answers, sampled at temperature 1, to general prompts that nothing is
            measured on), a file of rows or a data set of the hub.
        loss: `nll`, or `kl` over the vocabulary from the base model's 64 most probable tokens.
        weight: ≥ 0, of a replayed token, beside 1 for one of the domain's.
        rows: how many samples `self` is made of.
        tokens: their longest, in tokens.

    Raises:
        ValueError: a value outside its range.
    """
    part = check_number("share", share, low=0, high=1, open_low=True)
    if part == 1:
        raise ValueError("share must be below 1, so that the domain's rows have a part, got 1")
    if not isinstance(source, str) or not source:
        raise ValueError(f"source must be self, a file or a data set of the hub in quotes, got {source!r}")
    if loss not in ("nll", "kl"):
        raise ValueError(f"loss must be nll or kl, got {loss!r}")
    made = {"rows": check_whole("rows", rows, low=1), "tokens": check_whole("tokens", tokens, low=1)}
    kind = cast("Literal['nll', 'kl']", loss)
    return Method(replay=Replay(part, source, kind, check_number("weight", weight, low=0), **made))


def check_anchored(recipe: Recipe, method: Method) -> None:
    """Refuse what a replay or a KL to base cannot be exact beside.

    Raises:
        UserError: weight-sum normalization, DeepSpeed.
    """
    if method.replay is None and not method.base_kl:
        return
    what = "replay" if method.replay is not None else "a KL to base"
    if method.normalization == "simplex":
        raise UserError(
            f"method '{method.label}': normalization=simplex rescales the whole gradient at the end of a step, {what} "
            "included; use normalization=count"
        )
    if method.replay is not None and recipe.strategy == "deepspeed":
        raise UserError(
            f"method '{method.label}': replay takes several passes a micro-batch, which DeepSpeed counts as steps; "
            "take strategy: ddp or fsdp2"
        )
