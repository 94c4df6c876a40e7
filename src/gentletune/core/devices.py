"""How many processes train, and how they share a training: what the recipe asks for, what a launcher started.

Needs no torch.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gentletune.core.errors import UserError

if TYPE_CHECKING:
    from gentletune.core.recipe import Recipe

Sharing = Literal["ddp", "fsdp2", "deepspeed"]

# Those whose state has the shape of the weights and is made at the first step, so that it can be cut like them.
SHARDED_OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "rmsprop"})


def rank() -> int:
    """This process's number among those that a launcher started; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def launched() -> int:
    """How many processes torchrun or accelerate started, this one among them; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharing(recipe: Recipe) -> Sharing:
    """How several processes share the training: as the launcher's flags say, else the recipe; `auto` is DDP."""
    asked = _of_launcher()
    if asked is not None:
        return asked
    return "ddp" if recipe.strategy == "auto" else recipe.strategy


def sharded(recipe: Recipe) -> bool:
    """Whether this process is one of several that hold a share of the weights each (FSDP2)."""
    return launched() > 1 and sharing(recipe) == "fsdp2"


def _of_launcher() -> Sharing | None:
    """What `accelerate launch --use_fsdp` or `--use_deepspeed` asked for."""
    if launched() > 1:
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            return "deepspeed"
        if "FSDP_VERSION" in os.environ:  # ACCELERATE_USE_FSDP is also what accelerate leaves behind by itself
            return "fsdp2"
    return None


def check_devices(recipe: Recipe, method: Any, processes: int | None = None) -> None:
    """What cannot be shared as asked, told before anything is loaded or started.

    `method` is the parsed one. `processes` are those that will train, where the machine's GPUs have been counted.

    Raises:
        UserError: a recipe at odds with the launcher, a strategy for one process, and what a strategy cannot do.
    """
    _check_launcher(recipe)
    count = launched() if launched() > 1 else (processes or recipe.processes)
    if count == 1:
        if recipe.strategy != "auto":
            raise UserError(
                f"strategy: {recipe.strategy} shares a training among several processes, and one is to train; give "
                "processes (at least 2), or leave strategy out"
            )
        return
    kind = sharing(recipe)
    if kind == "deepspeed":
        _check_deepspeed(recipe, method)
    if kind == "fsdp2":
        _check_shards(recipe)


def _check_shards(recipe: Recipe) -> None:
    if recipe.weights == "bf16":
        raise UserError("fsdp2 holds its shares of the weights in fp32, computing in bf16; leave weights: bf16 out")
    for key in ("quantization", "early_stop", "evaluate_every"):
        if getattr(recipe, key):
            raise UserError(f"{key} needs a rank that has the weights whole, and under fsdp2 none has; leave it out")
    if recipe.optimizer not in SHARDED_OPTIMIZERS:
        raise UserError(
            f"optimizer '{recipe.optimizer}' cannot be cut into shards, so not under fsdp2; take one of "
            f"{', '.join(sorted(SHARDED_OPTIMIZERS))}, or strategy: ddp"
        )


def _check_launcher(recipe: Recipe) -> None:
    world, asked = launched(), _of_launcher()
    if world > 1 and recipe.processes not in (1, "auto", world):
        raise UserError(f"processes: {recipe.processes}, but the launcher started {world}; leave processes out")
    if asked is not None and recipe.strategy not in ("auto", asked):
        raise UserError(f"strategy: {recipe.strategy}, but the launcher asks for {asked}; leave one of them out")
    if asked == "fsdp2" and os.environ["FSDP_VERSION"] == "1":
        raise UserError("the launcher asks for FSDP 1, which hides the weights from a method; give --fsdp_version 2")


def _check_deepspeed(recipe: Recipe, method: Any) -> None:
    if find_spec("deepspeed") is None:
        raise UserError("strategy: deepspeed needs deepspeed; pip install deepspeed")
    for key in ("quantization", "early_stop", "evaluate_every"):
        if getattr(recipe, key):
            raise UserError(f"{key} is not supported under DeepSpeed; leave it out, or use strategy: ddp")
    if method.penalty is not None or method.normalization == "simplex":
        what = "a penalty" if method.penalty is not None else "normalization=simplex"
        raise UserError(
            f"method '{method.label}': {what} changes the gradient at the end of a step, which DeepSpeed keeps to "
            "itself; use strategy: ddp or fsdp2"
        )
    if recipe.precision != "fp32":
        raise UserError(
            "under DeepSpeed bf16 is the dtype of the weights that are saved, in which small updates are lost; give "
            "precision: fp32, or use strategy: fsdp2"
        )
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError("DeepSpeed's stage 3 leaves no rank the whole weights; use --zero_stage 2, or strategy: fsdp2")


def leave(code: int) -> NoReturn:
    """End this rank at once: one may abort while the interpreter takes gloo's threads down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
