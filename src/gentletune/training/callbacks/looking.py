"""Looks at the model in training, which change nothing of it: probes, the recipe's tasks; and saving by the clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from gentletune.core.errors import NotFiniteError, UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import Score
from gentletune.core.schedule import EarlyStop, seconds_of
from gentletune.training.callbacks.early_stop import Seen, StopEarly
from gentletune.training.mixin import TrainingDivergedError

Probe = Callable[[Any], Mapping[str, float]]
Evaluate = Callable[[Any], Sequence[Score]]


class ProbeCallback(TrainerCallback):
    """Every `every` steps (0: never) and at the end logs what `probe` says of the model: domain NLL, KL from base."""

    def __init__(self, probe: Probe, every: int, stop: StopEarly | None = None) -> None:
        self.probe, self.every, self.stop = probe, every, stop
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.due(state.global_step, state.max_steps):
            return
        kwargs["optimizer"].eval()  # schedule-free optimisers train other weights than are to be measured
        try:
            with undisturbed(kwargs["model"]):
                found = self._agreed(self._look, kwargs["model"])
        except NotFiniteError as error:
            raise TrainingDivergedError(f"at step {state.global_step}: {error}") from error
        due = control.should_log  # logging here must not cancel the step's own line
        self.trainer.log({name: seen.value for name, seen in found.items()})
        control.should_log = due
        if self.stop:
            self.stop.see(found, state, control)

    def due(self, step: int, last: int) -> bool:
        """Whether it looks after this step."""
        return bool(self.every) and (step % self.every == 0 or step == last)

    def _look(self, model: Any) -> dict[str, Seen]:
        return {name: Seen(value) for name, value in self.probe(model).items()}

    def _agreed(self, look: Callable[[Any], dict[str, Seen]], model: Any) -> dict[str, Seen]:
        """What rank 0 found, or what stops it, on every rank: they must stop at the same step."""
        found: list[Any] = []
        try:
            found.append(look(model))
        except UserError as error:
            found.append(error)
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list(found)
        if isinstance(found[0], UserError):
            raise found[0]
        seen: dict[str, Seen] = found[0]
        return seen


class EvaluateCallback(ProbeCallback):
    """Every `every` steps (0: never) and at the end logs the tasks' scores as TASK/METRIC.

    Every rank is asked, so that they can share the work; what rank 0 found counts.
    """

    def __init__(self, evaluate: Evaluate, every: int, stop: StopEarly | None = None) -> None:
        super().__init__(lambda _model: {}, every, stop)
        self.evaluate = evaluate

    def _look(self, model: Any) -> dict[str, Seen]:
        return {score.key: Seen(score.value, score.higher_is_better) for score in self.evaluate(model)}


class SaveByTime(TrainerCallback):
    """Asks for a checkpoint once so many seconds have passed since the last; rank 0's clock counts."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = [time.monotonic() - self.last >= self.seconds]
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list(due)
        if due[0]:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()


def looks(
    recipe: Recipe, folder: Path, probe: Probe | None, evaluate: Evaluate | None
) -> tuple[list[TrainerCallback], StopEarly | None]:
    """The callbacks that the recipe asks for, and which of them may end training; best weights go into `folder`."""
    stop = StopEarly(EarlyStop.parse(recipe.early_stop), folder) if recipe.early_stop else None
    made: list[TrainerCallback] = []
    if probe is not None:
        made.append(ProbeCallback(probe, recipe.probe_every, stop))
    if evaluate is not None:
        made.append(EvaluateCallback(evaluate, recipe.evaluate_every, stop))
    if stop is not None:
        made.append(stop)
    if seconds := seconds_of(recipe.save_every):
        made.append(SaveByTime(seconds))
    return made, stop


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Leave every random state, the autograd mode and each module's mode as they were, whatever is done inside."""
    modes = [(module, module.training) for module in model.modules()]
    python, arrays = random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
            for module, mode in modes:
                module.training = mode
