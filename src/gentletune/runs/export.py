"""What a recipe asks to be done with a run's finished model: an upload to the hub, a GGUF file. Each once."""

from __future__ import annotations

from pathlib import Path

from gentletune.core.errors import UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.evaluation.harness import Stage
from gentletune.lm.export import push_to_hub, to_gguf
from gentletune.runs.directory import PUSHED_FILE, holds_model, read_json

GGUF_FILE = "model.gguf"


def export_run(recipe: Recipe, run: Path, stage: Stage) -> None:
    """Do what is asked and not done yet; the run is complete and stays so whatever is refused here.

    Raises:
        UserError: as `lm.export` says; the weights were deleted.
    """
    if not holds_model(run / "model"):
        if recipe.gguf is not None or recipe.push_to_hub is not None:
            raise UserError(f"{run} holds no model any more, so there is nothing to export; train it again elsewhere")
        return
    if recipe.gguf is not None and not (run / GGUF_FILE).exists():
        stage(f"GGUF, by {Path(recipe.gguf).name}")
        to_gguf(run / "model", recipe.gguf, run / GGUF_FILE)
    wanted, told = recipe.push_to_hub, run / PUSHED_FILE
    if wanted is not None and not (told.exists() and read_json(told).get("repository") == wanted):
        stage(f"upload to {wanted}")
        write_json_atomic(told, {"repository": wanted, "address": push_to_hub(run / "model", wanted)})
