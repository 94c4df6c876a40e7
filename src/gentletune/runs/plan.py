"""What a recipe takes: memory of each device, disk, and the nearest recipe that fits, before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gentletune.core.cache import Shared
from gentletune.core.devices import check_devices, launched
from gentletune.core.errors import OutOfMemoryError, UserError
from gentletune.core.optimizers import check_installed
from gentletune.core.paths import user_path
from gentletune.core.recipe import Recipe
from gentletune.data import encode_rows, load_data
from gentletune.data.templates import set_chat_template
from gentletune.lm.fitting import Changes, Way, largest_rows, nearest, with_rows
from gentletune.lm.held import memory, parameter_count
from gentletune.lm.loaded import ROW_LENGTH, UNREADABLE, load_tokenizer, why_unread
from gentletune.lm.model_files import BUNDLES, PACKAGED, quiet, resolve_model
from gentletune.lm.plan import MemoryPlan, Planner, Setting
from gentletune.lm.setting import Machine, Rows, setting_of, size
from gentletune.methods import parse_method
from gentletune.methods.adapted import check_adapted, keeps_adapter
from gentletune.methods.controlled import check_controlled
from gentletune.methods.micro_batch import check_micro_batch
from gentletune.runs.anchor import anchor_lines
from gentletune.runs.inputs import Inputs
from gentletune.training.packing import sizes_drawn


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: the finished `model`, a `checkpoint` of up to `checkpoints` at a time, and `more`.

    More is the best weights of an early stop, an adapter that waits to be merged, what several processes hand over.
    """

    model: int
    checkpoint: int
    checkpoints: int
    more: int

    @property
    def most(self) -> int:
        """At the fullest moment."""
        return self.model + self.checkpoints * self.checkpoint + self.more


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's plan on a machine: `memory` of each device, `disk`, and the nearest way that fits, if asked."""

    setting: Setting
    memory: MemoryPlan
    machine: Machine
    rows: Rows
    steps: int | None
    disk: Disk
    way: Way | None

    @property
    def verdict(self) -> str:
        """`fits`, `tight` or `too large`."""
        return self.memory.verdict(self.machine.has)

    def lines(self) -> list[str]:
        """The first lines of a training."""
        m, parts = self.memory, ("weights", "gradients", "optimizer", "activations", "head")
        of = ", ".join(f"{name} {size(getattr(m, name))}" for name in parts)
        if m.merging and not m.on_host:
            of += f"; merging afterwards {size(m.merging)}"
        each = f", {self.setting.processes} processes by {self.setting.strategy}" if self.setting.processes > 1 else ""
        told = f"plan: about {size(m.total)} of {size(self.machine.has)} on {self.machine.device}{each} ({of})"
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
    processes = gpus or (recipe.processes if isinstance(recipe.processes, int) else max(1, torch.cuda.device_count()))
    check_micro_batch(recipe, parse_method(recipe.method), processes)
    config = model_config(recipe.model, trust_remote_code=recipe.trust_remote_code)
    machine = Machine.here(recipe) if gib is None else Machine.of_gpus(gib)
    asked = {} if recipe.processes in ("auto", processes) else {"processes": processes}
    found = planned(recipe.override(asked), config, rows_of(recipe, config), machine, processes)
    return replace(found, way=found.way and replace(found.way, changes=asked | found.way.changes))


def planned(recipe: Recipe, config: Any, rows: Rows, machine: Machine, processes: int = 1) -> RecipePlan:
    """The plan of a recipe for a model's configuration and rows."""
    planner = Planner(config)
    setting = _shared_out(recipe, planner, rows, machine, processes)
    if recipe.batch_size == "auto":
        most = largest_rows(planner, setting, machine.has) or 1
        setting = replace(setting, work=with_rows(setting.work, most), micro_batches=setting.work.rows // most)
    memory_plan = planner.plan(setting)

    def accepts(changes: Changes) -> bool:
        return _trains(recipe, _said(recipe, changes), processes, machine)

    way = None
    if memory_plan.verdict(machine.has) != "fits":
        way = nearest(planner, setting, machine.has, accepts=accepts)
    return RecipePlan(
        setting, memory_plan, machine, rows,
        steps=recipe.max_steps if rows.count is None or recipe.packing else recipe.steps(rows.count, processes),
        disk=_disk(recipe, planner, setting, memory_plan),
        way=way and replace(way, changes=_said(recipe, way.changes)),
    )  # fmt: skip


def shared_out(inputs: Inputs, shared: Shared | None = None) -> Inputs:
    """The inputs with `strategy: auto` decided: `ddp` where that fits the devices, `fsdp2` where only that does.

    It goes by the whole memory of a device, so that the same recipe is shared alike whenever it is called there. A
    launcher has decided itself. `shared` is what the inputs were made with.
    """
    recipe = inputs.recipe
    if recipe.strategy != "auto" or inputs.processes == 1 or launched() > 1:
        return inputs
    planner, machine = Planner(inputs.base.config), Machine.here(recipe)
    setting = _shared_out(recipe, planner, inputs.sizes, machine, inputs.processes)
    return Inputs(recipe.override({"strategy": "fsdp2"}), shared) if setting.sharded else inputs


def _shared_out(recipe: Recipe, planner: Planner, rows: Rows, machine: Machine, processes: int) -> Setting:
    """The setting of a recipe; `strategy: auto` by what fits, and shares of fp32 before trained weights in bf16."""
    setting = setting_of(recipe, planner, rows, machine, processes)
    if recipe.strategy != "auto" or processes == 1 or launched() > 1:
        return setting
    full = not parse_method(recipe.method).adapter
    lowered = full and recipe.weights == "auto" and setting.weights == "bf16"

    def fits(one: Setting) -> bool:
        if recipe.batch_size == "auto":
            return largest_rows(planner, one, machine.whole) > 0
        return planner.plan(one).verdict(machine.whole) == "fits"

    if (fits(setting) and not lowered) or not _trains(recipe, {"strategy": "fsdp2"}, processes, machine):
        return setting
    shares = setting_of(recipe.override({"strategy": "fsdp2"}), planner, rows, machine, processes)
    return shares if fits(shares) else setting


def _said(recipe: Recipe, changes: Changes) -> Changes:
    """As the recipe says it: `global_batch` already says how many micro-batches are a step."""
    beside = () if recipe.global_batch is None else ("gradient_accumulation",)
    return {key: value for key, value in changes.items() if key not in beside}


def _trains(recipe: Recipe, changes: Changes, processes: int, machine: Machine) -> bool:
    """Whether the recipe with these changes is one that would train on the machine."""
    try:
        changed = recipe.override(changes)
        method = parse_method(changed.method)
        check_devices(changed, method, processes)
        check_adapted(changed, method, here=not machine.elsewhere)
        check_micro_batch(changed, method, processes)
        check_controlled(changed, method)
        if not machine.elsewhere:
            check_installed(changed.optimizer)
    except UserError:
        return False
    return True


def _disk(recipe: Recipe, planner: Planner, setting: Setting, found: MemoryPlan) -> Disk:
    """What a run writes, by the dtype it is in: adapters are fp32, a merged 4-bit base is as it was published."""
    trained, method = planner.trained_bytes(setting), parse_method(recipe.method)
    each = planner.published if setting.quantization else 2 if setting.weights == "bf16" else 4
    whole = trained if recipe.save == "adapter" else each * found.parameters
    more = 2 * trained if recipe.early_stop else 0  # the best weights, and those the last checkpoint calls the best
    more += trained if keeps_adapter(recipe) else 0
    if setting.processes > 1 and launched() == 1:
        more += trained if keeps_adapter(recipe) else whole
    checkpoint = trained + planner.optimizer_bytes(setting)
    return Disk(whole * (2 if method.merge else 1), checkpoint, recipe.keep_checkpoints + 1, more)


def first_lines(inputs: Inputs) -> list[str]:
    """What a training says of its plan before it begins. Raises `OutOfMemoryError` as `check_weights_fit` does."""
    check_weights_fit(inputs)
    machine = Machine.here(inputs.recipe)
    plan = planned(inputs.recipe, inputs.base.config, inputs.sizes, machine, inputs.processes)
    return [*plan.lines(), *anchor_lines(inputs), *inputs.longer]


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
    except UNREADABLE as error:
        raise UserError(f"no configuration of model {name}: {why_unread(error)}") from error


def _of_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not user_path(name).exists()


def _place(name: str) -> Path:
    """Where its configuration and tokenizer are, as transformers takes it: a directory or the hub's name."""
    if name in PACKAGED or name in BUNDLES:
        return resolve_model(name)
    return Path(name) if _of_hub(name) else user_path(name)
