"""The one trainer: asks the Method for weights and penalty, and nowhere names a method."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from gentletune.losses import Backend, sequence_means
from gentletune.methods import Method, TokenBatch, Weighted
from gentletune.methods.base import squared_norm
from gentletune.models import quiet
from gentletune.training.forward import add_token_nll


class TrainingDivergedError(Exception):
    """The loss or the weights are no longer finite; the last good checkpoint is kept."""


class Collator(DataCollatorForLanguageModeling):
    """Pads ids and labels, and carries each row's sequence weight as `sequence_weights` (batch,)."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if "sequence_weight" in examples[0]:
            batch["sequence_weights"] = torch.tensor([e["sequence_weight"] for e in examples], dtype=torch.float32)
        return batch


class GentleTrainer(SFTTrainer):
    """`trl.SFTTrainer` with the loss L = (1/Z) Σ u_s w_t ℓ_t + penalty of a Method.

    Sums are divided by the count over the global batch. Z = Σ w (`simplex`) is known only once every micro-batch
    has been seen, so the accumulated gradient is rescaled at the end of the step; the penalty is added there too,
    once per optimiser step.

    Args:
        method: the Method whose token weights, penalty and deviations are asked for.
        backend: of the token-NLL head.
        initial: θ⁰ by parameter name, where the parameterisation's deviations need it.
    """

    _signature_columns: list[str] | None

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        method: Method,
        backend: Backend = "auto",
        initial: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, **kwargs)
        self.method = method
        self.initial = initial or {}
        self.previous: Tensor | None = None  # sequence means of the previous global batch
        self._pending: list[Tensor] = []  # the same of this one, as it accumulates
        self._weight_sum = 0.0
        self._returned = 0.0
        self._totals: dict[str, float] = {}
        self._stats: dict[str, list[float]] = {}
        self._staging: str | None = None
        # The loss below is already divided by the global count, over micro-batches and ranks.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        add_token_nll(self.model, backend)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*dict.fromkeys([*(self._signature_columns or []), "sequence_weight"])]

    # --- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ u_s w_t ℓ_t of a micro-batch over the global number of label tokens."""
        sequence_weights = inputs.pop("sequence_weights", None)
        width = inputs["labels"].shape[1]
        out = model(**inputs, token_nll=True)
        nll, sequence = out["nll"], out["sequence"]
        batch = self._token_batch(nll.detach(), sequence)
        weighted = self._weights(batch)
        weights = weighted.weights
        if sequence_weights is not None:
            weights = weights * sequence_weights[out["index"] // width]
        if model.training:
            self._observe(batch, Weighted(weights, weighted.stats))
        count = nll.numel() if num_items_in_batch is None else num_items_in_batch
        loss = (weights * nll).sum() / torch.as_tensor(count, device=nll.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks
        return (loss, out) if return_outputs else loss

    def _token_batch(self, nll: Tensor, sequence: Tensor) -> TokenBatch:
        sequences = int(sequence.max()) + 1 if sequence.numel() else 0
        return TokenBatch(nll, sequence_means(nll, sequence, sequences), self.previous)

    def _weights(self, batch: TokenBatch) -> Weighted:
        if self.method.token_weights is None or not batch.nll.numel():
            return Weighted(torch.ones_like(batch.nll))
        return self.method.token_weights(batch)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; at the last one of a step the gradient gets its normalisation and penalty."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.gradient_state.sync_gradients:
            loss = self._end_of_step(loss, num_items_in_batch)
        else:
            self._returned += float(loss)
        if not torch.isfinite(loss):
            raise TrainingDivergedError(f"the loss became {float(loss)} at step {self.state.global_step + 1}")
        return loss

    def _end_of_step(self, loss: Tensor, num_items_in_batch: Any) -> Tensor:
        total = self._returned + float(loss)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if self.method.normalization == "simplex":
            weight_sum = float(self._all_ranks(torch.tensor(self._weight_sum)).sum())
            scale = float(num_items_in_batch) / weight_sum
            for parameter in parameters:
                parameter.grad.mul_(scale)
            total *= scale
        if self.method.penalty is not None:
            total += self._add_penalty()
        if self.method.uses_previous:
            self.previous = self._all_ranks(torch.cat(self._pending))
        loss = torch.as_tensor(total - self._returned, dtype=loss.dtype, device=loss.device)
        self._pending, self._weight_sum, self._returned = [], 0.0, 0.0
        return loss

    def _add_penalty(self) -> float:
        """Add the penalty's gradient; autograd.grad leaves DDP's hooks, which have already run, alone."""
        assert self.method.penalty is not None
        trained = [p for p in self.model.parameters() if p.requires_grad]
        penalty = self.method.penalty(self.method.parameterisation.deviations(self.model, self.initial))
        if not penalty.requires_grad:
            return float(penalty)
        for parameter, grad in zip(trained, torch.autograd.grad(penalty, trained, allow_unused=True), strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        return float(penalty.detach())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Also gives the first global batch its own statistic as `previous`, where the method asks for one."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.method.uses_previous and self.previous is None and batches:
            means = [self._own_means(batch) for batch in batches]
            self.previous = self._all_ranks(torch.cat(means))
        return batches, count

    def _own_means(self, batch: dict[str, Any]) -> Tensor:
        inputs = self._prepare_inputs({k: v for k, v in batch.items() if k != "sequence_weights"})
        with torch.no_grad(), self.compute_loss_context_manager():
            out = self.model(**inputs, token_nll=True)
        return self._token_batch(out["nll"], out["sequence"]).sequence_nll

    def _all_ranks(self, values: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return values
        padded = self.accelerator.pad_across_processes(
            values.to(self.accelerator.device).reshape(-1), pad_index=float("nan")
        )
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered[~gathered.isnan()]

    # --- what is logged

    def _observe(self, batch: TokenBatch, weighted: Weighted) -> None:
        weights = weighted.weights
        self._pending.append(batch.sequence_nll)
        self._weight_sum += float(weights.sum())
        for key, value in (
            ("tokens", float(weights.numel())),
            ("nll", float(batch.nll.sum())),
            ("weight", float(weights.sum())),
            ("weight_squared", float((weights**2).sum())),
            ("floored", float(weighted.stats.get("floor_share", 0.0)) * weights.numel()),
        ):
            self._totals[key] = self._totals.get(key, 0.0) + value
        if "tau" in weighted.stats:
            self._stats.setdefault("tau", []).append(float(weighted.stats["tau"]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the weights' figures since the last line, and the update norm ‖θ-θ⁰‖."""
        if "loss" in logs and self._totals.get("tokens"):
            sums = self._totals
            tokens = sums["tokens"]
            logs["nll"] = sums["nll"] / tokens
            logs["mean_weight"] = sums["weight"] / tokens
            logs["floor_share"] = sums["floored"] / tokens
            logs["effective_sample_size"] = sums["weight"] ** 2 / sums["weight_squared"]
            logs["label_tokens"] = tokens
            logs |= {key: sum(values) / len(values) for key, values in self._stats.items()}
            logs["update_norm"] = self.update_norm()
            self._totals, self._stats = {}, {}
        super().log(logs, start_time)

    @torch.no_grad()
    def update_norm(self) -> float:
        """‖θ-θ⁰‖ over the effective parameters."""
        return math.sqrt(float(squared_norm(self.method.parameterisation.deviations(self.model, self.initial))))

    # --- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or str(self.args.output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes its own card, once, beside the final model."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole or not at all: elsewhere first, then renamed into place."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise TrainingDivergedError(f"the weights are not finite at step {self.state.global_step}")
        output = Path(self.args.output_dir)
        staging = output / ".writing"
        shutil.rmtree(staging, ignore_errors=True)
        self._staging = str(staging)
        try:
            with quiet():
                super()._save_checkpoint(model, trial)
            if self.previous is not None:
                torch.save(self.previous, staging / f"checkpoint-{self.state.global_step}" / PREVIOUS_FILE)
            for checkpoint in staging.glob("checkpoint-*"):
                shutil.rmtree(output / checkpoint.name, ignore_errors=True)
                checkpoint.replace(output / checkpoint.name)
        finally:
            self._staging = None
            shutil.rmtree(staging, ignore_errors=True)
        rotate_checkpoints(output_dir=str(output), save_total_limit=self.args.save_total_limit, use_mtime=False)

    def restore_previous(self, checkpoint: Path) -> None:
        """Take up the previous batch's statistic where the checkpoint left it."""
        file = checkpoint / PREVIOUS_FILE
        if file.exists():
            self.previous = torch.load(file, weights_only=True)


PREVIOUS_FILE = "previous_sequence_nll.pt"
