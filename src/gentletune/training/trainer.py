"""The one trainer: asks the Method for weights and penalty, and nowhere names a method."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune.lm.model_files import quiet
from gentletune.training.mixin import MethodMixin, TrainingDivergedError

PREVIOUS_FILE = "previous_sequence_nll.pt"


class Collator(DataCollatorForLanguageModeling):
    """Pads ids and labels, and carries each row's sequence weight as `sequence_weights` (batch,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if "sequence_weight" in examples[0]:
            batch["sequence_weights"] = torch.tensor([e["sequence_weight"] for e in examples], dtype=torch.float32)
        return batch


class GentleTrainer(MethodMixin, SFTTrainer):
    """`trl.SFTTrainer` with the loss of any Method, sequence weights by row, and whole checkpoints.

    A checkpoint is written elsewhere first and renamed into place. Parameterisation and merge are up to the caller.
    """

    whole_method = True
    _signature_columns: list[str] | None
    _staging: str | None = None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*(self._signature_columns or []), "sequence_weight"])]

    # --- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or str(self.args.output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes its own card, once, beside the final model."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole or not at all: elsewhere first, then renamed into place, by rank 0 alone.

        The ranks wait for each other before and after: each adds its random state to the one directory.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise TrainingDivergedError(f"the weights are not finite at step {self.state.global_step}")
        output, first = Path(self.args.output_dir), self.accelerator.is_main_process
        staging = output / ".writing"
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            with quiet():
                super()._save_checkpoint(model, trial)
            if self.previous is not None and first:
                torch.save(self.previous.cpu(), staging / f"checkpoint-{self.state.global_step}" / PREVIOUS_FILE)
            self.accelerator.wait_for_everyone()
            if first:
                for checkpoint in staging.glob("checkpoint-*"):
                    shutil.rmtree(output / checkpoint.name, ignore_errors=True)
                    checkpoint.replace(output / checkpoint.name)
        finally:
            self._staging = None
            if first:
                shutil.rmtree(staging, ignore_errors=True)
        if first:
            rotate_checkpoints(output_dir=str(output), save_total_limit=self.args.save_total_limit, use_mtime=False)
        self.accelerator.wait_for_everyone()

    def restore_previous(self, checkpoint: Path) -> None:
        """Take up the previous batch's statistic where the checkpoint left it, on this rank's own device."""
        file = checkpoint / PREVIOUS_FILE
        if file.exists():
            self.previous = torch.load(file, weights_only=True, map_location="cpu").to(self.accelerator.device)
