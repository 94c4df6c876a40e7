"""The head over the last position of each prompt in a batch, its states cut out of the prompts' or one piece of memory.

    python benchmarks/cut_states.py [--rounds 3] [--json PATH]

What a model computes first when it generates: `logits_to_keep=1` of transformers cuts, `gentletune.lm.generate` makes
whole. Weights are random, of the heads of SmolLM2-135M and Qwen2.5-1.5B; prompts have 64 tokens. Both sides take turns
in one process, after a warm-up each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from harness import machine, write_json
from torch.nn.functional import linear

HEADS = {"SmolLM2-135M": (49152, 576, 16), "Qwen2.5-1.5B": (151936, 1536, 4)}  # vocabulary, hidden size, prompts
TOKENS = 64


def seconds(states: torch.Tensor, weight: torch.Tensor) -> float:
    begun = time.perf_counter()
    linear(states, weight)
    return time.perf_counter() - begun


@torch.inference_mode()
def measured(vocabulary: int, hidden: int, prompts: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Median seconds of both sides, and their ratio."""
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, hidden).to(dtype)
    cut = torch.randn(prompts, TOKENS, hidden).to(dtype)[:, -1:]
    assert not cut.is_contiguous()
    sides = {"cut": cut, "whole": cut.contiguous()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, states in sides.items():
            spent = seconds(states, weight)
            if number:
                taken[name].append(spent)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return {**medians, "ratio": medians["cut"] / medians["whole"], "prompts": prompts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, sizes in HEADS.items():
        for dtype in (torch.float32, torch.bfloat16):
            found = measured(*sizes, dtype, options.rounds)
            rows.append({"head": name, "dtype": str(dtype).removeprefix("torch."), **found})
            print(f"{name} {rows[-1]['dtype']}: {found['cut']:.3f} s cut, {found['whole']:.4f} s whole", flush=True)
    if options.json:
        write_json(options.json, {**machine(), "tokens": TOKENS, "rows": rows})


if __name__ == "__main__":
    main()
