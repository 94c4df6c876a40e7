"""The one trainer, which asks the Method for weights and penalty and nowhere names a method, and a run of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ProgressCallback as PlainProgress
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.schedule import Schedule
from gentletune.data import Encoded
from gentletune.lm.base_weights import base_weights
from gentletune.lm.device import give_back_memory
from gentletune.lm.model_files import quiet
from gentletune.losses import Backend
from gentletune.methods import Method
from gentletune.methods.adapted import keeps_adapter
from gentletune.methods.token_weights.talr import talr
from gentletune.training.anchor import Lookup, ReplayRows
from gentletune.training.arguments import CHECKPOINTS, optimizer_rate, rate_in_words, training_arguments
from gentletune.training.attention import at_own, attending
from gentletune.training.callbacks.early_stop import StopEarly
from gentletune.training.callbacks.looking import Evaluate, Probe, looks
from gentletune.training.callbacks.lost_updates import LostUpdates
from gentletune.training.callbacks.metrics import MetricsCallback, ProgressCallback, figures_of
from gentletune.training.callbacks.throughput import Meter, Metered
from gentletune.training.checkpoints import last_checkpoint, reading
from gentletune.training.control.average import Average
from gentletune.training.control.rate import RateControl, Steer, started
from gentletune.training.loss import remove_token_nll
from gentletune.training.mixin import MethodMixin, TrainingDivergedError
from gentletune.training.optimizers import Releasing, own_optimizer, trained_dtype
from gentletune.training.packing import ByEpoch, Collator, batches_in_words, pack_length, training_set
from gentletune.training.sharding import Background, Whole, forget_sharding, reshard, shard_on_cpu, whole

METRICS_FILE = "metrics.jsonl"
PREVIOUS_FILE = "previous_sequence_nll.pt"
WRITING = ".writing"  # where a checkpoint is written


class GentleTrainer(Releasing, MethodMixin, Metered, SFTTrainer):
    """`trl.SFTTrainer` with the loss of any Method, sequence weights by row, and whole checkpoints.

    A checkpoint is written elsewhere first and renamed into place. Parameterisation and merge are up to the caller.
    """

    whole_method = True
    lost_updates: LostUpdates | None = None
    average: Average | None = None
    _signature_columns: list[str] | None
    _staging: str | None = None
    _written = True  # whether the last checkpoint is in its place

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self.background = Background()
        quantised = getattr(model, "is_quantized", False)
        trained = [(p, p.data) for p in model.parameters() if p.requires_grad] if quantised else []
        super().__init__(model, *args, **kwargs)
        for parameter, values in trained:
            parameter.data = values  # TRL rounds QLoRA's adapters to bf16, which loses small steps

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.accelerator.device.type == "cpu":
            shard_on_cpu(self)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [
            *dict.fromkeys([*(self._signature_columns or []), "sequence_weight", "base_place", "length"])
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the share of updates that bf16 weights have lost."""
        if "loss" in logs and self.lost_updates is not None:
            logs |= self.lost_updates.take()
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        """The rate that a step was taken with: where a budget acts on it, not the scheduled one."""
        if self.method.control is None:
            return float(super()._get_learning_rate())
        return float(self.optimizer.param_groups[0]["lr"])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As transformers makes it, with a decay that is a share of the steps turned into steps."""
        options, args = self.args.lr_scheduler_kwargs or {}, self.args
        if isinstance(options.get("num_decay_steps"), float):
            steps = Schedule("wsd", options["num_decay_steps"]).decay_steps(
                num_training_steps, args.get_warmup_steps(num_training_steps)
            )
            args.lr_scheduler_kwargs = {**options, "num_decay_steps": steps}
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As transformers makes it, but that rows of like length come as the seed and the epoch say."""
        sampler = super()._get_train_sampler(train_dataset)
        return ByEpoch(sampler, self) if isinstance(sampler, LengthGroupedSampler) else sampler

    # --- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or str(self.args.output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes its own card, once, beside the final model."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint whole or not at all: elsewhere first, then renamed into place, by rank 0 alone.

        The ranks wait for each other before and after: each adds its random state to the one directory. Shares of the
        weights are written while training goes on; the next checkpoint waits for them.
        """
        self.optimizer.eval()  # the weights to be measured: schedule-free optimisers train others
        reshard(self.model)
        # By their sum: elementwise, an embedding of a large vocabulary would take 1.75 times its size once more.
        trained = (p.detach() for p in self.model.parameters() if p.requires_grad)
        if not all(bool(torch.isfinite(whole(p.sum()))) for p in trained):
            raise TrainingDivergedError(f"the weights are not finite at step {self.state.global_step}")
        self.finish_checkpoint()
        staging, first = Path(self.args.output_dir) / WRITING, self.accelerator.is_main_process
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = str(staging)
        try:
            with quiet(), self.background.taken() if self.args.fsdp else nullcontext():
                super()._save_checkpoint(model, trial)
            if self.previous is not None and first:
                torch.save(self.previous.cpu(), staging / f"checkpoint-{self.state.global_step}" / PREVIOUS_FILE)
            if self.average is not None and first:
                self.average.write(staging / f"checkpoint-{self.state.global_step}")
        except BaseException:
            if first:
                shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        self._written = False
        if not self.args.fsdp:
            self.finish_checkpoint()
            self.accelerator.wait_for_everyone()

    def finish_checkpoint(self) -> None:
        """Wait until the checkpoint that is being written is whole, if there is one; then rank 0 puts it into place.

        One that could not be written never comes into place. Raises `RunFailedError` then.
        """
        waiting, self._written = not self._written, True
        self.background.wait()
        output = Path(self.args.output_dir)
        if waiting and self.accelerator.is_main_process:
            for checkpoint in (output / WRITING).glob("checkpoint-*"):
                shutil.rmtree(output / checkpoint.name, ignore_errors=True)
                checkpoint.replace(output / checkpoint.name)
            shutil.rmtree(output / WRITING, ignore_errors=True)
            rotate_checkpoints(output_dir=str(output), save_total_limit=self.args.save_total_limit, use_mtime=False)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As ever; a checkpoint that has been written in the meantime is put into place."""
        if not self._written and not self.background.busy:
            self.finish_checkpoint()
        return super().training_step(model, inputs, num_items_in_batch)

    def restore(self, checkpoint: Path) -> None:
        """Take up the previous batch's statistic and the running average where the checkpoint left them."""
        with reading(checkpoint):
            if self.average is not None:
                self.average.read(checkpoint)
            file = checkpoint / PREVIOUS_FILE
            if file.exists():
                self.previous = torch.load(file, weights_only=True, map_location="cpu").to(self.accelerator.device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)


class TALRTrainer(MethodMixin, SFTTrainer):
    """`trl.SFTTrainer` with TALR's loss (arXiv 2509.20758): all it takes and does, packing and PEFT included.

    Args:
        tau: of TALR, as the two below; see `gentletune.methods.token_weights.talr`.
        floor: smallest weight.
        normalization: what the weighted sum is divided by.
        backend: of the token-NLL head.

    Raises:
        ValueError: τ ≤ 0 or not a known name, floor outside [0, 1], label smoothing, an adapter on the head.

    Example: `TALRTrainer("owner/model", SFTConfig(...), train_dataset=rows, tau="lagged_median").train()`
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        *positional: Any,
        tau: float | str = "median",
        floor: float = 0.01,
        normalization: str = "count",
        backend: Backend = "auto",
        **kwargs: Any,
    ) -> None:
        method = talr(tau, floor, normalization)
        super().__init__(model, args, *positional, method=method, backend=backend, **kwargs)


@dataclass(frozen=True)
class Fitted:
    """The tuned model, its adapter merged unless it is kept apart, and figures of its training.

    `model` is None on a rank that held a share of it.
    """

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
    evaluate: Evaluate | None = None,
    steer: Steer | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    title: str = "training",
    replay: ReplayRows | None = None,
    base_kl: Lookup | None = None,
) -> Fitted:
    """Train `model` on `rows` by `method`, from the last checkpoint in `run` if there is one.

    Killed at any moment, the same call continues from the last checkpoint and, on the same CPU, ends with the
    same weights bit for bit as an uninterrupted one. `base` is θ⁰ by parameter name (`lm.base_weights`; None:
    copied to the host), `replay` and `base_kl` are what `MethodMixin` takes by these names. Of the `callbacks`, those
    with an attribute `trainer` are told the trainer before it trains.
    Gradients, optimiser state and what training held else are gone when this returns. Where ranks hold a share of the
    weights each (`strategy: fsdp2`), rank 0 alone gets the model, on the host.

    Raises:
        UserError: a precision the machine lacks; a budget without `steer`; a checkpoint that cannot be read.
        TrainingDivergedError: loss or weights no longer finite; the last checkpoint is kept.
    """
    torch.manual_seed(recipe.seed)  # adapters are initialised at random
    checkpoint = last_checkpoint(run)
    wrapped = method.parameterisation.wrap(model)
    wrapped.train()
    if base is None and method.parameterisation.needs_base:
        base = base_weights(wrapped)
    progress = ProgressCallback(title)
    lost = LostUpdates(recipe, progress.console)
    called: list[Any] = [Meter(), MetricsCallback(run / METRICS_FILE), progress, lost, *callbacks]
    rate, steer = None, at_own(wrapped, steer)
    if method.control is not None:
        if steer is None:
            raise UserError("a budget of KL from base is kept by gentletune train alone; leave it out here")
        rate = RateControl(method.control, steer, started(wrapped, base or {}))
        called.append(rate)  # before the looks, which see the update as it is cut back
    looked, stop = looks(recipe, run / CHECKPOINTS, at_own(wrapped, probe), at_own(wrapped, evaluate))
    called += looked
    average = None if method.average is None else Average(method.average)
    called += [] if average is None else [average]
    dtype = trained_dtype(wrapped)
    arguments = training_arguments(recipe, run, dtype, method)
    plain = Whole(wrapped) if arguments.fsdp else None
    drawn = training_set(rows, sequence_weights, pack=pack_length(recipe, rows), placed=base_kl is not None)
    with attending(wrapped, recipe, arguments.bf16 or dtype == torch.bfloat16) as (attention, layout):
        trainer = GentleTrainer(
            wrapped,
            arguments,
            method=method,
            backend=recipe.head,
            base=base,
            replay=replay and replace(replay, sequences=len(rows) / len(drawn)),
            base_kl=base_kl,
            train_dataset=drawn,
            processing_class=tokenizer,
            data_collator=Collator(pad_token_id=tokenizer.pad_token_id, layout=layout),
            callbacks=called,
            optimizer_cls_and_kwargs=own_optimizer(recipe, arguments, dtype, method.update_rule),
        )
        trainer.lost_updates, trainer.average, trainer.releases = lost, average, recipe.gradient_release
        for shown_twice in (PlainProgress, PrinterCallback):
            trainer.remove_callback(shown_twice)
        for callback in called:
            if hasattr(callback, "trainer"):
                callback.trainer = trainer
        if checkpoint:
            trainer.restore(checkpoint)
        if trainer.is_world_process_zero():
            scaled = rate_in_words(recipe, method)
            progress.say(f"attention {attention}; {batches_in_words(recipe, len(rows), len(drawn))}{scaled}")
            if trainer.replayer is not None:
                progress.say(trainer.replayer.described)
        try:
            if checkpoint is None or not _finished(trainer, checkpoint, stop):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                trainer.optimizer.eval()
            trainer.finish_checkpoint()
            if stop is not None:
                stop.give_best()
            if average is not None:
                average.give(trainer.model)
            late = lost.arrive(trainer) if _keeps_last(trainer, stop) else {}
            figures = figures_of(trainer, run / METRICS_FILE) | late
            figures |= (stop.figures() if stop else {}) | (rate.figures() if rate else {})
            if (used := optimizer_rate(recipe, method)) != recipe.learning_rate:
                figures["optimizer_rate"] = used
            if plain is not None:
                wrapped = plain.filled(trainer.model)
        finally:
            with suppress(Exception):  # what stopped the training counts
                trainer.finish_checkpoint()
            trainer.keep_gradients()
            progress.close()
            _release(trainer)
            forget_sharding()
            if plain is None:  # give the plain forward back before the model is saved, generates or trains again
                remove_token_nll(wrapped)
    return Fitted(None if wrapped is None else _plain(recipe, method, wrapped).eval(), figures)


def _plain(recipe: Recipe, method: Method, wrapped: Any) -> Any:
    """The tuned model in the base model's architecture; its adapter still apart where the recipe keeps it so."""
    how = method.parameterisation
    return how.settle(wrapped) if keeps_adapter(recipe) else how.unwrap(wrapped)


def _release(trainer: GentleTrainer) -> None:
    """Let go of gradients and optimiser state now: a trainer and its callbacks are a cycle, collected at any time."""
    trainer.model.zero_grad(set_to_none=True)
    trainer.accelerator.free_memory()
    handler = trainer.callback_handler
    trainer.optimizer = trainer.lr_scheduler = handler.optimizer = handler.lr_scheduler = None
    give_back_memory()


def _keeps_last(trainer: GentleTrainer, stop: StopEarly | None) -> bool:
    """Whether a training ends with the weights of its last step, not with an average or an earlier best."""
    return trainer.average is None and (stop is None or stop.has_last)


def _finished(trainer: GentleTrainer, checkpoint: Path, stop: StopEarly | None) -> bool:
    """Whether the checkpoint is of the last step: it is loaded then. transformers would train one step more."""
    with reading(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, (StopEarly, RateControl)):
                callback.restore(state)
    if state.global_step < state.max_steps and not (stop and stop.stopped):
        return False
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    if _keeps_last(trainer, stop) and trainer.lost_updates is not None and trainer.lost_updates.keeps(trainer.model):
        trainer.create_optimizer_and_scheduler(state.max_steps)
        trainer._load_optimizer_and_scheduler(str(checkpoint))
    return True
