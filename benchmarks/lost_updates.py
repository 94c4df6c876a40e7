"""What small learning rates come to in bf16 weights: how far the weights move, and what share of the updates is lost.

    python benchmarks/lost_updates.py [--seeds 0,1] [--steps 10] [--json PATH] [--figure PATH]

SmolLM2-135M-Instruct learns short helpdesk messages by AdamW (betas 0.9, 0.99, no weight decay, gradients clipped to 1)
at constant rates from 1e-7 to 1e-4, its weights held in three ways:

    fp32    as ever
    bf16    torch.optim.AdamW on bf16 weights
    kahan   optimi.AdamW on bf16 weights, which adds what a weight could not take in to the next update

All start from the same weights, those of the model rounded to bf16, and see the same rows. Recorded are ‖θ-θ⁰‖ of the
weights that the forward pass uses (`moved`), the same with what Kahan summation keeps for later (`kept`), the share of
wanted updates that were lost, step by step (`lost`), and the NLL of the rows before and after, of fp32 copies of the
weights (`before`, `after`). `--long` adds 100 steps at 1e-6 of one seed. A JSON that is there is gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import harness
import optimi
import torch

from gentletune import Recipe, method_loss
from gentletune.data import encode_rows, load_data
from gentletune.data.batches import pad_batch
from gentletune.lm.loaded import Loaded
from gentletune.training.lost_updates import Watch

RATES = (1e-7, 1e-6, 1e-5, 1e-4)
KINDS = ("fp32", "bf16", "kahan")
BETAS, ROWS, LENGTH = (0.9, 0.99), 2, 160  # rows of at most so many tokens a step
TITLES = {"fp32": "fp32", "bf16": "bf16", "kahan": "bf16, Kahan summation"}


def batches(base: Loaded, seed: int, steps: int) -> list[dict[str, Any]]:
    """A batch of short rows for each step; they come round again after 40."""
    rows = encode_rows(load_data(Recipe(data="helpdesk")).train, base.tokenizer, max_length=LENGTH).rows
    random.Random(seed).shuffle(rows)
    made = [pad_batch(rows[i : i + ROWS], base.tokenizer.pad_token_id) for i in range(0, ROWS * min(steps, 40), ROWS)]
    return [made[step % len(made)] for step in range(steps)]


def run(base: Loaded, kind: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training, and what became of its updates."""
    model = base.hand_over().to(torch.bfloat16)
    start = [p.detach().clone() for p in model.parameters()]
    model = model.train() if kind != "fp32" else model.float().train()
    trained = list(model.parameters())
    how: dict[str, Any] = {"lr": rate, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0}
    optimizer: Any = optimi.AdamW(trained, **how) if kind == "kahan" else torch.optim.AdamW(trained, **how)
    rows, watch, lost = batches(base, seed, steps), Watch(trained), []
    before = nll(model, rows)
    for batch in rows:
        method_loss(model, batch, "sft").loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        watch.before(optimizer.state)
        optimizer.step()
        lost.append(watch.lost(optimizer.state))
        optimizer.zero_grad()
    moved = kept = 0.0
    for parameter, first in zip(trained, start, strict=True):
        change = parameter.detach().double() - first.double()
        moved += float(change.square().sum())
        waiting = optimizer.state[parameter].get("kahan_comp")
        kept += float((change if waiting is None else change + waiting.double()).square().sum())
    optimizer.state.clear()
    return {
        "kind": kind, "rate": rate, "seed": seed, "steps": steps, "moved": math.sqrt(moved), "kept": math.sqrt(kept),
        "lost": lost, "before": before, "after": nll(model, rows),
    }  # fmt: skip


@torch.no_grad()
def nll(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean NLL of the first ten batches, nats per token, computed in fp32 whatever the weights are held in."""
    dtype = model.dtype
    model.float()
    found = [method_loss(model, batch, "sft").batch.nll.double() for batch in rows[:10]]
    model.to(dtype)
    return float(torch.cat(found).mean())


def average(rows: list[dict[str, Any]], kind: str, rate: float, steps: int, key: str) -> float | None:
    """The mean over seeds of a figure; of `lost`, over steps as well."""
    mine = [row for row in rows if (row["kind"], row["rate"], row["steps"]) == (kind, rate, steps)]
    values = [sum(row[key]) / len(row[key]) if key == "lost" else row[key] for row in mine]
    return sum(values) / len(values) if values else None


def show(rows: list[dict[str, Any]]) -> None:
    """The rows, averaged over seeds, as a Markdown table."""
    print(
        "| steps | rate | weights | lost | moved | with what is kept | to fp32 | NLL before | after |\n"
        + "|---" * 9
        + "|"
    )
    for steps in sorted({row["steps"] for row in rows}):
        for rate in sorted({row["rate"] for row in rows if row["steps"] == steps}):
            whole = average(rows, "fp32", rate, steps, "moved")
            for kind in KINDS:
                lost, moved, kept, before, after = (
                    average(rows, kind, rate, steps, key) for key in ("lost", "moved", "kept", "before", "after")
                )
                if None not in (lost, moved, kept, before, after):
                    ratio = f"{moved / whole:.2f}, {kept / whole:.2f}" if whole else "–"
                    figures = [f"{lost:.2%}", f"{moved:.3g}", f"{kept:.3g}", ratio, f"{before:.4f}", f"{after:.4f}"]
                    print(f"| {steps} | {rate:g} | {TITLES[kind]} | " + " | ".join(figures) + " |")


def plot(rows: list[dict[str, Any]], steps: int, path: Path) -> None:
    """Movement and lost share over the rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    lines = [("fp32", "moved", "-", "o"), ("bf16", "moved", "--", "s"), ("kahan", "moved", ":", "^")]
    for kind, key, style, marker in [*lines, ("kahan", "kept", "-.", "v")]:
        known = [(rate, average(rows, kind, rate, steps, key)) for rate in RATES]
        shown = [(rate, value) for rate, value in known if value]
        label = TITLES[kind] + (", with what it keeps for later" if key == "kept" else "")
        axes[0].plot(*zip(*shown, strict=True), linestyle=style, marker=marker, label=label)
    for kind, _, style, marker in lines:
        known = [(rate, average(rows, kind, rate, steps, "lost")) for rate in RATES]
        shown = [(rate, 100 * value) for rate, value in known if value is not None]
        axes[1].plot(*zip(*shown, strict=True), linestyle=style, marker=marker, label=TITLES[kind])
    axes[0].set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"‖θ-θ⁰‖ after {steps} steps")
    axes[1].set(xscale="log", xlabel="learning rate", ylabel="updates lost, %", ylim=(-3, 103))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--long", action="store_true", help="also 100 steps at 1e-6 of the first seed")
    parser.add_argument("--json", type=Path, default=Path("lost-updates.json"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    wanted = [(kind, rate, seed, options.steps) for seed in seeds for rate in RATES for kind in KINDS]
    wanted += [(kind, 1e-6, seeds[0], 100) for kind in KINDS] if options.long else []
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    done = {(row["kind"], row["rate"], row["seed"], row["steps"]) for row in rows}
    base = Loaded("smollm2-135m")
    for each in wanted:
        if each not in done:
            rows.append(run(base, *each))
            harness.write_json(options.json, {**harness.machine(), "betas": BETAS, "batch_size": ROWS, "rows": rows})
    show(rows)
    if options.figure:
        plot(rows, options.steps, options.figure)


if __name__ == "__main__":
    main()
