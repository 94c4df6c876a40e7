"""What a step of each method takes beside plain SFT: CPU time, memory, and what comes before and after the steps.

    python benchmarks/methods.py --json benchmarks/results/methods.json
    python benchmarks/methods.py --model smollm2-135m --data helpdesk --rows 8 --steps 8 --methods "talr,lora"

Every method trains the same rows in one process, one method after the other; plain SFT is trained again after every
few, and a method's figures are over those of the nearest. Times are CPU seconds of this process on one thread, so that
other work on the machine counts little. The first two steps are left out: they touch their memory for the first time.
Peak memory is that of the process while it trains, so what the libraries take is in it. Beside it stands what
`gentletune plan` says of a larger model (`--plan-model`); benchmarks/plan.py holds plans against measured peaks.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from harness import give_back, machine, write_json

from gentletune import Recipe, train
from gentletune.cli.common import prepare, split_methods
from gentletune.methods import method_names
from gentletune.runs.plan import plan_recipe
from gentletune.training import throughput
from gentletune.training.callbacks.metrics import read_metrics
from gentletune.training.trainer import METRICS_FILE

WARM = 2  # steps
AGAIN = 8  # methods between two trainings of plain SFT


def measured(recipe: Recipe, method: str) -> dict[str, Any]:
    """One training: median seconds per step, peak memory, and the seconds beside the steps (preparation, saving)."""
    clock = SimpleNamespace(perf_counter=time.process_time)
    with tempfile.TemporaryDirectory() as scratch, patch.object(throughput, "time", clock):
        run, begun = Path(scratch) / "run", time.process_time()
        record = train(recipe.override({"method": method, "output": str(run)}))
        spent = time.process_time() - begun
        if record.status != "complete":
            return {"problem": record.error}
        lines = [line for line in read_metrics(run / METRICS_FILE) if line.get("tokens_per_second")]
    give_back()
    seconds = [line["tokens"] / line["tokens_per_second"] for line in lines]
    return {
        "step_seconds": statistics.median(seconds[WARM:]),
        "steps": seconds,
        "beside_seconds": spent - sum(seconds),
        "peak_gib": record.training["peak_memory_gib"],
        "tokens_a_step": statistics.mean(line["tokens"] for line in lines),
    }


def planned(model: str, method: str) -> int:
    """Bytes of a training by `gentletune plan`, the base weights kept beside it included: 8 rows, 256 tokens, fp32."""
    recipe = Recipe(model=model, data="helpdesk", method=method, max_length=256, precision="fp32")
    memory = plan_recipe(recipe).memory
    return memory.training + memory.reference


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| method | time per step | planned memory | beside the steps, s |", "|---|---|---|---|"]
    for row in found:
        if "problem" in row:
            lines.append(f"| `{row['method']}` | {row['problem']} | | |")
            continue
        figures = f"× {row['time_ratio']:.2f} | × {row['planned_ratio']:.2f} | {row['beside_seconds']:.1f}"
        lines.append(f"| `{row['method']}` | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every method, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--data", default="lab")
    parser.add_argument("--plan-model", default="smollm2-135m")
    parser.add_argument("--methods", default="", help="by comma; all that are registered by default")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=16, help="rows per step")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    prepare()
    torch.set_num_threads(1)
    recipe = Recipe(
        model=given.model, data=given.data, cot=given.data == "lab", train_rows=given.steps * given.rows,
        batch_size=given.rows, max_steps=given.steps, learning_rate=1e-5, precision="fp32", evaluate=False,
        probe_every=0, log_every=1, save_every=10**6,
    )  # fmt: skip
    names = split_methods(given.methods) or [name for name in method_names() if name != "sft"]
    names = [name for name in names if name != "sft"]
    plain = measured(recipe, "sft")
    found = [{"method": "sft", **plain, "time_ratio": 1.0, "memory_ratio": 1.0, "planned_ratio": 1.0}]
    small = planned(given.plan_model, "sft")

    def save() -> None:
        if given.json:
            write_json(given.json, {**machine(), "recipe": recipe.model_dump(mode="json"), "methods": found})

    for start in range(0, len(names), AGAIN):
        rows = [(name, measured(recipe, name)) for name in names[start : start + AGAIN]]
        after = measured(recipe, "sft")
        for place, (name, row) in enumerate(rows):
            nearest = plain if place < len(rows) / 2 else after
            if "problem" not in row:
                row["time_ratio"] = row["step_seconds"] / nearest["step_seconds"]
                row["memory_ratio"] = row["peak_gib"] / nearest["peak_gib"]
                row["planned_ratio"] = planned(given.plan_model, name) / small
            found.append({"method": name, **row})
            print(table(found[-1:]).splitlines()[-1], flush=True)
            save()
        found.append({"method": "sft", **after, "time_ratio": after["step_seconds"] / plain["step_seconds"],
                      "memory_ratio": after["peak_gib"] / plain["peak_gib"], "planned_ratio": 1.0})  # fmt: skip
        plain = after
    print(table(found))
    save()


if __name__ == "__main__":
    main()
