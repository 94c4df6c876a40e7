"""What a study saves: one sweep of six methods at three learning rates against eighteen separate `train` and `evaluate`
commands, each pair with a cache of its own (as on eighteen machines).

    python benchmarks/study_cost.py [--model smollm2-135m] [--max-steps 4] [--rounds 3] [--json PATH]

Every command is a process of its own, starting included. A round runs six of the eighteen separate pairs, one of each
method; with fewer than three their time is scaled up, and the record says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import yaml

from gentletune.core.cache import cache_root
from gentletune.lm.model_files import resolve_model

METHODS = ("sft", "talr", "flow", "l2(weight=0.1)", "lora", "sft+wise_ft(alpha=0.5)")
RATES = (1e-5, 3e-5, 1e-4)


def base_of(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": options.model, "data": "clinic", "train_rows": 32, "max_steps": options.max_steps, "batch_size": 4,
        "test_rows": 16, "domain_tokens": 48, "general_prompts": 24, "general_tokens": 20, "general_rows": 16,
        "task_tokens": 32, "probe_every": 0, "eval_batch_tokens": 4096,
    }  # fmt: skip


def seconds_of(arguments: list[str], cache: Path) -> float:
    """Seconds of one gentletune command with a cache of its own that holds the weights already."""
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "models").exists():
        (cache / "models").symlink_to(cache_root() / "models")
    begun = time.perf_counter()
    command = [sys.executable, "-c", "from gentletune.cli import main; main()", *arguments]
    subprocess.run(
        command, env={**os.environ, "GENTLETUNE_CACHE": str(cache)}, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def separate(options: argparse.Namespace, work: Path) -> float:
    """Seconds of the separate commands, scaled to all eighteen: each round takes every method, at another rate."""
    pairs = [(m, RATES[(i + r) % len(RATES)]) for r in range(options.rounds) for i, m in enumerate(METHODS)]
    total = 0.0
    for number, (method, rate) in enumerate(pairs):
        run, cache = work / f"separate-{number}", work / f"cache-{number}"
        flags = [f for k, v in base_of(options).items() for f in (f"--{k.replace('_', '-')}", str(v))]
        total += seconds_of(["train", *flags, "--method", method, "--lr", str(rate), "--output", str(run)], cache)
        measured = ["evaluate", *flags[2:], "--base", options.model, "--model", str(run / "model")]
        total += seconds_of(measured, cache)
        shutil.rmtree(run)
        print(f"  separate {number + 1}/{len(pairs)}: {method} {rate:g}, {total:.0f} s so far", file=sys.stderr)
    return total * len(METHODS) * len(RATES) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    resolve_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        study = {"base": base_of(options), "axes": {"method": [*METHODS], "learning_rate": [*RATES]}}
        (work / "study.yaml").write_text(yaml.safe_dump({**study, "keep_models": False}))
        sweep = ["sweep", "-c", str(work / "study.yaml"), "--output", str(work / "study")]
        seconds = {"study": seconds_of(sweep, work / "cache-study")}
        print(f"  study: {seconds['study']:.0f} s", file=sys.stderr)
        seconds["separate"] = separate(options, work)
        ratio = seconds["study"] / seconds["separate"]
    print(f"study {seconds['study']:.0f} s, 18 separate pairs {seconds['separate']:.0f} s: {ratio:.2f} x")
    if options.json:
        setting = {**base_of(options), "pairs_run": 6 * options.rounds, "pairs": 18}
        harness.write_json(options.json, {**harness.machine(), "setting": setting, "seconds": seconds, "ratio": ratio})


if __name__ == "__main__":
    main()
