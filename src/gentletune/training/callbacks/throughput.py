"""How fast a training is and what it takes: tokens per second, model FLOPs utilisation (MFU), peak memory."""

from __future__ import annotations

import re
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from gentletune.lm.loaded import base_causal_lm

# Dense bf16 with fp32 sums, TFLOP/s, from the makers' data sheets, by a part of what CUDA calls the device.
_PEAKS = {
    "A100": 312.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0,
    "L40S": 362.0, "L4": 121.0, "A10": 125.0, "RTX 3090": 71.0, "RTX 4090": 165.2,
}  # fmt: skip
_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # of a configuration whose tokens use some weights


class ModelFlops(NamedTuple):
    """Floating-point operations of a training step: `token` for each token, `square` for each squared row length."""

    token: float
    square: float


def model_flops(model: Any) -> ModelFlops | None:
    """6·N a token (4·N for weights that are frozen), and causal attention: 6·layers·(heads·head size)·length² a row.

    N are the weights that multiply: an embedding that is not the head as well is looked up. The head is counted at
    every token, as is usual, though it runs on label tokens alone. None for a mixture of experts and without attention.

    Source: PaLM, arXiv 2204.02311, appendix B; there attention is not halved for being causal.
    """
    base = base_causal_lm(model)
    config = base.config.get_text_config()
    sizes: list[Any] = [getattr(config, name, None) for name in _SIZES]
    if None in sizes or any(getattr(config, name, None) for name in _EXPERTS):
        return None
    layers, heads, hidden = sizes
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    weights, trained = base.num_parameters(), base.num_parameters(only_trainable=True)
    looked_up = base.get_input_embeddings().weight
    if looked_up is not base.get_output_embeddings().weight:
        weights -= looked_up.numel()
        trained -= looked_up.numel() * looked_up.requires_grad
    return ModelFlops(4.0 * weights + 2.0 * trained, 6.0 * layers * width)


def device_peak(name: str) -> float | None:
    """What a device of this name computes in a second at most, dense in bf16; None where it is not known.

    >>> device_peak("NVIDIA H100 80GB HBM3"), device_peak("Some CPU")
    (989000000000000.0, None)
    """
    known = next((peak for part, peak in _PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
    return None if known is None else known * 1e12


class Metered:
    """Mix-in of our trainer, behind `MethodMixin`: adds to each log line `tokens_per_second`, `mfu`, `peak_memory_gib`.

    Tokens are those of all ranks, padding not counted; seconds are those of steps, from the fetch of their rows to the
    end of the update, without probes and checkpoints. MFU is logged where the device's peak is known and the training
    computes in bf16. Batches have their `work`, as `packing.Collator` gives it.
    """

    args: Any
    accelerator: Any
    model: Any
    _all_ranks: Any

    _work = (0, 0)
    _seconds = 0.0
    _begun: float | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, without their `work`."""
        self._begun = time.perf_counter()
        trainer: Any = super()
        batches, count = trainer.get_batch_samples(*args, **kwargs)
        for batch in batches:
            tokens, squares = batch.pop("work", (0, 0))
            self._work = (self._work[0] + tokens, self._work[1] + squares)
        return batches, count

    def end_of_step(self, synchronise: bool) -> None:
        """To be called once the update is done."""
        if self._begun is not None:
            if synchronise and self.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            self._seconds += time.perf_counter() - self._begun
            self._begun = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the figures of the steps since the last line."""
        if "loss" in logs and self._seconds:
            logs |= self._figures()
            self._work, self._seconds = (0, 0), 0.0
        trainer: Any = super()
        trainer.log(logs, start_time)

    def _figures(self) -> dict[str, float]:
        mine = torch.tensor([*self._work, self._seconds, peak_memory()], dtype=torch.float64)
        ranks: Tensor = self._all_ranks(mine.to(self.accelerator.device)).view(-1, 4).cpu()
        (tokens, squares), seconds = ranks[:, :2].sum(0).tolist(), float(ranks[:, 2].max())
        found = {"tokens": tokens, "tokens_per_second": tokens / seconds, "peak_memory_gib": float(ranks[:, 3].max())}
        device = self.accelerator.device
        peak = device_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" and self.args.bf16 else None
        if peak is not None and (flops := model_flops(self.model)) is not None:
            done = flops.token * tokens + flops.square * squares
            found["mfu"] = done / seconds / (peak * len(ranks))
        return found


class Meter(TrainerCallback):
    """Tells a `Metered` trainer when a step ends; it stands before the callbacks that take time of their own."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        forget_peak()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.end_of_step(control.should_log or control.should_save or control.should_evaluate)


def forget_peak() -> None:
    """Peak memory is from now on that of what comes."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone; elsewhere it is the peak of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """GiB: what this process has had allocated on its GPU at most, or without one resident in memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)
