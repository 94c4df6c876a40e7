"""What a recipe takes: memory of each device, disk, and the nearest recipe that fits, before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gentletune.core.errors import OutOfMemoryError, UserError
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.data import encode_rows, load_data
from gentletune.data.templates import set_chat_template
from gentletune.lm.fitting import Way, largest_rows, nearest, with_rows
from gentletune.lm.held import memory, parameter_count
from gentletune.lm.loaded import ROW_LENGTH, load_tokenizer
from gentletune.lm.model_files import BUNDLES, PACKAGED, quiet, resolve_model
from gentletune.lm.plan import MemoryPlan, Planner, Setting
from gentletune.lm.setting import Machine, Rows, setting_of, size
from gentletune.methods import parse_method
from gentletune.runs.anchor import anchor_lines
from gentletune.runs.inputs import Inputs
from gentletune.training.packing import sizes_drawn


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's plan on a machine: `memory` of each device, bytes on disk, and the nearest way that fits, if asked."""

    setting: Setting
    memory: MemoryPlan
    machine: Machine
    rows: Rows
    steps: int | None
    model_bytes: int
    checkpoint_bytes: int
    kept_checkpoints: int
    way: Way | None

    @property
    def disk(self) -> int:
        """Most bytes on disk while it runs: a checkpoint more than is kept, and the model."""
        return self.model_bytes + (self.kept_checkpoints + 1) * self.checkpoint_bytes

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `too large`."""
        return self.memory.verdict(self.machine.has)

    def lines(self) -> list[str]:
        """The first lines of a training."""
        m, parts = self.memory, ("weights", "gradients", "optimizer", "activations", "head")
        of = ", ".join(f"{name} {size(getattr(m, name))}" for name in parts)
        told = f"plan: about {size(m.total)} of {size(self.machine.has)} on {self.machine.device} ({of})"
        if self.verdict == "fits":
            return [told]
        mend = f"; what surely fits: {self.way.text}" if self.way else "; nothing near it fits"
        return [told, f"that is {self.verdict}{mend}"]


def plan_recipe(recipe: Recipe, *, gpus: int | None = None, gib: float | None = None) -> RecipePlan:
    """The plan of a recipe for this machine, or for `gpus` GPUs of so many GiB each.

    Reads configuration, tokenizer and data. Raises `UserError` on bad input.
    """
    if gpus is not None and gib is None and not torch.cuda.is_available():
        raise UserError("no GPU is visible here, so --gpus needs --memory, the GiB of each")
    config = model_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    machine = Machine.here(recipe) if gib is None else Machine.of_gpus(gib)
    processes = gpus or (recipe.processes if isinstance(recipe.processes, int) else max(1, torch.cuda.device_count()))
    return planned(recipe, config, rows_of(recipe, config), machine, processes)


def planned(recipe: Recipe, config: Any, rows: Rows, machine: Machine, processes: int = 1) -> RecipePlan:
    """The plan of a recipe for a model's configuration and rows."""
    planner = Planner(config)
    setting = setting_of(recipe, planner, rows, machine, processes)
    if recipe.batch_size == "auto":
        most = largest_rows(planner, setting, machine.has) or 1
        setting = replace(setting, work=with_rows(setting.work, most), micro_batches=setting.work.rows // most)
    memory_plan = planner.plan(setting)
    way = None if memory_plan.verdict(machine.has) == "fits" else nearest(planner, setting, machine.has)
    if way is not None and recipe.global_batch is not None:  # which says how many micro-batches are a step
        way = replace(way, changes={k: v for k, v in way.changes.items() if k != "gradient_accumulation"})
    width, method = 2 if setting.weights == "bf16" else 4, parse_method(recipe.method)
    model, trained = width * memory_plan.parameters, memory_plan.trained
    return RecipePlan(
        setting, memory_plan, machine, rows,
        steps=recipe.max_steps if rows.count is None or recipe.packing else recipe.steps(rows.count, processes),
        model_bytes=model * (2 if method.merge else 1),
        checkpoint_bytes=width * trained + planner.optimizer_bytes(setting),
        kept_checkpoints=recipe.keep_checkpoints,
        way=way,
    )  # fmt: skip


def first_lines(inputs: Inputs) -> list[str]:
    """What a training says of its plan before it begins. Raises `OutOfMemoryError` as `check_weights_fit` does."""
    check_weights_fit(inputs)
    machine = Machine.here(inputs.recipe)
    plan = planned(inputs.recipe, inputs.base.config, inputs.sizes, machine, inputs.processes)
    return [*plan.lines(), *anchor_lines(inputs), *([inputs.longer] if inputs.longer else [])]


def check_weights_fit(inputs: Inputs) -> None:
    """Refuse a model whose weights alone are more than the device has; by the files' headers, so in no time.

    Raises:
        OutOfMemoryError: with the nearest recipe that fits.
    """
    recipe, has = inputs.recipe, memory(inputs.recipe)
    if parameter_count(inputs.base.directory) * inputs.base.dtype.itemsize <= has:
        return
    machine = replace(Machine.here(recipe), has=has)
    found = planned(recipe, inputs.base.config, inputs.sizes, machine, inputs.processes)
    if found.memory.weights <= has:
        return
    mend = f"what fits: {found.way.text}" if found.way else "nothing near this recipe fits; take a smaller model"
    raise OutOfMemoryError(
        f"the weights of {recipe.model} alone take {size(found.memory.weights)}, and {machine.device} has "
        f"{size(has)}; {mend}"
    )


def rows_of(recipe: Recipe, config: Any) -> Rows:
    """Sizes of the recipe's training rows; assumed to be of the longest allowed length where there is no tokenizer."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or ROW_LENGTH
    longest = recipe.max_length or min(context, ROW_LENGTH)
    if recipe.data is None and recipe.data_path is None:
        return Rows(longest, longest, None, assumed=f"rows of {longest} tokens, all of them labels (no data given)")
    data = load_data(recipe)
    try:
        tokenizer = load_tokenizer(_place(recipe.model), trust_remote_code=recipe.trust_remote_code)
    except UserError:
        assumed = f"rows of {longest} tokens, all of them labels (the model has no tokenizer)"
        return Rows(longest, longest, len(data.train), assumed=assumed)
    tokenizer = set_chat_template(tokenizer, recipe.chat_template, recipe.date)
    found = encode_rows(
        data.train, tokenizer, max_length=longest, truncate=recipe.truncate, labels=recipe.labels,
        where=f"{data.name}, training",
    )  # fmt: skip
    return sizes_drawn(recipe, found.rows)


def model_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model: of a directory that need hold nothing else, of an alias, of the hub.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    place = _place(name)
    if not (place / "config.json").is_file() and not _of_hub(name):
        place = resolve_model(name, trust_remote_code=trust_remote_code)
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(place), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no configuration of model {name}: {str(error).strip().splitlines()[0]}") from error


def _of_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not user_path(name).exists()


def _place(name: str) -> Path:
    """Where its configuration and tokenizer are, as transformers takes it: a directory or the hub's name."""
    if name in PACKAGED or name in BUNDLES:
        return resolve_model(name)
    return Path(name) if _of_hub(name) else user_path(name)
