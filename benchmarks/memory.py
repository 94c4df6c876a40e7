"""Peak memory of runs in bytes per parameter: while training, and while the tuned model is measured.

    python benchmarks/memory.py [--against CHECKOUT] [--json PATH]

Each method runs through `train()` in a process of its own on SmolLM2-135M-Instruct (134.5 M parameters, fp32), on short
rows, so that activations are small beside what is held for every parameter. Full fine-tuning with AdamW cannot be
below 16 bytes: weights, gradients and two moments of 4 each. `--against` runs another checkout of gentletune beside.

Figures are resident memory above what the process held before it loaded anything. `anonymous` leaves out pages of
mapped files, which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

METHODS = ("sft", "l2", "lora", "wise_ft")
RECIPE: dict[str, Any] = {
    "model": "smollm2-135m", "data": "clinic", "cot": False, "train_rows": 8, "test_rows": 4, "max_steps": 3,
    "batch_size": 1, "learning_rate": 1e-5, "precision": "fp32", "probe_every": 0, "tasks": (), "general_prompts": 4,
    "general_tokens": 8, "domain_tokens": 8, "save_every": 3,
}  # fmt: skip
KINDS = ("VmRSS", "RssAnon")


class Peaks:
    """The largest resident memory since the last `restart`, looked at every few milliseconds, in bytes by kind."""

    def __init__(self) -> None:
        self.base, self.peak = self._now(), self._now()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _now() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return {kind: int(fields[kind].split()[0]) * 1024 for kind in KINDS}

    def _watch(self) -> None:
        while True:
            now = self._now()
            self.peak = {kind: max(now[kind], self.peak[kind]) for kind in KINDS}
            time.sleep(0.003)

    def restart(self) -> None:
        self.peak = self._now()


def child(method: str) -> None:
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    import gentletune
    from gentletune.lm.loaded import settle_memory

    settle_memory()  # as the command line does
    peaks, found = Peaks(), dict[str, Any]()

    class Training(TrainerCallback):
        """Marks where training begins and ends."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sizes = {name: p.numel() for name, p in kwargs["model"].named_parameters()}
            found["parameters"] = sum(size for name, size in sizes.items() if "lora_" not in name)
            peaks.restart()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["training"] = dict(peaks.peak)

    def stage(_name: str) -> None:
        if "training" in found and "measuring" not in found:
            found["measuring"] = True
            peaks.restart()

    DEFAULT_CALLBACKS.append(Training)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["GENTLETUNE_CACHE"] = os.environ.get("MEMORY_CACHE", scratch)
        record = gentletune.train(gentletune.Recipe(method=method, output=f"{scratch}/run", **RECIPE), stage=stage)
    assert record.status == "complete", record.error
    answer: dict[str, Any] = {"method": method, "parameters": found["parameters"]}
    for phase, peak in (("training", found["training"]), ("measuring", peaks.peak)):
        for kind, name in zip(KINDS, ("resident", "anonymous"), strict=True):
            answer[f"{phase}_{name}"] = (peak[kind] - peaks.base[kind]) / found["parameters"]
    print("@@" + json.dumps(answer), flush=True)


def measured(method: str, checkout: Path | None) -> dict[str, Any]:
    """The figures of one method by this checkout or another, in a process of its own."""
    root = checkout or Path(__file__).resolve().parents[1]
    source = {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, __file__, "--child", method]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | source, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{method} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1][2:])
    return answer | {"checkout": "other" if checkout else "this"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of gentletune, measured beside this one")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    import harness

    from gentletune.core.cache import cache_root

    os.environ["MEMORY_CACHE"] = str(cache_root())  # the model is fetched once, and base measurements are kept
    rows = []
    print("| method | checkout | training, bytes/parameter | anonymous | measuring | anonymous |\n" + "|---" * 6 + "|")
    for method in METHODS:
        for checkout in [options.against.resolve(), None] if options.against else [None]:
            row = measured(method, checkout)
            rows.append(row)
            phases = [f"{row[f'{p}_{k}']:.1f}" for p in ("training", "measuring") for k in ("resident", "anonymous")]
            print(f"| {method} | {row['checkout']} | " + " | ".join(phases) + " |", flush=True)
    if options.json:
        harness.write_json(options.json, {**harness.machine(), "recipe": RECIPE, "rows": rows})


if __name__ == "__main__":
    main()
