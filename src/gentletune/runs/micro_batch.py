"""`global_batch` as micro-batches: how many rows one has, which the update does not depend on, is kept with the run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.lm.fitting import largest_rows
from gentletune.lm.plan import Planner
from gentletune.lm.setting import Machine, setting_of
from gentletune.runs.inputs import Inputs
from gentletune.training.arguments import CHECKPOINTS

FILE = "micro_batch.json"  # beside the checkpoints, which are taken up with the same


def settled(inputs: Inputs, run: Path) -> Recipe:
    """The recipe with `batch_size` and `gradient_accumulation` as numbers in the place of `global_batch`.

    The rows of a micro-batch are those that the run in this directory began with, or had halved, under the same
    `batch_size`, else the recipe's own, else the most that fit what the machine has left, of those that divide a
    process's share.
    """
    recipe = inputs.recipe
    if recipe.global_batch is None:
        return recipe
    share = recipe.global_batch // inputs.processes
    rows = _kept(run, recipe)
    if rows is None or share % rows:
        rows = _largest(inputs) if recipe.batch_size == "auto" else recipe.batch_size
        _keep(run, recipe, rows)
    return recipe.in_micro_batches(rows, inputs.processes)


def halved(inputs: Inputs, run: Path) -> str | None:
    """Halve the run's micro-batch, and say so; None where that would change the update, or nothing is left to halve."""
    rows = _kept(run, inputs.recipe)
    if inputs.recipe.global_batch is None or not inputs.method.one_pass or rows is None or rows == 1:
        return None
    fewer = max(size for size in range(1, rows // 2 + 1) if rows % size == 0)
    _keep(run, inputs.recipe, fewer)
    return (
        f"out of memory in training: micro-batches of {fewer} rows instead of {rows} from the last checkpoint on, more "
        "of them, so that the update stays the same"
    )


def _largest(inputs: Inputs) -> int:
    """Of the base model that is in memory by now the weights are counted again: a margin."""
    planner, machine = Planner(inputs.base.config), Machine.here(inputs.recipe)
    setting = setting_of(inputs.recipe, planner, inputs.sizes, machine, inputs.processes)
    return largest_rows(planner, replace(setting, eval_tokens=0, save="adapter"), machine.has) or 1


def _kept(run: Path, recipe: Recipe) -> int | None:
    """None where no run lies there, or where it was asked for another `batch_size`."""
    try:
        kept = json.loads((run / CHECKPOINTS / FILE).read_text(encoding="utf-8"))
        return int(kept["rows"]) if kept["asked"] == recipe.batch_size else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(run: Path, recipe: Recipe, rows: int) -> None:
    (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_json_atomic(run / CHECKPOINTS / FILE, {"rows": rows, "asked": recipe.batch_size})
