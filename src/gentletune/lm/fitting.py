"""The recipe nearest to a given one that fits a device: what changes the update least comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gentletune.core.devices import SHARDED_OPTIMIZERS
from gentletune.core.optimizers import named
from gentletune.lm.plan import MemoryPlan, Planner, Setting
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method

Changes = dict[str, Any]  # recipe keys and what to set them to

_CHECKPOINTING: Changes = {"gradient_checkpointing": True}
_FULL: tuple[Changes, ...] = (
    {},
    _CHECKPOINTING,
    {"strategy": "fsdp2"},
    {"strategy": "fsdp2", **_CHECKPOINTING},
    {"optimizer": "adamw_8bit", **_CHECKPOINTING},
    {"weights": "bf16", **_CHECKPOINTING},
    {"weights": "bf16", "optimizer": "adamw_torch_8bit", **_CHECKPOINTING},
)
_ADAPTERS: tuple[Changes, ...] = (
    {},
    _CHECKPOINTING,
    {"weights": "bf16"},
    {"weights": "bf16", **_CHECKPOINTING},
    {"strategy": "fsdp2", **_CHECKPOINTING},
)
# The plain base model, which an adapter is merged into, may be what does not fit.
_FEW_BITS: tuple[Changes, ...] = ({}, _CHECKPOINTING, {"save": "adapter"}, {"save": "adapter", **_CHECKPOINTING})


@dataclass(frozen=True)
class Way:
    """A setting that fits, what it changes of the one asked for, and what it takes."""

    changes: Changes
    setting: Setting
    plan: MemoryPlan

    @property
    def text(self) -> str:
        """As lines of a recipe would say it, on one line.

        >>> Way({"batch_size": 2, "gradient_checkpointing": True}, None, None).text
        'batch_size: 2, gradient_checkpointing: true'
        """
        return ", ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in self.changes.items())


def nearest(
    planner: Planner,
    setting: Setting,
    has: int,
    kinds: tuple[str, ...] = ("", "lora", "qlora"),
    accepts: Callable[[Changes], bool] = lambda _: True,
) -> Way | None:
    """The first way to fit a device of `has` bytes, surely; None where there is none.

    First fewer rows per micro-batch and gradient checkpointing, which leave the update as it is; then sharding, a
    smaller optimiser, bf16 weights; then, by `kinds`, adapters and quantised weights. `accepts` says whether the recipe
    takes such changes.
    """
    for stage in _stages(setting, kinds):
        if not accepts(stage):
            continue
        changed = _applied(setting, stage)
        rows = largest_rows(planner, changed, has)
        changes = _rows_of(setting, rows) | stage if rows else {}
        if rows and accepts(changes):
            changed = replace(changed, work=with_rows(changed.work, rows))
            return Way(changes, changed, planner.plan(changed))
    return None


def largest_rows(planner: Planner, setting: Setting, has: int) -> int:
    """The most rows of a micro-batch, of those that divide the setting's, that surely fit; 0 where none do.

    Where τ is of a micro-batch, fewer rows would be another method, so that all must fit.
    """
    rows = setting.work.rows
    one_pass = parse_method(setting.method).one_pass
    sizes = [count for count in range(1, rows + 1) if rows % count == 0] if one_pass else [rows]

    def fits(count: int) -> bool:
        work = with_rows(setting.work, count, accumulates=setting.work.accumulates or count < rows)
        return planner.plan(replace(setting, work=work)).verdict(has) == "fits"

    if not fits(sizes[0]):
        return 0
    low, high = 1, len(sizes)  # the first `low` fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low - 1]


def with_rows(work: Work, rows: int, *, accumulates: bool | None = None) -> Work:
    """The same work in micro-batches of so many rows."""
    more = work.accumulates or rows < work.rows if accumulates is None else accumulates
    labels = max(1, -(-work.labels * rows // work.rows))
    return replace(work, rows=rows, labels=labels, accumulates=more, padded=work.padded and rows > 1)


def _stages(setting: Setting, kinds: tuple[str, ...]) -> Iterator[Changes]:
    method = parse_method(setting.method)
    adapted = method.adapter
    for kind in kinds:
        if kind and method.parameterise is not None and not adapted:
            continue  # it says itself what is trained
        wrap = {} if adapted or not kind else {"method": _with_lora(setting.method)}
        if setting.quantization is not None:
            stages = _FEW_BITS
        elif kind == "qlora":
            stages = tuple({"quantization": "4bit", **changes} for changes in _FEW_BITS)
        else:
            stages = _ADAPTERS if adapted or kind else _FULL
        for stage in stages:
            if _sensible(setting, stage):
                yield {**wrap, **stage}


def _sensible(setting: Setting, stage: Changes) -> bool:
    """Whether a recipe may say so: shares need several processes, bf16 weights an optimiser and a precision."""
    optimizer = stage.get("optimizer", setting.optimizer)
    if "strategy" in stage:
        return setting.processes > 1 and optimizer in SHARDED_OPTIMIZERS
    full = not parse_method(setting.method).adapter
    kept = not full or named(optimizer).bf16 is not None
    return "weights" not in stage or (not setting.fp32_alone and kept)


def _with_lora(method: str) -> str:
    return "lora" if method == "sft" else f"{method}+lora"


def _applied(setting: Setting, changes: Changes) -> Setting:
    own = {key: value for key, value in changes.items() if key != "gradient_checkpointing"}
    if own.get("strategy") == "fsdp2":
        own["weights"] = "fp32"  # shares are held so (lm/held.py)
    checkpointing = setting.work.checkpointing or "gradient_checkpointing" in changes
    return replace(setting, **own, work=replace(setting.work, checkpointing=checkpointing))


def _rows_of(setting: Setting, rows: int) -> Changes:
    before = setting.work.rows
    if rows == before:
        return {}
    return {"batch_size": rows, "gradient_accumulation": setting.micro_batches * before // rows}
