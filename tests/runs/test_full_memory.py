"""Memory that is full in one of the processes that gentletune started: all stop, and start again with half."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gentletune import train
from gentletune.core.records import read_record
from gentletune.runs import launch, worker
from gentletune.training.trainer import GentleTrainer
from tests.helpers import tiny_recipe
from tests.runs.test_launchers import PLAIN, distance, finish, update


def rank_process(rank: int, world: int, run: Path, meet: Path) -> None:
    """A rank as torch's launcher starts it. The GPU of rank 1 is full at the third step of a micro-batch of 4 rows."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ.update(zip(names, map(str, (rank, rank, world, world)), strict=True))
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    worker._end_with_launcher = lambda: None  # which is no process here
    plain = GentleTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        if rank == 1 and self.state.global_step == 2 and self.args.per_device_train_batch_size == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, model, inputs, *more)

    GentleTrainer.training_step = step
    worker.main(run)


def test_a_full_rank_halves_the_micro_batch_of_all_once(
    processes: Any, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launches: list[list[int]] = []

    class Launcher:
        """What torch's launcher is to `launch`."""

        stdin = None

        def __init__(self, command: list[str], **_: Any) -> None:
            world, run = int(command[command.index("--nproc_per_node") + 1]), Path(command[-1])
            meet = tmp_path / f"meet-{len(launches)}"
            self.children = [processes.Process(target=rank_process, args=(r, world, run, meet)) for r in range(world)]
            for child in self.children:
                child.start()

        def wait(self) -> int:
            launches.append(finish(self.children))
            return max(map(abs, launches[-1]))

        def kill(self) -> None:
            for child in self.children:
                child.kill()

    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Launcher, PIPE=None, STDOUT=None))
    changes = {"batch_size": "auto", "global_batch": 8, "save_every": 1}
    two = tiny_recipe(tiny_dir, tmp_path / "two", **PLAIN | changes, processes=2)
    assert train(two).status == "complete"
    said = capfd.readouterr().err
    assert said.count("gentletune: out of memory in training: micro-batches of 2 rows instead of 4 from the last") == 1
    assert [any(codes) for codes in launches] == [True, False]
    record = read_record(tmp_path / "two")
    assert record is not None
    assert (record.training["micro_batch"], record.training["steps"]) == (2, 6)
    one = two.override({"processes": 1, "output": str(tmp_path / "one")})
    train(one)
    assert distance(update(one, tiny_dir), update(two, tiny_dir)) < 1e-6
