"""KL from base, looked at in training on the steering prompts, for what acts on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gentletune.core.records import Score
from gentletune.stats import compare, zero_of
from gentletune.training.early_stop import UPPER, Seen
from gentletune.training.looking import ProbeCallback

Steer = Callable[[Any], Score]
KL = "kl_steering"


def upper_bound(score: Score) -> float:
    """The upper end of the 95 % interval of a KL from base; infinite where one answer alone leaves it unknown."""
    high = compare(score, zero_of(score)).high
    return math.inf if high is None else high


class LookAtKL(ProbeCallback):
    """Logs KL from base and its upper bound, bits per token, and tells the watcher: every `every` steps and at the end.

    With `looks` it is so often in a training, evenly, and before the first of them after 1, 2, 4, … steps.
    """

    def __init__(self, steer: Steer, watcher: Any, *, every: int = 0, looks: int = 0) -> None:
        super().__init__(lambda _model: {}, every, watcher)
        self.steer, self.looks = steer, looks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.looks:
            self.every = math.ceil(state.max_steps / self.looks)

    def due(self, step: int, last: int) -> bool:
        early = self.looks and step < self.every and step & (step - 1) == 0
        return bool(early) or super().due(step, last)

    def _look(self, model: Any) -> dict[str, Seen]:
        score = self.steer(model)
        return {KL: Seen(score.value), UPPER: Seen(upper_bound(score))}
