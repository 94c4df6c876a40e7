"""A recipe's plan setting: what its keys, the rows' sizes and the machine come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from gentletune.core.devices import launched, sharing
from gentletune.core.recipe import Recipe
from gentletune.data.encode import Encoded, label_counts, row_lengths
from gentletune.lm.held import ROOM, memory, use_bf16
from gentletune.lm.plan import Planner, Setting
from gentletune.lm.step_memory import Work
from gentletune.methods import parse_method

GIB = 2**30
PACKED_LENGTH = 2048  # tokens of a packed row, where the recipe gives no max_length and no row is longer


def size(count: int) -> str:
    """Bytes for a reader.

    >>> size(3 * 2**29), size(5 * 2**20)
    ('1.50 GiB', '5.0 MiB')
    """
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Rows:
    """Tokens of the longest row and the most label tokens of one; how many there are (None: not known).

    `alike`: all are of one length. `assumed` says what was taken for rows where there are none.
    """

    longest: int
    labels: int
    count: int | None
    alike: bool = False
    assumed: str = ""

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> Rows:
        """The sizes of rows at hand."""
        lengths = row_lengths(rows)
        return cls(max(lengths), max(label_counts(rows)), len(rows), min(lengths) == max(lengths))

    def packed(self, length: int | None) -> Rows:
        """As rows of `length` tokens (None: 2048, or the longest) that whole rows fill up; how many is not known."""
        longest = length or max(PACKED_LENGTH, self.longest)
        labels = -(-self.labels * longest // self.longest)
        return replace(self, longest=longest, labels=labels, count=None, alike=False)


@dataclass(frozen=True)
class Machine:
    """Devices to plan for, in words: GPUs or the host, `has` bytes left on each, of `whole`.

    `elsewhere`: not of this machine, which need not have the packages that a training there takes.
    """

    has: int
    whole: int
    gpu: bool
    device: str
    elsewhere: bool = False

    @classmethod
    def here(cls, recipe: Recipe) -> Machine:
        """The GPU of one of the recipe's processes, or its share of what the host has left."""
        whole = memory(recipe)
        if torch.cuda.is_available():
            free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()  # others may be on it
            return cls(free, whole, True, torch.cuda.get_device_name())
        processes = max(launched(), recipe.processes if isinstance(recipe.processes, int) else 1)
        share = " for each process" if processes > 1 else ""
        return cls(psutil.virtual_memory().available // processes, whole, False, f"this machine, free now{share}")

    @classmethod
    def of_gpus(cls, gib: float) -> Machine:
        """GPUs of so many GiB each."""
        return cls(int(gib * GIB), int(gib * GIB), True, f"a GPU of {gib:g} GiB", elsewhere=True)


def setting_of(recipe: Recipe, planner: Planner, rows: Rows, machine: Machine, processes: int = 1) -> Setting:
    """A recipe as plain values. With `batch_size: auto` a micro-batch is a process's whole share of a step."""
    rows = rows.packed(recipe.max_length) if recipe.packing else rows
    share = max(1, recipe.step_rows(processes) // processes)
    rows_each = share if recipe.batch_size == "auto" else recipe.batch_size
    here = torch.cuda.is_available() or not machine.gpu
    bf16 = use_bf16(recipe) if here else recipe.precision != "fp32"
    work = Work(
        rows_each, rows.longest, rows_each * rows.labels, accumulates=share > rows_each,
        checkpointing=recipe.gradient_checkpointing, padded=recipe.packing or (rows_each > 1 and not rows.alike),
        bf16=bf16, gpu=machine.gpu,
    )  # fmt: skip
    setting = Setting(
        work, recipe.method, "fp32", recipe.quantization, recipe.optimizer, bool(recipe.momentum), sharing(recipe),
        processes, recipe.eval_batch_tokens if recipe.evaluate else 0, max(1, share // rows_each),
        recipe.precision == "fp32",
    )  # fmt: skip
    held = _auto(recipe, planner, setting, machine) if recipe.weights == "auto" else recipe.weights
    return replace(setting, weights=held, save=recipe.save, releases=recipe.gradient_release)


def _auto(recipe: Recipe, planner: Planner, setting: Setting, machine: Machine) -> str:
    """What `weights: auto` comes to (`lm.held.how_held`), told from the configuration alone."""
    if recipe.precision == "fp32" or setting.strategy == "fsdp2":
        return "fp32"
    frozen = parse_method(recipe.method).adapter
    published: Any = getattr(planner.config, "dtype", None)
    stays = frozen and setting.work.bf16 and published in (torch.bfloat16, "bfloat16")
    return "bf16" if stays or planner.static_bytes(setting) > ROOM * machine.whole else "fp32"
