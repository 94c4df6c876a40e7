"""Time and memory of the token-NLL head, forward and backward: naive cross-entropy against ours.

Each variant runs in a process of its own, so that its peak memory is its own; all use the same inputs, and loss
and gradient norms are printed beside the figures to show that they compute the same thing.

    python benchmarks/head.py [--quick] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from gentletune.losses import batch_tau, talr_weights, token_nll

HIDDEN, VOCAB = 576, 49152  # SmolLM2-135M
VARIANTS = ("naive_ce", "ours_sft", "ours_talr_median")


def loss_of(variant: str, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean loss over tokens; TALR with the exact batch median over 8 sequences of equal length."""
    if variant == "naive_ce":
        return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets)
    nll, _ = token_nll(hidden, weight, targets, backend="chunked")
    if variant == "ours_sft":
        return nll.mean()
    weights = talr_weights(nll, batch_tau(nll.detach().view(8, -1).mean(1)))
    return (weights * nll).mean()


def run_variant(variant: str, tokens: int, repeats: int) -> dict[str, object]:
    """Median and minimum seconds of forward and backward, and the extra peak memory."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN).requires_grad_()
    weight = (torch.randn(VOCAB, HIDDEN) * 0.04).requires_grad_()
    targets = torch.randint(VOCAB, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        hidden.grad = weight.grad = None
        begun = time.perf_counter()
        loss = loss_of(variant, hidden, weight, targets)
        loss.backward()
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "variant": variant, "tokens": tokens, "hidden": HIDDEN, "vocab": VOCAB, "dtype": "float32",
        "seconds_median": statistics.median(seconds[1:]), "seconds_min": min(seconds[1:]),
        "extra_peak_mb": (peak - before) / 1024, "loss": float(loss),
        "grad_norm": float(torch.cat([hidden.grad.flatten(), weight.grad.flatten()]).norm()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, three repeats")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--child", nargs=3, metavar=("VARIANT", "TOKENS", "REPEATS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_variant(options.child[0], int(options.child[1]), int(options.child[2]))))
        return
    sizes, repeats = ((2048,), 3) if options.quick else ((512, 2048, 8192), 7)
    rows = []
    for tokens in sizes:
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--child", variant, str(tokens), str(repeats)]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows.append(row)
            print(
                f"{variant:18} {tokens:6} tokens  {row['seconds_median']:7.3f} s  {row['extra_peak_mb']:8.0f} MB extra"
                f"  loss {row['loss']:.4f}  |grad| {row['grad_norm']:.4f}"
            )
    if options.json:
        machine = {"platform": platform.platform(), "threads": torch.get_num_threads()}
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
