"""Early stopping on a score of the looks: the best weights wait beside the checkpoints, and are what training gives."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from gentletune.core.cache import whole_directory
from gentletune.core.errors import UserError
from gentletune.core.schedule import EarlyStop
from gentletune.lm.model_files import quiet


@dataclass(frozen=True)
class Seen:
    """A score of the model in training, and whether more of it is better."""

    value: float
    higher_is_better: bool = False


class StopEarly(TrainerCallback, ExportableState):
    """Ends training once the score was not better in `patience` looks, and holds the best weights.

    What it knows goes into each checkpoint, so a training that is resumed stops where it would have. Weights are
    written where they are the best so far; those that the last checkpoint calls the best stay until the next one.
    """

    def __init__(self, wanted: EarlyStop, folder: Path) -> None:
        self.wanted, self.folder = wanted, folder
        self.best: float | None = None
        self.best_step, self.worse, self.stopped = 0, 0, False
        self._kept = 0  # the best step by the last checkpoint
        self.trainer: Any = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        names = ("best", "best_step", "worse", "stopped")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def restore(self, state: Any) -> None:
        """Take up what a checkpoint's trainer state kept."""
        for name, value in state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).items():
            setattr(self, name, value)
        self._kept = self.best_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._kept = self.best_step
        self._tidy()

    def see(self, found: Mapping[str, Seen], state: Any, control: Any) -> None:
        """Judge a look, one of several kinds. Raises `UserError` where its task has no such score."""
        seen = found.get(self.wanted.score)
        if seen is None:
            if any(name.startswith(f"{self.wanted.task}/") for name in found):
                raise UserError(f"early_stop: no score '{self.wanted.score}'; there are {', '.join(sorted(found))}")
            return
        gain = None if self.best is None else (seen.value - self.best) * (1 if seen.higher_is_better else -1)
        if gain is None or gain > self.wanted.min_delta:
            self.best, self.best_step, self.worse = seen.value, state.global_step, 0
            self._write()
            return
        self.worse += 1
        if self.worse >= self.wanted.patience and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = control.should_save = True

    @property
    def has_last(self) -> bool:
        """Whether the best weights are those of the last step."""
        return not self.best_step or self.best_step == int(self.trainer.state.global_step)

    def give_best(self) -> None:
        """Put the best weights into the trainer's model, where they are not those it has."""
        if not self.has_last:
            with quiet():  # a tied head is not in the file, which transformers would warn of
                self.trainer._load_from_checkpoint(str(self.folder / f"best-{self.best_step}"))

    def figures(self) -> dict[str, float]:
        """What a record says: the step and score of the weights that are kept, and whether training ended early."""
        if self.best is None:
            return {}
        return {"best_step": float(self.best_step), "best_score": self.best, "stopped_early": float(self.stopped)}

    def _write(self) -> None:
        if self.trainer.accelerator.is_main_process:
            target = self.folder / f"best-{self.best_step}"
            with whole_directory(target) as scratch, quiet():
                self.trainer.save_model(str(scratch), _internal_call=True)
            self._tidy()

    def _tidy(self) -> None:
        """Drop weights that neither this training nor its last checkpoint calls the best."""
        wanted = {f"best-{self.best_step}", f"best-{self._kept}"}
        if self.trainer.accelerator.is_main_process:
            for path in self.folder.glob("best-*"):
                if path.name not in wanted:
                    shutil.rmtree(path, ignore_errors=True)
