"""How a model's weights are held in memory: in fp32, or in bf16 where training in fp32 would not fit."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gentletune.core.optimizers import named
from gentletune.core.recipe import Recipe
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
    """
    needs, has = fp32_bytes(recipe, directory), memory(recipe)
    fits = needs <= ROOM * has or recipe.precision == "fp32"
    bf16 = recipe.weights == "bf16" or (recipe.weights == "auto" and not fits)
    return Held(torch.bfloat16 if bf16 else torch.float32, needs, has)


def fp32_bytes(recipe: Recipe, directory: Path) -> int:
    """What training holds of every weight in fp32: 4 bytes, and 4 of gradient and the optimiser's own if trained."""
    trained = parse_method(recipe.method).parameterise is None
    return parameter_count(directory) * (4 + (4 + named(recipe.optimizer).state if trained else 0))


def parameter_count(directory: Path) -> int:
    """Entries of the tensors in a model directory, by its safetensors' headers; files that cannot be read count 0."""
    count = 0
    for path in directory.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
    return count


def memory(recipe: Recipe) -> int:
    """Bytes that one of the recipe's processes has: its GPU's, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    processes = recipe.processes if isinstance(recipe.processes, int) else 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes
