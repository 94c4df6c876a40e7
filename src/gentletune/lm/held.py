"""How a model's weights are held in memory: in fp32, or in bf16 where training in fp32 would not fit."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gentletune.core.devices import launched, sharing
from gentletune.core.errors import UserError
from gentletune.core.optimizers import named
from gentletune.core.recipe import Recipe
from gentletune.lm.model_files import plain_directory
from gentletune.methods import parse_method

ROOM = 0.8  # of the memory is for weights, gradients and optimiser state; the rest is for activations


@dataclass(frozen=True)
class Held:
    """`dtype` of the weights; `needs`, the bytes that training takes in fp32 without activations, of `has` bytes."""

    dtype: torch.dtype
    needs: int
    has: int

    @property
    def name(self) -> str:
        """As the recipe's `weights` says it."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def how_held(recipe: Recipe, directory: Path) -> Held:
    """How the recipe holds the weights of the model in `directory`.

    `auto` is fp32 where weights, gradients and optimiser state take at most 80 % of the memory of the device that a
    process has, else bf16; it goes by the whole memory, so that it says the same at any time and in every process.
    Weights that are not trained (LoRA's base) and were published in bf16 stay so where bf16 is computed in: fp32 would
    hold the same values.
    Shares of the weights (`strategy: fsdp2`) are fp32.
    """
    needs, has = fp32_bytes(recipe, directory), memory(recipe)
    fits = needs <= ROOM * has or recipe.precision == "fp32" or sharing(recipe) == "fsdp2"
    bf16 = recipe.weights == "bf16" or (recipe.weights == "auto" and (not fits or _frozen_in_bf16(recipe, directory)))
    return Held(torch.bfloat16 if bf16 else torch.float32, needs, has)


def fp32_bytes(recipe: Recipe, directory: Path) -> int:
    """What training holds of every weight in fp32: 4 bytes, and 4 of gradient and the optimiser's own if trained."""
    trained = not parse_method(recipe.method).adapter
    return parameter_count(directory) * (4 + (4 + named(recipe.optimizer).state if trained else 0))


def parameter_count(directory: Path) -> int:
    """Entries of the tensors in a model directory, by its safetensors' headers; files that cannot be read count 0."""
    return sum(_entries(directory).values())


def published_dtype(directory: Path) -> torch.dtype:
    """What the files of a model directory hold most of its weights in: bf16, fp16, or fp32 for whatever else."""
    counts = _entries(directory)
    most = max(counts, key=counts.__getitem__, default="F32")
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(most, torch.float32)


def use_bf16(recipe: Recipe) -> bool:
    """Whether to train under bf16 autocast.

    `auto` says yes where bf16 has matrix units: a GPU that supports it, a CPU with AMX. A CPU that has AVX-512
    bf16 alone was slower with it than in fp32 (docs/log.md). Raises `UserError` where bf16 is asked for and the
    GPU lacks it.
    """
    if torch.cuda.is_available():
        supported = torch.cuda.is_bf16_supported()
        if recipe.precision == "bf16" and not supported:
            raise UserError("precision: bf16 is not supported by this GPU; use fp32")
        return recipe.precision != "fp32" and supported
    return recipe.precision == "bf16" or (recipe.precision == "auto" and _cpu_has_amx())


def _cpu_has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text(encoding="utf-8", errors="replace")


def _frozen_in_bf16(recipe: Recipe, directory: Path) -> bool:
    frozen = parse_method(recipe.method).adapter and recipe.strategy != "fsdp2"
    return frozen and use_bf16(recipe) and published_dtype(directory) == torch.bfloat16


def _entries(directory: Path) -> dict[str, int]:
    """Entries of a directory's tensors by their dtype; of an adapter's, those of its base model."""
    counts: dict[str, int] = {}
    for path in plain_directory(directory, trust_remote_code=True).glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()  # not a dict: it cannot be walked itself
                for name in names:
                    part = file.get_slice(name)
                    counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + math.prod(part.get_shape())
        except (OSError, SafetensorError):
            continue
    return counts


def memory(recipe: Recipe) -> int:
    """Bytes that one of the recipe's processes has: its GPU's, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    processes = max(launched(), recipe.processes if isinstance(recipe.processes, int) else 1)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes
