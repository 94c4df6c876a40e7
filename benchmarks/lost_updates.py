"""What small learning rates come to in bf16 weights: how far the weights move, and what share of the updates is lost.

    python benchmarks/lost_updates.py [--seeds 0,1] [--only lab] [--json PATH] [--figure PATH --shown lab:200]

The lab's base model learns its domain, and SmolLM2-135M-Instruct short helpdesk messages, by AdamW (betas 0.9, 0.99, no
weight decay, gradients clipped to 1) at constant rates from 1e-7 to 1e-4, the weights held in four ways:

    fp32    as ever
    bf16    torch.optim.AdamW on bf16 weights
    kahan   optimi.AdamW on bf16 weights, which adds what a weight could not take in to the next update
    added   the same, and at the end what is still kept is added to the weights, rounded at random, as `train` does

All start from the same weights, those of the model rounded to bf16, and see the same rows. Recorded are ‖θ-θ⁰‖ of the
weights that the forward pass uses (`moved`), the same with what Kahan summation keeps for later (`kept`), the share of
wanted updates that were lost, step by step (`lost`), and the NLL of the rows before and after, of fp32 copies of the
weights (`before`, `after`). A JSON that is there is gone on with.
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
from gentletune.lab import lab_domain  # noqa: F401 - its import makes the domain `lab` known
from gentletune.lm.loaded import Loaded
from gentletune.methods.rounding import put
from gentletune.training.callbacks.lost_updates import Watch

RATES = (1e-7, 1e-6, 1e-5, 1e-4)
KINDS = ("fp32", "bf16", "kahan", "added")
BETAS = (0.9, 0.99)
# By model: the data, rows a step, and the numbers of steps; rows come round again after 40 steps.
STUDIES: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "lab": ("lab", 8, (10, 200)),
    "smollm2-135m": ("helpdesk", 2, (10,)),
}
TITLES = {"fp32": "fp32", "bf16": "bf16", "kahan": "bf16, Kahan summation", "added": "the same, the rest added"}


def batches(base: Loaded, data: str, size: int, seed: int, steps: int) -> list[dict[str, Any]]:
    """A batch of short rows for each step."""
    rows = encode_rows(load_data(Recipe(data=data)).train, base.tokenizer, max_length=160).rows
    random.Random(seed).shuffle(rows)
    made = [pad_batch(rows[i : i + size], base.tokenizer.pad_token_id) for i in range(0, size * min(steps, 40), size)]
    return [made[step % len(made)] for step in range(steps)]


def run(base: Loaded, kind: str, rate: float, seed: int, steps: int, before: float | None = None) -> dict[str, Any]:
    """One training, and what became of its updates. `before` is the NLL at the start, where it is known."""
    data, size, _ = STUDIES[base.name]
    model = base.hand_over().to(torch.bfloat16)
    start = [p.detach().clone() for p in model.parameters()]
    model = model.train() if kind != "fp32" else model.float().train()
    trained = list(model.parameters())
    how: dict[str, Any] = {"lr": rate, "betas": BETAS, "eps": 1e-8, "weight_decay": 0.0}
    optimizer: Any = optimi.AdamW(trained, **how) if kind in ("kahan", "added") else torch.optim.AdamW(trained, **how)
    rows, watch, lost = batches(base, data, size, seed, steps), Watch(trained), []
    before = nll(model, rows) if before is None else before
    for batch in rows:
        method_loss(model, batch, "sft").loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        watch.before(optimizer.state)
        optimizer.step()
        lost.append(watch.lost(optimizer.state))
        optimizer.zero_grad()
    moved = kept = 0.0
    for parameter, first in zip(trained, start, strict=True):
        waiting = optimizer.state[parameter].get("kahan_comp")
        if kind == "added" and waiting is not None:
            put(parameter, parameter.detach().float() + waiting.float())
            waiting = None
        change = parameter.detach().double() - first.double()
        moved += float(change.square().sum())
        kept += float((change if waiting is None else change + waiting.double()).square().sum())
    optimizer.state.clear()
    return {
        "model": base.name, "kind": kind, "rate": rate, "seed": seed, "steps": steps,
        "moved": math.sqrt(moved), "kept": math.sqrt(kept), "lost": lost, "before": before, "after": nll(model, rows),
    }  # fmt: skip


@torch.no_grad()
def nll(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean NLL of the first ten batches, nats per token, computed in fp32 whatever the weights are held in."""
    dtype = model.dtype
    model.float()
    found = [method_loss(model, batch, "sft").batch.nll.double() for batch in rows[:10]]
    model.to(dtype)
    return float(torch.cat(found).mean())


def average(rows: list[dict[str, Any]], kind: str, rate: float, key: str) -> float | None:
    """The mean over seeds of a figure; of `lost`, over steps as well."""
    mine = [row for row in rows if (row["kind"], row["rate"]) == (kind, rate)]
    values = [sum(row[key]) / len(row[key]) if key == "lost" else row[key] for row in mine]
    return sum(values) / len(values) if values else None


def chosen(rows: list[dict[str, Any]], model: str, steps: int) -> list[dict[str, Any]]:
    """The trainings of one model of one length."""
    return [row for row in rows if (row["model"], row["steps"]) == (model, steps)]


def show(rows: list[dict[str, Any]]) -> None:
    """The rows, averaged over seeds, as Markdown tables."""
    for model, (_, _, lengths) in STUDIES.items():
        for steps in lengths:
            print(f"\n{model}, {steps} steps\n")
            print("| rate | weights | lost | moved | with what is kept | of fp32's | NLL before | after | seeds |")
            print("|---" * 9 + "|")
            mine = chosen(rows, model, steps)
            for rate, kind in [(rate, kind) for rate in RATES for kind in KINDS]:
                found = [average(mine, kind, rate, key) for key in ("lost", "moved", "kept", "before", "after")]
                whole = average(mine, "fp32", rate, "moved") or math.nan
                if None not in found:
                    lost, moved, kept, before, after = map(float, found)
                    ratio = f"{moved / whole:.0%}, {kept / whole:.0%}"
                    figures = [f"{lost:.1%}", f"{moved:.2g}", f"{kept:.2g}", ratio, f"{before:.4f}", f"{after:.4f}"]
                    seeds = len([row for row in mine if (row["kind"], row["rate"]) == (kind, rate)])
                    print(f"| {rate:g} | {TITLES[kind]} | " + " | ".join(figures) + f" | {seeds} |")


def plot(rows: list[dict[str, Any]], model: str, steps: int, path: Path) -> None:
    """Movement and lost share over the rate."""
    rows = chosen(rows, model, steps)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    lines = [("fp32", "moved", "-", "o"), ("bf16", "moved", "--", "s"), ("kahan", "moved", ":", "^")]
    for kind, key, style, marker in [*lines, ("kahan", "kept", "-.", "v")]:
        known = [(rate, average(rows, kind, rate, key)) for rate in RATES]
        shown = [(rate, value) for rate, value in known if value]
        label = TITLES[kind] + (", with what it keeps for later" if key == "kept" else "")
        axes[0].plot(*zip(*shown, strict=True), linestyle=style, marker=marker, label=label)
    for kind, _, style, marker in lines:
        known = [(rate, average(rows, kind, rate, "lost")) for rate in RATES]
        shown = [(rate, 100 * value) for rate, value in known if value is not None]
        axes[1].plot(*zip(*shown, strict=True), linestyle=style, marker=marker, label=TITLES[kind])
    axes[0].set(xscale="log", yscale="log", xlabel="learning rate", ylabel=f"‖θ-θ⁰‖ after {steps} steps")
    axes[1].set(xscale="log", xlabel="learning rate", ylabel="updates lost, %", ylim=(-3, 103))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{model}, {steps} steps")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", choices=STUDIES, help="one of the models")
    parser.add_argument("--json", type=Path, default=Path("lost-updates.json"))
    parser.add_argument("--as-it-is", action="store_true", help="show what the JSON holds, and train nothing")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--shown", default="smollm2-135m:10", help="model and steps of the figure")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    bases = {model: Loaded(model) for model in ([options.only] if options.only else STUDIES)}
    wanted = [
        (model, kind, rate, seed, steps)
        for steps in (10, 200)  # short ones first
        for model in bases
        if steps in STUDIES[model][2]
        for seed in seeds
        for rate in RATES
        for kind in KINDS
    ]
    for model, *each in [] if options.as_it_is else wanted:
        mine = chosen(rows, model, each[3])
        if each not in [[row["kind"], row["rate"], row["seed"], row["steps"]] for row in mine]:
            before = [row["before"] for row in mine if row["seed"] == each[2]]
            rows.append(run(bases[model], *each, *before[:1]))
            found = {**harness.machine(), "betas": BETAS, "studies": STUDIES, "rows": rows}
            harness.write_json(options.json, found)
    show(rows)
    if options.figure:
        model, steps = options.shown.split(":")
        plot(rows, model, int(steps), options.figure)


if __name__ == "__main__":
    main()
