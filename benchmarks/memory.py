"""Peak memory of runs in bytes per parameter: before training, while training, after it, while the result is measured.

    python benchmarks/memory.py [--only CASE …] [--against CHECKOUT] [--json PATH]

Each case runs through `train()` in a process of its own on SmolLM2-135M-Instruct (134.5 M parameters), on short rows,
so that activations are small beside what is held for every parameter. Full fine-tuning with AdamW cannot be below 16
bytes: weights, gradients and two moments of 4 each. Before training the base model is loaded and measured; after it the
weights are merged and saved. The cases with `bf16` in their name compute in bf16 on a copy of the model saved in bf16;
the others are fp32. `--against` runs another checkout of gentletune beside.

Figures are resident memory above what the process held before it loaded anything. `anonymous` leaves out pages of
mapped files, which the system may drop at any time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

_BF16: dict[str, Any] = {"precision": "bf16", "model": "bf16 copy"}
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "l2": {"method": "l2"},
    "lora": {"method": "lora"},
    "wise_ft": {"method": "wise_ft"},
    "lora-bf16": {"method": "lora", **_BF16},
    "qlora-8bit-bf16": {"method": "lora", "quantization": "8bit", **_BF16},
    "qlora-4bit-bf16": {"method": "lora", "quantization": "4bit", **_BF16},
}
RECIPE: dict[str, Any] = {
    "model": "smollm2-135m", "data": "clinic", "cot": False, "train_rows": 8, "test_rows": 4, "max_steps": 3,
    "batch_size": 1, "learning_rate": 1e-5, "precision": "fp32", "probe_every": 0, "tasks": (), "general_prompts": 4,
    "general_tokens": 8, "domain_tokens": 8, "save_every": 3,
}  # fmt: skip
KINDS = ("VmRSS", "RssAnon")
PHASES = ("before", "training", "merging", "measuring")


class Peaks:
    """The largest resident memory since the last `restart`, looked at every few milliseconds, in bytes by kind.

    `used` and `free` are what glibc's allocator had handed out, and kept, at the peak of all resident memory.
    """

    def __init__(self) -> None:
        self.base = self.peak = self._now() | malloc()
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _now() -> dict[str, int]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return {kind: int(fields[kind].split()[0]) * 1024 for kind in KINDS}

    def _watch(self) -> None:
        while True:
            before, now = self.peak, self._now()
            most = {kind: max(now[kind], before[kind]) for kind in KINDS}
            held = malloc() if now["VmRSS"] > before["VmRSS"] else {key: before[key] for key in ("used", "free")}
            self.peak = most | held
            time.sleep(0.003)

    def restart(self) -> None:
        self.peak = self._now() | malloc()


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                      "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


def malloc() -> dict[str, int]:
    """Bytes that glibc's allocator has handed out (`used`) and keeps for later (`free`), in all arenas."""
    ask = ctypes.CDLL("libc.so.6").mallinfo2
    ask.restype = _Mallinfo
    found = ask()
    return {"used": found.uordblks + found.hblkhd, "free": found.fordblks}


def copy_in_bf16(directory: Path, target: Path) -> None:
    """The model in `directory` as most are published."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(directory).save_pretrained(target)


def parameters(directory: Path) -> int:
    """Entries of all tensors in the files of a model."""
    from safetensors import safe_open

    count = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no iterable
    return count


def child(case: str) -> None:
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    import gentletune
    from gentletune.lm.device import settle_memory
    from gentletune.lm.model_files import resolve_model

    settle_memory()  # as the command line does
    peaks, found = Peaks(), dict[str, Any]()

    class Training(TrainerCallback):
        """Marks where training begins and ends."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["before"] = dict(peaks.peak)
            peaks.restart()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found["training"] = dict(peaks.peak)
            peaks.restart()

    def stage(_name: str) -> None:
        if "training" in found and "measuring" not in found:
            found["merging"], found["measuring"] = dict(peaks.peak), True
            peaks.restart()

    DEFAULT_CALLBACKS.append(Training)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["GENTLETUNE_CACHE"] = os.environ.get("MEMORY_CACHE", scratch)
        changes = CASES[case] | ({"model": os.environ["MEMORY_BF16"]} if "bf16" in case else {})
        recipe = gentletune.Recipe(**{**RECIPE, **changes, "output": f"{scratch}/run"})
        size = parameters(resolve_model(recipe.model))
        record = gentletune.train(recipe, stage=stage)
    assert record.status == "complete", record.error
    answer: dict[str, Any] = {"case": case, "parameters": size}
    for phase, peak in {**{name: found[name] for name in PHASES[:-1]}, "measuring": peaks.peak}.items():
        for kind, name in zip(KINDS, ("resident", "anonymous"), strict=True):
            answer[f"{phase}_{name}"] = (peak[kind] - peaks.base[kind]) / size
    print("@@" + json.dumps(answer), flush=True)


def measured(case: str, checkout: Path | None) -> dict[str, Any]:
    """The figures of one case by this checkout or another, in a process of its own."""
    root = checkout or Path(__file__).resolve().parents[1]
    source = {"PYTHONPATH": str(root / "src")}
    command = [sys.executable, __file__, "--child", case]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | source, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@@")]
    if not lines:
        raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1][2:])
    return answer | {"checkout": "other" if checkout else "this"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of gentletune, measured beside this one")
    parser.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these cases alone")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    import harness

    from gentletune.core.cache import cache_root
    from gentletune.lm.model_files import resolve_model

    os.environ["MEMORY_CACHE"] = str(cache_root())  # the model is fetched once, and base measurements are kept
    rows = []
    print("bytes per parameter, and of them without pages of mapped files")
    print("| case | checkout | " + " | ".join(f"{phase} | anonymous" for phase in PHASES) + " |")
    print("|---" * 10 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        if any("bf16" in case for case in options.only):
            os.environ["MEMORY_BF16"] = f"{scratch}/bf16"
            copy_in_bf16(resolve_model(RECIPE["model"]), Path(scratch) / "bf16")
        for case in options.only:
            for checkout in [options.against.resolve(), None] if options.against else [None]:
                row = measured(case, checkout)
                rows.append(row)
                shown = [f"{row[f'{p}_{k}']:.1f}" for p in PHASES for k in ("resident", "anonymous")]
                print(f"| {case} | {row['checkout']} | " + " | ".join(shown) + " |", flush=True)
    if options.json:
        harness.write_json(options.json, {**harness.machine(), "recipe": RECIPE, "rows": rows})


if __name__ == "__main__":
    main()
