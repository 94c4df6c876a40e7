"""What replay and a KL to base keep on the lab, beside plain SFT at the same rates.

    python benchmarks/replay.py [--seeds 0,1,2] [--json replay.json]

Domain and general accuracy in per cent and KL from base in bits per token, mean ± standard error over the seeds, and
the seconds of a training. About 15 s a run on one core; called again, it goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import harness

from gentletune import sweep
from gentletune.core.records import MEAN, RunRecord

METHODS = ("sft", "replay(share=0.2)", "replay(share=0.2, loss=kl)", "replay(share=0.5, loss=kl)", "kl(weight=0.1)",
           "kl(weight=1)", "kl(weight=1, target=masked)", "asft", "talr+replay(share=0.2)")  # fmt: skip
RATES = (1.5e-3, 6e-3)
BASE: dict[str, Any] = {
    "model": "lab", "data": "lab", "train_rows": 800, "max_steps": 100, "batch_size": 16, "precision": "fp32",
    "test_rows": 200, "domain_tokens": 48, "tasks": ["lab_skills"], "general_rows": 100, "task_tokens": 48,
    "general_prompts": 180, "general_tokens": 48, "probe_every": 0, "log_every": 10, "save_every": 1000,
}  # fmt: skip


def row(records: list[RunRecord]) -> dict[str, Any]:
    """The figures of one method at one rate over its seeds."""

    def over_seeds(values: list[float]) -> list[float]:
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return [round(statistics.mean(values), 5), round(spread, 5)]

    def score(task: str, metric: str) -> list[float]:
        return over_seeds([next(s.value for s in r.scores if (s.task, s.metric) == (task, metric)) for r in records])

    first = records[0]
    return {
        "method": first.label, "rate": first.learning_rate, "seeds": sorted(r.seed for r in records),
        "domain": score("lab", "accuracy"), "general": score(MEAN, "accuracy"),
        "kl": score("kl_sampled", "bits_per_token"), "seconds": over_seeds([r.timings["train"] for r in records]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=";".join(METHODS))
    parser.add_argument("--output", type=Path, default=Path("runs/replay"), help="directory of the runs")
    parser.add_argument("--json", type=Path, default=Path("replay.json"))
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    axes = {"seed": seeds, "learning_rate": list(RATES), "method": options.methods.split(";")}
    records = sweep({"base": BASE, "axes": axes, "keep_models": False}, options.output)
    groups: dict[tuple[str, float], list[RunRecord]] = {}
    for record in records:
        if record.status != "complete":
            raise SystemExit(f"{record.label} at {record.learning_rate}: {record.error}")
        groups.setdefault((record.label, record.learning_rate), []).append(record)
    rows = [row(group) for group in groups.values()]
    options.json.write_text(json.dumps({**harness.machine(), "base": BASE, "rows": rows}, indent=1) + "\n")
    for one in rows:
        domain, general = ("{:.1f}±{:.1f}".format(*(100 * x for x in one[key])) for key in ("domain", "general"))
        kl, seconds = ("{:.3f}±{:.3f}".format(*one[key]) for key in ("kl", "seconds"))
        print(f"| {one['rate']:g} | `{one['method']}` | {domain} | {general} | {kl} | {seconds} |")


if __name__ == "__main__":
    main()
