"""One rank of a training in several processes: `LAUNCHER -m gentletune.runs.worker RUN_DIRECTORY`.

The recipe lies in the run directory, put there by `gentletune.runs.launch`. Rank 0 alone writes what is kept.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import torch

from gentletune.core.cache import whole_directory
from gentletune.core.errors import UserError, is_out_of_memory
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.evaluation.measure import reference_answers
from gentletune.lm.model_files import quiet
from gentletune.runs.inputs import Inputs
from gentletune.runs.launch import Exchange
from gentletune.runs.run import fit_weights
from gentletune.training import TrainingDivergedError


def main(run: Path) -> None:
    """Train this rank's share; rank 0 leaves weights and figures for the launcher."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    exchange = Exchange(run)
    inputs = Inputs(Recipe.parse(json.loads(exchange.recipe.read_text(encoding="utf-8"))))
    recipe, reference = inputs.recipe, None
    if recipe.probe_every:  # the launcher has computed it, so it comes from the cache
        reference = reference_answers(inputs.base, recipe)
    try:
        tuned, figures = fit_weights(inputs, run, reference)
    except (TrainingDivergedError, UserError) as error:
        kind = "diverged" if isinstance(error, TrainingDivergedError) else "refused"
        write_json_atomic(exchange.answer, {kind: str(error)})
        _leave(1)
    except Exception as error:
        if is_out_of_memory(error):  # the launcher says what to do
            write_json_atomic(exchange.answer, {"memory": str(error)})
        raise
    if rank == 0:
        with whole_directory(exchange.model) as scratch, quiet():
            tuned.save_pretrained(scratch)
        write_json_atomic(exchange.answer, {"figures": figures})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    _leave(0)


def _leave(code: int) -> None:
    """End at once: a rank may abort while the interpreter takes gloo's threads down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_launcher() -> None:
    while os.read(0, 1024):
        pass
    os._exit(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
