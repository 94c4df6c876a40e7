"""One training, or measuring, in several processes: `accelerate launch` on GPUs, torch's launcher on a CPU (gloo)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from gentletune.core.devices import Sharing, sharing
from gentletune.core.errors import RunFailedError, UserError
from gentletune.core.recipe import Recipe
from gentletune.core.records import write_json_atomic
from gentletune.lm.spread import Helpers
from gentletune.training import TrainingDivergedError
from gentletune.training.arguments import CHECKPOINTS

WORKER = "gentletune.runs.worker"
HOST = "127.0.0.1"


class Exchange:
    """The files by which launcher and ranks speak, inside the run directory; they go with its checkpoints.

    The `recipe` to train, the tuned `model`, which rank 0 writes whole, what the ranks say (`log`), and the `answer`:
    `figures`, or why training `diverged`, was `refused`, or found no `memory`.
    """

    def __init__(self, run: Path) -> None:
        folder = run / CHECKPOINTS / "launch"
        self.recipe, self.model = folder / "recipe.json", folder / "model"
        self.answer, self.log = folder / "answer.json", folder / "log.txt"


def launch(recipe: Recipe, run: Path, processes: int) -> tuple[Path, dict[str, float]]:
    """Train the recipe in `processes` ranks from the run's last checkpoint; they end with this process.

    Returns where they left the tuned weights, and the figures of their training.

    Raises:
        TrainingDivergedError: as in one process.
        UserError: as in one process.
        MemoryError: a rank's GPU, or the machine, is full.
        RunFailedError: a rank died; the run's `checkpoints/launch/log.txt` has its last words.
    """
    exchange = Exchange(run)
    if exchange.answer.exists() and "figures" not in _read(exchange):
        exchange.answer.unlink()  # a kill came before the launcher that it was for had read it
    if not exchange.answer.exists():
        write_json_atomic(exchange.recipe, recipe.model_dump(mode="json"))
        with exchange.log.open("ab") as out:
            # Each rank watches its standard input, which the kernel closes when this process ends.
            command = [*command_line(processes, sharing(recipe)), "-m", WORKER, str(run)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
            try:
                code = child.wait()
            finally:
                child.kill()
                if child.stdin:
                    child.stdin.close()
        if not exchange.answer.exists():
            raise RunFailedError(
                f"training in {processes} processes ended with code {code}; what they said last is in {exchange.log}"
            )
    answer = _read(exchange)
    if "figures" not in answer:
        exchange.answer.unlink()  # the next call tries again
        ((kind, why),) = answer.items()
        raise {"diverged": TrainingDivergedError, "memory": MemoryError, "refused": UserError}[kind](why)
    return exchange.model, answer["figures"]


def _read(exchange: Exchange) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(exchange.answer.read_text(encoding="utf-8"))
    return answer


def command_line(processes: int, kind: Sharing = "ddp") -> list[str]:
    """The launcher with its options, for as many ranks that share a training so; FSDP2 is set up by the ranks."""
    if torch.cuda.device_count() == 0:  # accelerate's launcher starts several CPU processes through MPI alone
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    way = ["--use_deepspeed", "--zero_stage", "2"] if kind == "deepspeed" else ["--multi_gpu"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *way, "--num_processes", str(processes)]
    # The recipe decides on precision, and a free port lets two trials of one machine train at once.
    return [*launcher, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--main_process_port", "0"]  # fmt: skip


@contextmanager
def helpers_of_our_own(order: dict[str, Any], world: int) -> Iterator[Helpers]:
    """Processes that measure with this one, a GPU each, where there is something to deal; they end with it.

    `order` is a `ranks.measurement`.
    """
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    children: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())

        def call() -> None:
            store.set("order", json.dumps(order))
            for number in range(1, world):
                command = [sys.executable, "-m", WORKER, "measure", str(store.port), str(number)]
                child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
                stack.callback(_end, child)
                children.append(child)

        def check() -> None:
            if any(child.poll() for child in children):
                said.seek(0)
                words = said.read().decode(errors="replace").strip().splitlines()
                raise RunFailedError(f"a process that measured has ended: {words[-1] if words else 'it said nothing'}")

        yield Helpers(store, world, call, check)


def _end(child: subprocess.Popen[bytes]) -> None:
    """It has nothing to write, so it need not be waited for."""
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
