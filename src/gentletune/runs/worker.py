"""One rank of a training in several processes: `LAUNCHER -m gentletune.runs.worker RUN_DIRECTORY`.

The recipe lies in the run directory, put there by `gentletune.runs.launch`. Rank 0 alone writes what is kept. And one
process that helps another to measure: `python -m gentletune.runs.worker measure PORT NUMBER`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

import torch
from torch._C._distributed_c10d import TCPStore

from gentletune.core.cache import whole_directory
from gentletune.core.devices import leave, rank
from gentletune.core.errors import UserError, is_out_of_memory
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.lm.adapters import save_adapter
from gentletune.lm.device import collections_spared
from gentletune.lm.model_files import quiet
from gentletune.methods.adapted import keeps_adapter
from gentletune.runs.launch import HOST, Exchange
from gentletune.runs.ranks import help_measure, join_group
from gentletune.runs.run import share
from gentletune.training import TrainingDivergedError


@collections_spared()
def main(run: Path) -> None:
    """Train this rank's share; rank 0 leaves weights and figures for the launcher."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    join_group()
    exchange = Exchange(run)
    recipe = Recipe.parse(json.loads(exchange.recipe.read_text(encoding="utf-8")))
    try:
        tuned, figures = share(recipe, run)
    except (TrainingDivergedError, UserError) as error:
        kind = "diverged" if isinstance(error, TrainingDivergedError) else "refused"
        write_json_atomic(exchange.answer, {kind: str(error)})
        leave(1)
    except Exception as error:
        if is_out_of_memory(error):  # the launcher says what to do
            write_json_atomic(exchange.answer, {"memory": str(error)})
        traceback.print_exc()
        leave(1)  # at once: the others wait for it in a collective
    if rank() == 0:
        with whole_directory(exchange.model) as scratch, quiet():
            if keeps_adapter(recipe):
                save_adapter(tuned, scratch)
            else:
                tuned.save_pretrained(scratch)
        write_json_atomic(exchange.answer, {"figures": figures})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    leave(0)


def measure(port: int, number: int) -> None:
    """Help the process that listens at the port: as number so and so, with the GPU of that number."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    store = TCPStore(HOST, port)
    help_measure(json.loads(store.get("order")), store, number)
    leave(0)


def _end_with_launcher() -> None:
    while os.read(0, 1024):
        pass
    os._exit(3)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(*map(int, sys.argv[2:]))
    else:
        main(Path(sys.argv[1]))
