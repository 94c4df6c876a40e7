"""A trust region in KL from base: where the model is too far away it is taken back, and the learning rate held down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_callback import ExportableState

from gentletune.core.records import Score
from gentletune.methods.base import TrustRegion, interpolated
from gentletune.methods.rounding import put
from gentletune.training.callbacks.early_stop import Seen
from gentletune.training.callbacks.looking import ProbeCallback

Steer = Callable[[Any], Score]
KL = "kl_steering"
REACH = 4.0  # budgets that training may be away: KL falls steeply with the share of the update that is kept afterwards
LEAST = 0.01  # of the recipe's rate
SHRINK, GROWTH = 0.5, 1.25  # least and most that the ceiling changes by at a look


class RateControl(ProbeCallback, ExportableState):
    """Holds the learning rate under a ceiling that moves with each look at KL from base on the steering prompts.

    The ceiling begins at the recipe's rate. Within four budgets it rises by √(4·budget/KL), a quarter at the most.
    Beyond them it comes down by that from the rate in force, to half at the least, and the update is cut back to the
    share (4·budget/KL)^¼, as KL grows about with the fourth power of it. The looks come evenly, and before the
    first of them after 1, 2, 4, … steps. The ceiling goes into each checkpoint, so a resumed training goes on under it.

    `start` is what is trained, by name, as it was before training.
    """

    def __init__(self, region: TrustRegion, steer: Steer, start: Mapping[str, Tensor]) -> None:
        super().__init__(lambda _model: {}, 0, self)
        self.steer, self.looks, self.limit, self.start = steer, region.looks, REACH * region.budget, start
        self.ceiling = 1.0  # like the rates below a share of the recipe's
        self.rate = self.taken = self.scheduled = 0.0  # the rate in force, and sums over steps

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        names = ("ceiling", "rate", "taken", "scheduled")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def restore(self, state: Any) -> None:
        """Take up what a checkpoint's trainer state kept."""
        for name, value in state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).items():
            setattr(self, name, value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.every = math.ceil(state.max_steps / self.looks)
        self.restore(state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rates = kwargs["lr_scheduler"].get_last_lr()
        share = rates[0] / args.learning_rate
        self.rate = min(share, self.ceiling)
        for group, rate in zip(kwargs["optimizer"].param_groups, rates, strict=True):
            group["lr"] = rate * self.rate / share if share > self.ceiling else rate
        self.scheduled += share
        self.taken += self.rate

    def due(self, step: int, last: int) -> bool:
        early = step < self.every and step & (step - 1) == 0
        return early or super().due(step, last)

    def see(self, found: Mapping[str, Seen], state: Any, control: Any) -> None:
        """Move the ceiling by a look, and cut the update back where it went too far."""
        change = math.sqrt(self.limit / max(found[KL].value, 1e-12))
        logs = {}
        if change >= 1:
            self.ceiling = min(1.0, self.ceiling * min(GROWTH, change))
        else:
            self.ceiling = max(LEAST, self.rate * max(SHRINK, change))
            logs["update_kept"] = share = math.sqrt(change)
            for name, value in self.trainer.model.named_parameters():
                if value.requires_grad:
                    whole = torch.promote_types(value.dtype, torch.float32)
                    start = self.start[name].to(value.device, value.dtype).to(whole)
                    put(value, interpolated(start, value.detach().to(whole), share))
                    if (kept := self.trainer.optimizer.state.get(value, {}).get("kahan_comp")) is not None:
                        kept.mul_(share)  # of the update, too, and added at the end
        due = control.should_log
        self.trainer.log({"rate_ceiling": self.ceiling, **logs})
        control.should_log = due

    def figures(self) -> dict[str, float]:
        """What a record says: the mean rate as a share of the scheduled one."""
        return {"rate_factor": self.taken / self.scheduled} if self.scheduled else {}

    def _look(self, model: Any) -> dict[str, Seen]:
        return {KL: Seen(self.steer(model).value)}


def started(model: Any, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is trained, by name, as it is now; on the host, from θ⁰ where that has it."""
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return {name: base[name] if name in base else value.cpu().clone() for name, value in trained.items()}
