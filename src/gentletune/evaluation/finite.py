"""Numbers that are none, caught where they arise: a model without probabilities, a row, a task's score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gentletune.core.errors import NotFiniteError
from gentletune.core.records import Score

BROKEN = "the model's probabilities are not finite; its weights are broken, or diverged in training"


def check_model(model: Any, tokenizer: Any) -> None:
    """Check that a causal LM gives finite logits, in one short call: sampling from others fails, greedy answers lie.

    Raises:
        NotFiniteError: it does not. (-inf is a token that cannot come, and right.)
    """
    ids = torch.tensor([tokenizer("The answer is")["input_ids"]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise NotFiniteError(BROKEN)


@contextmanager
def of_model(who: str) -> Iterator[None]:
    """Say of a `NotFiniteError` which model it was."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{who}: {error}") from error


def check_rows(nll: Sequence[float], where: str) -> None:
    """Check the NLL of each row. Raises `NotFiniteError` with `where` and the first row's number, from 1."""
    for number, value in enumerate(nll, start=1):
        if not math.isfinite(value):
            raise NotFiniteError(f"{where}, row {number}: {BROKEN}")


def check_scores(scores: Sequence[Score]) -> None:
    """Check that scores can be compared and written down. Raises `NotFiniteError` with the first that cannot."""
    for score in scores:
        if not all(map(math.isfinite, (score.value, score.stderr or 0.0, *score.items))):
            raise NotFiniteError(
                f"the score {score.key} is {score.value}, no finite number; take it out of what is asked"
            )
