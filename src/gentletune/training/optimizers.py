"""The recipe's optimiser for weights as they are held: transformers' own, or one that keeps what bf16 would round away.

torch-optimi's optimisers add what a bf16 weight could not take to the next update (Kahan summation), torchao's round
up or down at random so that it is right on average; both keep small updates that plain rounding loses.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer
from trl import SFTConfig

from gentletune.core.errors import UserError
from gentletune.core.optimizers import DEFAULT, betas_of, check_bitsandbytes, check_installed, named
from gentletune.core.recipe import Recipe
from gentletune.lm.device import device
from gentletune.methods.base import UpdateRule


def check_optimizer(recipe: Recipe) -> None:
    """Raises `UserError` where the optimiser's package is not installed or broken, or cannot run on this device."""
    check_installed(recipe.optimizer)
    if named(recipe.optimizer).module == "bitsandbytes":
        check_bitsandbytes()
    if recipe.optimizer.startswith("paged_") and device().type == "cpu":
        plain = recipe.optimizer.removeprefix("paged_")
        plain = {"adamw_32bit": DEFAULT, "ademamix_32bit": "ademamix"}.get(plain, plain)
        raise UserError(f"optimizer '{recipe.optimizer}' pages between a GPU and the host; without a GPU take {plain}")


def trained_dtype(model: Any) -> torch.dtype:
    """What the trained weights are held in: bf16 where some are."""
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    return torch.bfloat16 if torch.bfloat16 in trained else torch.float32


def optimizer_fields(recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    """What `SFTConfig` is to know of the optimiser, where the trained weights are held in `dtype`."""
    name, bf16, options = recipe.optimizer, dtype == torch.bfloat16, dict[str, float | bool]()
    if recipe.momentum is not None:
        options["momentum"] = recipe.momentum
    if bf16 and named(name).bf16 == "stochastic":
        options["bf16_stochastic_round"] = True
    first, second = betas_of(name, recipe.betas, bf16=bf16)
    return {
        "optim": name,
        "optim_args": ",".join(f"{key}={value}" for key, value in options.items()) or None,
        "optim_target_modules": "all-linear" if name.startswith(("galore", "apollo")) else None,
        "adam_beta1": first,
        "adam_beta2": second,
    }


def own_optimizer(
    recipe: Recipe, arguments: SFTConfig, dtype: torch.dtype, rule: UpdateRule | None = None
) -> tuple[Any, dict[str, Any]] | None:
    """Class and keywords of an optimiser that transformers would make otherwise; None where its own is right.

    AdamW and SGD of bf16 weights are torch-optimi's, with Kahan summation. Schedule-free optimisers warm up with
    everything else, by the trainer's schedule: transformers would hand them our share of the steps as a number. A
    method's own `rule` takes the place of AdamW. Raises `UserError` where bf16 weights would lose its small steps.
    """
    adamw = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    if rule is not None:
        if dtype == torch.bfloat16:
            raise UserError(f"method '{recipe.method}' needs weights in fp32, and these are bf16; set weights: fp32")
        kind, options = rule()
        return kind, adamw | options
    if recipe.optimizer.startswith("schedule_free"):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        return kind, {key: value for key, value in options.items() if key != "warmup_steps"}
    optimizer = named(recipe.optimizer)
    if dtype != torch.bfloat16 or optimizer.bf16 != "kahan" or optimizer.module is not None:
        return None
    import optimi

    if recipe.optimizer == "sgd":
        return optimi.SGD, {"lr": adamw["lr"], "kahan_sum": True, "momentum": recipe.momentum or 0.0}
    return optimi.AdamW, adamw | {"kahan_sum": True}


class Releasing:
    """For a trainer: with `releases` each gradient is used and freed as soon as it is whole, in the backward pass.

    When a weight's turn comes, no other has a gradient, so the optimiser steps for that weight alone. Nothing sees the
    gradient as a whole: no norm, no clipping, no second backward pass of the step.
    """

    releases = False
    optimizer: Any
    model: Any

    def create_optimizer(self, *args: Any) -> Any:
        """As ever, and called by each weight from then on, until `keep_gradients`."""
        trainer: Any = super()
        made = trainer.create_optimizer(*args)
        if self.releases:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            self._hooks = [parameter.register_post_accumulate_grad_hook(self._used) for parameter in trained]
        return made

    def keep_gradients(self) -> None:
        """Give the weights back as they were."""
        for hook in getattr(self, "_hooks", []):
            hook.remove()

    def _used(self, parameter: torch.Tensor) -> None:
        groups = self.optimizer.param_groups
        before = [step.clone() if isinstance(step := group.get("step"), torch.Tensor) else None for group in groups]
        self.optimizer.step()
        for group, step in zip(groups, before, strict=True):
            # optimi counts steps for a whole group: the step at the end, which finds no gradient, counts for all.
            if isinstance(group.get("step"), torch.Tensor):
                group["step"].copy_(0 if step is None else step)
        parameter.grad = None

    def _groups(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows in one backward pass."""
        trainer: Any = super()
        groups: list[dict[str, Any]] = [inputs] if self.releases else trainer._groups(inputs)
        return groups

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = super()
        return None if self.releases else trainer._get_grad_norm(*args, **kwargs)
