"""One rank of a distributed run: each case takes one step and rank 0 writes gradient, loss and what τ was made of."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch.distributed.tensor import DTensor

from gentletune.training import GentleTrainer
from tests.conftest import make_tokenizer
from tests.training.steps import ROWS, first_loss, gradients, lively_model, one_step, short_training

METHODS = [
    "sft", "talr", "talr(tau=3.0)", "talr(tau=lagged_median)", "talr(tau=lagged_median, normalization=simplex)",
    "l2(weight=0.1)+talr(tau=3.0)", "talr(tau=lagged_median)+lora(r=2)", "replay(share=0.4, weight=0.5)",
    "kl(weight=0.3)+replay(share=0.4, loss=kl)",
]  # fmt: skip
# What is more than a loss: another optimiser, frozen halves, projected adapters, a rate that goes by looks.
FITTED = {
    "ddp": ["mofo(share=0.1)", "hft", "oplora(k=2, r=2, rate_scale=1)", "trust_region(budget=0.005, looks=3)"],
    "fsdp": ["hft"],
}
PACK = 14  # tokens: the four rows fill two


class Watching(GentleTrainer):
    """Remembers the rows and the τ of each micro-batch."""

    seen: list[tuple[list[int], float]]
    sharded = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.sharded:  # Accelerate offers FSDP on accelerators only; torch and gloo have it on a CPU too
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
                transformer_cls_names_to_wrap=["LlamaDecoderLayer"], cpu_ram_efficient_loading=False,
            )  # fmt: skip
            shared = self.accelerator.state._shared_state
            shared |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
            self.is_fsdp_enabled = True

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        rows, tau = inputs["input_ids"][:, 0].tolist(), float(self._taus[-1]) if self._taus else 0.0
        self.seen = [*getattr(self, "seen", []), (rows, tau)]
        return loss


def cases(world: int) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings, with micro-batches of each rank: together always the four rows, in two ranks also packed."""
    found = [
        (f"{method} {steps}", {"per_device_train_batch_size": len(ROWS) // (world * steps),
                               "gradient_accumulation_steps": steps})
        for method in METHODS for steps in (1, 2) if world * steps <= len(ROWS)
    ]  # fmt: skip
    packed: dict[str, Any] = {"per_device_train_batch_size": 1, "pack": PACK, "layout": "packed"}
    return found + ([(f"{method} packed", packed) for method in METHODS[2:4]] if world == 2 else [])


def run_rank(rank: int, world: int, kind: str, output: Path) -> None:
    """What each process does: as under a launcher, but the ranks meet in a file, which needs no free port."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    os.environ.update(zip(names, map(str, (rank, rank, world, world)), strict=True))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{output}/meet", rank=rank, world_size=world)
    Watching.sharded = kind == "fsdp"
    tokenizer, found = make_tokenizer(), {}
    for case, changes in cases(world):
        trainer, _ = one_step(
            lively_model(tokenizer), tokenizer, output / "trainer", case.rsplit(" ", 1)[0], trainer_class=Watching,
            **changes,
        )  # fmt: skip
        result = {"loss": first_loss(trainer), "gradients": gradients(trainer), "seen": gather_object([trainer.seen])}
        found[case] = result
    strategy = {"ddp": "ddp", "fsdp": "fsdp2"}[kind]
    updates = {
        method: short_training(tokenizer, output / method, method, world=world, strategy=strategy)
        for method in FITTED[kind]
    }
    if rank == 0:
        sharded = any(isinstance(p, DTensor) for p in trainer.model.parameters())
        told = {"sharded": sharded, "world": trainer.accelerator.num_processes, "cases": found, "updates": updates}
        torch.save(told, output / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Without this a rank now and then aborts while the interpreter takes gloo's threads down.
    sys.stdout.flush()
    os._exit(0)
