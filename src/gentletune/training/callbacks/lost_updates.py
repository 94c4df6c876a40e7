"""The share of updates that bf16 weights do not take in, measured while training.

A bf16 number has 8 significant bits, so that a weight of 0.05 can only move in steps of 0.00024: an update of less than
half of that rounds to nothing, every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from gentletune.core.optimizers import betas_of, named
from gentletune.core.recipe import Recipe
from gentletune.methods.base import squared_norm
from gentletune.methods.rounding import put

TOLERATED = 0.01  # share of updates that may be lost without a word
ENTRIES = 2**17  # of all weights, evenly spread, are looked at
_MOMENTS = ("exp_avg", "momentum_buffer")


class Watch:
    """What became of the updates of some entries of the `parameters` in one step of their optimiser.

    Call `before` with the gradients in place, then the optimiser's step, then `lost`. An update is lost where one was
    wanted, since the entry's gradient or first moment is not zero, and neither the weight nor what is kept to be added
    later (Kahan summation) changed. At most about `entries` of them are looked at, evenly spread.

    >>> weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    >>> optimizer, watch = torch.optim.SGD([weight], lr=1.0), Watch([weight])
    >>> weight.grad = torch.tensor([0.0, 1e-4, 0.5], dtype=torch.bfloat16)
    >>> watch.before(optimizer.state)
    >>> optimizer.step()
    >>> watch.lost(optimizer.state)
    0.5
    """

    def __init__(self, parameters: Iterable[Tensor], entries: int = ENTRIES) -> None:
        self.parameters = list(parameters)
        self.stride = max(1, sum(p.numel() for p in self.parameters) // entries) | 1  # odd: no column again and again
        self._moved: list[Tensor] = []

    def before(self, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Keep the weights, gradients and compensations that the step will change."""
        self._moved = [p for p in self.parameters if p.grad is not None]
        if self._moved:
            self._wanted = self._sample([p.grad for p in self._moved]) != 0
            self._kept = self._sample(self._moved), self._of_state(state, ["kahan_comp"])

    def lost(self, state: Mapping[Any, Mapping[str, Any]]) -> float | None:
        """The share of wanted updates that were lost; None where none was wanted."""
        if not self._moved:
            return None
        wanted = self._wanted | (self._of_state(state, _MOMENTS) != 0)
        weights, kept = self._kept
        same = (self._sample(self._moved) == weights) & (self._of_state(state, ["kahan_comp"]) == kept)
        lost, count = torch.stack([(wanted & same).sum(), wanted.sum()]).tolist()
        self._moved, self._kept = [], (weights[:0], kept[:0])
        return float(lost / count) if count else None

    def _sample(self, tensors: Sequence[Any]) -> Tensor:
        local = [t.to_local() if isinstance(t, DTensor) else t.detach() for t in tensors]
        return torch.cat([t.flatten()[:: self.stride] for t in local])

    def _of_state(self, state: Mapping[Any, Mapping[str, Any]], names: Sequence[str]) -> Tensor:
        """The first of `names` that the optimiser holds for each parameter; zeros where it holds none of them."""
        found = []
        for parameter in self._moved:
            mine = state.get(parameter, {})
            held = [mine[n] for n in names if isinstance(mine.get(n), Tensor) and mine[n].shape == parameter.shape]
            plain = [value for value in held if type(value) in (Tensor, DTensor)]  # a quantised one is not looked into
            # No zeros of a parameter's own size: they would be another copy of all weights.
            found.append(self._sample(plain[:1]) if plain else torch.zeros_like(self._sample([parameter])))
        return torch.cat(found)


class LostUpdates(TrainerCallback):
    """Says how the weights are held, and measures at each logging step what share of the updates bf16 loses.

    `take` gives the last measurement once, for the log. Where a step at a rate that counts loses more than 1 %, a line
    on the terminal says so, once; and at the end where most of the update was still kept.
    """

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self.recipe, self.console = recipe, console
        self.watch: Watch | None = None
        self._due, self._said, self._first, self._share = False, False, False, dict[str, float]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first = state.is_world_process_zero
        trained = [p for p in kwargs["model"].parameters() if p.requires_grad]
        small = [p for p in trained if p.dtype == torch.bfloat16]
        # Rounding at random keeps an update on average: that this step did not show it says nothing. And with gradients
        # that are let go in the backward pass there is no moment at which all of them could be looked at.
        if small and named(self.recipe.optimizer).bf16 != "stochastic" and not self.recipe.gradient_release:
            self.watch = Watch(small)
        if self._first and any(p.dtype == torch.bfloat16 for p in kwargs["model"].parameters()):
            self._say(how_kept(self.recipe, trains_bf16=bool(small)))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer, step = kwargs["optimizer"], state.global_step + 1
        self._due = self.watch is not None and (step == 1 or step % max(1, int(state.logging_steps)) == 0)
        self._due = self._due and float(optimizer.param_groups[0]["lr"]) > 0
        if self._due and self.watch is not None:
            self.watch.before(optimizer.state)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._due or self.watch is None or (share := self.watch.lost(kwargs["optimizer"].state)) is None:
            return
        self._share = {"lost_updates": share}
        rate = float(kwargs["optimizer"].param_groups[0]["lr"])
        counts = rate >= args.learning_rate / 10  # the far ends of a schedule move nothing anyway
        if share > TOLERATED and counts and not self._said and self._first:
            self._said = True
            mend = "" if named(self.recipe.optimizer).bf16 else ", or optimizer: adamw_torch, which keeps them"
            self._say(
                f"{share:.0%} of the updates of step {state.global_step + 1} are lost: bf16 weights do not move at a "
                f"rate of {rate:.2g}; set weights: fp32{mend}"
            )

    def take(self) -> dict[str, float]:
        """`lost_updates`, where it was measured since this was last called."""
        share, self._share = self._share, {}
        return share

    def keeps(self, model: Any) -> bool:
        """Whether the optimiser keeps what bf16 weights of the model cannot take in (Kahan summation)."""
        small = any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())
        return small and named(self.recipe.optimizer).bf16 == "kahan"

    def arrive(self, trainer: Any) -> dict[str, float]:
        """Put what Kahan summation still keeps into the weights, rounded at random; `waiting_norm`, the length of it.

        Where the weights moved less than that while training, by their ‖θ-θ⁰‖, a line says so.
        """
        states = {} if trainer.optimizer is None else trainer.optimizer.state
        kept = {p: found for p, each in states.items() if isinstance(found := each.get("kahan_comp"), Tensor)}
        if not kept:
            return {}
        norm = math.sqrt(sum(float(squared_norm(found)) for found in kept.values()))
        if norm > (before := trainer.update_norm()) and trainer.is_world_process_zero():
            self._say(
                f"most updates were too small for bf16 weights while training, which moved them by {before:.2g}; "
                f"the rest, {norm:.2g}, is added now, so gradients never saw it; weights: fp32 takes each in at once"
            )
        for parameter, found in kept.items():
            put(parameter, parameter.detach().float().add_(found))
        return {"waiting_norm": norm}

    def _say(self, text: str) -> None:
        self.console.print(f"gentletune: {text}", soft_wrap=True, highlight=False, markup=False)


def how_kept(recipe: Recipe, *, trains_bf16: bool) -> str:
    """One line: that weights are held in bf16, why, and what keeps their small updates."""
    if not trains_bf16:
        return "weights are held in bf16; the adapters are trained in fp32"
    why = "" if recipe.weights == "bf16" else " (training would not fit in fp32)"
    kept = {
        "kahan": "what they cannot take in is kept for the next step (Kahan summation)",
        "stochastic": "they are rounded up or down at random, right on average",
        None: f"optimizer {recipe.optimizer} has nothing that keeps what they cannot take in",
    }[named(recipe.optimizer).bf16]
    betas = betas_of(recipe.optimizer, recipe.betas, bf16=True)
    other = betas != betas_of(recipe.optimizer, recipe.betas, bf16=False)
    return f"weights are held in bf16{why}: {kept}" + (f"; betas are {betas[0]:g}, {betas[1]:g}" if other else "")
