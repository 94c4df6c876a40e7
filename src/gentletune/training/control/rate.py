"""A trust region in KL: the learning rate goes by what is left of the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import ExportableState

from gentletune.core.recipe import Recipe
from gentletune.core.schedule import Schedule
from gentletune.methods.base import TrustRegion
from gentletune.training.control.kl import LookAtKL, Steer
from gentletune.training.early_stop import UPPER, Seen

AIM = 0.9  # share of the budget that is planned with: looks are few, and noisy
LEAST = 0.1  # of the scheduled rate: KL is often largest early, and falls back only if training goes on
GROWTH = 2.0  # most that the factor grows from a look to the next


class RateControl(LookAtKL, ExportableState):
    """Multiplies the scheduled learning rate by a factor in [0.1, 1], set anew at each look.

    The plan is a distance √KL that grows with the rate still to come: √KL is about as large as the weights have moved.
    At a look, with d = √(upper bound of KL), the distance per rate since the look before is taken to hold on; the
    factor is then what makes the scheduled rates that are left end at √(0.9·budget), at most twice the last factor.
    What it knows goes into each checkpoint, so a resumed training goes on with the same factors.
    """

    def __init__(self, region: TrustRegion, recipe: Recipe, steer: Steer) -> None:
        super().__init__(steer, self, looks=region.looks)
        self.goal = math.sqrt(AIM * region.budget)
        self.schedule, self.warmup = Schedule.parse(recipe.schedule), recipe.warmup
        self.factor = 1.0
        self.spent = self.scheduled = 0.0  # sums of rates over steps, in peak rates: as taken, and as scheduled
        self.before = (0.0, 0.0)  # `spent` and distance at the last look

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        names = ("factor", "spent", "scheduled", "before")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def restore(self, state: Any) -> None:
        """Take up what a checkpoint's trainer state kept."""
        for name, value in state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).items():
            setattr(self, name, value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.restore(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rates = kwargs["lr_scheduler"].get_last_lr()
        for group, rate in zip(kwargs["optimizer"].param_groups, rates, strict=True):
            group["lr"] = rate * self.factor
        share = rates[0] / args.learning_rate
        self.scheduled += share
        self.spent += self.factor * share

    def see(self, found: Mapping[str, Seen], state: Any, control: Any) -> None:
        """Set the factor by a look."""
        distance = math.sqrt(max(0.0, found[UPPER].value))
        self.factor = self._next(distance, state.global_step, state.max_steps)
        self.before = (self.spent, distance)
        due = control.should_log
        self.trainer.log({"rate_factor": self.factor})
        control.should_log = due

    def figures(self) -> dict[str, float]:
        """What a record says: the mean factor, weighted by the scheduled rate."""
        return {"rate_factor": self.spent / self.scheduled} if self.scheduled else {}

    def _next(self, distance: float, step: int, total: int) -> float:
        left = sum(self.schedule.factor(i, total, self.warmup) for i in range(step, total))
        room = self.goal - distance
        if not left or room <= 0 or not self.spent:
            return self.factor if room > 0 else LEAST
        spent, before = self.before
        recent = (distance - before) / (self.spent - spent) if self.spent > spent else 0.0
        speed = max(recent, distance / self.spent / 2)  # a look's noise must not make it stand still
        return max(LEAST, min(1.0, GROWTH * self.factor, room / (speed * left))) if speed > 0 else self.factor
