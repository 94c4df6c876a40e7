"""A recipe as TRL's configuration: optimiser, schedule, precision."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import get_available_reporting_integrations
from trl import SFTConfig

from gentletune.core.devices import sharded
from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.schedule import SCHEDULES, Schedule
from gentletune.lm.device import device
from gentletune.lm.held import use_bf16
from gentletune.methods import Method
from gentletune.training.optimizers import check_optimizer, optimizer_fields
from gentletune.training.sharding import FSDP, compute_in_bf16

CHECKPOINTS = "checkpoints"
COMPILER = "inductor"
_NEVER = 10**9  # steps between checkpoints, where a clock says when
_PLAIN = Method()


def training_arguments(
    recipe: Recipe, run: Path, dtype: torch.dtype = torch.float32, method: Method = _PLAIN
) -> SFTConfig:
    """The recipe as TRL's configuration, for trained weights that are held in `dtype`, by `method`.

    Raises:
        UserError: a `report_to` is not installed, or the optimiser cannot run here.
    """
    check_optimizer(recipe)
    recipe = recipe.in_micro_batches()  # a run has settled how many fit; what only looks takes few
    for name in recipe.report_to:
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to: '{name}' is unknown or not installed; pip install it, or leave it out")
    with warnings.catch_warnings():
        # TRL's own default is on, and the lowest transformers knows no other name for it.
        warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
        arguments = _config(recipe, run, dtype, method)
    if sharded(recipe) and arguments.bf16:
        compute_in_bf16(arguments)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # a process has one GPU: transformers would wrap in nn.DataParallel
    return arguments


def _config(recipe: Recipe, run: Path, dtype: torch.dtype, method: Method) -> SFTConfig:
    schedule, by_time = Schedule.parse(recipe.schedule), isinstance(recipe.save_every, str)
    return SFTConfig(
        output_dir=str(run / CHECKPOINTS),
        learning_rate=optimizer_rate(recipe, method),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        lr_scheduler_type=SCHEDULES[schedule.name],
        lr_scheduler_kwargs=scheduler_options(schedule),
        warmup_steps=recipe.warmup,  # a share, since it is below 1
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=use_bf16(recipe),
        gradient_checkpointing=recipe.gradient_checkpointing,
        torch_compile=recipe.compile,
        torch_compile_backend=COMPILER if recipe.compile else None,
        train_sampling_strategy="group_by_length" if recipe.group_by_length else "random",
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device().type == "cpu",
        logging_steps=recipe.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=_NEVER if by_time else int(recipe.save_every),
        save_total_limit=recipe.keep_checkpoints,
        report_to=list(recipe.report_to) or "none",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        dataloader_pin_memory=device().type != "cpu",
        **optimizer_fields(recipe, dtype),
        **(copy.deepcopy(FSDP) if sharded(recipe) else {}),
    )


def optimizer_rate(recipe: Recipe, method: Method) -> float:
    """The optimiser's peak learning rate: the recipe's, times what the method's adapters are scaled by."""
    return recipe.learning_rate * method.parameterisation.rate_scale


def rate_in_words(recipe: Recipe, method: Method) -> str:
    """What a training says of its rate where it is not the recipe's.

    >>> from gentletune.methods import Parameterisation
    >>> rate_in_words(Recipe(lr=1e-5), Method(parameterise=Parameterisation(rate_scale=10.0)))
    '; learning rate 0.0001 (10 x 1e-05 for adapters)'
    """
    scale = method.parameterisation.rate_scale
    if scale == 1:
        return ""
    return f"; learning rate {optimizer_rate(recipe, method):g} ({scale:g} x {recipe.learning_rate:g} for adapters)"


def scheduler_options(schedule: Schedule) -> dict[str, Any]:
    """What transformers' scheduler is to know besides; wsd's decay as a share, which the trainer turns into steps."""
    return {"num_decay_steps": schedule.decay, "decay_type": schedule.shape} if schedule.name == "wsd" else {}
