"""One training run: from a model, rows and a method to tuned weights, through checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ProgressCallback as PlainProgress
from trl import SFTConfig

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.data import Encoded
from gentletune.lm.loaded import base_weights, device, give_back_memory
from gentletune.methods import Method
from gentletune.training.callbacks import MetricsCallback, Probe, ProbeCallback, ProgressCallback, read_metrics
from gentletune.training.forward import remove_token_nll
from gentletune.training.trainer import Collator, GentleTrainer

CHECKPOINTS = "checkpoints"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Fitted:
    """The tuned model, merged into the plain architecture, and figures of its training."""

    model: Any
    figures: dict[str, float]


def fit(
    recipe: Recipe,
    method: Method,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    run: Path,
    *,
    base: Mapping[str, Tensor] | None = None,
    sequence_weights: Sequence[float] | None = None,
    probe: Probe | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    title: str = "training",
) -> Fitted:
    """Train `model` on `rows` by `method`, from the last checkpoint in `run` if there is one.

    Killed at any moment, the same call continues from the last checkpoint and, on the same CPU, ends with the
    same weights bit for bit as an uninterrupted one. `base` is θ⁰ by parameter name (`lm.loaded.base_weights`; None:
    copied to the host). Of the `callbacks`, those with an attribute `trainer` are told the trainer before it trains.
    Gradients, optimiser state and what training held else are gone when this returns.

    Raises:
        UserError: a precision the machine lacks.
        TrainingDivergedError: loss or weights no longer finite; the last checkpoint is kept.
    """
    torch.manual_seed(recipe.seed)  # adapters are initialised at random
    checkpoint = last_checkpoint(run)
    wrapped = method.parameterisation.wrap(model)
    wrapped.train()
    if base is None and method.parameterisation.needs_base:
        base = base_weights(wrapped)
    progress = ProgressCallback(title)
    called: list[Any] = [MetricsCallback(run / METRICS_FILE), progress, *callbacks]
    if probe is not None:
        called.append(ProbeCallback(probe, recipe.probe_every))
    trainer = GentleTrainer(
        wrapped,
        training_arguments(recipe, run),
        method=method,
        backend=recipe.head,
        base=base,
        train_dataset=_dataset(rows, sequence_weights),
        processing_class=tokenizer,
        data_collator=Collator(pad_token_id=tokenizer.pad_token_id),
        callbacks=called,
    )
    for shown_twice in (PlainProgress, PrinterCallback):
        trainer.remove_callback(shown_twice)
    for callback in called:
        if hasattr(callback, "trainer"):
            callback.trainer = trainer
    if checkpoint:
        trainer.restore_previous(checkpoint)
    try:
        if checkpoint is None or not _finished(trainer, checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        figures = _figures(trainer, run)
    finally:
        progress.close()
        _release(trainer)
        # Give the plain forward back before the model is saved, generates or trains again.
        remove_token_nll(wrapped)
    return Fitted(method.parameterisation.unwrap(wrapped).eval(), figures)


def _release(trainer: GentleTrainer) -> None:
    """Let go of gradients and optimiser state now: a trainer and its callbacks are a cycle, collected at any time."""
    trainer.model.zero_grad(set_to_none=True)
    trainer.accelerator.free_memory()
    handler = trainer.callback_handler
    trainer.optimizer = trainer.lr_scheduler = handler.optimizer = handler.lr_scheduler = None
    give_back_memory()


def _finished(trainer: GentleTrainer, checkpoint: Path) -> bool:
    """Whether the checkpoint is of the last step: it is loaded then. transformers would train one step more."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < state.max_steps:
        return False
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    return True


def training_arguments(recipe: Recipe, run: Path) -> SFTConfig:
    """The recipe as TRL's configuration. Raises `UserError` where a `report_to` is not installed."""
    for name in recipe.report_to:
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: '{name}' is unknown or not installed; pip install it, or leave it out")
    schedule = "cosine" if recipe.schedule == "cosine" else "constant_with_warmup"
    # AdamW is left to be the libraries' default. SGD there has no momentum.
    optimizer = {"optim": "sgd"} if recipe.optimizer == "sgd" else {}
    arguments = SFTConfig(
        output_dir=str(run / CHECKPOINTS),
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        lr_scheduler_type=schedule,
        warmup_steps=recipe.warmup,  # a share, since it is below 1
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=use_bf16(recipe),
        gradient_checkpointing=recipe.gradient_checkpointing,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device().type == "cpu",
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=recipe.keep_checkpoints,
        report_to=list(recipe.report_to) or "none",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        dataloader_pin_memory=device().type != "cpu",
        **optimizer,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process has one GPU: transformers would wrap in nn.DataParallel
    return arguments


def use_bf16(recipe: Recipe) -> bool:
    """Whether to train under bf16 autocast.

    `auto` says yes where bf16 has matrix units: a GPU that supports it, a CPU with AMX. A CPU that has AVX-512
    bf16 alone was slower with it than in fp32 (docs/log.md). Raises `UserError` where bf16 is asked for and the
    GPU lacks it.
    """
    if device().type == "cuda":
        supported = torch.cuda.is_bf16_supported()
        if recipe.precision == "bf16" and not supported:
            raise UserError("precision: bf16 is not supported by this GPU; use fp32")
        return recipe.precision != "fp32" and supported
    return recipe.precision == "bf16" or (recipe.precision == "auto" and _cpu_has_amx())


def _cpu_has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text(encoding="utf-8", errors="replace")


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run. Checkpoints are renamed into place whole, so the newest is good."""
    found = {int(m[1]): p for p in (run / CHECKPOINTS).glob("checkpoint-*") if (m := re.search(r"-(\d+)$", p.name))}
    return found[max(found)] if found else None


def _dataset(rows: Sequence[Encoded], sequence_weights: Sequence[float] | None) -> datasets.Dataset:
    columns: dict[str, Any] = {
        "input_ids": [row.input_ids for row in rows],
        "labels": [row.labels for row in rows],
    }
    if sequence_weights is not None:
        columns["sequence_weight"] = list(sequence_weights)
    return datasets.Dataset.from_dict(columns)


def _figures(trainer: GentleTrainer, run: Path) -> dict[str, float]:
    lines = [line for line in read_metrics(run / METRICS_FILE) if "nll" in line]
    figures = {"steps": float(trainer.state.global_step), "update_norm": trainer.update_norm()}
    if lines:
        figures |= {"first_nll": lines[0]["nll"], "last_nll": lines[-1]["nll"]}
        figures["label_tokens"] = sum(line["label_tokens"] for line in lines)
    return figures
