"""`gentletune plan`: what a recipe takes of each device, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gentletune.cli.check import check_files, check_recipe
from gentletune.cli.common import ConfigOption, app, prepare, say, stdout
from gentletune.cli.flags import recipe_command
from gentletune.core.devices import check_devices
from gentletune.core.recipe import Recipe, load_recipe
from gentletune.core.records import write_json_atomic
from gentletune.methods import parse_method

if TYPE_CHECKING:
    from gentletune.runs.plan import RecipePlan


@recipe_command(app, "plan")
def plan_command(
    given: dict[str, Any],
    config: ConfigOption = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Plan for this many GPUs, whatever this machine has.")] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help="Plan for GPUs of this many GiB each.")] = None,
    probe: Annotated[bool, typer.Option(help="Load the model and time two steps, to tell how long it takes.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file, too.")] = None,
) -> None:
    """What a recipe takes: memory per device, disk and, with --probe, time; and the nearest recipe that fits.

    Reads the model's configuration, not its weights. Without data, all rows are taken to be of the longest length.

    [bold]Examples[/bold]

      gentletune plan -c recipe.yaml

      gentletune plan -c recipe.yaml --gpus 2 --memory 80

      gentletune plan --model smollm2-135m --data clinic --gradient-checkpointing --probe
    """
    recipe = load_recipe(config, given)
    check_files(json_path)
    check_devices(recipe, parse_method(recipe.method), gpus)
    check_recipe(recipe, models=[], data=False, here=memory is None or probe)
    from gentletune.runs.plan import plan_recipe

    prepare()
    found = plan_recipe(recipe, gpus=gpus, gib=memory)
    stdout.print(_table(found))
    for line in _notes(found):
        stdout.print(line, soft_wrap=True, highlight=False, markup=False)
    seconds = _seconds(recipe) if probe else None
    if json_path:
        write_json_atomic(json_path, _as_dict(found, seconds))
        say(f"the plan is in {json_path}")


def _table(found: RecipePlan) -> Table:
    from gentletune.lm.setting import size

    m, setting, work = found.memory, found.setting, found.setting.work
    table = Table("per device", "", "what it is", box=None, header_style="bold", pad_edge=False)
    table.columns[1].justify = "right"
    kept = "gradient checkpointing" if work.checkpointing else "no gradient checkpointing"
    held = setting.quantization or setting.weights
    several = f" on each of {setting.processes} ({setting.strategy})" if setting.processes > 1 else ""
    rows = [
        ("weights", m.weights, f"{_count(m.parameters)} parameters, {held}{several}"),
        ("copies of weights", m.copies, "in bf16, by autocast"),
        ("gradients", m.gradients, f"{_count(m.trained)} trained parameters; what is there at that moment"),
        ("optimizer", m.optimizer, setting.optimizer),
        ("activations", m.activations, f"micro-batch of {work.rows} × {work.length} tokens, {kept}"),
        ("head", m.head, f"tile and gradient of the head on {work.labels} label tokens"),
        ("other", m.other, "of sharing, of a layer unpacked, or of the optimiser's step"),
        ("device", m.overhead, "context and kernels (assumed)"),
    ]
    for name, count, of in rows:
        if count:
            table.add_row(name, size(count), of)
    table.add_row("training", size(m.training), f"at its fullest moment: {m.moment}", style="bold")
    if m.merging:
        host = "; on the host, so not in what the device needs" if m.on_host else ""
        table.add_row("merging afterwards", size(m.merging), f"the plain base model, whole once{host}")
    if setting.eval_tokens:
        table.add_row("measuring afterwards", size(m.evaluation), f"batches of {setting.eval_tokens} tokens")
    table.add_row(f"available ({found.verdict})", size(found.machine.has), found.machine.device, style="bold")
    return table


def _notes(found: RecipePlan) -> list[str]:
    from gentletune.lm.setting import size

    m, notes = found.memory, list[str]()
    if found.verdict != "fits":
        notes.append(f"what surely fits: {found.way.text}" if found.way else "nothing near this recipe surely fits")
    if m.rough:
        notes.append("part of this cannot be followed without its numbers, and is a rule of thumb")
    if m.reference:
        notes.append(f"host: the base weights, {size(m.reference)}, read from the model's files one at a time")
    notes.append(
        f"disk: {size(found.disk.model)} for the model, {size(found.disk.most)} at most while it trains "
        f"(checkpoints of {size(found.disk.checkpoint)})"
    )
    if found.rows.assumed:
        notes.append(f"assumed: {found.rows.assumed}")
    if found.steps is not None:
        rows = found.setting.work.rows * found.setting.micro_batches * found.setting.processes
        notes.append(f"{found.steps} steps of {rows} rows")
    return notes


def _seconds(recipe: Recipe) -> float:
    """Seconds of the training on this machine, from a timed probe of two steps."""
    from gentletune.runs.inputs import Inputs
    from gentletune.sweeps.estimate import probe_trial
    from gentletune.training.packing import rows_to_draw

    inputs = Inputs(recipe)
    seconds = probe_trial(inputs).training(recipe, rows_to_draw(recipe, inputs.train.rows))
    stdout.print(f"time: about {seconds:.0f} s to train on this machine, by two steps timed", highlight=False)
    return seconds


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _as_dict(found: RecipePlan, seconds: float | None) -> dict[str, Any]:
    return {
        "memory": found.memory.as_dict(),
        "has": found.machine.has,
        "device": found.machine.device,
        "verdict": found.verdict,
        "what_fits": found.way.changes if found.way else None,
        "micro_batch": {"rows": found.setting.work.rows, "tokens": found.setting.work.length},
        "steps": found.steps,
        "disk": found.disk.most,
        "model_bytes": found.disk.model,
        "strategy": found.setting.strategy if found.setting.processes > 1 else None,
        "seconds": seconds,
    }
